"""Progress of trials, read from their checkpoint prefixes: one listing of a prefix per look, whatever is asked of it.

It exists so that the engine pays for one LIST per trial in training and poll, where asking for metrics, records and
checkpoints apart would pay for three; and only files that grew are read.
"""

from collections.abc import Iterator

from tuner.checkpoints import MetricsReader, scan
from tuner.model import ProgressReport
from tuner.objects import ObjectInfo, Objects, ObjectsError


class PrefixProgress:
    """Gives each line under a prefix once; a new one begins at the beginning."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._readers: dict[str, tuple[_Listed, MetricsReader]] = {}

    def read(self, prefix: str) -> ProgressReport:
        """What is new since the last look. Raises OSError for a store that does not answer."""
        if prefix not in self._readers:
            listed = _Listed(self._objects)
            self._readers[prefix] = listed, MetricsReader(listed, prefix)
        listed, reader = self._readers[prefix]
        try:
            listed.look(prefix)
            state = scan(listed, prefix)
            records = reader.records()
            points = reader.poll()
        except ObjectsError as error:
            raise OSError(str(error)) from error
        newest = state.newest_complete
        return ProgressReport(
            points=tuple(points),
            records=tuple(records),
            checkpoint_step=newest.step if newest else None,
            checkpoint_at=newest.saved_at if newest else state.newest_own_modified,
            more=reader.more,
        )

    def forget(self, prefix: str) -> None:
        """A trial has ended: its place is not needed any more."""
        self._readers.pop(prefix, None)


class _Listed:
    """An object store whose listing of one prefix is held still, and whose manifests are read once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._found: list[ObjectInfo] = []
        self._kept: dict[str, tuple[str, bytes]] = {}  # by URI: etag, content

    def look(self, prefix: str) -> None:
        self._found = list(self._objects.list(prefix))
        self._kept = {info.uri: self._kept[info.uri] for info in self._found if info.uri in self._kept}

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        return (
            info
            for info in self._found
            if info.uri.startswith(prefix) and (start_after is None or info.uri > start_after)
        )

    def read(self, uri: str, start: int = 0, limit: int | None = None) -> bytes:
        if start or limit is not None:
            return self._objects.read(uri, start, limit)
        etag = next((info.etag for info in self._found if info.uri == uri), "")
        known = self._kept.get(uri)
        if known is None or known[0] != etag:
            known = self._kept[uri] = etag, self._objects.read(uri)
        return known[1]
