"""The studies that are shipped are fit for spot, seen to be so."""

import json
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "studies"


# Far more epochs than are looked at: no script is done before it can be interrupted, on however slow a machine.
@pytest.mark.parametrize(("study", "steps", "torn"), [("digits", 6, "passed"), ("plain", 12, "warning")])
def test_a_shipped_study_resumes_bit_for_bit(study, steps, torn, folder, call):
    file = STUDIES / study / "study.yaml"
    options = ("--steps", steps, "--set", "training.hyperparameters.epochs=100000", "--interruptions", "2", "--json")
    code, out, err = call("rehearse", file, *options)
    assert code == 0, err
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert "bit for bit" in checks["same curve"]["text"]
    assert checks["resumes"]["result"] == "passed"
    assert checks["torn file"]["result"] == torn
