"""Real processes: the command line, the local service, real scripts, and SIGKILL."""

import random
import signal
import time

import pytest

# long enough to be caught in the middle on a slow machine
LONG = {"trials": 2, "training": {"hyperparameters": {"epochs": 15, "step-s": 1.0}}}
MARKET = {"interruptions": {"at": ["3s", "6s"], "down": "1s"}}


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
    desk.write_study(local=MARKET)
    done = desk.run("launch", "study.yaml")
    assert done.returncode == 0, done.stderr
    status = all_is_well(desk)
    assert status["interruptions"] >= 2  # how many of the three ran at that moment is the machine's affair
    assert status["resumed_runs"] >= 1
    assert "resumed from step" in done.stderr
    # every trial's every step, once, as arithmetic says
    for row in desk.json("trials", "small"):
        expected = 1.0
        for _ in range(8):
            expected *= 1 - row["params"]["lr"]
        assert row["value"] == expected
        assert row["step"] == 8


@pytest.mark.slow
def test_the_engine_killed_at_twenty_random_moments(desk):
    desk.write_study(local=MARKET, trials=16, parallel=4)
    chance = random.Random(20260101)
    engine = desk.start("launch", "study.yaml")
    kills = 0
    while kills < 20:
        time.sleep(chance.uniform(0.3, 2.5))
        if engine.poll() is not None:
            break
        engine.send_signal(signal.SIGKILL)
        engine.communicate()
        kills += 1
        verb = ("resume", "small") if desk.has_study() else ("launch", "study.yaml")
        engine = desk.start(*verb)
    _, err = engine.communicate(timeout=200)
    assert engine.returncode == 0, err
    assert kills >= 5, "the sweep was over before it was killed"
    all_is_well(desk, trials=16)
    jobs = [job["name"] for row in desk.json("trials", "small") for job in row["jobs"]]
    assert len(jobs) == len(set(jobs)) == len(desk.json("local", "jobs"))


def test_a_second_engine_is_refused_and_named(desk):
    desk.write_study()
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(desk.has_study, "the study is recorded")
    second = desk.run("resume", "small")
    assert second.returncode == 3
    assert len(second.stderr.strip().splitlines()) == 1
    assert f"pid {engine.pid}" in second.stderr
    again = desk.run("launch", "study.yaml")
    assert again.returncode == 2
    assert "tuner resume small" in again.stderr
    engine.communicate(timeout=60)
    assert engine.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_jobs_running_and_says_how_to_go_on(desk, number, code):
    desk.write_study(**LONG)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(lambda: desk.has_study() and desk.json("local", "jobs"), "a job runs")
    engine.send_signal(number)
    _, err = engine.communicate(timeout=30)
    assert engine.returncode == code, err
    assert "tuner resume small" in err
    assert "tuner cancel small" in err
    assert any(job["status"] == "InProgress" for job in desk.json("local", "jobs"))
    checked = desk.run("status", "small", "--check")
    assert checked.returncode == 1
    assert "no engine is alive" in checked.stdout + checked.stderr
    assert desk.run("resume", "small").returncode == 0
    all_is_well(desk, trials=2)


def test_stop_and_resume_from_another_process(desk):
    desk.write_study(**LONG)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(lambda: desk.has_study() and any(r["step"] for r in desk.json("trials", "small")), "a step")
    stopped = desk.run("stop", "small")
    assert stopped.returncode == 0, stopped.stderr
    engine.communicate(timeout=60)
    assert engine.returncode == 3
    assert desk.json("status", "small")["state"] == "stopped"
    assert all(job["status"] != "InProgress" for job in desk.json("local", "jobs"))
    changed = desk.run("set", "small", "trials=3", "parallel=3")
    assert changed.returncode == 0, changed.stderr
    resumed = desk.run("resume", "small")
    assert resumed.returncode == 0, resumed.stderr
    status = all_is_well(desk, trials=3)
    assert status["resumed_runs"] == 2


def test_cancel_without_an_engine(desk):
    desk.write_study()
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(lambda: desk.has_study() and desk.json("local", "jobs"), "a job runs")
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
    desk.write_study(trials=3)
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
    desk.write_study(trials=3, parallel=1)
    engine = desk.start("launch", "study.yaml")
    desk.wait_until(lambda: desk.has_study() and desk.json("local", "jobs"), "a job runs")
    (desk.folder / "train.py").write_text("raise SystemExit('edited')\n")
    engine.communicate(timeout=60)
    assert engine.returncode == 0
    all_is_well(desk, trials=3)
