"""Real processes: what `resume` repeats, what a study starts from, what nobody asked for, and what is kept."""

import shutil
from dataclasses import replace
from pathlib import Path

import yaml

from tests.endtoend.conftest import SCRIPT, Desk
from tuner.operations.backend import BACKENDS
from tuner.spec import workload
from tuner.spec.study_file import spec_of
from tuner.store.store import Store

QUICK = {"trials": 3, "training": {"hyperparameters": {"epochs": 4, "step-s": 0.05}}}


def test_failed_trials_are_repeated_from_their_checkpoints(desk):
    desk.write_study(**QUICK)
    broken = SCRIPT.replace(
        "    time.sleep(args.step_s)\n",
        "    time.sleep(args.step_s)\n    if epoch == 3 and args.lr > 0.2:\n        raise SystemExit('too wild')\n",
    )
    assert broken != SCRIPT
    (desk.folder / "train.py").write_text(broken)
    done = desk.run("launch", "study.yaml")
    failed = [row for row in desk.json("trials", "small") if row["state"] == "failed"]
    assert failed, done.stderr
    (desk.folder / "train.py").write_text(SCRIPT)
    again = desk.run("resume", "small", "--retry-failed", "--accept-changes")
    assert again.returncode == 0, again.stderr
    rows = desk.json("trials", "small")
    repeated = {row["retry_of"]: row for row in rows if row["retry_of"] is not None}
    assert repeated.keys() == {row["number"] for row in failed}
    for old in failed:
        new = repeated[old["number"]]
        assert (new["state"], new["params"]) == ("succeeded", old["params"])
        assert new["runs"][0]["resumed_from_step"] == 2
        loss = 1.0
        for _ in range(4):
            loss *= 1 - old["params"]["lr"]
        assert new["value"] == loss
    assert len(rows) == 3 + len(failed)
    assert desk.run("status", "small", "--check").returncode == 0
    assert desk.run("audit", "small").returncode == 0


def test_a_second_study_starts_from_the_first_and_keeps_the_best_only(desk):
    desk.write_study(**QUICK)
    assert desk.run("launch", "study.yaml").returncode == 0
    assert "nothing to delete, checkpoints.keep is all" in desk.run("gc", "small", "--dry-run").stdout
    study = yaml.safe_load((desk.folder / "study.yaml").read_text())
    study |= {"name": "taught", "checkpoints": {"keep": "best"}}
    study["search"] = {"sampler": {"name": "TPESampler", "seed": 3}, "warm_start": ["small"]}
    (desk.folder / "taught.yaml").write_text(yaml.safe_dump(study))
    done = desk.run("launch", "taught.yaml")
    assert done.returncode == 0, done.stderr
    assert "checkpoints.keep is best: deleted" in done.stderr
    best = desk.json("status", "taught")["best"]["number"]
    assert desk.json("status", "taught")["trials"]["succeeded"] == 3
    for row in desk.json("trials", "taught"):
        folder = Path(desk.folder, ".tuner", "s3", row["checkpoint_prefix"].removeprefix("s3://"))
        assert sorted(path.name for path in folder.glob("step-*")) == (
            ["step-00000004"] if row["number"] == best else []
        )
        assert list(folder.glob("metrics/*.jsonl"))
    assert desk.json("gc", "taught", "--dry-run")["trials"] == []
    assert all(len(row["runs"]) == 1 for row in desk.json("trials", "small"))


def test_a_job_that_nobody_asked_for_is_told_and_ended_by_the_command_that_was_told(desk):
    desk.write_study(trials=1, parallel=1)
    assert desk.run("launch", "study.yaml").returncode == 0
    stray = make_stray(desk)
    again = desk.run("resume", "small")
    assert again.returncode == 0
    assert f"job {stray}: ORPHAN: no attempt asked for it, and it costs up to $" in again.stderr
    assert "tuner audit small --stop-orphans ends it" in again.stderr
    assert desk.run("audit", "small").returncode == 1
    stopped = desk.run("audit", "small", "--stop-orphans")
    assert f"stopping {stray}" in stopped.stderr
    desk.wait_until(
        lambda: {job["name"]: job["status"] for job in desk.json("local", "jobs")}[stray] == "Stopped", "it has ended"
    )
    assert "ORPHAN" not in desk.run("resume", "small").stderr
    assert desk.run("audit", "small").returncode == 0


def test_a_study_that_was_moved_goes_on_where_its_state_directory_is(desk, tmp_path_factory):
    """As on another machine: the store and the state directory are copied, nothing else."""
    desk.write_gated(allowed=2, epochs=4, trials=3, parallel=2)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(lambda: desk.saved(2, trials=2), "two steps are saved")
    engine.kill()
    engine.communicate()
    desk.kill_everything()
    there = MovedDesk(tmp_path_factory.mktemp("there"))
    shutil.move(desk.state_dir, there.state_dir)
    for file in desk.folder.glob("tuner.db*"):
        shutil.move(file, there.folder)
    for file in ("study.yaml", "train.py"):
        (desk.folder / file).unlink()
    desk.allow(4)
    lost = Desk(there.folder).run("resume", "small")
    assert lost.returncode == 4
    assert f"the state directory {desk.state_dir} is not there" in lost.stderr
    assert "TUNER_LOCAL=DIR tuner resume" in lost.stderr
    done = there.run("resume", "small")
    assert done.returncode == 0, done.stderr
    assert f"{there.state_dir} has the study's jobs" in done.stderr
    rows = there.json("trials", "small")
    assert [row["state"] for row in rows] == ["succeeded"] * 3
    assert [row["runs"][-1]["resumed_from_step"] for row in rows] == [2, 2, None]
    for words in (("audit", "small"), ("status", "small", "--check")):  # from now on without being told
        checked = Desk(there.folder).run(*words)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not desk.state_dir.exists()


class MovedDesk(Desk):
    @property
    def state_dir(self):
        return self.folder / "state of old"

    @property
    def environment(self):
        return {**super().environment, "TUNER_LOCAL": str(self.state_dir)}


def make_stray(desk):
    """A job under the study's names that is in no row: somebody restored an old database, say."""
    store = Store.open(f"sqlite:///{desk.folder / 'tuner.db'}")
    try:
        study = store.study("small")
        spec = spec_of(study)
        jobs = BACKENDS.of(study).jobs()
        attempt = store.attempts(study.id)[0]
        request = stray_request(store, study, spec, attempt)
        jobs.create(request)
    finally:
        store.close()
    return request.name


def stray_request(store, study, spec, attempt):
    trial = store.trials(study.id)[0]
    request = workload.job_request(spec, study, trial, attempt)
    slow = {**request.hyperparameters, "epochs": "9999", "step-s": "1"}
    return replace(
        request,
        name=f"{study.key}-00077-001",
        hyperparameters=slow,
        checkpoint_uri=f"{workload.root(spec)}{study.key}/00077/",
    )
