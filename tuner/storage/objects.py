"""The port to an object store: S3 through boto3, or a directory tree that `s3://` addresses are mapped to.

Contract of `Objects`, tested for both by one conformance class: a write replaces a whole object or nothing; a listing
is by string prefix, in the byte order of the keys; deleting a missing object is no error; names that the checkpoint
agent leaves behind are listed like all others.

Rules: an address never leads out of the tree (no `.`, `..` or empty segments, no NUL). Each error is one of three
decisions: the object is missing, we are not allowed, or try again later.
"""

import errno
import fcntl
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # type stubs are installed for development only
    from mypy_boto3_s3 import S3Client

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]*[a-z0-9])/(.*)", re.DOTALL)
# Marks the folder of a local service: its contents, keys included, are never part of a code bundle.
STATE_MARK = ".tuner-state"
_DELETE_BATCH = 1000  # the most keys that one DeleteObjects accepts
_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}


class ObjectsError(Exception):
    """An answer of the object store that needs a decision."""


class ObjectNotFound(ObjectsError):  # noqa: N818 - these are answers, not bugs
    """There is no object at this address."""


class StorageRefused(ObjectsError):  # noqa: N818
    """Rights, a bucket or a name are wrong: a retry does not help until somebody acts."""


class StorageUnavailable(ObjectsError):  # noqa: N818
    """The same call may succeed later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    uri: str
    size: int
    modified: datetime  # aware, in UTC
    etag: str  # opaque; changes with each write


class ReadableObjects(Protocol):
    """An object store for readers. Addresses are `s3://bucket/key`."""

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """All objects whose address starts with `prefix`, in key order, after the address `start_after`."""
        ...

    def read(self, uri: str, start: int = 0, limit: int | None = None) -> bytes:
        """At most `limit` bytes from `start` on; no bytes if the object ends before `start`."""
        ...


class Objects(ReadableObjects, Protocol):
    """An object store for readers and writers."""

    def write(self, uri: str, data: bytes) -> None: ...

    def write_file(self, uri: str, source: Path) -> None: ...

    def read_to_file(self, uri: str, target: Path) -> None: ...

    def delete(self, uris: Iterable[str]) -> None: ...

    def copy(self, source: str, target: str) -> None: ...


def split_uri(uri: str) -> tuple[str, str]:
    """The bucket and the key."""
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise StorageRefused(f"{uri!r} is not an address: s3://bucket/key is expected")
    return match[1], match[2]


# --- a directory tree -------------------------------------------------------------------------------------------------


class DirectoryObjects:
    """`s3://bucket/key` is the file `root/bucket/key`. Unfinished files lie in `tmp`, next to `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._staging = self._root.parent / "tmp"

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        bucket, key = split_uri(prefix)
        folder = key.rpartition("/")[0]
        base = self._path(f"s3://{bucket}/{folder}") if folder else self._root / bucket
        names = (f"{folder}/{name}" if folder else name for name in _names(base))
        after = split_uri(start_after)[1] if start_after else ""
        # Text sorts by code points, which is the order of its UTF-8 bytes.
        for name in sorted(name for name in names if name.startswith(key) and name > after):
            if info := self._info(bucket, name):
                yield info

    def read(self, uri: str, start: int = 0, limit: int | None = None) -> bytes:
        with _files(uri), self._path(uri).open("rb") as file:
            file.seek(start)
            return file.read(-1 if limit is None else limit)

    def write(self, uri: str, data: bytes) -> None:
        with _files(uri):
            self._put(uri, lambda temporary: temporary.write_bytes(data))

    def write_file(self, uri: str, source: Path) -> None:
        with _files(uri):
            self._put(uri, lambda temporary: shutil.copyfile(source, temporary))

    def read_to_file(self, uri: str, target: Path) -> None:
        with _files(uri):
            shutil.copyfile(self._path(uri), target)

    def delete(self, uris: Iterable[str]) -> None:
        for uri in uris:
            path = self._path(uri)
            with _files(uri), suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            remove_empty_folders(self._root, path)

    def copy(self, source: str, target: str) -> None:
        with _files(source):
            self._put(target, lambda temporary: shutil.copyfile(self._path(source), temporary))

    def _path(self, uri: str) -> Path:
        bucket, key = split_uri(uri)
        segments = key.split("/")
        if "\0" in key or any(segment in ("", ".", "..") for segment in segments):
            raise StorageRefused(f"{uri!r}: a key of a directory store has no empty, '.' or '..' segment and no NUL")
        path = self._root / bucket / key
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise StorageRefused(f"{uri!r}: a symbolic link leads out of {self._root}")
        return path

    def _info(self, bucket: str, key: str) -> ObjectInfo | None:
        """None if the file has just been deleted."""
        try:
            found = (self._root / bucket / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectInfo(
            uri=f"s3://{bucket}/{key}",
            size=found.st_size,
            modified=datetime.fromtimestamp(found.st_mtime, UTC),
            etag=f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}",
        )

    def _make_staging(self) -> None:
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageRefused(
                f"the state directory {self._root.parent} cannot be written: {error.strerror}; "
                "name another by TUNER_LOCAL"
            ) from error

    def _put(self, uri: str, fill: Callable[[Path], object]) -> None:
        path = self._path(uri)
        self._make_staging()
        temporary = self._staging / secrets.token_hex(8)
        try:
            fill(temporary)
            put_in_place(self._root, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def put_in_place(root: Path, temporary: Path, target: Path) -> None:
    """Move a finished file into the tree `root`, with the folders of its key."""
    with _folders(root, fcntl.LOCK_SH):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)


def remove_empty_folders(root: Path, path: Path) -> None:
    """Remove the folders of the tree `root` that held only the deleted object `path`.

    An object store has no empty folders; one left here would prevent a key of its name.
    """
    with suppress(OSError), _folders(root, fcntl.LOCK_EX):  # OSError: not empty
        for folder in itertools.takewhile(lambda folder: folder.parent != root, path.parents):
            folder.rmdir()


@contextmanager
def _folders(root: Path, operation: int) -> Iterator[None]:
    """Writers share the lock; a remover holds it alone, so that it never removes a folder just made for an object."""
    with root.with_name(f"{root.name}.lock").open("a") as file:
        fcntl.flock(file, operation)
        yield


def _names(base: Path) -> Iterator[str]:
    """The relative names of all files below `base`; symbolic links are not followed."""
    for folder, _, files in os.walk(base):
        relative = Path(folder).relative_to(base)
        yield from (name if relative == Path() else f"{relative}/{name}" for name in files)


@contextmanager
def _files(uri: str) -> Iterator[None]:
    """Translate the operating system's errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"{uri}: {error.strerror}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise StorageRefused(f"{uri}: {error.strerror} ({error.filename})") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise StorageRefused(f"{uri}: {error.strerror}: a file name is shorter") from error
        raise StorageUnavailable(f"{uri}: {error.strerror}; free space or access, then try again") from error


# --- S3 ---------------------------------------------------------------------------------------------------------------


class S3Objects:
    """Objects in S3. The client is given, with its credentials, region and retries."""

    def __init__(self, client: "S3Client") -> None:
        self._client = client

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        bucket, key = split_uri(prefix)
        more: dict[str, Any] = {"StartAfter": split_uri(start_after)[1]} if start_after else {}
        with _aws(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, **more):
                for item in page.get("Contents", []):
                    yield ObjectInfo(
                        uri=f"s3://{bucket}/{item['Key']}",
                        size=item["Size"],
                        modified=item["LastModified"].astimezone(UTC),
                        etag=item["ETag"].strip('"'),
                    )

    def read(self, uri: str, start: int = 0, limit: int | None = None) -> bytes:
        if limit == 0:
            return b""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - see _aws

        last = "" if limit is None else str(start + limit - 1)
        with _aws(uri):
            try:
                return self._client.get_object(**_at(uri), Range=f"bytes={start}-{last}")["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in ("InvalidRange", "416"):
                    return b""
                raise

    def write(self, uri: str, data: bytes) -> None:
        with _aws(uri):
            self._client.put_object(**_at(uri), Body=data)

    def write_file(self, uri: str, source: Path) -> None:
        with _aws(uri):
            self._client.upload_file(str(source), *split_uri(uri))

    def read_to_file(self, uri: str, target: Path) -> None:
        with _aws(uri):
            self._client.download_file(*split_uri(uri), str(target))

    def delete(self, uris: Iterable[str]) -> None:
        buckets = itertools.groupby(sorted(split_uri(uri) for uri in uris), key=lambda address: address[0])
        for bucket, addresses in buckets:
            keys = [key for _, key in addresses]
            for first in range(0, len(keys), _DELETE_BATCH):
                self._delete(bucket, keys[first : first + _DELETE_BATCH])

    def _delete(self, bucket: str, keys: Sequence[str]) -> None:
        with _aws(f"s3://{bucket}/"):
            answer = self._client.delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            )
        failed = answer.get("Errors", [])
        if failed:
            kind = StorageRefused if failed[0].get("Code") == "AccessDenied" else StorageUnavailable
            raise kind(f"s3://{bucket}/{failed[0]['Key']} was not deleted: {failed[0].get('Message')}")

    def copy(self, source: str, target: str) -> None:
        with _aws(source):
            self._client.copy(_at(source), *split_uri(target))


def _at(uri: str) -> Any:  # noqa: ANN401 - the stubs have one type for each call
    bucket, key = split_uri(uri)
    return {"Bucket": bucket, "Key": key}


@contextmanager
def _aws(uri: str) -> Iterator[None]:
    """Translate botocore's and boto3's errors."""
    # Not at the top: directory stores, and verbs that only read the database, do not need them.
    from boto3.exceptions import Boto3Error  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    try:
        yield
    except ClientError as error:
        raise _answer(uri, error.response) from error
    except NoCredentialsError as error:
        raise StorageRefused(f"{uri}: {error}") from error
    except Boto3Error as error:
        # Transfers wrap the answer in another exception.
        cause = error.__context__
        raise (_answer(uri, cause.response) if isinstance(cause, ClientError) else _later(uri, error)) from error
    except (BotoCoreError, ResponseParserError) as error:  # a proxy may answer with its own page
        raise _later(uri, error) from error


def _answer(uri: str, response: Mapping[str, Any]) -> ObjectsError:
    code, message = response["Error"]["Code"], response["Error"].get("Message", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = f"{uri}: {code}: {message}"
    if code in _MISSING_CODES:
        return ObjectNotFound(text)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or code in (
        "SlowDown",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "OperationAborted",
    ):
        return StorageUnavailable(text)
    return StorageRefused(text)


def _later(uri: str, error: Exception) -> StorageUnavailable:
    return StorageUnavailable(f"{uri}: {error}")
