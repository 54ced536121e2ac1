"""Real processes: the command line, the local service, real scripts, and SIGKILL."""

import json
import random
import signal
import time

import pytest

PATIENCE_S = 240  # the limit of a wait for a process; only a fault reaches it


def all_is_well(desk, trials=6):
    """The study is finished, and store, job service and bill agree."""
    status = desk.json("status", "small")
    assert status["state"] == "finished"
    assert status["trials"]["succeeded"] == status["trials"]["total"] == trials
    assert status["restarted_from_zero"] == 0
    checked = desk.run("status", "small", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    audit = desk.run("audit", "small")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    return status


def test_a_sweep_whose_pool_is_taken_away_twice(desk):
    desk.write_gated(allowed=2, epochs=8)
    engine = desk.start("launch", "study.yaml")
    for step, allowed in ((2, 4), (4, 8)):
        desk.wait_until(lambda step=step: desk.saved(step, trials=3), f"three trials are at step {step}")
        runs = desk.run_count()
        desk.take_capacity(down_s=0.5)
        desk.wait_until(lambda runs=runs: desk.run_count() == runs + 3, "all three run again")
        desk.allow(allowed)
    _, err = engine.communicate(timeout=PATIENCE_S)
    assert engine.returncode == 0, err
    status = all_is_well(desk)
    assert status["interruptions"] == 6
    assert status["resumed_runs"] == 6
    assert err.count("resumed from step 2") == err.count("resumed from step 4") == 3
    # every trial's every step, once, as arithmetic says
    for row in desk.json("trials", "small"):
        expected = 1.0
        for _ in range(8):
            expected *= 1 - row["params"]["lr"]
        assert row["value"] == expected
        assert row["step"] == 8


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts thirty programs one after the other; every wait has a limit of its own
def test_the_engine_killed_at_twenty_random_moments(desk):
    """Random in measures of how long an engine takes to come up here; the gate keeps the sweep from ending before."""
    market = {"interruptions": {"at": ["3s", "6s"], "down": "1s"}}
    desk.write_gated(allowed=1, epochs=8, local=market, trials=12, parallel=4)
    chance = random.Random(20260101)
    began = time.monotonic()
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.has_study, "the study is recorded")
    up_s = min(time.monotonic() - began, 4.0)
    for kill in range(20):
        time.sleep(up_s * chance.uniform(0.0, 1.6))
        engine.kill()
        engine.communicate()
        desk.allow(1 + kill // 4)
        engine = desk.start("resume", "small")
    desk.allow(8)
    _, err = engine.communicate(timeout=PATIENCE_S)
    assert engine.returncode == 0, err
    all_is_well(desk, trials=12)
    jobs = [job["name"] for row in desk.json("trials", "small") for job in row["jobs"]]
    assert len(jobs) == len(set(jobs)) == len(desk.job_names())
    [file] = (desk.state_dir / "markets").iterdir()
    assert json.loads(file.read_text())["at_s"] == [3, 6]


def test_a_second_engine_is_refused_and_named(desk):
    desk.write_gated(allowed=1, epochs=2, trials=3)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.job_names, "a job runs")
    second = desk.run("resume", "small")
    assert second.returncode == 3
    assert len(second.stderr.strip().splitlines()) == 1
    assert f"pid {engine.pid}" in second.stderr
    again = desk.run("launch", "study.yaml")
    assert again.returncode == 2
    assert "tuner resume small" in again.stderr
    desk.allow(2)
    engine.communicate(timeout=PATIENCE_S)
    assert engine.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_jobs_running_and_says_how_to_go_on(desk, number, code):
    desk.write_gated(allowed=1, epochs=3, trials=2)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.job_names, "a job runs")
    engine.send_signal(number)
    _, err = engine.communicate(timeout=PATIENCE_S)
    assert engine.returncode == code, err
    assert "tuner resume small" in err
    assert "tuner cancel small" in err
    assert any(job["status"] == "InProgress" for job in desk.json("local", "jobs"))
    checked = desk.run("status", "small", "--check")
    assert checked.returncode == 1
    assert "no engine is alive" in checked.stdout + checked.stderr
    desk.allow(3)
    assert desk.run("resume", "small").returncode == 0
    all_is_well(desk, trials=2)


def test_stop_and_resume_from_another_process(desk):
    epochs = 60
    desk.write_gated(allowed=2, epochs=epochs, trials=2)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(lambda: desk.saved(2, trials=2), "two steps are saved")
    stop = desk.start("stop", "small")
    desk.wait_until(lambda: desk.has("tuner_requests"), "the request is recorded")
    for step in range(3, epochs):  # the stop waits for a checkpoint that is newer than the request
        if stop.poll() is not None:
            break
        desk.allow(step)
        desk.wait_until(lambda step=step: desk.saved(step, trials=2) or stop.poll() is not None, f"step {step}")
        time.sleep(1.0)
    _, err = stop.communicate(timeout=PATIENCE_S)
    assert stop.returncode == 0, err
    engine.communicate(timeout=PATIENCE_S)
    assert engine.returncode == 3
    assert desk.json("status", "small")["state"] == "stopped"
    assert all(job["status"] != "InProgress" for job in desk.json("local", "jobs"))
    changed = desk.run("set", "small", "trials=3", "parallel=3")
    assert changed.returncode == 0, changed.stderr
    desk.allow(epochs)
    resumed = desk.run("resume", "small")
    assert resumed.returncode == 0, resumed.stderr
    status = all_is_well(desk, trials=3)
    assert status["resumed_runs"] == 2


def test_cancel_without_an_engine(desk):
    desk.write_gated(allowed=1, epochs=8)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.job_names, "a job runs")
    engine.kill()
    engine.communicate()
    cancelled = desk.run("cancel", "small")
    assert cancelled.returncode == 0, cancelled.stderr
    status = desk.json("status", "small")
    assert status["state"] == "cancelled"
    assert status["trials"]["running"] == status["trials"]["backing_off"] == 0
    assert all(job["status"] != "InProgress" for job in desk.json("local", "jobs"))
    assert desk.run("audit", "small").returncode == 0
    assert desk.run("resume", "small").returncode == 2


def test_one_cycle_at_a_time(desk):
    desk.write_study(trials=3, training={"hyperparameters": {"epochs": 2, "step-s": 0.05}})
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.has_study, "the study is recorded")
    engine.kill()
    engine.communicate()
    for _ in range(60):
        done = desk.run("resume", "--all", "--once")
        if desk.json("status", "small")["state"] == "finished":
            break
        assert done.returncode == 3, done.stderr
        time.sleep(0.3)
    all_is_well(desk, trials=3)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status", "nothing"), 2),
        (("launch", "absent.yaml"), 2),
        (("resume", "nothing"), 2),
        (("status", "--store", "sqlite:////proc/nowhere/tuner.db"), 4),
        (("status", "--store", "no url"), 4),
        (("plan", "study.yaml"), 2),
    ],
)
def test_refusals_are_one_line_and_no_traceback(desk, words, code):
    done = desk.run(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_an_edited_source_tree_reaches_no_recorded_trial(desk):
    """Jobs run the bundle, never the working tree."""
    desk.write_gated(allowed=1, epochs=2, trials=3, parallel=1)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.job_names, "a job runs")
    (desk.folder / "train.py").write_text("raise SystemExit('edited')\n")
    desk.allow(2)
    engine.communicate(timeout=PATIENCE_S)
    assert engine.returncode == 0
    all_is_well(desk, trials=3)
