"""`s3://` on this machine: a bucket is a folder, an object is a file, a prefix is a string.

Rules: standard library only (the supervisor reads it). A put is atomic, as S3's is: a temporary name outside the tree,
then a rename. An address never leads out of the tree. Prefixes are compared as strings, so `…/1` finds `…/10` too,
exactly as the real one surprises people.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tuner.local.jobdir import new_temporary

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

    def put(self, source: Path, uri: str) -> None:
        """Store a file. Raises FileNotFoundError where the source is gone."""
        temporary = new_temporary(self._state_dir, "put")
        try:
            shutil.copyfile(source, temporary)
            self._place(temporary, self.path(uri))
        finally:
            temporary.unlink(missing_ok=True)

    def put_bytes(self, data: bytes, uri: str) -> None:
        temporary = new_temporary(self._state_dir, "put")
        temporary.write_bytes(data)
        self._place(temporary, self.path(uri))

    def delete(self, uri: str) -> None:
        """Remove an object, and the folders that held nothing else: S3 has none."""
        path = self.path(uri)
        path.unlink(missing_ok=True)
        bucket = self._state_dir / "s3" / split_uri(uri)[0]
        for folder in path.parents:
            if folder == bucket:
                return
            try:
                folder.rmdir()
            except OSError:
                return

    def _place(self, temporary: Path, target: Path) -> None:
        for _ in range(100):  # somebody deleting a neighbour may take the folder away in between
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                temporary.replace(target)
            except FileNotFoundError:
                continue
            return
        raise FileNotFoundError(target)


def _files(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)
