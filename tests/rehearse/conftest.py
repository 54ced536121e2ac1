"""The command line called in this process, in an empty directory."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tuner.cli import main, rehearse
from tuner.rehearse.runs import RehearsalOptions


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    for name in ("TUNER_STORE", "TUNER_LOCAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return made


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """Tell the script, in the run without interruptions, how many reports and saves of its were seen: it waits."""
    told = set()

    def answer_all(job):
        if job._own is not None:
            heard = sum(len(run.points) + run.loose_reports.total() for run in job._runs.values())
            for answer in {job.checkpoints / "runs" / f"heard-{heard}", *_saved(job)} - told:
                with suppress(OSError):
                    answer.touch()
                    told.add(answer)

    monkeypatch.setattr(rehearse, "_DEFAULTS", RehearsalOptions(after_look=answer_all))


def _saved(job):
    return [job.checkpoints / "runs" / f"saved-{count}" for count in range(1, len(job.saved_after) + 1)]


@pytest.fixture
def call(capsys):
    """Run one command line: exit code, standard output, standard error."""

    def run(*words):
        try:
            code = main.main([os.fspath(word) if isinstance(word, Path) else str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def grace(monkeypatch, answers):
    """Set how long a script that is stopped may take: short where it ignores that, long where it does not."""

    def choose(seconds):
        monkeypatch.setattr(rehearse, "_DEFAULTS", replace(rehearse._DEFAULTS, grace_s=seconds))

    return choose
