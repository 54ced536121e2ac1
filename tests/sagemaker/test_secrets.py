"""A secret reaches the script and nothing else: a whole local study, looked through for its value afterwards."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from below import contents

from tuner.core.jobs import digest
from tuner.spec.study_file import load
from tuner.spec.workload import specimen

pytestmark = pytest.mark.slow  # jobs as processes

VALUE = "hunter2-\"quoted\"-'single'-and\\more-geheim"
SCRIPT = """
import hashlib, os, sys
seen = hashlib.sha256(os.environ["API_KEY"].encode()).hexdigest()
print("known=%d" % (seen in sys.argv))
"""
STUDY = """
name: secretive
objective: {metric: known, direction: maximize}
space: {a: {type: float, low: 0, high: 1}}
trials: 2
training:
  entry_point: train.py
  hyperparameters: {expected: DIGEST}
  secrets: {API_KEY: {from_env: MY_KEY}}
  metrics: [{name: known, regex: 'known=([0-9])'}]
"""


class Desk:
    """Where a user works, with or without the secret in the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = ""

    def run(self, *words: str, secret: str | None = VALUE) -> tuple[int, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNER_")}
        given = {} if secret is None else {"MY_KEY": secret}
        done = subprocess.run(
            [sys.executable, "-m", "tuner", *words],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1", **given},
            capture_output=True,
            text=True,
            timeout=250,
            umask=0,  # modes are ours, whatever the user's are
            check=False,
        )
        self.said += done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr


def spellings(value: str) -> list[bytes]:
    """However a value may be written down."""
    return [text.encode() for text in {value, json.dumps(value)[1:-1], repr(value)[1:-1], value.replace("'", "''")}]


def files_that_hold(folder: Path, value: str) -> list[Path]:
    files = dict(contents(folder))
    assert files
    return [path for path, held in files.items() if any(spelling in held for spelling in spellings(value))]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "train.py").write_text(SCRIPT)
    known = hashlib.sha256(VALUE.encode()).hexdigest()  # it alone travels openly
    (tmp_path / "study.yaml").write_text(STUDY.replace("DIGEST", known))
    return Desk(tmp_path)


def test_without_the_secret_nothing_is_written(desk: Desk) -> None:
    code, said = desk.run("launch", "study.yaml", secret=None)
    assert code == 2
    assert "training.secrets.API_KEY: the variable MY_KEY is not set here" in said
    assert not (desk.folder / ".tuner").exists()


def test_a_secret_reaches_the_script_and_nothing_else(desk: Desk) -> None:
    code, said = desk.run("launch", "study.yaml")
    assert code == 0, said
    code, trials = desk.run("trials", "secretive", "--json")
    assert [trial["value"] for trial in json.loads(trials)] == [1.0, 1.0]  # both scripts had it
    for words in (
        ("show", "secretive", "0", "--json"),
        ("logs", "secretive", "0"),
        ("launch", "study.yaml", "--dry-run"),
    ):
        desk.run(*words)
    assert not any(spelling in desk.said.encode() for spelling in spellings(VALUE))

    # what Describe shows is kept as AWS keeps it, and nobody else may read it
    holding = files_that_hold(desk.folder, VALUE)
    assert {path.name for path in holding} == {"job.json"}
    assert len(holding) == 2
    for path in holding:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o077 == 0

    # a study that goes on elsewhere needs it again, before anything is written
    store = (desk.folder / "tuner.db").read_bytes()
    code, said = desk.run("resume", "secretive", secret=None)
    assert code == 2
    assert "MY_KEY is not set here" in said
    assert (desk.folder / "tuner.db").read_bytes() == store


def test_jobs_are_ours_whatever_the_secret_is(desk: Desk) -> None:
    """A secret that was renewed makes no job a foreign one."""
    request = specimen(load(desk.folder / "study.yaml"), "ml.m5.xlarge")
    assert request.secrets == {"API_KEY": "MY_KEY"}
    assert request.environment["TUNER_DIGEST"] == digest(
        request.hyperparameters, request.checkpoint_uri, request.channels[-1].uri
    )
