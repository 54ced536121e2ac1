"""How a script writes its checkpoints, and how long a save takes, as inotify reports it.

It tells a checkpoint that appears by a rename from one that is written under its final name: the checkpoint agent may
upload the second kind half-written. It also times the saves of scripts that do not import our library.

Rules: read only. Without inotify the answer is unknown; nothing is guessed. Our own files (metrics, records) and the
agent's markers do not count. Names that the agent ignores are part of a save, but are never uploaded.
"""

import ctypes
import os
import select
import statistics
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from tuner.training import AGENT_SUFFIXES, IGNORED

OWN_FOLDERS = ("metrics", "runs")

_MODIFY, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE = 0x2, 0x8, 0x40, 0x80, 0x100
_IS_FOLDER = 0x4000_0000
_MASK = _MODIFY | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE
_HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_BUFFER_BYTES = 1 << 16
_MARKERS = tuple(suffix for suffix in AGENT_SUFFIXES if suffix != IGNORED)
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def own_files(folder: Path) -> dict[str, os.stat_result]:
    """The script's files in a checkpoint folder that the store will get: relative name and status."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            relative = path.relative_to(folder)
            if relative.parts[0] in OWN_FOLDERS or any(part.endswith(AGENT_SUFFIXES) for part in relative.parts):
                continue
            with suppress(OSError):
                found[relative.as_posix()] = path.stat()
    return found


class SaveWatch:
    """Watches a checkpoint folder and its subfolders from its creation to the end of a run."""

    def __init__(self, folder: Path) -> None:
        self.moments: list[float] = []  # of the script's writes, in the order of the reports
        self.in_place: set[str] = set()
        self._folders: dict[int, str] = {}  # by watch: path relative to `folder`, "" or ending in a slash
        self._root = folder
        self._descriptor = _libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        self._add("")

    @property
    def works(self) -> bool:
        return bool(self._folders)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def wait(self, timeout_s: float, now: Callable[[], float]) -> None:
        """Record what happens in the folder until the time is up."""
        until = now() + timeout_s
        while (left_s := until - now()) > 0:
            if select.select([self._descriptor] if self.works else [], [], [], left_s)[0]:
                self.drain(now())

    def drain(self, now: float) -> None:
        """Record what happened since the last call."""
        for watch, mask, name in self._events():
            folder = self._folders.get(watch)
            if folder is not None:
                self._note(folder + name, mask, now)

    def _events(self) -> Iterator[tuple[int, int, str]]:
        if not self.works:
            return
        while True:
            try:
                data = os.read(self._descriptor, _BUFFER_BYTES)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                watch, mask, _, length = _HEAD.unpack_from(data, position)
                position += _HEAD.size
                yield watch, mask, os.fsdecode(data[position : position + length].split(b"\0", 1)[0])
                position += length

    def _note(self, name: str, mask: int, now: float) -> None:
        parts = name.split("/")
        if parts[0] in OWN_FOLDERS or any(
            part.endswith(AGENT_SUFFIXES) and not part.endswith(IGNORED) for part in parts
        ):
            return
        if mask & _IS_FOLDER and mask & (_CREATE | _MOVED_TO):
            self._add(f"{name}/")
        if mask & _MOVED_FROM:
            # This was a temporary name: the file appears whole under another one.
            self.in_place = {one for one in self.in_place if one != name and not one.startswith(f"{name}/")}
        elif mask & _MODIFY and not any(part.endswith(IGNORED) for part in parts):
            self.in_place.add(name)
        self.moments.append(now)

    def _add(self, relative: str) -> None:
        path = os.fsencode(self._root / relative)
        watch = _libc.inotify_add_watch(self._descriptor, path, ctypes.c_uint32(_MASK)) if self._descriptor >= 0 else -1
        if watch < 0:  # the folder is gone, or there are no more watches
            return
        self._folders[watch] = relative
        with suppress(OSError), os.scandir(self._root / relative) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and entry.name not in OWN_FOLDERS:
                    self._add(f"{relative}{entry.name}/")


def save_seconds(moments: Sequence[float], step_s: float) -> float | None:
    """The median time of a save. Writes less than half a step apart belong to one save."""
    if not moments:
        return None
    spans, begun = [], moments[0]
    for one, following in pairwise(moments):
        if following - one > step_s / 2:
            spans.append(one - begun)
            begun = following
    return statistics.median([*spans, moments[-1] - begun])
