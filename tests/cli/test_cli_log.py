"""`-v`, `-vv` and TUNER_LOG: the log goes to standard error or to a file, for one call of the command line."""

import logging
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import Call

from tuner.cli.log import logging_to
from tuner.core.log import ROOT, logger_of

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|DEBUG) tuner\.\w+: .+")
STUDY = """\
name: tiny
objective: {metric: score, direction: maximize}
space: {x: {type: float, low: 0.0, high: 1.0}}
trials: 1
training:
  entry_point: train.py
  environment: {NOTE: not-for-the-log}
  metrics: [{name: score, regex: 'score=([0-9.]+)'}]
  max_run: 1m
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('score=0.5')\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


@pytest.mark.parametrize("words", ["-v launch {}", "launch -v {}", "launch {} -v"])
def test_once_it_is_what_left_the_machine_leases_and_schemas(call: Call, study: Path, words: str) -> None:
    code, _, err = call(*words.format(study).split())
    lines = [line for line in err.splitlines() if LINE.fullmatch(line)]
    assert code == 0
    assert any("INFO tuner.store: schema None became" in line for line in lines)
    assert any("INFO tuner.store: lease on study tiny taken by" in line for line in lines)
    assert "DEBUG" not in err


def test_twice_it_is_all_and_a_file_takes_all(call: Call, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_LOG", "log.txt")
    code, _, err = call("-vv", "launch", study)
    log = Path("log.txt")
    assert code == 0
    lines = log.read_text().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert set(lines) <= set(err.splitlines())
    assert any(" DEBUG tuner.local: sagemaker CreateTrainingJob: 200, request local in " in line for line in lines)
    assert "not-for-the-log" not in log.read_text() + err
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert ROOT.level == logging.NOTSET
    call("status")
    assert log.read_text().splitlines() == lines  # a second call adds to it, and this one had nothing to say


@pytest.mark.parametrize("place", ["none/log.txt", "."])
def test_a_log_that_cannot_be_written_is_one_line(
    call: Call, study: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("TUNER_LOG", place)
    code, out, err = call("launch", study)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"tuner: TUNER_LOG: the log '{place}' cannot be written: ")
    assert not Path("tuner.db").exists()


def test_a_log_on_a_full_disk_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(0, "/dev/full"):
        logger_of("store").info("lost")
    assert capsys.readouterr().err == ""


def test_foreign_text_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(1, None):
        logger_of("aws").info("request %s", "\x1b[2J\nforged")
    assert capsys.readouterr().err.splitlines()[0].endswith(r"INFO tuner.aws: request \x1b[2J\nforged")


def test_a_library_prints_nothing_by_itself() -> None:
    code = "from tuner.core.log import logger_of; logger_of('aws').error('loud')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
