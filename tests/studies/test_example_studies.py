"""The example studies: their files are valid, and their scripts stand alone, as people will copy them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tuner.spec import study_file

STUDIES = Path(__file__).parents[2] / "studies"
NAMES = ["digits", "plain", "pytorch", "xgboost"]
METRICS = {"xgboost": "logloss"}


def run(name: str, folder: Path, *arguments: str, **variables: str) -> str:
    """Run a script by hand: nothing of a tuner around it but the module that `digits` imports."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TUNER_", "SM_"))}
    settings = {"PYTHONPATH": str(STUDIES.parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    settings |= {
        "MKL_NUM_THREADS": "1",
        "TUNER_CHECKPOINT_DIR": str(folder / "checkpoints"),
        "SM_MODEL_DIR": str(folder),
    }
    for channel in ("train", "validation"):
        settings[f"SM_CHANNEL_{channel.upper()}"] = str(STUDIES / name / "data" / channel)
    return subprocess.run(
        [sys.executable, "-W", "error", str(STUDIES / name / "train.py"), *arguments],
        cwd=folder,
        env={**kept, **settings, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def values(output: str) -> list[float]:
    return [float(value) for value in re.findall(r"(?:val_accuracy=|validation-logloss:)(\S+)", output)]


@pytest.mark.parametrize("name", NAMES)
def test_the_study_file_is_valid_and_named_as_its_folder(name: str) -> None:
    study = study_file.load(STUDIES / name / "study.yaml")
    assert study.name == name
    assert study.objectives[0].metric == METRICS.get(name, "val_accuracy")
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
    assert ours == ({"tuner.training"} if name in ("digits", "pytorch") else set())


CASES = [
    ("digits", ["--hidden", "32", "--layers", "1"], "--epochs", (2, 4)),
    ("plain", [], "--epochs", (2, 4)),
    # the schedule spans all epochs: a run that is to end earlier is told so by TUNER_UNTIL_STEP
    pytest.param("pytorch", ["--epochs", "4"], "TUNER_UNTIL_STEP", (2, 4), marks=pytest.mark.torch),
    ("xgboost", [], "--num_round", (5, 12)),
]


@pytest.mark.parametrize(("name", "few", "length", "stops"), CASES, ids=NAMES)
def test_the_script_learns_and_resumes_by_hand(
    name: str, few: list[str], length: str, stops: tuple[int, int], tmp_path: Path
) -> None:
    half, end = stops

    def until(step: int, folder: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        if length.startswith("--"):
            return run(name, tmp_path / folder, *few, length, str(step))
        return run(name, tmp_path / folder, *few, **{length: str(step)})

    first = values(until(half, "twice"))
    rest = until(end, "twice")
    assert re.search(f"after (epoch|round) {half}\\n", rest)
    whole = values(until(end, "once"))[:end]
    assert first[:half] + values(rest)[: end - half] == whole
    if name == "xgboost":
        assert whole[-1] < 0.2 < whole[0]
        assert (tmp_path / "once" / "model.json").stat().st_size > 1000
    else:
        assert whole[-1] > max(0.8, whole[0])


def test_hyperparameters_matter(tmp_path: Path) -> None:
    reached = []
    for number, lr in enumerate(("0.0001", "0.003", "0.1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        reached.append(values(run("digits", folder, "--epochs", "2", "--hidden", "96", "--lr", lr))[-1])
    assert reached[1] > 0.85
    assert np.ptp(reached) > 0.2
