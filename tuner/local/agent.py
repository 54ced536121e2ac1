"""SageMaker's checkpoint agent: what lies in the checkpoint folder is in S3 a moment later, and comes back at a start.

It behaves as the real one was seen to, the unpleasant parts included: files go up in no promised order, one that is
written in place goes up half-written, one that is deleted is deleted in S3, markers (`F.sagemaker-uploading`, then
`F.sagemaker-uploaded`) appear beside the files, `*.sagemaker-ignore` stays behind. Nothing is copied down after the
start. A put is atomic; that a kill tears the newest upload is a switch.

Rules: standard library only (it runs in the supervisor). It never fails because the script changes files under it.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tuner.local.tree import Tree

_UPLOADING, _UPLOADED, _IGNORE = ".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore"
MARKERS = (_UPLOADING, _UPLOADED, _IGNORE)

# What tells one content of a file from another: inode, time, size.
_Stamp = tuple[int, int, int]


class Agent:
    """Keeps the objects under one prefix equal to the files of one folder."""

    def __init__(self, tree: Tree, uri: str, folder: Path, *, markers: bool) -> None:
        self._tree = tree
        self._uri = uri
        self._folder = folder
        self._markers = markers
        self._known: dict[str, _Stamp] = {}

    def download(self) -> None:
        """Fill the folder with what is under the prefix."""
        for name, source in self._tree.under(self._uri):
            target = self._folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            self._known[name] = _stamp(target.stat())

    def sync(self) -> None:
        """Upload what is new or changed, delete what is gone."""
        found = dict(_scan(self._folder))
        for name, stamp in found.items():
            if self._known.get(name) != stamp:
                self._upload(name, stamp)
        for name in self._known.keys() - found.keys():
            self._forget(name)

    def tear(self) -> None:
        """Leave the upload that a kill came into half-done: the newest file that is not up yet, else the newest."""
        found = dict(_scan(self._folder))
        pending = [name for name in found if self._known.get(name) != found[name]] or list(found)
        if pending:
            newest = max(pending, key=lambda name: found[name][1])
            content = (self._folder / newest).read_bytes()
            self._tree.put_bytes(content[: len(content) // 2], self._address(newest))

    def _upload(self, name: str, stamp: _Stamp) -> None:
        source = self._folder / name
        try:
            if self._markers:
                source.with_name(source.name + _UPLOADING).touch()
            self._tree.put(source, self._address(name))
            if self._markers:
                source.with_name(source.name + _UPLOADING).replace(source.with_name(source.name + _UPLOADED))
        except (
            FileNotFoundError,
            NotADirectoryError,
        ):  # the script removed it meanwhile; the next look deletes the object, if there is one
            source.with_name(source.name + _UPLOADING).unlink(missing_ok=True)
        self._known[name] = stamp

    def _forget(self, name: str) -> None:
        self._tree.delete(self._address(name))
        (self._folder / (name + _UPLOADED)).unlink(missing_ok=True)
        del self._known[name]

    def _address(self, name: str) -> str:
        return f"{self._uri.rstrip('/')}/{name}"


def _scan(folder: Path, prefix: str = "") -> Iterator[tuple[str, _Stamp]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # removed since its parent was read
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _scan(Path(entry.path), f"{prefix}{entry.name}/")
        elif not entry.name.endswith(MARKERS):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield prefix + entry.name, _stamp(status)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size
