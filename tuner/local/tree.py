"""`s3://` on this machine: a bucket is a folder, an object is a file, a prefix is a string.

Rules: standard library only (the supervisor reads it). A put is atomic, as S3's is: a temporary name outside the tree,
then a rename. An address never leads out of the tree. Prefixes are compared as strings, so `…/1` finds `…/10` too,
exactly as the real one surprises people. What a script leaves to be stored is opened as it lies there: a link is
never followed out of its instance, and nothing waits on a pipe that nobody will ever write to.
"""

import errno
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from tuner.local.jobdir import new_temporary
from tuner.storage.objects import put_in_place, remove_empty_folders

_BLOCK_BYTES = 1 << 20
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/?(.*)", re.DOTALL)


class BadAddress(ValueError):  # noqa: N818 - named for what it says to the reader of the message
    """An address that maps to nothing in the tree."""


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key. Raises `BadAddress` for what is not S3's, or would lead out of its bucket's folder."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise BadAddress(f"{uri!r} is not an s3:// address")
    bucket, key = match.groups()
    parts = key.removesuffix("/").split("/") if key else []
    if ".." in bucket or any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise BadAddress(f"{uri!r} cannot be mapped to a folder: an empty, '.' or '..' segment")
    return bucket, key


def open_regular(path: Path) -> BinaryIO:
    """The file at `path` for reading. FileNotFoundError too for a link, a pipe, a socket or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


class JobStorage(Protocol):
    """What a job's instance needs of `s3://`, whatever that is. OSError and ValueError where it cannot be had."""

    def fetch(self, uri: str, folder: Path) -> list[str]:
        """Copy every object whose address begins with `uri` into a folder; their names there.

        A name is what follows the prefix; for an object that is exactly `uri`, its last name.
        """
        ...

    def put(self, source: Path, uri: str) -> None:
        """Store a file. Raises FileNotFoundError where the source is gone, or is no regular file."""
        ...

    def put_bytes(self, data: bytes, uri: str) -> None: ...

    def delete(self, uri: str) -> None: ...


class Tree:
    """The objects of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def path(self, uri: str) -> Path:
        """The file that is this object."""
        bucket, key = split_uri(uri)
        return self._state_dir / "s3" / bucket / key

    def under(self, uri: str) -> Iterator[tuple[str, Path]]:
        """Every object whose address begins with `uri`: what follows the prefix, and its file.

        For an object that is exactly `uri`, its last name stands for what follows.
        """
        bucket, prefix = split_uri(uri)
        root = self._state_dir / "s3" / bucket
        for path in _files(root / prefix.rpartition("/")[0]):
            key = path.relative_to(root).as_posix()
            if key.startswith(prefix):
                yield key[len(prefix) :].lstrip("/") or path.name, path

    def fetch(self, uri: str, folder: Path) -> list[str]:
        return [name for name, source in self.under(uri) if _bring(source, folder / name)]

    def put(self, source: Path, uri: str) -> None:
        with open_regular(source) as file:
            self._put(file, uri)

    def put_bytes(self, data: bytes, uri: str) -> None:
        self._put(io.BytesIO(data), uri)

    def _put(self, source: BinaryIO, uri: str) -> None:
        temporary = new_temporary(self._state_dir, "put")
        try:
            with temporary.open("xb") as target:
                shutil.copyfileobj(source, target, _BLOCK_BYTES)
            put_in_place(self._state_dir / "s3", temporary, self.path(uri))
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, uri: str) -> None:
        """Remove an object, and the folders that held nothing else: S3 has none."""
        path = self.path(uri)
        path.unlink(missing_ok=True)
        remove_empty_folders(self._state_dir / "s3", path)


def _bring(source: Path, target: Path) -> bool:
    """Copy one object; False where it has just gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return False
    return True


def _files(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)
