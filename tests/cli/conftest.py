"""A seeded store, and a way to call the command line as a user does."""

import os
import shutil
from pathlib import Path

import cli_store
import pytest
from cli_calls import Call, Called

from tuner.cli import main
from tuner.operations.use_cases import UseCases


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded once: creating and migrating a store costs more than all the tests that read it."""
    made = tmp_path_factory.mktemp("seeded")
    cli_store.seed(made).close()
    return made / "tuner.db"


@pytest.fixture
def folder(tmp_path: Path, seeded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a seeded `tuner.db`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNER_STORE", raising=False)
    monkeypatch.delenv("TUNER_LOCAL", raising=False)
    monkeypatch.setenv("LOGNAME", "ann")  # who owns the seeded study
    shutil.copy(seeded, tmp_path / "tuner.db")
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command line in this process: exit code, standard output, standard error."""

    def run(*words: object, use_cases: UseCases | None = None) -> Called:
        typed = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
        try:
            code = main.main(typed, use_cases)
        except SystemExit as left:  # argparse's own --help
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return Called(code, out, err)

    return run
