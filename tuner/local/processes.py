"""Starting what must outlive us, and ending what must not outlive its job.

Every process of a job carries the job's folder in its environment, so it can be found after its parents are gone,
whatever session or group it moved to. Where jobs have a process namespace the kernel has ended them already; this is
the answer for the other machines. There, a process that empties its environment *and* survives its supervisor is not
found: the one gap.

Rules: standard library only (the supervisor reads it).
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "TUNER_LOCAL_JOB"
LOCK_DESCRIPTOR = 3
_ROUND_S = 0.002
_ROUNDS = 5000


def start_supervisor(job: Path, lock: int, s3_endpoint: str | None) -> int:
    """Start the supervisor of a job in a session of its own, and hand the lock over to it. Returns its process id.

    One with an endpoint for S3 has the interpreter's packages, and this process's settings and credentials for AWS.
    """
    log = str(job / "supervisor.log")
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    if s3_endpoint is not None:
        environment |= {key: value for key, value in os.environ.items() if key.startswith("AWS_") or key == "HOME"}
        environment["AWS_ENDPOINT_URL_S3"] = s3_endpoint
    environment[MARK] = str(job)
    high = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, LOCK_DESCRIPTOR + 1)  # never one of those opened below
    options = ["-X", "utf8", "-I", *(["-S"] if s3_endpoint is None else [])]
    argv = [sys.executable, *options, str(Path(__file__).with_name("supervisor.py")), str(job)]
    try:
        return os.posix_spawn(
            sys.executable,
            argv,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, high, LOCK_DESCRIPTOR),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT],
        )
    finally:
        os.close(high)
        os.close(lock)


def end_all_of(job: Path) -> None:
    """Kill every process of a job but this one, and wait until none is left."""
    for _ in range(_ROUNDS):
        found = [pid for pid in _processes() if pid != os.getpid() and _belongs(pid, job)]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _pause()
    raise TimeoutError(f"processes {found} of {job} do not end")


def end_descendants() -> None:
    """Kill and reap every descendant of this process, which must be their subreaper."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _pause()


def _descendants(root: int) -> set[int]:
    parents = {pid: parent for pid in _processes() if (parent := _parent(pid)) is not None}
    found: set[int] = set()
    fresh = {root}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def _parent(pid: int) -> int | None:
    try:  # "pid (any name at all) state parent …"
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _belongs(pid: int, job: Path) -> bool:
    try:  # empty for a zombie: dead enough
        return f"{MARK}={job}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _pause() -> None:
    time.sleep(_ROUND_S)  # noqa: TID251 - the kernel's processes die in real time only
