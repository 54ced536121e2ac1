"""Reads, copies and deletes the objects under a trial's checkpoint prefix: steps, metrics, records of runs.

Machines that may die at any moment write the prefix, through an agent that uploads in any order, and scripts may write
anything there. So content that does not parse, or cannot be recorded, is skipped and never an error. A checkpoint is
complete only if all files of its manifest are there, and a line of metrics counts only once it has its end. Names that
the agent leaves behind are ignored.

`scan` recognises a complete checkpoint by sizes, because the engine asks at every tick. Scripts compare hashes. So
callers that delete or hand out checkpoints use `newest_whole`, which compares hashes too: a run that is interrupted
while it saves a step again can leave files of the same sizes with other content.

Long operations call `renew` before each of their steps. Callers that need the lease pass a `renew` that raises
LeaseLost; the exception ends the operation.

Readers keep their position in memory only. A new reader reads everything again, so its user must accept repetition.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeAlias

from tuner.core.records import MetricPoint, RunRecord
from tuner.storage.objects import ObjectInfo, ObjectNotFound, Objects, ReadableObjects
from tuner.training import AGENT_SUFFIXES, MANIFEST

METRICS, RUNS = "metrics/", "runs/"
MAX_POLL_BYTES = 1 << 20  # limit of one poll of one trial; the rest waits for the next poll
MAX_DOCUMENT_BYTES = 16 << 20  # a larger manifest or record is not ours
_DELETE_BATCH = 1000
_HASH_BLOCK_BYTES = 8 << 20
_MAX_STEP = 10**18 - 1  # limited by the digits of a step folder's name, and by a database integer
_MAX_COUNT = 2**31 - 1
_MAX_NAME = 256  # characters in the name of a metric, a run or a host
_YEAR_2200 = 7_258_118_400.0  # later times are nonsense, and would overflow

Renew: TypeAlias = Callable[[], object]

_STEP = re.compile(r"step-(\d{8,18})/(.+)", re.DOTALL)
_FILE = re.compile(r"(\d{3,9})-([0-9a-z]+)-([^/]+)\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """A checkpoint that is complete according to its manifest and the sizes of its files."""

    step: int
    saved_at: datetime
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixState:
    """Everything under a prefix at one moment. Own files are those of the script, without metrics and run records."""

    newest_complete: StepInfo | None
    steps: tuple[int, ...]  # of all step folders, complete or not, ascending
    own_files: int
    newest_own_modified: datetime | None
    size_bytes: int  # of everything


def scan(objects: ReadableObjects, prefix: str) -> PrefixState:
    """Costs one listing, and a read of each manifest until a complete checkpoint is found: usually one."""
    _check_prefix(prefix)
    found = {info.uri[len(prefix) :]: info for info in objects.list(prefix)}
    own = {name: info for name, info in found.items() if not name.startswith((METRICS, RUNS)) and not _of_agent(name)}
    steps = _step_folders(own)
    complete = (_complete(objects, step, steps[step]) for step in sorted(steps, reverse=True))
    return PrefixState(
        newest_complete=next((step for step in complete if step is not None), None),
        steps=tuple(sorted(steps)),
        own_files=len(own),
        newest_own_modified=max((info.modified for info in own.values()), default=None),
        size_bytes=sum(info.size for info in found.values()),
    )


def no_lease() -> None:
    """Renew nothing, for operations that need no lease."""


def newest_whole(objects: ReadableObjects, prefix: str, *, renew: Renew = no_lease) -> StepInfo | None:
    """The checkpoint that a script would resume from: the newest one whose files match the hashes of its manifest.

    It reads whole checkpoints in blocks, newest first, until one matches.
    """
    _check_prefix(prefix)
    steps = _step_folders({info.uri[len(prefix) :]: info for info in objects.list(prefix)})
    whole = (_complete(objects, step, steps[step], hashed_with=renew) for step in sorted(steps, reverse=True))
    return next((step for step in whole if step is not None), None)


def wanted_files(objects: ReadableObjects, prefix: str) -> list[str]:
    """The names under a prefix to give to a person: of all steps only the newest whole one."""
    newest = newest_whole(objects, prefix)
    names = [info.uri[len(prefix) :] for info in objects.list(prefix)]
    own = [name for name in names if not name.startswith((METRICS, RUNS)) and not _of_agent(name)]
    return [name for name in own if (step := _STEP.fullmatch(name)) is None or (newest and int(step[1]) == newest.step)]


def delete_prefix(
    objects: Objects,
    prefix: str,
    *,
    study_root: str,
    stays: Callable[[str], bool] = lambda _name: False,
    renew: Renew = no_lease,
) -> int:
    """Delete all objects under a trial's prefix except names to keep; returns how many were deleted.

    Raises ValueError for a prefix outside the study's root.
    """
    _check_prefix(prefix)
    _check_prefix(study_root)
    inside = prefix.removeprefix(study_root).removesuffix("/").split("/")
    if not prefix.startswith(study_root) or {"", ".", ".."} & {*inside, *study_root.split("/")[3:-1]}:
        raise ValueError(f"{prefix} is not inside {study_root}: nothing was deleted")
    uris = iter([info.uri for info in objects.list(prefix) if not stays(info.uri[len(prefix) :])])
    count = 0
    while batch := list(islice(uris, _DELETE_BATCH)):
        renew()
        objects.delete(batch)
        count += len(batch)
    return count


def copy_own_files(objects: Objects, source: str, target: str, *, renew: Renew = no_lease) -> int:
    """Copy the script's files of one trial to the prefix of another, without metrics; returns how many files.

    It copies all steps within the store. So the script can fall back to an earlier step as usual, and no file has to be
    read to choose one.
    """
    _check_prefix(source)
    _check_prefix(target)
    names = [info.uri[len(source) :] for info in objects.list(source)]
    own = [name for name in names if not name.startswith((METRICS, RUNS)) and not _of_agent(name)]
    for name in own:
        renew()
        objects.copy(source + name, target + name)
    return len(own)


class MetricsReader:
    """Reads what is new under one trial's prefix since the last call.

    `poll` costs one listing and one ranged read for each file that grew, `records` one listing and a read for each
    new record.
    """

    def __init__(self, objects: ReadableObjects, prefix: str, *, max_bytes: int = MAX_POLL_BYTES) -> None:
        _check_prefix(prefix)
        self._objects = objects
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._places: dict[str, _Place] = {}
        self._records: dict[str, str] = {}
        self.more = False  # the last poll left something unread

    def poll(self) -> list[MetricPoint]:
        """New points in the order of runs, and of the lines within a file."""
        points: list[MetricPoint] = []
        left = self._max_bytes
        self.more = False
        for info in self._objects.list(self._prefix + METRICS):
            match = _FILE.fullmatch(info.uri[len(self._prefix + METRICS) :])
            if match is None or _of_agent(info.uri) or self._place(info).etag == info.etag:
                continue
            if left <= 0:
                self.more = True
                break
            source = (int(match[1]), match[2], match[3])
            left -= self._read(info, source, left, points)
        return points

    def records(self) -> list[RunRecord]:
        """The records of runs that were not yet returned."""
        new = []
        for info in self._objects.list(self._prefix + RUNS):
            if not info.uri.endswith(".json") or self._records.get(info.uri) == info.etag or _too_large(info):
                continue
            try:
                record = _record(self._objects.read(info.uri))
            except ObjectNotFound:
                continue
            self._records[info.uri] = info.etag
            if record is not None:
                new.append(record)
        return new

    def _place(self, info: ObjectInfo) -> "_Place":
        place = self._places.setdefault(info.uri, _Place())
        if info.size < place.offset:  # the file was replaced
            place = self._places[info.uri] = _Place()
        return place

    def _read(self, info: ObjectInfo, source: tuple[int, str, str], limit: int, points: list[MetricPoint]) -> int:
        """Add the points of new whole lines; returns how many bytes were read."""
        place = self._place(info)
        try:
            data = self._objects.read(info.uri, place.offset, limit)
        except ObjectNotFound:
            return 0
        end = data.rfind(b"\n") + 1
        for line in data[:end].split(b"\n")[:-1]:
            points.extend(_points(line, source))
        place.offset += end
        if len(data) < limit:  # read to the end; a line without its end is read again when the file changes
            place.etag = info.etag
        else:
            self.more = True
            if end == 0 and limit == self._max_bytes:  # a line this long is not ours: skip it
                place.offset += len(data)
        return len(data)


@dataclass(slots=True)
class _Place:
    """A reader's position in one file."""

    offset: int = 0
    etag: str | None = None  # of the version that was read to its end


def _check_prefix(prefix: str) -> None:
    if not prefix.endswith("/") or not prefix.removeprefix("s3://").partition("/")[2]:
        raise ValueError(f"{prefix!r} is not a prefix: s3://bucket/folders/ is expected, with a slash at its end")


def _of_agent(name: str) -> bool:
    return any(segment.endswith(AGENT_SUFFIXES) for segment in name.split("/"))


def _too_large(document: ObjectInfo) -> bool:
    return document.size > MAX_DOCUMENT_BYTES


def _step_folders(own: Mapping[str, ObjectInfo]) -> dict[int, dict[str, ObjectInfo]]:
    """The files of each step's folder, by their name in it."""
    steps: dict[int, dict[str, ObjectInfo]] = {}
    for name, info in own.items():
        if not _of_agent(name) and (match := _STEP.fullmatch(name)):
            steps.setdefault(int(match[1]), {})[match[2]] = info
    return steps


def _complete(
    objects: ReadableObjects, step: int, files: Mapping[str, ObjectInfo], *, hashed_with: Renew | None = None
) -> StepInfo | None:
    """The checkpoint if every file of its manifest is there with the right size, or also with the right hash."""
    if MANIFEST not in files or _too_large(files[MANIFEST]):
        return None
    try:
        manifest = _json(objects.read(files[MANIFEST].uri))
        named = {item["name"]: item for item in manifest["files"]}
        saved_at = _moment(manifest["saved_at"])
        if manifest["step"] != step or any(files[name].size != item["size"] for name, item in named.items()):
            return None
        if hashed_with is not None and any(
            _sha256(objects, files[name], hashed_with) != item["sha256"] for name, item in named.items()
        ):
            return None
    except (ObjectNotFound, ValueError, TypeError, KeyError):
        return None
    return StepInfo(step=step, saved_at=saved_at, size_bytes=sum(info.size for info in files.values()))


def _sha256(objects: ReadableObjects, file: ObjectInfo, renew: Renew) -> str:
    digest = hashlib.sha256()
    for start in range(0, file.size, _HASH_BLOCK_BYTES):
        renew()
        digest.update(objects.read(file.uri, start, _HASH_BLOCK_BYTES))
    return digest.hexdigest()


def _record(data: bytes) -> RunRecord | None:
    try:
        found = _json(data)
        saved_at, newest = found["resume_saved_at"], found.get("newest_step")
        return RunRecord(
            attempt=_count(found["attempt"], _MAX_COUNT),
            run=_name(found["run"]),
            host=_name(found["host"]),
            started_at=_moment(found["started_at"]),
            resume_step=None if found["resume_step"] is None else _count(found["resume_step"], _MAX_STEP),
            resume_saved_at=None if saved_at is None else _moment(saved_at),
            own_files=_count(found["own_files"], _MAX_COUNT),
            newest_step=None if newest is None else _count(newest, _MAX_STEP),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _points(line: bytes, source: tuple[int, str, str]) -> Iterator[MetricPoint]:
    attempt, run, host = source
    try:
        found = _json(line)
        step = None if found["step"] is None else _count(found["step"], _MAX_STEP)
        at = _moment(found["at"])
        values = {_name(name): _value(value) for name, value in found["metrics"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return
    for name, value in values.items():
        yield MetricPoint(attempt=attempt, run=run, host=host, step=step, at=at, name=name, value=value)


def _value(value: object) -> float:
    """A number, or one of the words for numbers that JSON lacks."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("nan", "inf", "-inf")):
        raise ValueError(f"{value!r} is not the value of a metric")
    return float(value)


def _count(value: object, most: int) -> int:
    """A whole number from 0 to `most`; no sampler accepts a step below 0."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from 0 to {most}")
    return value


def _name(value: object) -> str:
    """A short name that can be shown and stored."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or not value.isprintable():
        raise ValueError("not a name")
    return value


def _json(data: bytes) -> dict[str, Any]:
    """A JSON object; raises ValueError for anything else."""
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - an error of content, like the parser's own
    return found


def _moment(epoch_s: object) -> datetime:
    if not isinstance(epoch_s, int | float) or not 0 <= epoch_s < _YEAR_2200:
        raise ValueError(f"{epoch_s!r} is not a time")
    return datetime.fromtimestamp(epoch_s, UTC)
