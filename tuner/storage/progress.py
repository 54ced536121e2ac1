"""Progress of trials, read from their checkpoint prefixes with one listing of a prefix per read.

It exists so that the engine pays for one LIST per training trial and poll. Separate reads of metrics, records and
checkpoints would pay for three. Only files that grew are read.

If the object store is far away, `ReadAhead` reads several prefixes at once: hundreds of answers of S3, one after the
other, would take longer than the poll interval.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Protocol

from tuner.core.records import ProgressReport
from tuner.storage.checkpoints import MetricsReader, scan
from tuner.storage.objects import ObjectInfo, Objects, ObjectsError, StorageRefused

AT_ONCE = 10  # the number of connections that botocore keeps


class Progress(Protocol):
    """The progress of trials. One reader returns each line once; a new reader starts from the beginning."""

    def expect(self, prefixes: Iterable[str]) -> None:
        """Announce the prefixes to be read next, in this order, so that a slow reader may begin."""
        ...

    def read(self, prefix: str) -> ProgressReport:
        """What is new since this reader last read `prefix`.

        Raises OSError for a store that does not answer, PermissionError for one that refuses.
        """
        ...

    def forget(self, prefix: str) -> None:
        """Drop the position of this prefix, whose trial has ended."""
        ...


class PrefixProgress:
    """Returns each line under a prefix once; a new instance starts from the beginning."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._readers: dict[str, tuple[_Listed, MetricsReader]] = {}

    def expect(self, prefixes: Iterable[str]) -> None:
        """Does nothing: each prefix is read on request."""

    def read(self, prefix: str) -> ProgressReport:
        """What is new since the last read. Raises OSError, PermissionError."""
        if prefix not in self._readers:
            listed = _Listed(self._objects)
            self._readers[prefix] = listed, MetricsReader(listed, prefix)
        listed, reader = self._readers[prefix]
        try:
            listed.look(prefix)
            state = scan(listed, prefix)
            records = reader.records()
            points = reader.poll()
        except StorageRefused as error:
            raise PermissionError(str(error)) from error
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
        """Drop the position of this prefix, whose trial has ended."""
        self._readers.pop(prefix, None)


class ReadAhead:
    """Starts the next reads of another reader in threads while earlier results are used.

    A result that is not requested in its tick is kept for the next request, because the inner reader returns each line
    only once. It is then marked as incomplete: the job may have written more, and ended, since.
    """

    def __init__(self, inner: Progress, at_once: int = AT_ONCE) -> None:
        self._inner = inner
        self._at_once = at_once
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="prefixes")
        self._due: dict[str, None] = {}  # in order
        self._begun: dict[str, Future[ProgressReport]] = {}
        self._old: dict[str, ProgressReport] = {}

    def expect(self, prefixes: Iterable[str]) -> None:
        """Announce the prefixes to be read next, in this order."""
        for prefix, look in self._begun.items():
            if (
                not look.cancel() and look.exception() is None
            ):  # a failed read is tried again, since the store may be back
                self._old[prefix] = replace(look.result(), more=True)
        self._begun.clear()
        self._due = dict.fromkeys(prefix for prefix in prefixes if prefix not in self._old)
        self._begin()

    def read(self, prefix: str) -> ProgressReport:
        """What is new since the last read. Raises OSError for a store that does not answer."""
        if prefix in self._old:
            return self._old.pop(prefix)
        self._due.pop(prefix, None)
        look = self._begun.pop(prefix, None)
        self._begin()
        return look.result() if look else self._inner.read(prefix)

    def forget(self, prefix: str) -> None:
        """Drop the position of this prefix, whose trial has ended."""
        self._old.pop(prefix, None)
        self._due.pop(prefix, None)
        look = self._begun.pop(prefix, None)
        if look is not None and not look.cancel():
            wait([look])  # a running read would create its position again
        self._inner.forget(prefix)

    def _begin(self) -> None:
        """Start as many reads as there are threads: each keeps a slice in memory."""
        while self._due and len(self._begun) < self._at_once:
            prefix = next(iter(self._due))
            del self._due[prefix]
            self._begun[prefix] = self._threads.submit(self._inner.read, prefix)


class _Listed:
    """An object store with a fixed listing of one prefix, which reads each manifest once."""

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
