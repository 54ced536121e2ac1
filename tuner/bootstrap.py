"""The entrypoint of our containers: PID 1, and the one witness of where each run started.

The framework containers' own entrypoint does not pass SIGTERM on, so a stopped script could not save and would be
billed for its whole grace period. This one starts the script as SageMaker's toolkit does (arguments, `SM_*` variables,
`/opt/ml/code`, the failure file), and besides:

- passes SIGTERM and SIGINT to the script's process group, reaps orphans, keeps the exit code (128 + n for signal n);
- records, before the script starts, the checkpoint that it found: the proof of resume;
- writes the metrics that the script prints, by `tuner.training.report` or found by the study's regexes, to
  `metrics/` under the checkpoint directory, and puts back what did not reach the store before the interruption.

This module travels into containers, with the modules `tuner._job_*`: standard library only, Python 3.8, and nothing
else of ours. It shares with `tuner.training` the format on disk alone. A container runs it by path.
"""

import contextlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

if __name__ == "__main__":  # run by path: the `tuner` of the bundle, and no other that the image may have
    sys.dont_write_bytecode = True  # the channel holds the bundle and nothing else
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("tuner")  # its modules are found in its folder from now on
    sys.path.pop(0)  # a file of the user's must not stand in for a module of the standard library

from tuner._job_checkpoints import ResumePoint, found, make_folder, read_json, restore_metrics, resume_point, write
from tuner._job_output import FAILURE_CHARS, Listener

CONTAINER_ROOT = "/opt/ml"
CHUNK_BYTES = 1 << 16
DRAIN_S = 1.0  # how long after the script's end its daemons may keep its output open

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


class StartError(Exception):
    """The script cannot be started; the message goes to the failure file."""


class Job(NamedTuple):
    """What SageMaker and the tuner say about this start."""

    root: Path  # /opt/ml, or its stand-in
    checkpoints: Path
    bundle: Dict[str, Any]  # tuner_bundle.json
    hyperparameters: Dict[str, str]
    resources: Dict[str, Any]
    channels: List[str]
    attempt: int
    run: str

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def host(self) -> str:
        return str(self.resources.get("current_host") or "algo-1")

    @property
    def hosts(self) -> List[str]:
        return sorted(self.resources.get("hosts") or [self.host])

    @property
    def record_name(self) -> str:
        return "{:03d}-{}-{}".format(self.attempt, self.run, self.host)

    @property
    def arguments(self) -> List[str]:
        """`--name value`, with values exactly as they were sent."""
        pairs = sorted(self.hyperparameters.items())
        return [part for name, value in pairs for part in ("--" + name, value)]


def read_job() -> Job:
    root = Path(os.environ.get("TUNER_ML_ROOT") or CONTAINER_ROOT)
    config = root / "input" / "config"
    channels = read_json(config / "inputdataconfig.json")
    local_path = read_json(config / "checkpointconfig.json").get("LocalPath") or CONTAINER_ROOT + "/checkpoints"
    if local_path.startswith(CONTAINER_ROOT + "/"):
        local_path = str(root / local_path[len(CONTAINER_ROOT) + 1 :])
    return Job(
        root=root,
        checkpoints=Path(local_path),
        bundle=json.loads((root / "input/data/code/tuner_bundle.json").read_text(encoding="utf-8")),
        hyperparameters={name: str(value) for name, value in read_json(config / "hyperparameters.json").items()},
        resources=read_json(config / "resourceconfig.json"),
        channels=sorted(name for name in channels if name != "code"),
        attempt=int(os.environ.get("TUNER_ATTEMPT") or 0),
        # Time-ordered as text, and different for two starts within one tick of a coarse clock.
        run="{:016x}{}".format(time.time_ns(), os.urandom(2).hex()),
    )


# --- what the script is given -----------------------------------------------------------------------------------------


def environment(job: Job, resume_step: Optional[int]) -> Dict[str, str]:
    """The environment of the script: ours, the toolkit's `SM_*`, and the bundle's modules first on the path."""
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in _sm(job).items()}
    paths = [str(job.code), os.environ.get("PYTHONPATH", "")]
    values["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    values["PYTHONUNBUFFERED"] = "1"  # a metric that was printed is out of the script before it goes on
    values["TUNER_RUN"] = job.run
    values["TUNER_CHECKPOINT_DIR"] = str(job.checkpoints)
    values["TUNER_RESUME_STEP"] = "" if resume_step is None else str(resume_step)
    return {**os.environ, **values}


def _sm(job: Job) -> Dict[str, Any]:
    """The toolkit's variables; what is not text becomes JSON."""
    entry_point = str(job.bundle["entry_point"])
    decoded = {name: _decoded(value) for name, value in job.hyperparameters.items()}
    values: Dict[str, Any] = {
        "SM_HPS": decoded,
        "SM_USER_ARGS": job.arguments,
        "SM_USER_ENTRY_POINT": entry_point,
        "SM_MODULE_NAME": re.sub(r"\.py$", "", entry_point),
        "SM_MODULE_DIR": str(job.code),
        "SM_MODEL_DIR": str(job.root / "model"),
        "SM_INPUT_DIR": str(job.root / "input"),
        "SM_INPUT_CONFIG_DIR": str(job.root / "input" / "config"),
        "SM_INPUT_DATA_CONFIG": read_json(job.root / "input" / "config" / "inputdataconfig.json"),
        "SM_OUTPUT_DIR": str(job.root / "output"),
        "SM_OUTPUT_DATA_DIR": str(job.root / "output" / "data"),
        "SM_OUTPUT_INTERMEDIATE_DIR": str(job.root / "output" / "intermediate"),
        "SM_CHANNELS": job.channels,
        "SM_RESOURCE_CONFIG": job.resources,
        "SM_CURRENT_HOST": job.host,
        "SM_HOSTS": job.hosts,
        "SM_CURRENT_INSTANCE_TYPE": str(job.resources.get("current_instance_type") or "local"),
        "SM_NETWORK_INTERFACE_NAME": str(job.resources.get("network_interface_name") or "eth0"),
        "SM_NUM_CPUS": os.cpu_count() or 1,
        "SM_NUM_GPUS": _gpus(),
        "SM_NUM_NEURONS": 0,
        "SM_LOG_LEVEL": 20,
    }
    channels = {name: str(job.root / "input/data" / name) for name in job.channels}
    inside = {name[len("SM_") :].lower(): value for name, value in values.items()}
    values["SM_TRAINING_ENV"] = {**inside, "hyperparameters": decoded, "channel_input_dirs": channels}
    values.update({"SM_HP_" + name.upper(): value for name, value in job.hyperparameters.items()})
    values.update({"SM_CHANNEL_" + name.upper(): path for name, path in channels.items()})
    return values


def _decoded(text: str) -> Any:  # noqa: ANN401 - a hyperparameter is any JSON
    """As the toolkit shows it in SM_HPS; the arguments keep the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _gpus() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listed = subprocess.run([program, "--list-gpus"], stdout=subprocess.PIPE, check=False)  # noqa: S603 - no user data
    return listed.stdout.count(b"GPU ")


def command(job: Job) -> List[str]:
    script = [str(job.bundle["entry_point"]), *job.arguments]
    if not script[0].endswith(".py"):  # a shell script, say; channels keep no rights
        (job.code / script[0]).chmod(0o755)
        return ["./" + script[0], *job.arguments]
    if job.bundle["launcher"] == "python":
        return [sys.executable, *script]
    # torchrun starts the processes of this host: one for each GPU, else as many as PET_NPROC_PER_NODE says, else one
    options = ["--nproc_per_node", str(_gpus())] if _gpus() else []
    several = ["--nnodes", str(len(job.hosts)), "--node_rank", str(job.hosts.index(job.host)), "--master_addr"]
    several += [job.hosts[0], "--master_port", os.environ.get("MASTER_PORT") or "29500"]
    # alone on any free port, since two jobs may share a machine
    options += ["--standalone"] if len(job.hosts) == 1 else several
    return [sys.executable, "-m", "torch.distributed.run", *options, *script]


def prepare(job: Job) -> None:
    """Make the folders, the working directory as a writable copy of the bundle, and install what it requires."""
    for name in ("model", "output/data", "output/intermediate"):
        (job.root / name).mkdir(parents=True, exist_ok=True)
    for name in ("metrics", "runs"):
        make_folder(job.checkpoints / name)
    shutil.copytree(str(job.root / "input/data/code"), str(job.code), dirs_exist_ok=True)
    requirements = job.code / "requirements.txt"
    if not requirements.is_file():
        return
    if os.environ.get("TUNER_LOCAL") == "1":
        _check_installed(requirements)
        return
    pip = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "-r"]
    if subprocess.run([*pip, str(requirements)], cwd=str(job.code), check=False).returncode:  # noqa: S603 - no shell
        raise StartError("pip could not install requirements.txt: see the log")


def _check_installed(requirements: Path) -> None:
    """A local job runs in its user's environment, which is not ours to change. Versions are not compared."""
    import importlib.metadata  # noqa: PLC0415 - half of what a start would cost, and rarely needed

    missing = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        match = _REQUIREMENT.match(line.partition("#")[0])
        if match is None or ";" in line or "://" in line:  # options, conditions and addresses are not judged
            continue
        try:
            importlib.metadata.version(match.group(1))
        except importlib.metadata.PackageNotFoundError:
            missing.append(match.group(1))
    if missing:
        raise StartError(
            "requirements.txt asks for {}, and a local job installs nothing: install it where tuner runs".format(
                ", ".join(missing)
            )
        )


def write_record(job: Job, resume: Optional[ResumePoint]) -> None:
    """Say where this run starts."""
    run = {"attempt": job.attempt, "run": job.run, "host": job.host, "started_at": time.time()}
    record = json.dumps({**run, **found(job.checkpoints, resume)})
    write(job.checkpoints / "runs" / (job.record_name + ".json"), record.encode())


# --- the process ------------------------------------------------------------------------------------------------------


class ScriptProcess:
    """The script's process group, as PID 1 sees it."""

    def __init__(self) -> None:
        self._process: "Optional[subprocess.Popen[bytes]]" = None
        self._starting = False
        self.stopping = False
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        os.set_blocking(read_end, False)
        self._woken = read_end
        # Handlers before anything else: the kernel ignores signals to a PID 1 that has none.
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._forward)
        signal.signal(signal.SIGINT, self._forward)

    def _forward(self, number: int, _frame: object) -> None:
        self.stopping = True
        if not self._starting:
            sys.exit(128 + number)
        if self._process is not None and self._process.returncode is None:
            _signal_group(self._process.pid, number)

    def run(self, arguments: List[str], cwd: Path, variables: Dict[str, str], listener: Listener) -> int:
        """Run to the end; the exit code."""
        self._starting = True
        self._process = subprocess.Popen(  # noqa: S603 - running the user's own script is the job; no shell
            arguments,
            cwd=str(cwd),
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        if self.stopping:  # asked for while it started
            _signal_group(self._process.pid, signal.SIGTERM)
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            self._attend(stream.fileno(), listener)
        listener.end()
        code = self._process.returncode
        return 128 - code if code < 0 else code

    def _attend(self, output: int, listener: Listener) -> None:
        assert self._process is not None
        try:
            while self._process.returncode is None:
                self._hear(output, listener, None)
                self._reap()
        finally:
            _signal_group(self._process.pid, signal.SIGKILL)  # as the end of a container does to what is left
        end = time.monotonic() + DRAIN_S
        while time.monotonic() < end and self._hear(output, listener, DRAIN_S):
            pass

    def _hear(self, output: int, listener: Listener, timeout_s: Optional[float]) -> bool:
        """Wait for output or the end of a process; False when there is nothing more to come."""
        ready, _, _ = select.select([output, self._woken], [], [], timeout_s)
        if self._woken in ready:
            os.read(self._woken, CHUNK_BYTES)
        if output not in ready:
            return bool(ready)
        chunk = os.read(output, CHUNK_BYTES)
        listener.hear(chunk)
        if not chunk and timeout_s is None:
            # The script closed its output and lives on: without this, select would return at once for ever.
            select.select([self._woken], [], [], 1.0)
        return bool(chunk)

    def _reap(self) -> None:
        """Collect the script, and orphans, which become children of PID 1."""
        assert self._process is not None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._process.pid:
                self._process.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
        os.killpg(group, number)


def write_failure(root: Path, code: int, said: str) -> None:
    """SageMaker shows the beginning of this file as the FailureReason; a script's own is left alone."""
    path = root / "output" / "failure"
    if path.exists():
        return
    head = "ExecuteUserScriptError: ExitCode {}\n".format(code)
    if code == 128 + signal.SIGKILL:
        head += "killed by SIGKILL, perhaps out of memory\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + said[-(FAILURE_CHARS - len(head)) :], encoding="utf-8", errors="replace")


def main() -> int:
    script = ScriptProcess()
    try:
        job = read_job()
        prepare(job)
        restore_metrics(job.checkpoints, job.host)
        resume = resume_point(job.checkpoints)
        write_record(job, resume)
        file = job.checkpoints / "metrics" / (job.record_name + ".jsonl")
        listener = Listener(file, job.bundle["metrics"], sys.stdout.fileno())
        variables = environment(job, None if resume is None else resume.step)
        code = script.run(command(job), job.code, variables, listener)
    except Exception as problem:  # noqa: BLE001 - whatever it is, it has to be said in the failure file
        said = str(problem) if isinstance(problem, StartError) else traceback.format_exc()
        sys.stderr.write(said + "\n")
        write_failure(Path(os.environ.get("TUNER_ML_ROOT") or CONTAINER_ROOT), 1, said)
        return 1
    if code and not script.stopping:
        write_failure(job.root, code, "\n".join(listener.tail))
    return code


if __name__ == "__main__":
    sys.exit(main())
