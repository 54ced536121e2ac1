"""The example studies: their files are valid, and their scripts stand alone, as people will copy them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tuner import spec

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = ["digits", "plain"]


def run(name: str, folder: Path, *arguments: str) -> str:
    """Run a script by hand: nothing of a tuner around it but the module that `digits` imports."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TUNER_", "SM_"))}
    settings = {"PYTHONPATH": str(STUDIES.parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    settings["TUNER_CHECKPOINT_DIR"] = str(folder / "checkpoints")
    return subprocess.run(
        [sys.executable, "-W", "error", str(STUDIES / name / "train.py"), *arguments],
        cwd=folder,
        env={**kept, **settings},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def accuracies(output: str) -> list[float]:
    return [float(value) for value in re.findall(r"val_accuracy=(\S+)", output)]


@pytest.mark.parametrize("name", NAMES)
def test_the_study_file_is_valid_and_named_as_its_folder(name: str) -> None:
    study = spec.load(STUDIES / name / "study.yaml")
    assert study.name == name
    assert study.objectives[0].metric == "val_accuracy"
    script = (STUDIES / name / "train.py").read_text()
    for argument in [*study.training.hyperparameters, *(param.name for param in study.space)]:
        assert f'"--{argument}"' in script


@pytest.mark.parametrize("name", NAMES)
def test_the_script_is_small_and_free_of_pickles(name: str) -> None:
    source = (STUDIES / name / "train.py").read_text()
    assert source.count("\n") < 150
    assert "pickle" not in source
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    ours = {module for module in modules if module.startswith("tuner")}
    assert ours == ({"tuner.training"} if name == "digits" else set())


@pytest.mark.parametrize(("name", "few"), [("digits", ["--hidden", "32", "--layers", "1"]), ("plain", [])])
def test_the_script_learns_and_resumes_by_hand(name: str, few: list[str], tmp_path: Path) -> None:
    first = accuracies(run(name, tmp_path, *few, "--epochs", "2"))
    rest = run(name, tmp_path, *few, "--epochs", "4")
    assert "after epoch 2" in rest
    resumed = first[:2] + accuracies(rest)[:2]
    (tmp_path / "again").mkdir()
    whole = accuracies(run(name, tmp_path / "again", *few, "--epochs", "4"))[:4]
    assert resumed == whole
    assert whole[-1] > max(0.8, whole[0])


def test_hyperparameters_matter(tmp_path: Path) -> None:
    reached = []
    for number, lr in enumerate(("0.0001", "0.003", "0.1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        reached.append(accuracies(run("digits", folder, "--epochs", "2", "--hidden", "96", "--lr", lr))[-1])
    assert reached[1] > 0.85
    assert np.ptp(reached) > 0.2
