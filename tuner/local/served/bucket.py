"""`s3://` as an object store at an endpoint, in place of the folder: for a service whose callers use that store too.

Only a supervisor of a job that was created with an endpoint imports this, since it needs the SDK. The process that
starts the supervisor passes the endpoint as AWS_ENDPOINT_URL_S3, and the credentials in the usual variables.

Rules: errors are the operating system's, as the tree's are: PermissionError where trying again is of no use before
somebody acts, another OSError where it may be. A key that cannot be a file's name is passed over. What a script leaves
is opened as it lies there, and never by a name that it may turn into a link meanwhile.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.aws.connections import Aws, AwsError
from tuner.local.jobdir import new_temporary
from tuner.local.tree import BadAddress, open_regular, split_uri
from tuner.storage import objects


class LocalBucket:
    """The objects of an endpoint."""

    def __init__(self, state_dir: Path, region: str) -> None:
        self._state_dir = state_dir
        try:
            # Patient: the agent's calls may be repeated, and nobody else tries again.
            self._store = objects.S3Objects(Aws(region=region).client("s3", patient=True))
        except AwsError as error:
            raise PermissionError(str(error)) from error

    def fetch(self, uri: str, folder: Path) -> list[str]:
        with _translated():
            return [name for found in self._store.list(uri) if (name := self._bring(found.uri, uri, folder))]

    def put(self, source: Path, uri: str) -> None:
        temporary = new_temporary(self._state_dir, "put")
        try:
            with open_regular(source) as file, temporary.open("xb") as copy:
                shutil.copyfileobj(file, copy)
            with _translated():
                self._store.write_file(uri, temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def put_bytes(self, data: bytes, uri: str) -> None:
        with _translated():
            self._store.write(uri, data)

    def delete(self, uri: str) -> None:
        with _translated():
            self._store.delete([uri])

    def _bring(self, address: str, prefix: str, folder: Path) -> str | None:
        """Copy one object; its name in the folder, None for one that is no file or has just gone."""
        try:
            key = split_uri(address)[1]
        except BadAddress:
            return None
        if key.endswith("/"):  # how consoles make an empty folder
            return None
        name = address[len(prefix) :].lstrip("/") or key.rpartition("/")[2]
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store.read_to_file(address, target)
        except objects.ObjectNotFound:
            return None
        return name


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except objects.StorageUnavailable as error:
        raise OSError(str(error)) from error
    except objects.ObjectsError as error:
        raise PermissionError(str(error)) from error
