"""A job's own view of the machine: its own process table, and its own folder at /opt/ml.

With it an unmodified SageMaker script runs, and nothing of it survives its end: killing the first process of a
process namespace kills all of them, daemons and changed sessions included. The kernel allows it to root, and mostly
to ordinary users; where it does not, jobs run without (see `container.py`).

Everything goes through ctypes, since `os.unshare` needs Python 3.12, and in this order: a child is made directly in
its new namespaces (a second `unshare` for processes is refused to the same process, and a supervisor starts many
runs); it asks to die with its parent, and checks that the parent is not dead already; it maps its user; it makes all
mounts private; it puts its folder at /opt/ml; it mounts its own /proc.

Rules: standard library only (it runs in the supervisor). The parent must have one thread. Whether all this works is
tried, never guessed from versions: the refusals differ (EPERM, ENOSPC, EINVAL).
"""

import ctypes
import functools
import os
import platform
import secrets
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

OPT_ML = Path("/opt/ml")
# Not written to, but replaced for the job, in this order. The last is memory, and stays so.
TMP, VAR_TMP, SHM = Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")  # noqa: S108 - as above

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1000, 0x4000, 1 << 18, 2, 4, 8
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
_SETUP_FAILED = 125

# PyDLL keeps the interpreter's lock: the child of a raw clone is then simply the one thread there is.
_libc = ctypes.PyDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a child is set apart: the namespaces made for it; none where the kernel refuses."""

    flags: int
    refusal: str = ""

    @property
    def is_private(self) -> bool:
        return self.flags != 0


def find_isolation(folder: Path) -> Isolation:
    """Try the whole recipe with a child that writes through /opt/ml into `folder`; once with each way to ask."""
    refusal = "this processor's system call numbers are not known here"
    ways = () if _CLONE is None else (_NEWNS | _NEWPID, _NEWNS | _NEWPID | _NEWUSER)
    for flags in ways if os.geteuid() == 0 else ways[1:]:
        token = secrets.token_hex(8)
        try:
            pid = start(Isolation(flags), folder, lambda token=token: _write_token(token))  # type: ignore[misc]
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except OSError as error:
            refusal = os.strerror(error.errno or 0)
            continue
        if status == 0 and (folder / token).is_file():
            (folder / token).unlink()
            return Isolation(flags)
        refusal = "the kernel refuses private mounts"
    return Isolation(0, refusal)


@dataclass(frozen=True, slots=True)
class OwnTmp:
    """Folders that stand at /tmp, /var/tmp and /dev/shm for a job.

    Of the real ones only the entries that lead to `kept` are seen.
    """

    tmp: Path
    var_tmp: Path
    shm: Path
    kept: tuple[Path, ...]


def start(isolation: Isolation, ml: Path, then: Callable[[], object], *, tmp: OwnTmp | None = None) -> int:
    """A child process, set apart, that does `then` and dies with this process. Returns its id here."""
    life = _life_line()
    pid = _clone(isolation.flags) if isolation.is_private else os.fork()
    if pid == 0:
        _be_child(isolation, ml, life, then, tmp)
    return pid


def execute(argv: Sequence[str], environment: dict[str, str], log: Path, folder: Path) -> NoReturn:
    """Become the script: output to its log, nothing inherited but the environment given."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1 << 16)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; a program expects the default
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.setsid()
        os.umask(0o022)
        os.chdir(folder)
        os.execvpe(argv[0], list(argv), environment)  # noqa: S606 - the request's own entrypoint, as a list
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))))


@functools.cache
def _life_line() -> tuple[int, int]:
    """A pipe whose writing end only this process holds: reading end-of-file from it means that we are dead."""
    return os.pipe()


def _clone(flags: int) -> int:
    nothing = ctypes.c_ulong(0)
    pid: int = _libc.syscall(
        ctypes.c_long(_CLONE or 0), ctypes.c_ulong(flags | signal.SIGCHLD), nothing, nothing, nothing, nothing
    )
    return _check(pid)


def _be_child(
    isolation: Isolation, ml: Path, pipe: tuple[int, int], then: Callable[[], object], tmp: OwnTmp | None
) -> NoReturn:
    try:
        os.close(pipe[1])
        _check(_libc.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0))))
        if select.select([pipe[0]], [], [], 0)[0]:  # end of file: the parent died before it could be tied to us
            os._exit(_SETUP_FAILED)
        if isolation.is_private:
            _set_apart(isolation.flags, ml, tmp)
        then()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - nothing may return into the supervisor's code
        os.write(2, f"cannot set a job apart: {error!r}\n".encode())
    finally:
        os._exit(_SETUP_FAILED)


def _set_apart(flags: int, ml: Path, tmp: OwnTmp | None) -> None:
    if flags & _NEWUSER:
        _map_user_to_itself()
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    if not OPT_ML.is_dir():
        _rebuild_opt(ml.parent)
    _mount(str(ml), str(OPT_ML), None, _MS_BIND | _MS_REC)
    if tmp is not None:
        _replace(TMP, tmp.tmp, tmp.kept)
        if VAR_TMP.is_dir() and not VAR_TMP.is_symlink():  # a link leads to /tmp
            _replace(VAR_TMP, tmp.var_tmp, tmp.kept)
        if SHM.is_dir():
            with suppress(OSError):  # where there is no more memory to give, a folder on the disk does
                _mount("tmpfs", str(tmp.shm), "tmpfs", _MS_NOSUID | _MS_NODEV)
            _replace(SHM, tmp.shm, tmp.kept)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _map_user_to_itself() -> None:
    """Files that the job writes belong to the user who started it."""
    # Before the first line is written the user is nobody; these two were read by the parent.
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{_UID} {_UID} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{_GID} {_GID} 1", encoding="ascii")


def _rebuild_opt(place: Path) -> None:
    """An /opt with the same entries and an empty `ml`, since nobody but root may make a folder in the real one."""
    new = place / "opt"
    new.mkdir(exist_ok=True)
    _mount("tmpfs", str(new), "tmpfs", _MS_NOSUID | _MS_NODEV)
    for entry in os.scandir("/opt"):
        target = new / entry.name
        if entry.is_symlink():
            target.symlink_to(Path(entry.path).readlink())
            continue
        if entry.is_dir():
            target.mkdir()
        else:
            target.touch()
        _mount(entry.path, str(target), None, _MS_BIND | _MS_REC)
    (new / "ml").mkdir()
    _mount(str(new), "/opt", None, _MS_BIND | _MS_REC)


def _replace(place: Path, folder: Path, kept: Sequence[Path]) -> None:
    """Bind the entries of a place that are needed (a Python may be installed there) into the folder, and it there."""
    inside = (path.relative_to(place).parts for path in kept if path.is_relative_to(place))
    for name in sorted({parts[0] for parts in inside if parts}):
        target = folder / name
        if (place / name).is_dir():
            target.mkdir(exist_ok=True)
        elif (place / name).exists():
            target.touch()
        else:
            continue
        _mount(str(place / name), str(target), None, _MS_BIND | _MS_REC)
    _mount(str(folder), str(place), None, _MS_BIND | _MS_REC)


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    encoded = kind.encode() if kind else None
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), encoded, ctypes.c_ulong(flags), None))


def _write_token(token: str) -> None:
    (OPT_ML / token).write_text(token, encoding="ascii")
    if os.getpid() != 1:
        raise RuntimeError("not the first process")


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_UID, _GID = os.geteuid(), os.getegid()
