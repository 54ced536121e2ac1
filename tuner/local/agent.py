"""SageMaker's checkpoint agent: what lies in the checkpoint folder is in S3 a moment later, and comes back at a start.

It behaves as the real one was seen to, the unpleasant parts included: files go up in no promised order, one that is
written in place goes up half-written, one that is deleted is deleted in S3, markers (`F.sagemaker-uploading`, then
`F.sagemaker-uploaded`) appear next to the files, `*.sagemaker-ignore` stays behind. Nothing is copied down after the
start. A put is atomic; that a kill tears the newest upload is a switch.

Rules: standard library only (it runs in the supervisor). It never fails because of what the script does to the folder:
links are not followed, pipes, sockets and devices are passed over, and so are names that are no text; a file that
cannot be stored is tried again at the next look.
"""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tuner.local.tree import JobStorage, open_regular

_UPLOADING, _UPLOADED, _IGNORE = ".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore"
MARKERS = (_UPLOADING, _UPLOADED, _IGNORE)

# What tells one content of a file from another: inode, time, size.
_Stamp = tuple[int, int, int]


class Agent:
    """Keeps the objects under one prefix equal to the files of one folder."""

    def __init__(self, objects: JobStorage, uri: str, folder: Path, *, markers: bool) -> None:
        self._objects = objects
        self._uri = uri
        self._folder = folder
        self._markers = markers
        self._known: dict[str, _Stamp] = {}
        self._refused: set[str] = set()

    def download(self) -> None:
        """Fill the folder with what is under the prefix."""
        for name in self._objects.fetch(self._uri, self._folder):
            self._known[name] = _stamp((self._folder / name).stat())

    def sync(self) -> None:
        """Upload what is new or changed, delete what is gone."""
        found = dict(_scan(self._folder))
        changed = [name for name, stamp in found.items() if self._known.get(name) != stamp]
        refused = [name for name in changed if not self._upload(name, found[name])]
        for name in self._known.keys() - found.keys():
            self._forget(name)
        for name in refused:  # where a folder has become a file, or a file a folder, the old one was in the way
            if not self._upload(name, found[name]):
                self._complain(name)

    def tear(self) -> None:
        """Leave the upload that a kill came into half-done: the newest file that is not up yet, else the newest."""
        found = dict(_scan(self._folder))
        pending = [name for name in found if self._known.get(name) != found[name]] or list(found)
        if pending:
            newest = max(pending, key=lambda name: found[name][1])
            with suppress(OSError), open_regular(self._folder / newest) as file:
                self._objects.put_bytes(file.read(found[newest][2] // 2), self._address(newest))

    def _upload(self, name: str, stamp: _Stamp) -> bool:
        """False if the file is there, and the store does not take it now."""
        source = self._folder / name
        self._mark(source, _UPLOADING)
        try:
            self._objects.put(source, self._address(name))
            self._mark(source, _UPLOADED)
        except FileNotFoundError:  # the script removed it meanwhile; the next look deletes the object, if there is one
            pass
        except (OSError, ValueError):
            return False
        finally:
            self._unmark(source, _UPLOADING)
        self._known[name] = stamp
        return True

    def _forget(self, name: str) -> None:
        with suppress(OSError):  # a folder of that name may be there by now
            self._objects.delete(self._address(name))
        self._unmark(self._folder / name, _UPLOADED)
        del self._known[name]

    def _mark(self, source: Path, suffix: str) -> None:
        if self._markers:
            with suppress(OSError):  # a name may be too long with its suffix, or its folder gone
                os.close(os.open(f"{source}{suffix}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    @staticmethod
    def _unmark(source: Path, suffix: str) -> None:
        with suppress(OSError):
            os.unlink(f"{source}{suffix}")  # noqa: PTH108 - as above: a suffix to a whole path

    def _complain(self, name: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            sys.stderr.write(f"{name!r} could not be uploaded; trying again\n")

    def _address(self, name: str) -> str:
        return f"{self._uri.rstrip('/')}/{name}"


def _scan(folder: Path, prefix: str = "") -> Iterator[tuple[str, _Stamp]]:
    try:
        entries = [] if folder.is_symlink() else list(os.scandir(folder))
    except OSError:  # removed since its parent was read, or closed to us
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and _is_text(entry.name):
            yield from _scan(Path(entry.path), f"{prefix}{entry.name}/")
        elif not entry.name.endswith(MARKERS) and _is_text(entry.name):
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield prefix + entry.name, _stamp(status)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_text(name: str) -> bool:
    """S3's keys are UTF-8; a file's name may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
