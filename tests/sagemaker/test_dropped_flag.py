"""The story that the comparison exists for: an SDK that drops the spot flag, in a whole local study."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # jobs as processes

STUDY = """
name: dropped
objective: {metric: loss, direction: minimize}
space: {a: {type: float, low: 0, high: 1}}
trials: 4
parallel: 3
training: {entry_point: train.py, max_run: 10m}
"""
SCRIPT = "import time; time.sleep(6000)"
# The command line, on a client that loses on the way what made the job a spot job.
TUNER = """
import sys

from tuner.local import transport

make_client = transport.make_client


def make_forgetful_client(*args, **kwargs):
    client = make_client(*args, **kwargs)

    def forget(params, **_):
        params.pop("EnableManagedSpotTraining")
        params["StoppingCondition"].pop("MaxWaitTimeInSeconds")

    client.meta.events.register("provide-client-params.sagemaker.CreateTrainingJob", forget)
    return client


transport.make_client = make_forgetful_client
from tuner.cli.main import main

sys.exit(main(sys.argv[1:]))
"""


def tuner(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNER_")}
    return subprocess.run(
        [sys.executable, "-c", TUNER, *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_a_dropped_spot_flag_costs_one_job_and_is_said_loudly(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "study.yaml").write_text(STUDY)
    launched = tuner(tmp_path, "launch", "study.yaml")
    assert launched.returncode == 4, launched.stderr
    assert "is not what was asked for: spot: asked for True, the job has False" in launched.stderr
    assert "tuner resume dropped" in launched.stderr
    (job,) = (tmp_path / ".tuner" / "jobs").iterdir()  # the two others were never made
    last = json.loads((job / "history.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "Stopped"
    status = json.loads(tuner(tmp_path, "status", "dropped", "--json").stdout)
    assert status["state"] == "stopped"
    assert status["trials"]["failed"] == 0
