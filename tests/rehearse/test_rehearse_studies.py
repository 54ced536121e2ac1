"""The studies that are shipped are fit for spot, seen to be so."""

import json
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "studies"


# Far more steps than are looked at: no script is done before it can be interrupted, on however slow a machine.
CASES = [
    ("digits", 6, "epochs", 2, {"passed"}),
    ("plain", 12, "epochs", 2, {"warning"}),  # one file: torn, the script cannot start
    ("pytorch", 3, "epochs", 1, {"passed"}),
    # whether an older round lies there too depends on where the interruption comes
    ("xgboost", 12, "num_round", 1, {"passed", "warning"}),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_shipped_study_resumes_bit_for_bit(case, folder, call):
    study, steps, length, interruptions, torn = case
    file = STUDIES / study / "study.yaml"
    more = f"training.hyperparameters.{length}=100000"
    code, out, err = call("rehearse", file, "--steps", steps, "--set", more, "--interruptions", interruptions, "--json")
    assert code == 0, err
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert "bit for bit" in checks["same curve"]["text"]
    assert checks["resumes"]["result"] == "passed"
    assert checks["torn file"]["result"] in torn
