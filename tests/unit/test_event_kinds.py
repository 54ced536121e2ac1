"""The table of events: complete, used by all verbs, and safe to read with events of a newer version."""

import ast
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import factories
from tuner.core.events import EventKind, known_kind
from tuner.core.records import Event, Json, StopReason
from tuner.core.states import AttemptEvent, TrialEvent
from tuner.reports.events import EVENTS, NotReported, Reported, narrate, sentence

SOURCE = Path(__file__).parents[2] / "tuner"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRANSITIONS = {f"trial.{event}" for event in TrialEvent} | {f"attempt.{event}" for event in AttemptEvent}


def event(kind: str, seq: int = 1, trial: int | None = 3, **details: Json) -> Event:
    at = NOW + timedelta(seconds=seq)
    attempt = None if trial is None else 1
    return factories.event(seq, kind, recorded_at=at, happened_at=at, trial=trial, attempt=attempt, details=details)


def made_by(source: str) -> set[str]:
    """The members of EventKind that a module names, except where it compares with them."""
    tree = ast.parse(source)
    compared = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
    return {
        EventKind[node.attr].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "EventKind"
        and id(node) not in compared
    }


def test_every_kind_has_a_sentence_or_a_reason_for_silence():
    assert set(EVENTS) == set(EventKind)
    for kind, entry in EVENTS.items():
        if isinstance(entry, NotReported):
            assert len(entry.because) > 10, kind


def test_every_kind_is_made_by_some_code():
    rooms = (SOURCE / "core", SOURCE / "engine", SOURCE / "operations")
    makers = [file for room in rooms for file in room.rglob("*.py") if file != SOURCE / "core" / "events.py"]
    made = set().union(*(made_by(file.read_text()) for file in makers))
    proposals = {EventKind.TRIAL_PROPOSE, EventKind.ATTEMPT_SUBMIT}  # first rows of the two machines
    assert set(EventKind) - proposals - made <= TRANSITIONS
    assert proposals <= made
    assert set(EventKind) >= TRANSITIONS


def test_no_other_module_maps_kinds_to_sentences():
    readers = [*(SOURCE / "cli").rglob("*.py"), *(SOURCE / "reports").rglob("*.py"), SOURCE / "api.py"]
    for file in readers:
        if file != SOURCE / "reports" / "events.py":
            assert not made_by(file.read_text()), file


@pytest.mark.parametrize("kind", EventKind)
def test_a_sentence_survives_missing_details(kind):
    """An older version may have recorded fewer of them."""
    said = sentence(event(kind))
    assert (said is None) == isinstance(EVENTS[kind], NotReported)
    assert said is None or said[1]


@pytest.mark.parametrize("kind", [kind for kind, entry in EVENTS.items() if isinstance(entry, Reported)])
def test_the_live_line_is_the_sentence(kind):
    one = event(kind, message="the reason", reason="the reason")
    (line,) = narrate([one])
    assert (line.level, line.text) == sentence(one)
    assert line.at == one.recorded_at


def test_a_kind_of_a_newer_version_is_reported_by_its_name():
    assert known_kind("trial.thawed") is None
    assert sentence(event("trial.thawed")) == ("info", "an event of a newer version of tuner: trial.thawed")


def test_capacity_that_is_taken_from_a_pool_is_one_line():
    taken = [event("attempt.interrupt", seq, trial, status="Interrupted") for seq, trial in ((1, 7), (3, 2), (4, 9))]
    lines = narrate([taken[0], event("trial.succeed", 2, 5), *taken[1:]])
    assert [line.text for line in lines] == [
        "capacity was taken from 3 trials at once (2, 7, 9); their jobs wait for it",
        "trial 5 succeeded",
    ]


def test_an_interruption_that_changes_no_state_is_reported_too():
    (line,) = narrate([event("history", status="Interrupted")])
    assert line.text == "capacity was taken from trial 3; its job waits for it"


def test_jobs_that_stop_for_one_reason_are_one_line():
    stops = [event("stop.wanted", seq, seq, why="cancel") for seq in (1, 2, 4)]
    lines = narrate([*stops[:2], event("stop.wanted", 3, 3, why="prune"), stops[2]])
    assert [line.text for line in lines] == [
        "3 jobs are to stop (trials 1, 2, 4): the study is being cancelled",
        "trial 3: attempt 1 is to stop: the pruner ended the trial",
    ]


@pytest.mark.parametrize("why", StopReason)
def test_every_reason_to_stop_is_explained(why):
    said = sentence(event("stop.wanted", why=why))
    assert said is not None
    assert len(said[1].rpartition(": ")[2].split()) > 2


@pytest.mark.parametrize(
    ("kind", "details", "expected"),
    [
        (
            "stop.wanted",
            {"why": "move", "left": "ml.a spot", "to": "ml.b spot"},
            "trial 3: attempt 1 is to stop: waited too long for ml.a spot; the next attempt asks for ml.b spot",
        ),
        (
            "rerouted",
            {"left": "ml.a spot", "to": "ml.b spot", "why": "its quota is used up"},
            "trial 3: attempt 1 asks for ml.b spot instead of ml.a spot: its quota is used up",
        ),
        (
            "request.refused",
            {"verb": "set", "values": {"budget.usd": "3"}, "who": "ann", "message": "budget.usd: $3 is too low"},
            "refused 'set budget.usd=3' of ann: budget.usd: $3 is too low; nothing was changed",
        ),
        ("request", {"verb": "stop", "values": {"intent": "drain"}, "who": "ann"}, "applied 'stop --drain' of ann"),
        ("request", {"verb": "cancel", "values": {"intent": "cancel"}, "who": "ann"}, "applied 'cancel' of ann"),
        ("resume", {"who": "ann", "once": False}, "ann resumes the study"),
        ("resume", {"who": "cron", "once": True}, "cron runs one cycle of the study"),
        (
            "changes_accepted",
            {"changes": ["trials: 4 -> 5"], "bundle_uri": "s3://b/"},
            "accepted the study file and the code as they are now: trials: 4 -> 5",
        ),
        ("trial.prune", {"reason": "pruned at step 4"}, "trial 3 pruned at step 4"),
        ("trial.prune", {}, "trial 3 pruned"),
        ("trial.back_off", {"reason": "max_run"}, "trial 3 waits for its next attempt: max_run"),
        (
            "trial.back_off",
            {"reason": "move"},
            "trial 3 waits for its next attempt: the trial continues on other capacity",
        ),
        ("copied", {"of": 1, "files": 2}, "trial 3: copied 2 checkpoint files of trial 1"),
        (
            "checkpoint.torn",
            {"step": 9, "used": 8},
            "trial 3: its newest checkpoint (step 9) is incomplete; step 8 is used instead",
        ),
    ],
)
def test_what_a_sentence_says(kind, details, expected):
    said = sentence(event(kind, **details))
    assert said is not None
    assert said[1] == expected


def test_sentences_are_sentences():
    """No control character, no leading blank, no line break of ours."""
    for kind in EventKind:
        said = sentence(event(kind, message="m"))
        text = "" if said is None else str(said[1])
        assert text == text.strip()
        assert set(text) <= set(string.printable) - set("\n\r\t")
