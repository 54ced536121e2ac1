"""A local SageMaker in a temporary folder, with scripts as short as a test can read."""

import json
import textwrap
import time
from pathlib import Path

from tuner.local.jobdir import open_job
from tuner.local.processes import end_all_of
from tuner.local.transport import make_client

QUICK = {"start_delay_s": 0.0, "sync_interval_s": 0.05, "grace_s": 5.0}
ENDED = {"Completed", "Failed", "Stopped"}


def request(name="job-1", *, spot=True, max_run_s=600, **changes):
    """A request that is taken; `changes` replace whole members, None removes one."""
    stopping = {"MaxRuntimeInSeconds": max_run_s}
    if spot:
        stopping["MaxWaitTimeInSeconds"] = 3600
    made = {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::000000000000:role/anybody",
        "AlgorithmSpecification": {
            "TrainingImage": "none",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
        },
        "InputDataConfig": [channel("code", f"s3://bucket/code/{name}/")],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/outputs"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": stopping,
        "CheckpointConfig": {"S3Uri": f"s3://bucket/checkpoints/{name}/"},
        "EnableManagedSpotTraining": spot,
        "Tags": [{"Key": "tuner:study", "Value": "study-a"}],
    } | changes
    return {key: value for key, value in made.items() if value is not None}


def channel(name, uri):
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}}


class LocalWorld:
    def __init__(self, state_dir: Path):
        self.state_dir = state_dir
        if not (state_dir / "settings.json").exists():
            self.settings()
        self.client = make_client(state_dir)

    def settings(self, **changes):
        self.state_dir.mkdir(exist_ok=True)
        (self.state_dir / "settings.json").write_text(json.dumps(QUICK | changes))

    def object(self, key: str) -> Path:
        return self.state_dir / "s3" / "bucket" / key

    def put(self, key: str, text: str) -> None:
        self.object(key).parent.mkdir(parents=True, exist_ok=True)
        self.object(key).write_text(textwrap.dedent(text))

    def create(self, name="job-1", script="pass", **changes):
        self.put(f"code/{name}/train.py", script)
        return self.client.create_training_job(**request(name, **changes))

    def describe(self, name="job-1"):
        return self.client.describe_training_job(TrainingJobName=name)

    def secondary(self, name="job-1"):
        return [row["Status"] for row in self.describe(name)["SecondaryStatusTransitions"]]

    def ended(self, name="job-1", within_s=120.0):
        return self.until(lambda: self.describe(name), lambda seen: seen["TrainingJobStatus"] in ENDED, within_s)

    def printed(self, text, name="job-1", run=1, within_s=120.0):
        """Wait until the script has printed this."""
        log = self.state_dir / "jobs" / name / "logs" / f"{run}.log"
        self.until(lambda: log.read_text() if log.exists() else "", lambda seen: text in seen, within_s)
        return log.read_text()

    @staticmethod
    def until(look, good, within_s=120.0):
        end_at = time.monotonic() + within_s
        while not good(seen := look()):
            assert time.monotonic() < end_at, f"still {seen!r}"
            time.sleep(0.02)
        return seen

    def job(self, name="job-1"):
        return open_job(self.state_dir, name)

    def supervisor_pid(self, name="job-1"):
        path = str(self.job(name).path)
        found = [pid for pid in pids() if f"supervisor.py\0{path}\0" in command_line(pid)]
        return next((pid for pid in found if parent(pid) not in found), None)

    def leave_nothing(self):
        for folder in (self.state_dir / "jobs").glob("*"):
            end_all_of(folder)


def pids():
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")  # of any program on this machine
    except OSError:
        return ""


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


def processes_with(text):
    """Living processes whose command line holds this text."""
    return [pid for pid in pids() if text in command_line(pid)]
