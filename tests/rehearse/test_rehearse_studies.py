"""The studies that are shipped are fit for spot, seen to be so."""

import json
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "studies"


# Far more steps than are looked at: no script is done before it can be interrupted, on however slow a machine.
CASES = [
    ("digits", 6, "epochs", 2, {"passed"}),
    ("plain", 12, "epochs", 2, {"warning"}),  # one file: torn, the script cannot start
    # one step more than two saves: the interruption comes after the third, with something older in the store
    ("pytorch", 4, "epochs", 1, {"passed"}),
    # whether an older round lies there too depends on where the interruption comes
    ("xgboost", 12, "num_round", 1, {"passed", "warning"}),
]
# Of a step that was saved they may lose the metric, with a line that was not in the store when the interruption came.
PRINT = ("plain", "xgboost")


def marked(case):
    return pytest.param(case, id=case[0], marks=[pytest.mark.torch] if case[0] == "pytorch" else [])


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_a_shipped_study_resumes_bit_for_bit(case, folder, call):
    study, steps, length, interruptions, torn = case
    file = STUDIES / study / "study.yaml"
    more = f"training.hyperparameters.{length}=100000"
    options = ("--steps", steps, "--set", more, "--interruptions", interruptions, "--tolerance", 0)
    code, out, err = call("rehearse", file, *options, "--json")
    assert code == 0, err
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    curve = checks["same curve"]["text"]
    assert "bit for bit" in curve or (study in PRINT and "was saved, and lost its metric" in curve), curve
    assert checks["resumes"]["result"] == "passed"
    assert checks["torn file"]["result"] in torn
