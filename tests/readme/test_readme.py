"""The README: small, its script and its study file run, and its commands are those that `.ci/run` uses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import README, ROOT, TEXTS, blocks
from tuner.spec import study_file

TEXT = TEXTS["README.md"]


def example(language: str, holds: str) -> str:
    (found,) = [block for block in blocks(language, text=TEXT) if holds in block]
    return found


def run(folder: Path, epochs: int) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNER_", "SM_"))}
    arguments = [sys.executable, "-W", "error", "train.py", "--lr", "0.5", "--epochs", str(epochs)]
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "TUNER_CHECKPOINT_DIR": str(folder / "checkpoints")},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.partition("] ")[2] for line in done.stdout.splitlines()]


def test_the_script_resumes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(example("python", "Checkpoints"))
    assert run(tmp_path, 2) == ["step=1 loss=0.5", "step=2 loss=0.25"]
    assert run(tmp_path, 4) == ["step=3 loss=0.125", "step=4 loss=0.0625"]


def test_the_script_has_twenty_lines() -> None:
    assert len(example("python", "Checkpoints").splitlines()) <= 20


def test_the_study_file_is_valid(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(example("python", "Checkpoints"))
    (tmp_path / "study.yaml").write_text(example("yaml", "objective:"))
    found = study_file.load(tmp_path / "study.yaml")
    study_file.refuse_unbuilt(found)
    assert found.warnings == ()
    assert json.loads(json.dumps(dict(found.training.hyperparameters))) == {"epochs": 30}


def test_it_is_short() -> None:
    assert len(README.read_bytes()) <= 12 * 1024


def test_ci_runs_the_test_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(r"(python -m pytest -n \d+)\n", "\n".join(blocks("sh", text=TEXT)))
    assert f"\n{command}" in ci
    (checks,) = [line for block in blocks("sh", text=TEXT) for line in block.splitlines() if line.startswith("ruff")]
    assert all(check in ci.splitlines() for check in checks.split(" && "))


def test_it_says_that_nothing_was_tried_on_aws() -> None:
    assert "nothing was tried on AWS itself" in " ".join(TEXT.split())
