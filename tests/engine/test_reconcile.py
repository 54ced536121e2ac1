"""What `resume` settles first: the study file, the code, failed trials, and jobs that nobody asked for."""

from dataclasses import replace
from datetime import timedelta
from unittest.mock import Mock

import pytest
import yaml
from checkers import broken, view_is_the_rows
from simulated import script_of
from sweeps import Sweep, holder, merged
from test_sweeps import foreign_request

from tuner.core.errors import UserError
from tuner.core.jobs import job_name
from tuner.core.prices import RateCard
from tuner.core.records import Intent, StudyState, TrialState
from tuner.engine.engine import LEASE_S
from tuner.operations import backend
from tuner.operations.reconcile import Reconciler, Resumption
from tuner.reports import audit
from tuner.search.recorded import choose_earlier, earlier_rows
from tuner.simulator.parts import Script
from tuner.spec.study_file import SpecError, spec_of
from tuner.storage.objects import DirectoryObjects, StorageUnavailable
from tuner.store.store import LeaseHeld, LeaseLost, StudyNotFound

ME = Resumption("me")
RETRY = Resumption("me", retry_failed=True)
BAD = Script(epochs=5, step_s=60.0, failure="AlgorithmError: ExitCode 1", fails_at=3)


class Told:
    """A display that remembers."""

    def __init__(self):
        self.lines = []

    def event(self, line):
        self.lines.append((line.level, str(line.text)))

    def said(self, text):
        return [line for _, line in self.lines if text in line]


class StoredHere(backend.Backends):
    """Every study is local, and its objects are in this store."""

    def __init__(self, objects):
        self._objects = objects

    def make(self, _spec, _local_dir):
        made = backend.LocalBackend(self._objects._root.parent, "us-east-1", "sweep")
        return Mock(wraps=made, objects=lambda: self._objects)


@pytest.fixture
def objects(tmp_path):
    """The object store of the studies of this test."""
    return DirectoryObjects(tmp_path / "s3")


def take_up(sweep, wish=ME, objects=None):
    """As `resume` does; the objects of a sweep are where the fixture `objects` has them, unless given."""
    told, backends = Told(), StoredHere(objects or DirectoryObjects(sweep.folder.parent / "s3"))
    sweep.engines += 1
    lease = sweep.store.acquire(
        sweep.study.id, holder(sweep.engines), now=sweep.clock.now(), period_s=LEASE_S, gone=lambda _: True
    )
    study = sweep.store.study_by_id(sweep.study.id)
    told.study = Reconciler(sweep.store, lease, told, sweep.clock, backends).take_up(study, wish)
    return told


def edit(sweep, **changes):
    """Edit the study file as a user would: whole sections."""
    file = sweep.folder / "study.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


# --- failed trials


def failing(make_sweep, which=("00001",), **options):
    """Trials whose job names hold one of these numbers fail, unless they repeat another."""
    sweep = make_sweep(
        script=lambda request: BAD if request.name.split("-")[-2] in which else Script(epochs=5, step_s=60.0), **options
    )
    assert sweep.run() is StudyState.FINISHED
    return sweep


def test_a_failed_trial_is_repeated_outside_the_total_from_a_copy_of_its_checkpoints(make_sweep, objects):
    sweep = failing(make_sweep)
    old = sweep.trials()[1]
    for name in (
        "step-00000002/state",
        "step-00000002/manifest.json",
        "own.bin",
        "metrics/001-a-b.jsonl",
        "runs/x.json",
    ):
        objects.write(old.prefix + name, name.encode())
    objects.write(old.prefix + "step-3.sagemaker-uploading", b"")
    told = take_up(sweep, RETRY)
    assert told.said("trial 4 repeats failed trial 1")
    new = sweep.trials()[4]
    assert (new.state, new.params, new.retry_of) == (TrialState.PROPOSED, old.params, 1)
    copied = [info.uri.removeprefix(new.prefix) for info in objects.list(new.prefix)]
    assert copied == ["own.bin", "step-00000002/manifest.json", "step-00000002/state"]
    engine = sweep.engine()
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert [trial.state for trial in sweep.trials()].count(TrialState.SUCCEEDED) == 4
    assert len(sweep.trials()) == 5
    assert view_is_the_rows(sweep, engine) == []
    assert broken(sweep) == []


def test_each_failed_trial_is_repeated_once_and_a_repetition_that_fails_may_be_repeated(make_sweep, objects):
    sweep = failing(make_sweep, which=("00001", "00004"))
    take_up(sweep, RETRY)
    told = take_up(sweep, RETRY)
    assert told.said("no failed trial is left")
    sweep.run()
    assert [trial.state for trial in sweep.trials()].count(TrialState.FAILED) == 2
    take_up(sweep, RETRY)
    sweep.run()
    assert [trial.retry_of for trial in sweep.trials()] == [None, None, None, None, 1, 4]
    assert sweep.trials()[5].state is TrialState.SUCCEEDED
    assert broken(sweep) == []


def test_a_study_with_repeated_trials_still_proposes_its_whole_total(make_sweep, objects):
    sweep = failing(make_sweep)
    take_up(sweep, RETRY)
    study = sweep.store.study_by_id(sweep.study.id)
    sweep.store.add_request(study.id, "set", {"trials": "6"}, "me", sweep.clock.now())
    sweep.run()
    assert sum(trial.retry_of is None for trial in sweep.trials()) == 6
    assert [trial.number for trial in sweep.trials()] == list(range(7))


def test_a_copy_that_was_cut_off_is_made_again_before_any_job(make_sweep, objects, tmp_path):
    sweep = failing(make_sweep)
    old = sweep.trials()[1]
    for step in (1, 2):
        objects.write(f"{old.prefix}step-0000000{step}/state", b"x")

    def fill_up():
        raise StorageUnavailable("no space left")

    with pytest.raises(StorageUnavailable):
        take_up(sweep, RETRY, Counting(tmp_path / "s3", after=fill_up))
    take_up(sweep)  # without asking for it again
    new = sweep.trials()[4]
    assert len(list(objects.list(new.prefix))) == 2
    assert len(sweep.trials()) == 5


class Counting(DirectoryObjects):
    """Keeps the target of every copy; `after` happens after each."""

    def __init__(self, root, after=lambda: None):
        super().__init__(root)
        self.copied, self._after = [], after

    def copy(self, source, target):
        super().copy(source, target)
        self.copied.append(target)
        self._after()


def test_a_copy_that_was_done_is_not_made_again(make_sweep, objects, tmp_path):
    """Under cron a trial may wait for its job, through many resumes."""
    sweep = failing(make_sweep)
    old = sweep.trials()[1]
    for step in (1, 2):
        objects.write(f"{old.prefix}step-0000000{step}/state", b"x")
    counting = Counting(tmp_path / "s3")
    take_up(sweep, RETRY, counting)
    assert len(counting.copied) == 2
    for _ in range(3):
        take_up(sweep, RETRY, counting)
    assert len(counting.copied) == 2
    assert sweep.kinds(4) == ["trial.propose", "retry", "copied"]
    sweep.run()
    assert sweep.trials()[4].state is TrialState.SUCCEEDED
    assert broken(sweep) == []


def test_who_loses_the_lease_copies_nothing_more(make_sweep, objects, tmp_path):
    """The next engine's jobs may already write to the prefixes of the copies."""
    sweep = failing(make_sweep)
    old = sweep.trials()[1]
    for step in (1, 2, 3):
        objects.write(f"{old.prefix}step-0000000{step}/state", b"x")

    def take_over():
        sweep.store.acquire(sweep.study.id, holder(99), now=sweep.clock.now(), period_s=60, gone=lambda _: True)

    counting = Counting(tmp_path / "s3", after=take_over)
    with pytest.raises(LeaseLost):
        take_up(sweep, RETRY, counting)
    assert len(counting.copied) == 1
    assert "copied" not in sweep.kinds(4)


def test_a_lease_lasts_through_copies_that_take_longer_than_it(make_sweep, objects, tmp_path):
    sweep = failing(make_sweep)
    old = sweep.trials()[1]
    for step in (1, 2, 3):
        objects.write(f"{old.prefix}step-0000000{step}/state", b"x")
    refused = []

    def minutes_later():
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=2 * LEASE_S))
        with pytest.raises(LeaseHeld) as held:
            sweep.store.acquire(sweep.study.id, holder(99), now=sweep.clock.now(), period_s=60, gone=lambda _: False)
        refused.append(held)

    take_up(sweep, RETRY, Counting(tmp_path / "s3", after=minutes_later))
    assert len(refused) == 3


# --- the study file


def test_an_unchanged_study_is_taken_up_in_silence_but_for_its_code(make_sweep, objects):
    sweep = make_sweep()
    bundle_uri = backend.upload_bundle(sweep.spec, objects)
    study = sweep.store.study_by_id(sweep.study.id)
    lease = sweep.store.acquire(study.id, holder(9), now=sweep.clock.now(), period_s=60, gone=lambda _: True)
    told = Told()
    recorded = replace(study, bundle_uri=bundle_uri)
    Reconciler(sweep.store, lease, told, sweep.clock, StoredHere(objects))._compare_code(recorded, sweep.spec)
    assert told.lines == []
    (sweep.folder / "train.py").write_text("edited")
    Reconciler(sweep.store, lease, told, sweep.clock, StoredHere(objects))._compare_code(recorded, sweep.spec)
    ((level, text),) = told.lines
    assert level == "info"
    assert "the source tree has changed since: the recorded bundle is used" in text


def test_code_whose_bundle_is_gone_is_not_said_to_be_edited(make_sweep, objects):
    told = take_up(make_sweep())
    assert told.said(
        "cannot be compared with the source tree: no bundle lies at s3://tuner-local/bundles/b/; it is used"
    )


def test_harmless_changes_are_told_and_change_nothing(make_sweep, objects):
    sweep = make_sweep()
    edit(sweep, trials=9, description="more words")
    told = take_up(sweep)
    assert told.said("study.yaml: trials: 4 -> 9 (may differ")
    assert told.said("description")
    assert told.study.spec == sweep.study.spec


def test_changes_that_need_to_be_accepted_are_refused_then_taken(make_sweep, objects):
    sweep = make_sweep()
    space = {
        "lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "width": {"type": "int", "low": 8, "high": 64},
    }
    edit(sweep, space=space)
    before = sweep.store.last_seq(sweep.study.id)
    with pytest.raises(UserError, match=r"space.lr.low; undo this, .* --accept-changes") as refused:
        take_up(sweep)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
    assert sweep.store.last_seq(sweep.study.id) == before
    told = take_up(sweep, Resumption("me", accept_changes=True))
    assert told.said("space.lr.low: 0.0001 -> 0.001 (needs --accept-changes")
    sweep.run()
    assert all(trial.params["lr"] >= 1e-3 for trial in sweep.trials())


ACCEPT = Resumption("me", accept_changes=True)


def of_training(sweep, **changes):
    """The section of a study file, with these changes."""
    return merged(yaml.safe_load((sweep.folder / "study.yaml").read_text())["training"], changes)


def test_a_trial_keeps_what_it_was_begun_with(make_sweep, objects):
    """Half a trial with one batch size and half with another has a value of no kind."""
    begun = {"hyperparameters": {"batch": 32}, "environment": {"MODE": "old"}, "inputs": {"train": "s3://data/old/"}}
    changed = {"hyperparameters": {"batch": 64}, "environment": {"MODE": "new"}, "inputs": {"train": "s3://data/new/"}}
    sweep = make_sweep(
        changes={"training": {**begun, "max_wait": "1h", "image_uri": "old/image:1"}},
        script=script_of(epochs=40, step_s=60.0),
        outages=[(1200.0, 7200.0)],  # longer than max_wait: the trials need another job
    )
    engine = sweep.engine()
    engine.tick()
    edit(sweep, training=of_training(sweep, **changed, image_uri="new/image:2"))
    told = take_up(sweep, ACCEPT)
    assert told.said("training.hyperparameters.batch: 32 -> 64 (needs --accept-changes, and is for new trials only)")
    assert told.said("unfinished trials keep the settings they began with: 0, 1")
    sweep.run()
    for attempt in sweep.attempts():
        asked = sweep.cloud.jobs[attempt.job_name].request
        kept = attempt.trial in (0, 1)
        assert asked.hyperparameters["batch"] == ("32" if kept else "64"), attempt.job_name
        assert asked.environment["MODE"] == ("old" if kept else "new")
        assert asked.image_uri == ("old/image:1" if kept else "new/image:2")
        assert asked.channels[0].uri == ("s3://data/old/" if kept else "s3://data/new/")
    assert [trial.attempts > 1 for trial in sweep.trials()][:2] == [True, True]
    assert "foreign" not in sweep.kinds()
    assert "differs" not in sweep.kinds()
    assert broken(sweep) == []


def test_a_trial_keeps_what_it_was_begun_with_through_a_second_acceptance(make_sweep, objects):
    sweep = make_sweep(
        changes={"training": {"hyperparameters": {"batch": 32}}}, script=script_of(epochs=50, step_s=60.0)
    )
    sweep.engine().tick()
    for batch in (64, 128):
        edit(sweep, training=of_training(sweep, hyperparameters={"batch": batch}))
        take_up(sweep, ACCEPT)
    sweep.run()
    batches = [sweep.cloud.jobs[each.job_name].request.hyperparameters["batch"] for each in sweep.attempts()]
    assert batches == ["32", "32", "128", "128"]


def test_limits_and_places_are_for_all_jobs_from_then_on(make_sweep, objects):
    sweep = make_sweep(script=script_of(epochs=50, step_s=60.0))
    sweep.engine().tick()
    edit(sweep, training=of_training(sweep, max_run="2h"))
    told = take_up(sweep, ACCEPT)
    assert told.said("training.max_run: 1h -> 2h (needs --accept-changes, and is for all jobs from then on)")
    assert not told.said("unfinished trials keep")


def set_live(sweep, **values):
    sweep.store.add_request(sweep.study.id, "set", values, "me", sweep.clock.now())
    sweep.engine().tick()


def test_what_was_set_live_stays_unless_the_file_changed_it_too(make_sweep, objects):
    sweep = make_sweep(changes={"trials": 6, "budget": {"usd": 60}}, script=script_of(epochs=50, step_s=60.0))
    sweep.engine().tick()
    set_live(sweep, **{"trials": "4", "budget.usd": "50"})
    told = take_up(sweep)
    assert told.said("trials was set to 4, and stays so")
    assert not told.said("trials: 4 -> 6")
    edit(sweep, description="other words")
    for _ in range(2):
        spec = spec_of(take_up(sweep, ACCEPT).study)
        assert (spec.trials, spec.budget.usd, spec.description) == (4, 50, "other words")
    edit(sweep, trials=5)
    told = take_up(sweep, ACCEPT)
    assert told.said("study.yaml: trials: 4 -> 5")
    assert (spec_of(told.study).trials, spec_of(told.study).budget.usd) == (5, 50)
    edit(sweep, trials=6)
    assert spec_of(take_up(sweep, ACCEPT).study).trials == 6


def test_a_limit_that_was_taken_away_live_stays_away(make_sweep, objects):
    sweep = make_sweep(changes={"budget": {"usd": 60, "deadline": "9h"}}, script=script_of(epochs=50, step_s=60.0))
    set_live(sweep, **{"budget.deadline": "null"})
    edit(sweep, description="other words")
    assert spec_of(take_up(sweep, ACCEPT).study).budget.deadline_s is None


def test_a_budget_below_what_is_spent_and_reserved_is_not_accepted(make_sweep, objects):
    sweep = make_sweep(changes={"budget": {"usd": 60}}, script=script_of(epochs=50, step_s=60.0))
    sweep.engine().tick()
    edit(sweep, budget={"usd": 2})
    before = sweep.store.last_seq(sweep.study.id)
    with pytest.raises(UserError, match=r"budget.usd: \$2.00 in .* is below the \$[0-9.]+ that study sweep") as refused:
        take_up(sweep, ACCEPT)
    assert refused.value.exit_code == 2
    assert sweep.store.last_seq(sweep.study.id) == before
    edit(sweep, budget={"usd": 20})
    assert spec_of(take_up(sweep, ACCEPT).study).budget.usd == 20


@pytest.mark.parametrize("accept", [False, True])
def test_what_can_never_change_is_refused(make_sweep, accept):
    sweep = make_sweep()
    edit(sweep, objective={"metric": "val_loss", "direction": "minimize"}, trials=9)
    before = sweep.store.study_by_id(sweep.study.id)
    with pytest.raises(UserError, match=r"no longer fits study sweep: .*objective"):
        take_up(sweep, Resumption("me", accept_changes=accept))
    assert sweep.store.study_by_id(sweep.study.id).spec == before.spec


def test_a_study_whose_files_are_gone_goes_on(make_sweep):
    sweep = make_sweep()
    (sweep.folder / "train.py").unlink()
    (sweep.folder / "study.yaml").unlink()
    told = take_up(sweep)
    assert told.said("is gone: the recorded one is used")
    assert told.study.intent is Intent.RUN


# --- jobs that nobody asked for


def orphans(sweep):
    study = sweep.store.study_by_id(sweep.study.id)
    return audit.orphans(study, sweep.spec, sweep.store, sweep.cloud)


def test_jobs_that_nobody_asked_for_are_reported_with_their_rate_and_what_ends_them(make_sweep):
    sweep = make_sweep(script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    engine.tick()
    assert orphans(sweep) == []
    stray = f"{sweep.study.key}-00099-001"
    sweep.cloud.create(foreign_request(engine, stray))
    sweep.cloud.create(foreign_request(engine, "another-00000-001"))
    (orphan,) = orphans(sweep)
    assert orphan.job == stray
    assert "no attempt asked for it, and it costs up to $1.4" in str(orphan.text)
    assert "tuner audit sweep --stop-orphans" in str(orphan.text)
    whole = audit.audit(sweep.store.study_by_id(sweep.study.id), sweep.spec, sweep.store, sweep.cloud)
    assert [line for line in map(str, whole.lines) if stray in line and str(orphan.text) in line]
    sweep.cloud.stop(orphan.job)
    sweep.clock.wait(sweep.clock.now().replace(hour=2))
    assert orphans(sweep) == []
    engine.tick()
    whole = audit.audit(sweep.store.study_by_id(sweep.study.id), sweep.spec, sweep.store, sweep.cloud)
    assert whole.ok, "what has ended is told, and fails no check for ever"
    assert [row.note for row in whole.rows if row.job == stray] == [
        "no attempt of ours asked for it; it has ended, and costs nothing more"
    ]


def test_jobs_of_a_study_that_is_named_as_our_key_are_none_of_ours(make_sweep):
    """`--stop-orphans` would stop them: they are healthy."""
    sweep = make_sweep(script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    theirs = job_name(f"{sweep.study.key}-bcdfgh", 0, 1)
    sweep.cloud.create(foreign_request(engine, theirs))
    assert orphans(sweep) == []
    whole = audit.audit(sweep.store.study_by_id(sweep.study.id), sweep.spec, sweep.store, sweep.cloud)
    assert theirs not in {row.job for row in whole.rows}


def test_an_orphan_costs_the_rate_of_the_type_that_it_runs_on(make_sweep):
    types = ["ml.m5.xlarge", "ml.g5.xlarge"]
    sweep = make_sweep(changes={"training": {"instance_types": types}}, script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    stray = replace(foreign_request(engine, job_name(sweep.study.key, 99, 1)), instance_type=types[1], instance_count=2)
    sweep.cloud.create(stray)
    dear = RateCard({}).rate(types[1], "us-east-1").usd_per_hour
    (orphan,) = orphans(sweep)
    assert f"up to ${dear * 2}/h" in str(orphan.text)
    describe = sweep.cloud.describe
    sweep.cloud.describe = lambda name: replace(describe(name), asked=None)
    (orphan,) = orphans(sweep)
    assert f"up to ${dear}/h" in str(orphan.text), "the service does not say: the dearest that is listed"


def test_a_job_with_our_name_and_another_digest_is_an_orphan(make_sweep):
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    sweep.cloud.create(foreign_request(engine, f"{sweep.study.key}-00000-001"))
    for _ in range(3):
        engine.tick()
    (orphan,) = orphans(sweep)
    assert "not the job that trial 0 asked for" in str(orphan.text)


# --- warm start


class Taught(Sweep):
    """A study that starts from an earlier one of the same database, as `launch` records it."""

    def _new_study(self):
        study = super()._new_study()
        return replace(study, attrs=choose_earlier(self.store, self.spec, backend.make_proposer(self.spec)))


def taught(first, folder, **search):
    changes = {"name": "second", "search": {"warm_start": ["sweep"], "sampler": {"name": "TPESampler", **search}}}
    return Taught(folder, changes=changes, url=first.store.url, seed=7)


def test_a_study_starts_from_the_finished_trials_of_an_earlier_one(make_sweep, tmp_path):
    first = failing(make_sweep, changes={"trials": 6})
    second = taught(first, tmp_path / "second", seed=3)
    engine = second.engine()
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert [trial.number for trial in second.trials()] == [0, 1, 2, 3]
    assert len(engine.live.proposer.study.trials) == 5 + 4
    assert second.store.summary(second.study.id).trials[TrialState.SUCCEEDED] == 4
    assert view_is_the_rows(second, engine) == []
    assert broken(second) == []
    second.store.close()


def test_what_an_earlier_study_does_later_changes_nothing(make_sweep, tmp_path):
    """The numbers of our trials in the view are fixed at launch."""
    first = failing(make_sweep)
    second = taught(first, tmp_path / "second", seed=3)
    study = second.store.study_by_id(second.study.id)
    before = [row.params for row in earlier_rows(second.store, study)]
    first.store.add_request(first.study.id, "set", {"trials": "7"}, "me", first.clock.now())
    first.run()
    assert len(first.trials()) == 7
    assert [row.params for row in earlier_rows(second.store, study)] == before
    second.store.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"metric": "loss", "direction": "minimize"}}, "another objective"),
        ({"space": {"width": {"type": "float"}}}, "parameter width"),
        ({"search": {"warm_start": ["swep"]}}, "no study 'swep'"),
    ],
)
def test_an_earlier_study_that_does_not_fit_is_refused(make_sweep, changes, said):
    first = make_sweep(changes={"trials": 1})
    first.run()
    other = make_sweep(changes=merged({"name": "other", "search": {"warm_start": ["sweep"]}}, changes))
    with pytest.raises((SpecError, StudyNotFound), match=said):
        choose_earlier(first.store, other.spec, backend.make_proposer(other.spec))


def test_an_earlier_study_without_a_finished_trial_is_refused(make_sweep):
    first = make_sweep()
    spec = make_sweep(changes={"name": "other", "search": {"warm_start": ["sweep"]}}).spec
    with pytest.raises(SpecError, match="no finished trial"):
        choose_earlier(first.store, spec, backend.make_proposer(spec))
