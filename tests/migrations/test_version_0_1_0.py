"""A store that version 0.1.0 left in the middle of its sweeps is opened, read, resumed and finished.

`fixtures/version_0_1_0/make.py` says how it came about and what is in it.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from checkers import broken, terminal
from sweeps import START, Sweep, holder

from tests.factories import job_request
from tuner.cli import main as cli
from tuner.core.clock import VirtualClock
from tuner.core.jobs import Channel, JobRequest, MetricDefinition
from tuner.core.records import BEGUN_WITH, HALTED, SET_LIVE, AttemptState, StudyState, TrialState
from tuner.engine.engine import LEASE_S
from tuner.operations.backend import Backends, LocalBackend
from tuner.operations.reconcile import Reconciler, Resumption
from tuner.reports import audit
from tuner.simulator.cloud import SimulatedCloud
from tuner.simulator.parts import Script
from tuner.spec import workload
from tuner.spec.study_file import StudySpec, changes, load, spec_of
from tuner.store.store import Store

pytestmark = pytest.mark.slow

FIXTURE = Path(__file__).parent / "fixtures" / "version_0_1_0"
HOME = "/home/ann/sweeps"
CLOUDS = json.loads((FIXTURE / "clouds.json").read_text(encoding="utf-8"))
STUDIES = tuple(CLOUDS)
# A trial that had ended when other settings were accepted: what it began with is not kept.
ENDED_BEFORE_THE_CHANGE = {("mixed", 0)}
FOREIGN_JOB = "foreign-7687a6-00002-001"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the store, the study files and the state directory with the bundles are now."""
    shutil.copytree(FIXTURE / "studies", tmp_path, dirs_exist_ok=True)
    text = (FIXTURE / "store.sql").read_text(encoding="utf-8").replace(HOME, str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "tuner.db")) as database:
        database.executescript(text)
        uris = {uri for (uri,) in database.execute("SELECT bundle_uri FROM tuner_studies")}
    _put_bundles(tmp_path, uris)
    monkeypatch.setenv("MY_KEY", "a secret that the study named cloud refers to")
    monkeypatch.setenv("TUNER_STORE", f"sqlite:///{tmp_path}/tuner.db")
    return tmp_path


@pytest.fixture
def store(home: Path):
    with closing(Store.open(f"sqlite:///{home}/tuner.db")) as store:
        yield store


def _put_bundles(home: Path, uris: set[str]) -> None:
    """The tuner's part of each bundle of then."""
    ours = json.loads((FIXTURE / "bundle.json").read_text(encoding="utf-8"))
    for uri in uris:
        folder = home / ".tuner" / "s3" / uri.removeprefix("s3://")
        for name, text in ours.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


class AllInOneFolder(Backends):
    """The objects of the study on AWS lie where the local ones do."""

    def make(self, spec: StudySpec, _local_dir: Path | None) -> LocalBackend:
        assert spec.file is not None
        return LocalBackend(spec.file.parents[1] / ".tuner", spec.region, spec.name)


class Heard:
    """A display that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, line) -> None:
        self.lines.append(line.text)


def request_of(recorded: dict[str, Any]) -> JobRequest:
    """A request as version 0.1.0 sent it."""
    tuples = {key: tuple(recorded[key]) for key in ("entrypoint", "security_groups", "subnets")}
    channels = tuple(Channel(**{**each, "attributes": tuple(each["attributes"])}) for each in recorded["channels"])
    metrics = tuple(MetricDefinition(**each) for each in recorded["metrics"])
    return job_request(**{**recorded, **tuples, "channels": channels, "metrics": metrics})


class Left(Sweep):
    """A sweep as version 0.1.0 left it: its rows, and its cloud made again from the calls that it was sent."""

    def __init__(self, store: Store, name: str) -> None:
        made = CLOUDS[name]
        self.scripts = made["scripts"]
        self.clock = VirtualClock(START)
        self.cloud = SimulatedCloud(
            self.clock,
            made["seed"],
            scripts=self.script_of,
            outages=[tuple(each) for each in made.get("outages", ())],
            pools={kind: [tuple(each) for each in outages] for kind, outages in made.get("pools", {}).items()},
        )
        for call in made["calls"]:
            self.come_to(call["at_s"])
            if call["call"] == "create":
                self.cloud.create(request_of(call["request"]))
            else:
                self.cloud.stop(call["name"])
        self.come_to(made["now_s"])
        self.store, self.study = store, store.study(name)
        self.spec = spec_of(self.study)
        self.engines = 1000
        self.crash_point = lambda _point: None

    def come_to(self, at_s: float) -> None:
        self.clock.jump(START + timedelta(seconds=at_s) - self.clock.now())
        self.cloud.advance(self.clock.now())

    def script_of(self, request: JobRequest) -> Script:
        return Script(**self.scripts.get(str(int(request.name.split("-")[-2])), self.scripts["all"]))

    def resume(self) -> Heard:
        """What `tuner resume` settles before an engine goes on."""
        heard, now = Heard(), self.clock.now()
        lease = self.store.acquire(self.study.id, holder(999), now=now, period_s=LEASE_S, gone=lambda _: True)
        reconciler = Reconciler(self.store, lease, heard, self.clock, AllInOneFolder())
        reconciler.take_up(self.store.study(self.study.name), Resumption("me"))
        self.spec = spec_of(self.store.study(self.study.name))
        return heard


def test_it_holds_everything_that_a_sweep_may_be_in_the_middle_of(store: Store) -> None:
    studies = {study.name: study for study in store.studies()}
    attempts = {name: store.attempts(study.id) for name, study in studies.items()}
    trials = {name: store.trials(study.id) for name, study in studies.items()}
    assert tuple(studies) == STUDIES
    assert {attempt.state for each in attempts.values() for attempt in each} == set(AttemptState)
    assert [attempt.state for attempt in attempts["asked"]] == [AttemptState.SUBMITTING] * 3
    assert len(sent_to("asked")) == 2
    assert TrialState.BACKING_OFF in {trial.state for trial in trials["mixed"]}
    assert len({trial.bundle_uri for trial in trials["mixed"]} | {studies["mixed"].bundle_uri}) == 2
    assert [BEGUN_WITH in trial.attrs for trial in trials["mixed"]] == [False, True, True, True, True, True]
    assert set(studies["mixed"].attrs[SET_LIVE]) == {"trials", "parallel"}
    asked = {name: [each.verb for each in store.pending_requests(study.id)] for name, study in studies.items()}
    asked = {name: verbs for name, verbs in asked.items() if verbs}
    assert asked == {"mixed": ["set"], "interrupted": ["stop"], "cancelled": ["cancel"]}
    assert HALTED in studies["halted"].attrs
    assert studies["cloud"].warnings
    assert "foreign" in {event.kind for event in store.events(studies["foreign"].id)}
    assert studies["warm"].attrs


def test_each_verb_that_reads_works(home: Path, capsys) -> None:
    for name in STUDIES:
        verbs = (("status", name), ("trials", name), ("show", name, "0"), ("best", name), ("compare", name))
        for words in verbs:
            for form in ((), ("--json",)):
                assert cli.main([*words, *form]) == 0, (words, capsys.readouterr())
                assert capsys.readouterr().out.strip(), words
    assert cli.main(["status"]) == 0
    assert cli.main(["compare", *STUDIES[1:]]) == 0


def test_its_check_finds_nothing_but_that_no_engine_is_at_work(home: Path, store: Store, capsys) -> None:
    for study in store.studies():
        code = cli.main(["status", "--check", "--json", study.name])
        problems = json.loads(capsys.readouterr().out)["problems"]
        assert [line for line in problems if "engine" not in line] == [], study.name
        assert (code, len(problems)) == ((1, 1) if study.state.active else (0, 0)), study.name


def test_each_job_has_the_digest_that_it_was_sent_with(store: Store) -> None:
    """Else a job that runs would be taken for somebody else's."""
    for study in store.studies():
        spec, trials = spec_of(study), {trial.number: trial for trial in store.trials(study.id)}
        attempts = store.attempts(study.id)
        assert attempts, study.name
        for attempt in attempts:
            if (study.name, attempt.trial) not in ENDED_BEFORE_THE_CHANGE:
                assert workload.job_digest(spec, trials[attempt.trial]) == attempt.digest, attempt.job_name


def test_each_job_would_be_asked_for_as_it_was(store: Store) -> None:
    seen = 0
    for study in store.studies():
        spec, trials = spec_of(study), {trial.number: trial for trial in store.trials(study.id)}
        attempts = {attempt.job_name: attempt for attempt in store.attempts(study.id)}
        for job in sent_to(study.name):
            attempt = attempts[job["name"]]
            if job["name"] == FOREIGN_JOB or (study.name, attempt.trial) in ENDED_BEFORE_THE_CHANGE:
                continue
            asked = workload.job_request(spec, study, trials[attempt.trial], attempt)
            assert json.loads(json.dumps(asdict(asked))) == job
            seen += 1
    assert seen > len(STUDIES)


def sent_to(name: str) -> list[dict[str, Any]]:
    """The requests that the cloud of a study accepted."""
    return [call["request"] for call in CLOUDS[name]["calls"] if call["call"] == "create"]


def test_an_unchanged_study_file_is_the_recorded_one(store: Store) -> None:
    """Only what was set while the study ran differs."""
    for study in store.studies():
        recorded = spec_of(study)
        found = changes(recorded, load(recorded.file, recorded.overrides))
        assert {change.key for change in found} == set(study.attrs.get(SET_LIVE, {})), study.name


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_resumed_without_a_difference_and_finished(store: Store, name: str) -> None:
    sweep = Left(store, name)
    jobs = set(sweep.cloud.jobs)
    foreign = sweep.kinds().count("foreign")
    heard = sweep.resume()
    assert [line for line in heard.lines if " -> " in line or "accept" in line or "source tree" in line] == []
    ended = StudyState.CANCELLED if name == "cancelled" else StudyState.FINISHED
    assert sweep.run() is ended
    assert terminal(sweep)
    assert [line for line in broken(sweep) if FOREIGN_JOB not in line] == []
    assert sweep.kinds().count("foreign") == foreign, "no job of ours is taken for somebody else's"
    assert jobs <= {attempt.job_name for attempt in sweep.attempts()}
    assert audit.audit(store.study(name), sweep.spec, store, sweep.cloud).ok
