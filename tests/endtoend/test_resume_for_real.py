"""Real processes: what `resume` repeats, what a study starts from, what nobody asked for, and what is kept."""

from dataclasses import replace
from pathlib import Path

import yaml
from conftest import SCRIPT

from tuner import workload
from tuner.spec import from_json
from tuner.store import Store
from tuner.worlds import job_service

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


def make_stray(desk):
    """A job under the study's names that is in no row: somebody restored an old database, say."""
    store = Store.open(f"sqlite:///{desk.folder / 'tuner.db'}")
    try:
        study = store.study("small")
        spec = from_json(study.spec)
        jobs = job_service(study, spec)
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
