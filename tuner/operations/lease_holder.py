"""Who this process is, and whether the process that holds a lease is certainly gone.

Rules: a pid alone proves nothing, because pids are reused. The start time tells two processes with one pid apart, and
the boot id tells two boots of one host apart. In doubt a holder is not gone: waiting costs one lease period, a second
writer costs money.
"""

import os
import socket
from pathlib import Path

from tuner.core.records import Holder

_PROC = Path("/proc")
_START_FIELD = 22  # of /proc/PID/stat, in clock ticks since boot
_STATE_FIELD = 3


def this_process() -> Holder:
    pid = os.getpid()
    return Holder(host=socket.gethostname(), boot_id=_boot_id(), pid=pid, started=_started(pid) or "")


def gone(holder: Holder) -> bool:
    """Whether the holder ran on this host and is certainly dead."""
    if holder.host != socket.gethostname() or not holder.boot_id:
        return False
    boot, _, namespace = holder.boot_id.partition(" ")
    my_boot, _, my_namespace = _boot_id().partition(" ")
    if boot != my_boot:
        return True
    if namespace != my_namespace:
        return False  # another container of this host: its processes cannot be seen from here
    return _started(holder.pid) != holder.started


def _boot_id() -> str:
    """The boot of this host, and the process namespace; empty where the platform has neither."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started; None if there is none, or only its zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # the second field is the command in parentheses and may hold anything
    fields = stat.rpartition(")")[2].split()
    state, started = fields[_STATE_FIELD - 3], fields[_START_FIELD - 3]
    return None if state in "ZX" else started
