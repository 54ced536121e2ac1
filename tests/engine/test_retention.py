"""What is deleted of trials that have ended, and that nothing else ever is."""

from dataclasses import replace

import pytest
from simulated import script_of
from sweeps import holder

from tuner.core.records import TrialState
from tuner.engine.engine import LEASE_S
from tuner.operations import backend, drive, retention
from tuner.simulator.parts import Script
from tuner.storage.checkpoints import delete_prefix, scan
from tuner.storage.objects import DirectoryObjects
from tuner.store.store import LeaseLost
from tuner.training import Checkpoints

ENDED = ["metrics/001-a-algo-1.jsonl", "runs/001-a-algo-1.json"]


def curve(hyperparameters, _step):
    return float(hyperparameters["lr"])


def swept(make_sweep, tmp_path, keep, **options):
    """Four trials, the second failed, each with three checkpoints, metrics and a record; and neighbours."""
    bad = Script(epochs=5, step_s=60.0, failure="AlgorithmError: ExitCode 1", fails_at=3)
    good = Script(epochs=5, step_s=60.0, curve=curve)
    sweep = make_sweep(
        script=lambda request: bad if "-00001-" in request.name else good,
        changes={"checkpoints": {"keep": keep}},
        **options,
    )
    sweep.run()
    objects = DirectoryObjects(tmp_path / "s3")
    for trial in sweep.trials():
        fill(tmp_path, objects, trial.prefix)
    return sweep, objects


def fill(tmp_path, objects, prefix):
    checkpoints = Checkpoints(tmp_path / "s3" / prefix.removeprefix("s3://"))
    for step in (1, 2, 3):
        with checkpoints.save(step) as folder:
            (folder / "weights").write_bytes(bytes(1000))
    for name in ENDED:
        objects.write(prefix + name, b"x")


def steps(objects, trial):
    return scan(objects, trial.prefix).steps


@pytest.mark.parametrize(
    ("keep", "stays"),  # of the best trial, the failed one, the others
    [
        ("all", [(1, 2, 3), (1, 2, 3), (1, 2, 3)]),
        ("latest", [(3,), (3,), (3,)]),
        ("best", [(3,), (3,), ()]),
        ("none", [(), (), ()]),
    ],
)
def test_what_stays(make_sweep, tmp_path, keep, stays):
    sweep, objects = swept(make_sweep, tmp_path, keep)
    found = retention.survey(sweep.store, sweep.study, objects)
    before = sum(info.size for info in objects.list("s3://tuner-local/"))
    assert found.total_bytes == before
    assert [steps(objects, trial) for trial in sweep.trials()] == [(1, 2, 3)] * 4  # a survey deletes nothing
    retention.collect(found, sweep.study, objects)
    first = max((t for t in sweep.trials() if t.values), key=lambda trial: trial.values).number
    expected = [stays[0 if n == first else 1 if n == 1 else 2] for n in range(4)]
    assert sweep.trials()[1].state is TrialState.FAILED
    assert [steps(objects, trial) for trial in sweep.trials()] == expected
    for trial in sweep.trials():
        left = [info.uri.removeprefix(trial.prefix) for info in objects.list(trial.prefix)]
        assert set(ENDED) <= set(left)
    assert before - sum(info.size for info in objects.list("s3://tuner-local/")) == found.size_bytes
    assert retention.survey(sweep.store, sweep.study, objects).waste == ()


def test_a_torn_newest_step_goes_and_the_newest_complete_one_stays(make_sweep, tmp_path):
    sweep, objects = swept(make_sweep, tmp_path, "latest")
    prefix = sweep.trials()[0].prefix
    objects.delete([f"{prefix}step-00000003/weights"])
    found = retention.survey(sweep.store, sweep.study, objects)
    assert found.waste[0].kept_step == 2
    retention.collect(found, sweep.study, objects)
    assert steps(objects, sweep.trials()[0]) == (2,)


def rewritten(objects, prefix, step=3):
    """What a run leaves if interrupted while it saves a step again: the old manifest, other bytes, equal sizes."""
    objects.write(f"{prefix}step-{step:08d}/weights", bytes([7]) * 1000)


@pytest.mark.parametrize("keep", ["latest", "best"])
def test_what_stays_is_what_a_script_would_resume_from(make_sweep, tmp_path, keep):
    sweep, objects = swept(make_sweep, tmp_path, keep)
    prefix = sweep.trials()[1].prefix  # the failed one: its latest stays in both
    rewritten(objects, prefix)
    retention.sweep(sweep.store, sweep.study, objects, dry_run=False)
    assert steps(objects, sweep.trials()[1]) == (2,)
    assert Checkpoints(tmp_path / "s3" / prefix.removeprefix("s3://")).latest().step == 2


def test_where_no_step_is_whole_nothing_is_deleted(make_sweep, tmp_path):
    sweep, objects = swept(make_sweep, tmp_path, "latest")
    prefix = sweep.trials()[0].prefix
    for step in (1, 2, 3):
        rewritten(objects, prefix, step)
    assert 0 not in {waste.trial for waste in retention.survey(sweep.store, sweep.study, objects).waste}


def test_checkpoints_are_read_only_where_something_would_go(make_sweep, tmp_path):
    """Reading costs time, and money where the store is far away."""
    sweep, objects = swept(make_sweep, tmp_path, "latest")
    retention.sweep(sweep.store, sweep.study, objects, dry_run=False)
    read = []

    class Watched(DirectoryObjects):
        def read(self, uri, *args):
            read.append(uri)
            return super().read(uri, *args)

    assert retention.survey(sweep.store, sweep.study, Watched(tmp_path / "s3")).waste == ()
    assert [uri for uri in read if not uri.endswith("manifest.json")] == []


def test_what_has_no_manifests_stays_whole_where_its_latest_would(make_sweep, tmp_path):
    sweep, objects = swept(make_sweep, tmp_path, "latest")
    prefix = sweep.trials()[0].prefix
    objects.delete([info.uri for info in objects.list(prefix)])
    objects.write(f"{prefix}model-5.pt", b"mine")
    assert 0 not in {waste.trial for waste in retention.survey(sweep.store, sweep.study, objects).waste}


def test_trials_that_have_not_ended_are_not_looked_at(make_sweep, tmp_path):
    sweep = make_sweep(changes={"checkpoints": {"keep": "none"}}, script=script_of(epochs=500, step_s=60.0))
    engine = sweep.engine()
    engine.tick()
    objects = DirectoryObjects(tmp_path / "s3")
    for trial in sweep.trials():
        assert not trial.state.terminal
        fill(tmp_path, objects, trial.prefix)
    assert retention.survey(sweep.store, sweep.study, objects).waste == ()


NEIGHBOURS = [
    "s3://tuner-local/bundles/b/train.py",
    "s3://tuner-local/{key}0/00000/step-00000001/weights",  # a study whose key begins with ours
    "s3://tuner-local/{key}/000000/step-00000001/weights",  # a trial whose number begins with one of ours
    "s3://tuner-local/{key}/outputs/job/output/model.tar.gz",
    "s3://tuner-local/{key}/stray",
    "s3://tuner-local/other-study/00000/step-00000001/weights",
    "s3://other-bucket/{key}/00000/step-00000001/weights",
]


def test_nothing_but_checkpoints_of_own_trials_is_ever_deleted(make_sweep, tmp_path):
    sweep, objects = swept(make_sweep, tmp_path, "none")
    neighbours = [uri.format(key=sweep.study.key) for uri in NEIGHBOURS]
    for uri in neighbours:
        objects.write(uri, b"theirs")
    retention.collect(retention.survey(sweep.store, sweep.study, objects), sweep.study, objects)
    left = {info.uri for bucket in ("tuner-local", "other-bucket") for info in objects.list(f"s3://{bucket}/")}
    assert left == {*neighbours, *(trial.prefix + name for trial in sweep.trials() for name in ENDED)}


@pytest.mark.parametrize(
    "prefix",
    [
        "s3://tuner-local/",
        "s3://tuner-local/{key}/",
        "s3://tuner-local/{key}/../other-study/00000/",
        "s3://tuner-local/{key}/./",
        "s3://tuner-local/{key}//",
        "s3://tuner-local/{key}0/00000/",
        "s3://tuner-local/other-study/00000/",
        "s3://other-bucket/{key}/00000/",
        "s3://other-bucket/",
    ],
)
def test_a_row_that_points_elsewhere_deletes_nothing(make_sweep, tmp_path, prefix):
    """A user who writes to the database can name any prefix."""
    sweep, objects = make_sweep(), DirectoryObjects(tmp_path / "s3")
    for uri in NEIGHBOURS:
        objects.write(uri.format(key=sweep.study.key), b"theirs")
    prefix = prefix.format(key=sweep.study.key)
    waste = retention.Waste(trial=0, state=TrialState.FAILED, prefix=prefix, kept_step=None, objects=1, size_bytes=1)
    with pytest.raises(ValueError, match=r"nothing was deleted|not a prefix"):
        retention.collect(retention.Survey(keep="none", waste=(waste,), total_bytes=1), sweep.study, objects)
    left = [info.uri for bucket in ("tuner-local", "other-bucket") for info in objects.list(f"s3://{bucket}/")]
    assert len(left) == len(NEIGHBOURS)


def test_a_survey_finds_no_trial_whose_row_points_elsewhere(make_sweep, tmp_path):
    sweep, objects = swept(make_sweep, tmp_path, "none")
    stolen = "s3://tuner-local/other-study/00000/"
    fill(tmp_path, objects, stolen)
    trials = sweep.trials()
    sweep.store.trials = lambda _study, **_: [replace(trials[0], prefix=stolen)]
    assert retention.survey(sweep.store, sweep.study, objects).waste == ()


def test_who_loses_the_lease_deletes_nothing_more(make_sweep, tmp_path):
    """The next engine may have been told to keep more, or may be copying for `--retry-failed`."""
    sweep, objects = swept(make_sweep, tmp_path, "none")
    before = {info.uri for info in objects.list("s3://tuner-local/")}
    here = backend.LocalBackend(tmp_path, "us-east-1", "sweep")
    study = sweep.store.study_by_id(sweep.study.id)
    lease = acquired(sweep, 50)
    acquired(sweep, 51)
    with pytest.raises(LeaseLost):
        drive._apply_retention(study, lease, sweep.store, Quiet(), sweep.clock, here)
    assert {info.uri for info in objects.list("s3://tuner-local/")} == before

    class TakenOver(DirectoryObjects):
        def delete(self, uris):
            super().delete(uris)
            acquired(sweep, 53)

    class Taken(backend.LocalBackend):
        def objects(self):
            return TakenOver(self.directory / "s3")

    taken = Taken(tmp_path, "us-east-1", "sweep")
    with pytest.raises(LeaseLost):
        drive._apply_retention(study, acquired(sweep, 52), sweep.store, Quiet(), sweep.clock, taken)
    assert [steps(objects, trial) for trial in sweep.trials()] == [(), (1, 2, 3), (1, 2, 3), (1, 2, 3)]


def acquired(sweep, number):
    return sweep.store.acquire(
        sweep.study.id, holder(number), now=sweep.clock.now(), period_s=LEASE_S, gone=lambda _: True
    )


class Quiet:
    def event(self, line):
        pass


def test_hashing_renews_the_lease(make_sweep, tmp_path):
    """A large checkpoint takes longer to read than a lease lasts."""
    sweep, objects = swept(make_sweep, tmp_path, "latest")
    renewed = []
    retention.survey(sweep.store, sweep.study, objects, renew=lambda: renewed.append(1))
    assert len(renewed) == 4  # a block for each trial


def test_names_that_stay(tmp_path):
    objects = DirectoryObjects(tmp_path / "s3")
    for name in ("a/x", "b/x"):
        objects.write(f"s3://bucket/study/1/{name}", b"")
    removed = delete_prefix(
        objects, "s3://bucket/study/1/", study_root="s3://bucket/study/", stays=lambda name: name.startswith("a/")
    )
    assert removed == 1
    assert [info.uri for info in objects.list("s3://bucket/")] == ["s3://bucket/study/1/a/x"]


@pytest.mark.parametrize(
    ("keep", "stays"),  # of the best trial, the failed one, the others
    [("all", (1, 1, 1)), ("latest", (1, 1, 1)), ("best", (1, 1, 0)), ("none", (1, 1, 0))],
)
def test_which_outputs_stay(make_sweep, tmp_path, keep, stays):
    sweep, objects = swept(make_sweep, tmp_path, keep)
    root = retention.study_root(sweep.study)
    models = {}
    for attempt in sweep.attempts():
        models[attempt.trial] = f"{root}outputs/{attempt.job_name}/output/model.tar.gz"
        objects.write(models[attempt.trial], bytes(500))
    strangers = [f"{root}outputs/somebody-00000-001/output/model.tar.gz", f"{root}outputs.txt"]
    for uri in strangers:
        objects.write(uri, b"x")
    found = retention.sweep(sweep.store, sweep.study, objects, dry_run=False)
    best = sweep.store.best(sweep.study.id, maximize=True)[0].number
    left = {info.uri for info in objects.list(root)}
    for number, uri in models.items():
        expected = stays[0] if number == best else stays[1] if number == 1 else stays[2]
        assert (uri in left) == bool(expected), number
    assert {*strangers} <= left
    others = [waste for waste in found.waste if waste.outputs]
    assert len(others) == (0 if stays[2] else 2)
    assert all(waste.size_bytes > 500 for waste in others)
    assert retention.sweep(sweep.store, sweep.study, objects, dry_run=False).waste == ()
