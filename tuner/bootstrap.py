"""The entrypoint of our containers: PID 1, and the one witness of where each run started.

The framework containers' own entrypoint does not pass SIGTERM on, so a stopped script could not save and would be
billed for its whole grace period. This one starts the script as SageMaker's toolkit does (arguments, `SM_*` variables,
`/opt/ml/code`, the failure file), and besides:

- passes SIGTERM and SIGINT to the script's process group, reaps orphans, keeps the exit code (128 + n for signal n);
- records, before the script starts, the checkpoint that it found: the proof of resume;
- writes the metrics that the script prints, by `tuner.training.report` or found by the study's regexes, to
  `metrics/` under the checkpoint directory, and puts back what did not reach the store before the interruption.

Output passes through as it comes, in bounded memory. This module travels into containers: standard library only,
Python 3.8, no other module of ours. What it shares with `training` is the format on disk.
"""

import collections
import contextlib
import hashlib
import json
import math
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
from typing import Any, Deque, Dict, Iterator, List, NamedTuple, Optional, Tuple

CONTAINER_ROOT = "/opt/ml"
IGNORED = ".sagemaker-ignore"
AGENT_SUFFIXES = (IGNORED, ".sagemaker-uploading", ".sagemaker-uploaded")

CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 16  # of a longer line only the beginning is looked at
MAX_SEARCHED_CHARS = 4096  # regexes of users may be slow on long lines
TAIL_LINES, FAILURE_CHARS = 20, 1000  # SageMaker keeps 1024 characters, its own first word among them
DRAIN_S = 1.0  # how long after the script's end its daemons may keep its output open

MAX_STEP = 10**18 - 1

_REPORT = re.compile(r"\[tuner ([0-9]{1,12}\.[0-9]{1,9})\] step=(none|[0-9]{1,18}) (\S+=.*)")
_OWN_FOLDER = re.compile(r"metrics|runs")
_OWN_OR_STEP_FOLDER = re.compile(r"metrics|runs|step-[0-9]{8,}")
_METRICS_FILE = re.compile(r"\d{3,}-[0-9a-z]+-[\w.-]+\.jsonl")
_STEP_FOLDER = re.compile(r"step-([0-9]{8,18})")
_NEVER = "(?!)"  # matches nowhere
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
    channels = _read_json(config / "inputdataconfig.json")
    local_path = _read_json(config / "checkpointconfig.json").get("LocalPath") or CONTAINER_ROOT + "/checkpoints"
    if local_path.startswith(CONTAINER_ROOT + "/"):
        local_path = str(root / local_path[len(CONTAINER_ROOT) + 1 :])
    return Job(
        root=root,
        checkpoints=Path(local_path),
        bundle=json.loads((root / "input/data/code/tuner_bundle.json").read_text(encoding="utf-8")),
        hyperparameters={name: str(value) for name, value in _read_json(config / "hyperparameters.json").items()},
        resources=_read_json(config / "resourceconfig.json"),
        channels=sorted(name for name in channels if name != "code"),
        attempt=int(os.environ.get("TUNER_ATTEMPT") or 0),
        # Time-ordered as text, and different for two starts within one tick of a coarse clock.
        run="{:016x}{}".format(time.time_ns(), os.urandom(2).hex()),
    )


def _read_json(path: Path) -> Dict[str, Any]:
    """The object in a file of SageMaker's; empty where there is no such file."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


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
        "SM_INPUT_DATA_CONFIG": _read_json(job.root / "input" / "config" / "inputdataconfig.json"),
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
        _make_folder(job.checkpoints / name)
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


def _make_folder(path: Path) -> None:
    """Make a folder of our own, whatever the script put in its place."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


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


# --- what lies in the checkpoint directory ----------------------------------------------------------------------------


class ResumePoint(NamedTuple):
    step: int
    saved_at: float


def manifests(directory: Path) -> List[Tuple[Path, Dict[str, Any]]]:
    """Each step's folder and manifest, newest step first; without those that cannot be read."""
    found = []
    for path in directory.glob("step-*/manifest.json"):
        try:
            manifest = _read_json(path)
            if path.parent.name == "step-{:08d}".format(manifest["step"]):
                found.append((path.parent, manifest))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda item: int(item[1]["step"]), reverse=True)


def resume_point(directory: Path) -> Optional[ResumePoint]:
    """The newest checkpoint that is complete by sizes and hashes, as `tuner.training` will find it."""
    for folder, manifest in manifests(directory):
        try:
            if all(_holds(folder, item) for item in manifest["files"]):
                return ResumePoint(int(manifest["step"]), float(manifest["saved_at"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _holds(folder: Path, item: Dict[str, Any]) -> bool:
    if ".." in item["name"].split("/") or not (folder / item["name"]).is_file():  # a pipe would never end
        return False
    digest, size = hashlib.sha256(), 0
    with (folder / item["name"]).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return bool(size == item["size"] and digest.hexdigest() == item["sha256"])


def own_files(directory: Path, ours: "re.Pattern[str]" = _OWN_FOLDER) -> int:
    """How many files of the script's lie there: without those in folders of our own, and the agent's."""
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sum(
        not ours.fullmatch(path.parts[0]) and not any(part.endswith(AGENT_SUFFIXES) for part in path.parts)
        for path in files
    )


def newest_step(directory: Path) -> Optional[int]:
    """The newest step that has a folder, complete or torn; None where none has."""
    matches = (_STEP_FOLDER.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return max((int(match.group(1)) for match in matches if match), default=None)


def write_record(job: Job, resume: Optional[ResumePoint]) -> None:
    record = {
        "attempt": job.attempt,
        "run": job.run,
        "host": job.host,
        "started_at": time.time(),
        "resume_step": None if resume is None else resume.step,
        "resume_saved_at": None if resume is None else resume.saved_at,
        # Where no step is complete, nobody could resume from parts of steps: who begins anew then restarts nothing.
        "own_files": own_files(job.checkpoints, _OWN_FOLDER if resume else _OWN_OR_STEP_FOLDER),
        "newest_step": newest_step(job.checkpoints),
    }
    _write(job.checkpoints / "runs" / (job.record_name + ".json"), json.dumps(record).encode())


def restore_metrics(job: Job) -> None:
    """Put back the reports of earlier runs of this host that were in a checkpoint's manifest, but not in their file.

    The store receives files in any order: a checkpoint may have survived without the metrics reported before it. They
    go to the file of the run that they belong to, which is over.
    """
    lines: Dict[str, Dict[bytes, None]] = {}
    for _, manifest in reversed(manifests(job.checkpoints)):
        try:
            repeated = manifest.get("metrics") or {"file": "", "entries": []}
            entries = [json.dumps(entry, allow_nan=False).encode() for entry in repeated["entries"]]
            name = str(repeated["file"])
        except (KeyError, TypeError, ValueError):
            continue
        if _METRICS_FILE.fullmatch(name) and name.endswith("-{}.jsonl".format(job.host)):
            lines.setdefault(name, {}).update(dict.fromkeys(entries))
    for name, repeated_lines in lines.items():
        _complete(job.checkpoints / "metrics" / name, repeated_lines)


def _complete(path: Path, missing: Dict[bytes, None]) -> None:
    """Add the lines that the file does not hold. It may have millions, and is not read into memory."""
    whole = 0  # a line that was cut off is among the repeated ones
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
                missing.pop(line[:-1], None)
        if missing:
            file.truncate(whole)
            file.write(b"".join(line + b"\n" for line in missing))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + IGNORED)
    temporary.write_bytes(data)
    temporary.replace(path)


# --- what the script says ---------------------------------------------------------------------------------------------


class Pattern(NamedTuple):
    """One metric that the study finds in the log. Without a step of its own a line has the last step that was seen."""

    name: str
    value: "re.Pattern[str]"
    step: "re.Pattern[str]"


class Listener:
    """Passes the script's output on, keeps its last lines, and writes the metrics that it holds."""

    def __init__(self, path: Path, metrics: List[Dict[str, Any]], output: int) -> None:
        self.tail: Deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._patterns = [
            Pattern(each["name"], re.compile(each["regex"]), re.compile(each.get("step_regex") or _NEVER))
            for each in metrics
        ]
        self._steps: Dict[str, int] = {}
        self._path = path
        self._output = output
        self._held = b""

    def hear(self, chunk: bytes) -> None:
        with contextlib.suppress(OSError):  # a log that is full or gone must not end the training
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._output, rest) :]
        for line in self._lines(chunk):
            self._note(line)

    def end(self) -> None:
        """The last line may have no end."""
        self._note(self._held)
        self._held = b""

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Whole lines. A carriage return ends one too, so that progress bars are short lines."""
        *whole, rest = chunk.replace(b"\r", b"\n").split(b"\n")
        for piece in whole:
            yield (self._held + piece)[:MAX_LINE_BYTES]
            self._held = b""
        self._held = (self._held + rest)[:MAX_LINE_BYTES]

    def _note(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()
        if not line:
            return
        self.tail.append(line[:FAILURE_CHARS])
        # Another process may have left a line unfinished before it, so it need not stand at the beginning.
        reported = _REPORT.search(line)
        if reported:
            at, step, values = reported.groups()
            self._append(None if step == "none" else int(step), float(at), _values(values))
        elif self._patterns:
            self._search(line[:MAX_SEARCHED_CHARS])

    def _search(self, line: str) -> None:
        found: Dict[Optional[int], Dict[str, float]] = {}
        for pattern in self._patterns:
            step = _number(pattern.step, line)
            if step is not None and step.is_integer() and 0 <= step <= MAX_STEP:
                self._steps[pattern.name] = int(step)
            value = _number(pattern.value, line)
            if value is not None:
                found.setdefault(self._steps.get(pattern.name), {})[pattern.name] = value
        for known_step, values in found.items():
            self._append(known_step, round(time.time(), 6), values)

    def _append(self, step: Optional[int], at: float, values: Dict[str, float]) -> None:
        """One line per write, unbuffered: what was heard is in the file before anything else is read.

        The file is opened for each: a script that clears its checkpoint folder takes our files with it.
        """
        metrics = {name: value if math.isfinite(value) else repr(value) for name, value in values.items()}
        line = json.dumps({"step": step, "at": at, "metrics": metrics}, allow_nan=False).encode() + b"\n"
        try:
            self._write(line)
        except (FileNotFoundError, NotADirectoryError):
            _make_folder(self._path.parent)
            self._write(line)

    def _write(self, line: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(line)


def _values(text: str) -> Dict[str, float]:
    pairs = (part.partition("=") for part in text.split(" "))
    numbers = {name: _float(value) for name, _, value in pairs}
    return {name: value for name, value in numbers.items() if value is not None}


def _number(pattern: "re.Pattern[str]", line: str) -> Optional[float]:
    match = pattern.search(line)
    return _float(match.group(1 if pattern.groups else 0)) if match else None


def _float(text: Optional[str]) -> Optional[float]:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


# --- the process ------------------------------------------------------------------------------------------------------


class Script:
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
    script = Script()
    try:
        job = read_job()
        prepare(job)
        restore_metrics(job)
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
