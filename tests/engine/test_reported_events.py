"""Events as people meet them: on the live display, in `show` and in `status`."""

import sqlite3
from dataclasses import replace

import pytest

from tuner.core.errors import Exit, UserError
from tuner.core.records import StudyState
from tuner.operations import change
from tuner.reports import views
from tuner.reports.narrate import DisplayListener
from tuner.store.check import check


def ask(sweep, verb, values):
    sweep.store.add_request(sweep.study.id, verb, values, "me", sweep.clock.now())


class Lines:
    """A display that remembers its event lines."""

    def __init__(self):
        self.lines = []

    def tick(self, view):
        """Nothing to remember."""

    def event(self, line):
        self.lines.append((line.level, line.text))


def test_a_refused_request_is_reported_live_and_by_show_and_status(make_sweep):
    sweep = make_sweep(changes={"budget": {"usd": 20}})
    engine, display = sweep.engine(), Lines()
    engine._services = replace(engine._services, listener=DisplayListener(display, sweep.store))
    engine.tick()
    ask(sweep, "set", {"budget.usd": "2"})
    engine.tick()
    study = sweep.store.study_by_id(sweep.study.id)
    (refused,) = [event for event in sweep.store.events(study.id) if event.kind == "request.refused"]
    text = f"refused 'set budget.usd=2' of me: {refused.details['message']}; nothing was changed"
    assert ("warn", text) in display.lines
    shown = views.show_view(sweep.store, study, 0)
    assert [event["text"] for event in shown["events"] if event["kind"] == "request.refused"] == [text]
    status = views.status_view(sweep.store, study, sweep.clock.now())
    assert status["warnings"] == [text]
    assert status["last_refused_request"] == {
        "verb": "set",
        "values": {"budget.usd": "2"},
        "who": "me",
        "message": refused.details["message"],
        "at": views.iso(refused.recorded_at),
        "text": text,
    }
    ask(sweep, "set", {"budget.usd": "19"})
    engine.tick()
    study = sweep.store.study_by_id(study.id)
    status = views.status_view(sweep.store, study, sweep.clock.now())
    assert (status["warnings"], status["last_refused_request"]) == ([], None)


def test_a_kind_of_a_newer_version_takes_no_verb_down(make_sweep):
    """Its engine wrote one event that this version does not know, and was then taken back."""
    sweep = make_sweep(changes={"trials": 2})
    engine = sweep.engine()
    engine.tick()
    engine.tick()
    url, seq = sweep.store.url, sweep.store.last_seq(sweep.study.id)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE tuner_events SET kind = 'trial.thawed' WHERE kind = 'trial.submit'")
    assert "trial.thawed" in sweep.kinds()
    study = sweep.store.study_by_id(sweep.study.id)
    texts = [event["text"] for event in views.show_view(sweep.store, study, 0)["events"]]
    assert "an event of a newer version of tuner: trial.thawed" in texts
    assert views.status_view(sweep.store, study, sweep.clock.now())["state"] == "running"
    assert any("trial.thawed" in line for line in check(sweep.store, study.id)), "a finding, and no failure"
    assert sweep.run() is StudyState.FINISHED
    assert sweep.store.last_seq(study.id) > seq


def test_a_set_that_is_refused_without_an_engine_says_so(make_sweep):
    """It fitted the study that the verb read; the study was cancelled before the verb had the lease."""
    sweep = make_sweep()
    add_request, database = sweep.store.add_request, sweep.store.url.removeprefix("sqlite:///")

    def add_late(*asked):
        with sqlite3.connect(database) as other:
            other.execute("UPDATE tuner_studies SET state = 'cancelled'")
        return add_request(*asked)

    sweep.store.add_request = add_late
    with pytest.raises(UserError, match=r"refused 'set trials=9' of .*: .* is cancelled already; nothing") as refused:
        change.request_set("sweep", sweep.store, ["trials=9"], clock=sweep.clock)
    assert refused.value.exit_code == Exit.USAGE
    assert sweep.kinds() == ["request.refused"]
    assert sweep.store.pending_requests(sweep.study.id) == []
