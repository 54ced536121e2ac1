"""The inside of a job's instance: its disk, its configuration files, its environment and its command.

There is no image: the environment of the process that created the job stands for it, cut down to an allow-list as a
container would cut it. `/opt/ml/...` is real where the job has a private mount namespace. Elsewhere the command's
arguments are rewritten, and `TUNER_ML_ROOT` says where the folders are.

Rules: standard library only (the supervisor reads it). Each run begins with a fresh disk: what must survive an
interruption goes to the checkpoint folder.
"""

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tuner.local.agent import Agent
from tuner.local.jobdir import JobDir
from tuner.local.namespace import OPT_ML, OwnTmp
from tuner.local.processes import MARK
from tuner.local.tree import JobStorage, Tree, open_regular

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_PASSED = frozenset({"PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", *_THREADS})
DEFAULT_CHECKPOINTS = "/opt/ml/checkpoints/"


class TransferFailed(Exception):  # noqa: N818 - named for what happened
    """Data cannot be brought in or out: the job fails, by its own request's fault. The message is its reason."""


def host_environment() -> dict[str, str]:
    """What of this process's environment a job may see; recorded when the job is created."""
    passed = {key: value for key, value in os.environ.items() if key in _PASSED or key.startswith("LC_")}
    # `python` found by name inside the job is the one that runs us.
    passed["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), passed.get("PATH", os.defpath)])
    # One thread gives the same bits on every machine of a kind, and jobs share this one's cores.
    return dict.fromkeys(_THREADS, "1") | passed


class Container:
    """One job's instance, as its supervisor sets it up for each run."""

    def __init__(self, job: JobDir, *, private: bool) -> None:
        self._job = job
        self._objects = _objects(job)
        self.root: Path = OPT_ML if private else job.ml  # as the script sees it

    def command(self) -> list[str]:
        algorithm = self._job.request["AlgorithmSpecification"]
        program, *arguments = algorithm["ContainerEntrypoint"] + algorithm.get("ContainerArguments", [])
        if program in {"python", "python3"}:
            program = self._job.record["python"]
        return [self._inside(word) for word in (program, *arguments)]

    def environment(self) -> dict[str, str]:
        request = self._job.request
        return {
            **self._job.record["environment"],
            **self._own_home(),
            **request.get("Environment", {}),
            "TRAINING_JOB_NAME": self._job.name,
            "TRAINING_JOB_ARN": self._job.record["arn"],
            "AWS_REGION": self._job.record["region"],
            "TMPDIR": str(self._job.tmp),
            "TUNER_ML_ROOT": str(self.root),
            MARK: str(self._job.path),
        }

    def _own_home(self) -> dict[str, str]:
        """An empty HOME, where that is asked for. What this Python finds in the real one stays found."""
        if not self._has_own_places:
            return {}
        real = self._job.record["environment"].get("HOME")
        return {"HOME": str(self._job.home)} | ({"PYTHONUSERBASE": f"{real}/.local"} if real else {})

    @property
    def _has_own_places(self) -> bool:
        return bool(self._job.record["settings"].get("private_tmp"))

    def own_tmp(self) -> OwnTmp | None:
        """What stands at /tmp and the like, where asked for: of the real ones, what this Python and its job need."""
        if not self._has_own_places:
            return None
        given = self._job.record["environment"]
        named = (word for key in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV") for word in given.get(key, "").split(":"))
        paths = [Path(word) for word in (*named, self._job.record["python"], sys.prefix, sys.base_prefix) if word]
        kept = [self._job.path, *(path for path in paths if path.is_absolute())]
        resolved = (path.resolve() for path in kept)
        return OwnTmp(self._job.tmp, self._job.var_tmp, self._job.shm, (*kept, *resolved))

    def _disk(self) -> list[Path]:
        job = self._job
        return [job.ml, job.tmp, *([job.home, job.var_tmp, job.shm] if self._has_own_places else [])]

    def fresh_disk(self) -> None:
        """Empty folders and the configuration files."""
        for folder in self._disk():
            _remove(folder)
            folder.mkdir(mode=0o700)
        for part in ("model", "output/data", "input/config", "input/data", "code"):
            (self._job.ml / part).mkdir(parents=True)
        for name, content in self._configuration().items():
            (self._job.ml / "input/config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def remove_disk(self) -> None:
        for folder in self._disk():
            _remove(folder)

    def has_inputs(self) -> bool:
        return bool(self._job.request.get("InputDataConfig") or self._job.request.get("CheckpointConfig"))

    def download(self) -> None:
        """Bring the channels in. Raises `TransferFailed`."""
        for channel in self._job.request.get("InputDataConfig", []):
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            target = self._job.ml / "input/data" / channel["ChannelName"]
            if uri.startswith("file://"):
                self._bring_folder(Path(unquote(urlsplit(uri).path)), target)
            elif not self._fetch(uri, target):
                raise TransferFailed(
                    f'ClientError: Data download failed:No S3 objects found under S3 URL "{uri}" given in input data '
                    "source. Please ensure that the bucket exists in the selected region, that objects exist under "
                    "that S3 prefix."
                )

    def _fetch(self, uri: str, target: Path) -> list[str]:
        try:
            return self._objects.fetch(uri, target)
        except PermissionError as error:
            raise TransferFailed(f"ClientError: Data download failed:{uri}: {error}") from error

    def _bring_folder(self, source: Path, target: Path) -> None:
        try:
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                target.mkdir()
                shutil.copyfile(source, target / source.name)
        except (OSError, shutil.Error) as error:
            raise TransferFailed(f"ClientError: Data download failed:{source} cannot be read: {error}") from error

    def agent(self) -> Agent | None:
        """The checkpoint agent, its folder ready; None for a job without checkpoints."""
        config = self._job.request.get("CheckpointConfig")
        if config is None:
            return None
        folder = self._job.ml / Path(config.get("LocalPath", DEFAULT_CHECKPOINTS)).relative_to(OPT_ML)
        folder.mkdir(parents=True, exist_ok=True)
        return Agent(self._objects, config["S3Uri"], folder, markers=self._job.record["settings"]["upload_markers"])

    def restore(self, agent: Agent) -> None:
        """Fill the agent's folder. Raises `TransferFailed`."""
        try:
            agent.download()
        except PermissionError as error:
            raise TransferFailed(f"ClientError: Data download failed:checkpoints: {error}") from error

    def upload(self) -> str | None:
        """Put the artifacts into S3; the address of the model, or None without one. Raises `TransferFailed`."""
        base = f"{self._job.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self._job.name}/output"
        self._pack(self._job.ml / "output/data", f"{base}/output.tar.gz")
        return self._pack(self._job.ml / "model", f"{base}/model.tar.gz")

    def _pack(self, folder: Path, uri: str) -> str | None:
        if not self._is_ours(folder) or not folder.is_dir() or not any(folder.iterdir()):
            return None
        archive = self._job.path / "artifact.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for entry in sorted(folder.iterdir()):
                tar.add(entry, arcname=entry.name, filter=_ordinary)
        try:
            self._objects.put(archive, uri)
        except PermissionError as error:
            raise TransferFailed(f"ClientError: Artifact upload failed:{uri}: {error}") from error
        archive.unlink()
        return uri

    def failure(self, exit_code: int) -> str:
        """FailureReason of a script that ended with this code: its own words, if it left any."""
        path, said = self._job.ml / "output/failure", ""
        if self._is_ours(path):
            with suppress(OSError), open_regular(path) as file:
                said = file.read(4096).decode("utf-8", "replace")[:1024]
        return f"AlgorithmError: {said.strip() or f'ExitCode {exit_code}'}"[:1024]

    def _is_ours(self, path: Path) -> bool:
        """Whether a path on the instance's disk leads there and not, by a link of the script's, somewhere else."""
        return path.resolve() == self._job.ml.resolve() / path.relative_to(self._job.ml)

    def _configuration(self) -> Mapping[str, Any]:
        request, resources = self._job.request, self._job.request["ResourceConfig"]
        instance = resources["InstanceType"]
        group = {"instance_group_name": "homogeneousCluster", "instance_type": instance, "hosts": ["algo-1"]}
        files: dict[str, Any] = {
            "hyperparameters": request.get("HyperParameters", {}),
            "resourceconfig": {
                "current_host": "algo-1",
                "hosts": ["algo-1"],
                "network_interface_name": "lo",
                "current_instance_type": instance,
                "current_group_name": "homogeneousCluster",
                "instance_groups": [group],
            },
            "inputdataconfig": {
                channel["ChannelName"]: _channel(channel) for channel in request.get("InputDataConfig", [])
            },
        }
        if config := request.get("CheckpointConfig"):
            files["checkpointconfig"] = {"LocalPath": self._inside(config.get("LocalPath", DEFAULT_CHECKPOINTS))}
        return files

    def _inside(self, word: str) -> str:
        """A path below /opt/ml, as this job sees it."""
        if word == str(OPT_ML) or word.startswith(f"{OPT_ML}/"):
            return str(self.root) + word.removeprefix(str(OPT_ML))
        return word


def _objects(job: JobDir) -> JobStorage:
    if job.record.get("s3_endpoint") is None:
        return Tree(job.state_dir)
    from tuner.local.served.bucket import LocalBucket  # noqa: PLC0415 - boto3, which a supervisor without an endpoint has not

    return LocalBucket(job.state_dir, job.record["region"])


def _ordinary(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What belongs into an artifact; links stay links."""
    return entry if entry.isreg() or entry.isdir() or entry.issym() or entry.islnk() else None


def _remove(folder: Path) -> None:
    """Remove a folder, whatever the script did to it."""
    for where, names, _ in os.walk(folder):
        for path in (Path(where, name) for name in names):
            if not path.is_symlink():
                with suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _channel(channel: Mapping[str, Any]) -> dict[str, str]:
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": channel["DataSource"]["S3DataSource"].get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
    }
