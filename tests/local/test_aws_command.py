"""The real `aws` command line against `tuner local serve`, both as a person runs them."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from local_world import LocalWorld, request

_PATIENCE_S = 120
_FETCH_S = 240


def aws_command(folder: Path) -> tuple[list[str], dict[str, str]]:
    """How to call it, and with which environment: the machine's own, else PyPI's, apart from what the tests use.

    Where neither can be had the test is skipped, and the summary of the run warns of it: nothing else here holds the
    service against the command line that people have.
    """
    environment = {**os.environ, "AWS_PAGER": "", "AWS_CONFIG_FILE": os.devnull}
    environment["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "PYTHONWARNINGS"):
        environment.pop(name, None)
    if (found := shutil.which("aws")) and works([found], environment):
        return [found], environment
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(folder), "awscli"]
    try:
        fetched = subprocess.run(install, capture_output=True, text=True, check=False, timeout=_FETCH_S)
        failure = (fetched.stderr.strip()[-300:] or "it says nothing") if fetched.returncode else ""
    except subprocess.TimeoutExpired:  # a network that is slow is as good as none
        failure = f"not within {_FETCH_S} s"
    command, environment["PYTHONPATH"] = [sys.executable, "-m", "awscli"], str(folder)
    if failure or not works(command, environment):
        why = f"no `aws` on this machine, and pip cannot fetch it: {failure}"
        warnings.warn(f"NOT TESTED: the aws command line against `tuner local serve`: {why}", stacklevel=2)
        pytest.skip(why)
    return command, environment


def works(command: list[str], environment: dict[str, str]) -> bool:
    tried = subprocess.run(
        [*command, "--version"], capture_output=True, env=environment, check=False, timeout=_PATIENCE_S
    )
    return tried.returncode == 0


class Served:
    """`tuner local serve` as a process of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tuner", "local", "serve", "--dir", str(state_dir), "--region", "eu-west-1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def exports(self) -> dict[str, str]:
        """What it prints to be pasted into a shell."""
        lines = [shlex.split(self.process.stdout.readline()) for _ in range(5)]
        assert {line[0] for line in lines} == {"export"}
        return dict(line[1].split("=", 1) for line in lines)

    def interrupt(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=_PATIENCE_S)
        return self.process.returncode, said


@pytest.fixture
def world(tmp_path):
    made = LocalWorld(tmp_path / "state")
    yield made
    made.leave_nothing()


@pytest.fixture
def service(world):
    started = Served(world.state_dir)
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.timeout(900)  # a fetch and eight programs that are slow to start; each has a limit of its own
@pytest.mark.filterwarnings("default:NOT TESTED")
def test_the_aws_command_line_creates_describes_lists_stops_and_searches(world, service, tmp_path):
    command, environment = aws_command(tmp_path / "aws")
    environment |= service.exports()

    def aws(*words: str, refused: str = "") -> dict:
        """One call; its answer, or that it was refused so."""
        done = subprocess.run(
            [*command, "sagemaker", *words, "--output", "json"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=_PATIENCE_S,
        )
        assert (refused in done.stderr) if refused else (done.returncode == 0), done.stderr
        return json.loads(done.stdout or "{}")

    world.put(
        "code/job-1/train.py", "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit()); time.sleep(300)"
    )
    made = aws("create-training-job", "--cli-input-json", json.dumps(request()))
    assert made["TrainingJobArn"].startswith("arn:aws:sagemaker:eu-west-1:")
    described = aws("describe-training-job", "--training-job-name", "job-1")
    assert described["TrainingJobStatus"] == "InProgress"
    assert described["StoppingCondition"] == {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 3600}
    listed = aws("list-training-jobs", "--name-contains", "job", "--max-items", "5")["TrainingJobSummaries"]
    assert [job["TrainingJobName"] for job in listed] == ["job-1"]
    wanted = {"Filters": [{"Name": "Tags.tuner:study", "Value": "study-a"}]}
    found = aws("search", "--resource", "TrainingJob", "--search-expression", json.dumps(wanted))["Results"]
    assert [entry["TrainingJob"]["TrainingJobName"] for entry in found] == ["job-1"]
    assert aws("stop-training-job", "--training-job-name", "job-1") == {}
    assert world.ended()["TrainingJobStatus"] == "Stopped"
    environment["AWS_SECRET_ACCESS_KEY"] = "another"
    aws("list-training-jobs", refused="InvalidSignatureException")


def test_ctrl_c_ends_the_service_and_jobs_go_on(world, service):
    service.exports()
    world.create("job-1", "import time; print('up', flush=True); time.sleep(300)")
    world.printed("up")
    code, said = service.interrupt()
    assert code == 130
    assert said.splitlines()[0].startswith(f"serving {world.state_dir}")
    assert "jobs go on" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert world.job().is_attended()


def test_an_address_that_cannot_be_had_is_one_line(world, service):
    port = service.exports()["AWS_ENDPOINT_URL_SAGEMAKER"].rpartition(":")[2]
    for words in (["--port", port], ["--port", "70000"]):
        done = subprocess.run(
            [sys.executable, "-m", "tuner", "local", "serve", "--dir", str(world.state_dir), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
        assert done.returncode == 4
        assert done.stderr.startswith("tuner: local serve: ")
        assert len(done.stderr.splitlines()) == 1
