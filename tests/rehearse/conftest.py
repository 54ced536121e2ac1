"""The command line called in this process, in an empty directory."""

import functools
import os
from pathlib import Path

import pytest

from tuner import cli, cli_rehearse, rehearse_runs


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


@pytest.fixture
def call(capsys):
    """Run one command line: exit code, standard output, standard error."""

    def run(*words):
        try:
            code = cli.main([os.fspath(word) if isinstance(word, Path) else str(word) for word in words])
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def grace(monkeypatch):
    """Set how long a script that is stopped may take: short where it ignores that, long where it does not."""

    def choose(seconds):
        monkeypatch.setattr(cli_rehearse, "Wish", functools.partial(rehearse_runs.Wish, grace_s=seconds))

    return choose
