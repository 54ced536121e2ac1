"""The directory of a job: what was asked, what happened, and whether somebody looks after it.

    jobs/<name>/job.json       the request and everything fixed at creation; written once
    jobs/<name>/history.jsonl  one line per transition, appended and flushed to disk; the truth about the job
    jobs/<name>/tags.json      replaced as a whole
    jobs/<name>/lock           held by the supervisor for as long as it lives
    jobs/<name>/alive          touched by the supervisor; its time is the job's last sign of life
    jobs/<name>/logs/<n>.log   what run n printed
    jobs/<name>/ml, tmp, …     the instance's disk; gone when the job has ended

Rules: standard library only (the supervisor reads it). Any process may be killed at any instruction: a directory
appears complete, by a rename; a line that a killed writer left unfinished is not there, and is cut off by the next
writer. Every append is guarded by the status it expects to follow, under a lock that dies with its holder.
Whether a supervisor lives is asked of the kernel's lock, never of a process id: ids are reused, and a zombie has one.
"""

import fcntl
import json
import os
import re
import secrets
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENDS = frozenset({"Completed", "Failed", "Stopped", "MaxRuntimeExceeded", "MaxWaitTimeExceeded"})
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
# struct flock of 64-bit Linux: type, from where, start, length, pid.
_FLOCK = "hhqqi0q"


@dataclass(frozen=True, slots=True)
class Row:
    """One transition: the secondary status entered, when (epoch seconds), what is said of it, and what goes with it.

    Facts: `cause` of a Stopping (user, max_run, max_wait), `reason` of a Failed, and of every end `training_s`,
    `billable_s` (None if no instance ever started) and `artifacts`.
    """

    status: str
    at: float
    message: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class JobDir:
    """One job's directory; holds no state of its own but the record that never changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._history = str(path / "history.jsonl")  # asked for its time at every list: no pathlib then
        self.record: dict[str, Any] = json.loads((path / "job.json").read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state_dir(self) -> Path:
        return self.path.parent.parent

    @property
    def request(self) -> dict[str, Any]:
        request: dict[str, Any] = self.record["request"]
        return request

    @property
    def is_spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))

    def stamp(self) -> tuple[int, int, int]:
        """Changes whenever the history does. Raises FileNotFoundError once the job is deleted."""
        status = os.stat(self._history)  # noqa: PTH116 - as above
        return status.st_ino, status.st_mtime_ns, status.st_size

    def rows(self) -> list[Row]:
        """The history, oldest first, never empty."""
        return _parse((self.path / "history.jsonl").read_bytes())

    def append(
        self,
        status: str,
        at: float,
        message: str,
        *,
        after: Collection[str] | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> bool:
        """Enter `status`, if the job is in one of `after` (default: has not ended); False if it is not."""
        with self._writing() as (descriptor, rows):
            last = rows[-1]
            if last.status in ENDS or (after is not None and last.status not in after):
                return False
            line = {"status": status, "at": max(at, last.at), "message": message, **(facts or {})}
            _write_durably(descriptor, line)
            return True

    def explain(self, message: str, *, of: str) -> None:
        """Say something new of the status the job is in, if it is this one still."""
        with self._writing() as (descriptor, rows):
            if rows[-1].status == of and rows[-1].message != message:
                _write_durably(descriptor, {"message": message})

    @contextmanager
    def _writing(self) -> Iterator[tuple[int, list[Row]]]:
        descriptor = os.open(self.path / "history.jsonl", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            whole = text.rfind(b"\n") + 1
            if whole < len(text):
                os.ftruncate(descriptor, whole)
            yield descriptor, _parse(text)
        finally:
            os.close(descriptor)

    # --- tags ---

    def tags(self) -> list[dict[str, str]]:
        try:
            tags: list[dict[str, str]] = json.loads((self.path / "tags.json").read_text(encoding="utf-8"))
        except FileNotFoundError:  # deleted while somebody lists
            return []
        return tags

    def write_tags(self, tags: list[dict[str, str]]) -> None:
        replace_file(self.path / "tags.json", json.dumps(tags))

    # --- sign of life ---

    def is_attended(self) -> bool:
        """Whether a supervisor holds the lock. Takes nothing, so any number of readers may ask at once."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
            return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
        finally:
            os.close(descriptor)

    def take_lock(self) -> int | None:
        """A descriptor that holds the supervisor's lock until all its copies are closed; None if it is held."""
        return take_lock(self.path / "lock")

    def sign_life(self, at: float) -> None:
        os.utime(self.path / "alive", (at, at))

    def last_life(self) -> float:
        """The last moment at which the supervisor is known to have lived, epoch seconds."""
        return (self.path / "alive").stat().st_mtime

    # --- folders ---

    @property
    def ml(self) -> Path:
        return self.path / "ml"

    @property
    def tmp(self) -> Path:
        return self.path / "tmp"

    @property
    def home(self) -> Path:
        return self.path / "home"

    @property
    def var_tmp(self) -> Path:
        return self.path / "var_tmp"

    @property
    def shm(self) -> Path:
        return self.path / "shm"

    def log_path(self, run: int) -> Path:
        return self.path / "logs" / f"{run}.log"

    def log_paths(self) -> list[Path]:
        """The output of each run so far, in order."""
        return sorted((self.path / "logs").glob("*.log"), key=lambda path: int(path.stem))


def create_job(state_dir: Path, name: str, record: Mapping[str, Any], tags: list[dict[str, str]]) -> tuple[JobDir, int]:
    """Make a job appear, complete and with its lock held by the descriptor returned. FileExistsError: name taken."""
    target = state_dir / "jobs" / name
    if target.exists():
        raise FileExistsError(name)
    building = new_temporary(state_dir, "create")
    building.mkdir(mode=0o700)
    (building / "logs").mkdir()
    # a job's environment may hold secrets, and the folder may have been made by somebody else's umask
    with os.fdopen(os.open(building / "job.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(json.dumps(record))
    (building / "tags.json").write_text(json.dumps(tags), encoding="utf-8")
    first = {"status": "Starting", "at": record["created_at"], "message": "Starting the training job."}
    (building / "history.jsonl").write_text(json.dumps(first) + "\n", encoding="utf-8")
    for empty in ("lock", "alive"):
        (building / empty).touch()
    lock = take_lock(building / "lock")
    assert lock is not None, "nobody else knows this folder"
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        building.rename(target)  # refused by the kernel where a job of that name is: its folder is not empty
    except OSError as error:
        os.close(lock)
        raise FileExistsError(name) from error
    return JobDir(target), lock


def open_job(state_dir: Path, name: str) -> JobDir | None:
    """The job of that name; None for an unknown name."""
    if not NAME.fullmatch(name):
        return None
    try:
        return JobDir(state_dir / "jobs" / name)
    except FileNotFoundError:
        return None


def job_names(state_dir: Path) -> list[str]:
    """Every job of a state directory, by name."""
    try:
        return sorted(entry.name for entry in os.scandir(state_dir / "jobs") if NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []


def log_paths(state_dir: Path, job_name: str) -> list[Path]:
    """What each run of a job printed, in order; empty for an unknown job or one that never ran."""
    job = open_job(state_dir, job_name)
    return job.log_paths() if job else []


def new_temporary(state_dir: Path, purpose: str) -> Path:
    """A path under `tmp/` that nobody else uses; outside everything that lists jobs or objects."""
    (state_dir / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
    return state_dir / "tmp" / f"{purpose}-{secrets.token_hex(8)}"


def replace_file(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def take_lock(path: Path) -> int | None:
    """An open-file-description lock: it belongs to the descriptor, so it can be passed down to a child."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _parse(text: bytes) -> list[Row]:
    rows: list[Row] = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        raw = json.loads(line)
        if "status" in raw:
            rows.append(Row(raw.pop("status"), raw.pop("at"), raw.pop("message", ""), raw))
        else:  # a new message for the status the job is in
            rows[-1] = Row(rows[-1].status, rows[-1].at, raw["message"], rows[-1].facts)
    return rows


def _write_durably(descriptor: int, line: Mapping[str, object]) -> None:
    os.write(descriptor, (json.dumps(line, allow_nan=False) + "\n").encode())
    os.fsync(descriptor)
