"""Progress of trials, read from their checkpoint prefixes: one listing of a prefix per look, whatever is asked of it.

It exists so that the engine pays for one LIST per trial in training and poll, where asking for metrics, records and
checkpoints apart would pay for three; and only files that grew are read.

Where an object store is far away, `ReadAhead` asks for several prefixes at once: hundreds of answers of S3, one after
the other, would take longer than the poll.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Protocol

from tuner.core.records import ProgressReport
from tuner.storage.checkpoints import MetricsReader, scan
from tuner.storage.objects import ObjectInfo, Objects, ObjectsError, StorageRefused

AT_ONCE = 10  # as many as botocore keeps connections


class Progress(Protocol):
    """What lies under the trials' prefixes. One reader gives each line once; a new one begins at the beginning."""

    def expect(self, prefixes: Iterable[str]) -> None:
        """These will be read next, in this order: whoever is slow may begin."""
        ...

    def read(self, prefix: str) -> ProgressReport:
        """What is new since this reader's last look at `prefix`.

        Raises OSError for a store that does not answer, PermissionError for one that refuses.
        """
        ...

    def forget(self, prefix: str) -> None:
        """The trial of this prefix has ended: its place is not needed any more."""
        ...


class PrefixProgress:
    """Gives each line under a prefix once; a new one begins at the beginning."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._readers: dict[str, tuple[_Listed, MetricsReader]] = {}

    def expect(self, prefixes: Iterable[str]) -> None:
        """Nothing to begin with: each is read when it is asked for."""

    def read(self, prefix: str) -> ProgressReport:
        """What is new since the last look. Raises OSError, PermissionError."""
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
        """A trial has ended: its place is not needed any more."""
        self._readers.pop(prefix, None)


class ReadAhead:
    """Begins the next looks of another reader while the ones before are made use of.

    A look that nobody asked for in its tick is given out when somebody does, since the inner reader gives each line
    once; but as one that left something unread: the job may have written, and ended, since.
    """

    def __init__(self, inner: Progress, at_once: int = AT_ONCE) -> None:
        self._inner = inner
        self._at_once = at_once
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="prefixes")
        self._due: dict[str, None] = {}  # in order
        self._begun: dict[str, Future[ProgressReport]] = {}
        self._old: dict[str, ProgressReport] = {}

    def expect(self, prefixes: Iterable[str]) -> None:
        """These will be read next, in this order."""
        for prefix, look in self._begun.items():
            if not look.cancel() and look.exception() is None:  # what failed is tried again: the store may be back
                self._old[prefix] = replace(look.result(), more=True)
        self._begun.clear()
        self._due = dict.fromkeys(prefix for prefix in prefixes if prefix not in self._old)
        self._begin()

    def read(self, prefix: str) -> ProgressReport:
        """What is new since the last look. Raises OSError for a store that does not answer."""
        if prefix in self._old:
            return self._old.pop(prefix)
        self._due.pop(prefix, None)
        look = self._begun.pop(prefix, None)
        self._begin()
        return look.result() if look else self._inner.read(prefix)

    def forget(self, prefix: str) -> None:
        """A trial has ended: its place is not needed any more."""
        self._old.pop(prefix, None)
        self._due.pop(prefix, None)
        look = self._begun.pop(prefix, None)
        if look is not None and not look.cancel():
            wait([look])  # it would make a place for itself
        self._inner.forget(prefix)

    def _begin(self) -> None:
        """As many as there are threads: a slice of each is in memory."""
        while self._due and len(self._begun) < self._at_once:
            prefix = next(iter(self._due))
            del self._due[prefix]
            self._begun[prefix] = self._threads.submit(self._inner.read, prefix)


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
