"""The verb itself: what it refuses, what it prints while it runs, and that nothing outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rehearsed as scripts
from test_rehearse_findings import nothing_is_left

from tuner.cli.rehearse import ProgressLines, advice_lines, verdict
from tuner.cli.table import render
from tuner.core.clock import VirtualClock
from tuner.rehearse.records import (
    Advice,
    Check,
    Ending,
    Evidence,
    Measures,
    Rehearsal,
    RehearsalRefused,
    Result,
    RunSeen,
    SavesSeen,
)
from tuner.rehearse.rehearse import prepared
from tuner.spec.study_file import load

ON_AWS = """
    name: cloud
    objective: {metric: loss, direction: minimize}
    space: {lr: {type: float, low: 0.1, high: 0.2}}
    trials: 1
    training:
      entry_point: train.py
      entrypoint: image
      image_uri: 123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1
      instance_types: [ml.g5.xlarge]
      instance_count: 2
      inputs: {train: s3://bucket/data/}
      metrics: [{name: loss, regex: 'loss=([-+0-9.eEnaif]+)', step_regex: 'epoch=([0-9]+)'}]
    budget: {usd: 5}
    backend: sagemaker
    sagemaker: {region: us-east-1, role: 'arn:aws:iam::123456789012:role/x', outputs: s3://bucket/out/}
    checkpoints: {root: s3://bucket/tuner/}
"""


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (("name: rehearsed", "name: rehearsed\ncolour: red"), (), "colour"),
        (("entry_point: train.py", "entry_point: absent.py"), (), "absent.py"),
        (
            ("entry_point: train.py", "entry_point: train.py\n  secrets: {KEY: {from_env: NOT_SET_BY_A_TEST}}"),
            (),
            "NOT_SET_BY",
        ),
        (("", ""), ("--input", "train=data"), "training.inputs names no such channel"),
        (("", ""), ("--input", "train"), "CHANNEL=DIR is expected"),
        (("", ""), ("--max-duration", "soon"), "--max-duration"),
        (("", ""), ("--keep", "."), "not empty"),
        (("", ""), ("--steps", "0"), "--steps"),
        (
            ("trials: 1", "trials: 1\nbackend: local"),
            ("--set", "training.inputs.train=s3://bucket/data/"),
            "--input train=DIR",
        ),
    ],
)
def test_what_cannot_be_rehearsed_is_one_line_and_exit_code_2(change, options, words, folder, call):
    file = scripts.write_study(folder, scripts.GOOD)
    file.write_text(file.read_text().replace(*change, 1))
    code, out, err = call("rehearse", file, *options)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert nothing_is_left(folder)


def test_a_study_for_aws_is_rehearsed_here_with_directories_for_its_channels(folder):
    spec = load(scripts.write_study(folder, scripts.GOOD, ON_AWS))
    with pytest.raises(RehearsalRefused, match="pass --input train=DIR"):
        prepared(spec, {})
    with pytest.raises(RehearsalRefused, match="no such directory"):
        prepared(spec, {"train": folder / "absent"})
    here, notes = prepared(spec, {"train": folder})
    assert (here.backend, here.training.inputs[0].uri) == ("local", folder.as_uri())
    assert (here.sagemaker.role, here.sagemaker.outputs, here.checkpoints.root) == (None, None, "s3://tuner-rehearsal/")
    assert [note.split(":")[0] for note in notes] == ["training.entrypoint", "training.instance_count"]


def test_what_is_kept_holds_logs_and_checkpoints_and_nothing_runs_on(folder, call):
    file = scripts.write_study(folder, scripts.NEVER_SAVES)
    code, _, err = call("rehearse", file, "--steps", "3", "--keep", folder.parent / "kept")
    assert code == 1
    lines = err.splitlines()
    assert lines
    assert all(" rehearsing " in line for line in lines)
    assert "epoch=3" in (folder.parent / "kept/jobs/rehearsed-reference-00000-001/logs/1.log").read_text()
    leftover = [path for path in Path("/proc").glob("[0-9]*/environ") if _mentions(path, f"{folder.parent}/kept")]
    assert leftover == []


def _mentions(path, text):
    try:
        return f"TUNER_LOCAL_JOB={text}" in path.read_text(errors="replace")
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_rehearsal_and_everything_that_it_started(number, folder):
    file = scripts.write_study(
        folder, scripts.FORKS_AND_IGNORES_SIGTERM + "\n    train = lambda state: time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "tuner", "rehearse", str(file)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 240
    while not list(folder.parent.glob("tuner-rehearsal-*/jobs/*/logs/1.log")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == "rehearse: ended by a signal; everything that it started is gone"
    assert nothing_is_left(folder)


def test_stores_and_state_directories_of_the_user_are_not_touched(folder, call):
    file = scripts.write_study(folder, scripts.FAILS_AT_ONCE)
    (folder / ".tuner").mkdir()
    (folder / "tuner.db").write_text("no database")
    assert call("rehearse", file)[0] == 1
    assert (folder / "tuner.db").read_text() == "no database"
    assert list((folder / ".tuner").iterdir()) == []


# --- what a person sees


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def clock_at_noon():
    return VirtualClock(datetime(2026, 1, 1, 12, tzinfo=UTC))


def test_progress_is_one_line_that_is_redrawn_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    clock, stream = clock_at_noon(), Terminal()
    progress = ProgressLines(clock, stream)
    progress.phase("a phase with a long name and \x1b[31m in it")
    for step in (1, 2, 3):
        clock.jump(timedelta(seconds=1))
        progress.step(step, 10)
    progress.close()
    drawn = stream.text.split("\r\x1b[2K")
    assert len(drawn) == 6
    assert all(len(line) < 40 and "\x1b" not in line for line in drawn)
    assert drawn[-1] == ""


def test_progress_is_plain_lines_at_most_every_ten_seconds_elsewhere(capsys):
    clock = clock_at_noon()
    progress = ProgressLines(clock, sys.stderr)
    progress.phase("to its end")
    for step in range(1, 26):
        clock.jump(timedelta(seconds=1))
        progress.step(step, None)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "2026-01-01T12:00:00Z rehearsing to its end",
        "2026-01-01T12:00:10Z rehearsing to its end: step 10",
        "2026-01-01T12:00:20Z rehearsing to its end: step 20",
    ]


ADVICE = Advice(
    instance_type="ml.g5.xlarge",
    per_hour=0.25,
    basis="assumed: a reason",
    interval_s=120.0,
    interval_steps=12,
    lost_s=60.0,
    overhead=0.0123,
    overhead_now=0.3,
    usd_per_hour=2.0,
)
MEASURES = Measures(steps=20, step_s=10.0, startup_s=2.0, save_s=0.5, checkpoint_bytes=2048, steps_per_save=1)


def outcome(*checks):
    run = RunSeen(ending=Ending.CUT, started_at=0.0, points={}, reported_at={})
    saves = SavesSeen(after_steps=())
    seen = Evidence(objectives=("loss",), tolerance=0.0, grace_s=15.0, isolated=True, reference=run, saves=saves)
    return Rehearsal(study="s", params={"lr": 0.5}, checks=checks, evidence=seen, measures=MEASURES, advice=(ADVICE,))


def test_advice_says_what_to_do_what_it_gives_and_what_it_rests_on():
    waste = (
        "saving, lost work and the script's start-up take 1.2% of the time = $0.0246 per hour; as it saves now 30.0%"
    )
    assert advice_lines(ADVICE, MEASURES) == [
        "save about every 2m00s (12 steps at this speed)",
        f"an interruption then costs 1m00s of work; {waste}",
        "with one interruption in 4h00m of running (assumed: a reason)",
    ]


def test_a_verdict_shows_each_check_with_its_remedy_and_no_control_characters():
    bad = Check(name="resumes", result=Result.FAILED, text="it said \x1b[31mred", remedy="load \x07it")
    text = render(verdict(outcome(bad)))
    assert text.splitlines()[0] == "s: NOT fit for spot"
    assert "rehearsed with lr=0.5" in text
    assert r"it said \x1b[31mred" in text
    assert r"remedy: load \x07it" in text
    unproven = Check(name="resumes", result=Result.UNCLEAR, text="too fast")
    assert render(verdict(outcome(unproven))).startswith("s: not proven to be fit for spot\n")


def test_json_is_one_document_with_checks_measures_and_advice(folder, call):
    code, out, _ = call("rehearse", scripts.write_study(folder, scripts.FAILS_AT_ONCE), "--json")
    document = json.loads(out)
    assert (code, document["fit"], document["study"]) == (1, False, "rehearsed")
    assert set(document) == {"study", "fit", "params", "notes", "checks", "measured", "advice", "interrupted"}
