"""Reading a trial's prefix, also with torn files, and deleting it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import factories
from tuner.core.records import MetricPoint
from tuner.storage.checkpoints import (
    MetricsReader,
    StepInfo,
    copy_own_files,
    delete_prefix,
    newest_whole,
    scan,
    wanted_files,
)
from tuner.storage.objects import DirectoryObjects, ObjectInfo
from tuner.training import Checkpoints

PREFIX = "s3://bucket/study/00001/"
AT = 1_795_439_256.25
MOMENT = datetime.fromtimestamp(AT, UTC)


class Counting(DirectoryObjects):
    """Counts calls, to test the cost of a poll."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter()
        self.bytes_read = 0

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        self.calls["list"] += 1
        return super().list(prefix, start_after=start_after)

    def read(self, uri: str, start: int = 0, limit: int | None = None) -> bytes:
        self.calls["read"] += 1
        data = super().read(uri, start, limit)
        self.bytes_read += len(data)
        return data


@pytest.fixture
def objects(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "s3")


def line(step: object, at: object = AT, **metrics: object) -> bytes:
    return json.dumps({"step": step, "at": at, "metrics": metrics}).encode() + b"\n"


def put(objects: DirectoryObjects, data: bytes, name: str = "001-abc-algo-1") -> None:
    objects.write(f"{PREFIX}metrics/{name}.jsonl", data)


def brief(points: Iterable[MetricPoint]) -> list[tuple[object, ...]]:
    return [(point.step, point.name, point.value) for point in points]


def test_scan_finds_the_newest_complete_checkpoint(objects: Counting, tmp_path: Path) -> None:
    assert scan(objects, PREFIX).newest_complete is None
    store = tmp_path / "s3" / "bucket" / "study" / "00001"
    checkpoints = Checkpoints(store)
    for step in (1, 2, 3):
        with checkpoints.save(step) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "a").write_bytes(bytes(100))
    put(objects, line(1, loss=1))
    objects.write(PREFIX + "runs/001-abc-algo-1.json", b"{}")
    objects.write(PREFIX + "step-00000009.sagemaker-uploading", b"")
    objects.write("s3://bucket/study/000010/step-00000009/manifest.json", b"another trial's")
    objects.calls.clear()
    state = scan(objects, PREFIX)
    saved_at = checkpoints.latest().saved_at
    size = sum(path.stat().st_size for path in (store / "step-00000003").rglob("*") if path.is_file())
    assert state.newest_complete == StepInfo(step=3, saved_at=datetime.fromtimestamp(saved_at, UTC), size_bytes=size)
    assert (state.steps, state.own_files) == ((1, 2, 3), 6)
    assert objects.calls == {"list": 1, "read": 1}
    assert state.newest_own_modified is not None
    for damage in (
        lambda: objects.delete([PREFIX + "step-00000003/deep/a"]),
        lambda: objects.write(PREFIX + "step-00000002/deep/a", bytes(99)),
    ):
        before = scan(objects, PREFIX).newest_complete
        damage()
        after = scan(objects, PREFIX).newest_complete
        assert after.step == before.step - 1
    objects.write(PREFIX + "step-00000001/manifest.json", b"[")
    assert scan(objects, PREFIX).newest_complete is None


def test_a_step_with_the_right_sizes_but_other_bytes_is_not_whole(objects: Counting, tmp_path: Path) -> None:
    """A run that is interrupted while it saves a step again leaves one; `newest_whole` falls back, as scripts do."""
    checkpoints = Checkpoints(tmp_path / "s3" / "bucket" / "study" / "00001")
    for step in (1, 2):
        with checkpoints.save(step) as folder:
            (folder / "a").write_bytes(bytes(9 << 20))
    assert newest_whole(objects, PREFIX) == scan(objects, PREFIX).newest_complete
    objects.write(PREFIX + "step-00000002/a", bytes(8 << 20) + bytes([1]) * (1 << 20))
    objects.bytes_read = 0
    assert scan(objects, PREFIX).newest_complete.step == 2
    assert objects.bytes_read < 1 << 20  # by sizes alone
    assert newest_whole(objects, PREFIX).step == checkpoints.latest().step == 1
    assert wanted_files(objects, PREFIX) == ["step-00000001/a", "step-00000001/manifest.json"]
    copy_own_files(objects, PREFIX, "s3://bucket/study/00002/")
    copied = Checkpoints(tmp_path / "s3" / "bucket" / "study" / "00002")
    assert copied.latest().step == 1
    objects.write(PREFIX + "step-00000001/a", bytes([1]) * (9 << 20))
    assert newest_whole(objects, PREFIX) is None
    assert wanted_files(objects, PREFIX) == []


def test_checkpoints_are_hashed_in_blocks(objects: Counting, tmp_path: Path) -> None:
    """Only a small part of a large checkpoint is in memory."""
    with Checkpoints(tmp_path / "s3" / "bucket" / "study" / "00001").save(1) as folder:
        (folder / "a").write_bytes(bytes(20 << 20))
    objects.calls.clear()
    assert newest_whole(objects, PREFIX) is not None
    assert objects.calls == {"list": 1, "read": 1 + 3}


MANIFESTS = [
    b"",
    b"[]",
    b"7",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"step": 1}',
    b'{"step": 1, "saved_at": 1e99, "files": []}',
    b'{"step": 1, "saved_at": "x", "files": []}',
    b'{"step": 1, "saved_at": 1, "files": [3]}',
    b'{"step": 2, "saved_at": 1, "files": []}',
    b'{"step": 1, "saved_at": 1, "files": [{"name": [], "size": 1}]}',
    b'{"step": 1, "saved_at": 1, "files": [{"name": "../x", "size": 1}]}',
]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_foreign_manifest_makes_no_complete_checkpoint(objects: Counting, manifest: bytes) -> None:
    objects.write(PREFIX + "step-00000001/manifest.json", manifest)
    assert scan(objects, PREFIX).newest_complete is None


def test_a_script_without_manifests_has_files_of_its_own(objects: Counting) -> None:
    objects.write(PREFIX + "state.npz", bytes(10))
    objects.write(PREFIX + "deep/er.bin", bytes(5))
    objects.write(PREFIX + "state.npz.sagemaker-uploaded", b"")
    state = scan(objects, PREFIX)
    assert (state.newest_complete, state.steps, state.own_files, state.size_bytes) == (None, (), 2, 15)


def test_metrics_are_read_once_as_they_grow(objects: Counting) -> None:
    reader = MetricsReader(objects, PREFIX)
    assert reader.poll() == []
    data = line(1, loss=0.5, acc=1) + line(2, loss="nan")
    put(objects, data)
    assert reader.poll()[0] == factories.metric_point(
        attempt=1, run="abc", host="algo-1", step=1, at=MOMENT, name="loss", value=0.5
    )
    assert reader.poll() == []
    put(objects, data + line(3, loss="-inf")[:-5])  # torn
    assert reader.poll() == []
    put(objects, data + line(3, loss="-inf") + line(None, final=1))
    put(objects, line(3, loss=7), "001-abd-algo-2")
    points = reader.poll()
    assert brief(points) == [(3, "loss", float("-inf")), (None, "final", 1.0), (3, "loss", 7.0)]
    assert not reader.more
    assert len(MetricsReader(objects, PREFIX).poll()) == 6


def test_a_poll_costs_one_listing_and_one_read_per_changed_file(objects: Counting) -> None:
    for i in range(10):
        put(objects, line(1, loss=i), f"001-{i:03d}-algo-1")
    reader = MetricsReader(objects, PREFIX)
    reader.poll()
    objects.calls.clear()
    objects.bytes_read = 0
    reader.poll()
    assert objects.calls == {"list": 1}
    put(objects, line(1, loss=3) + line(2, loss=4), "001-003-algo-1")
    assert len(reader.poll()) == 1
    assert objects.calls == {"list": 2, "read": 1}
    assert objects.bytes_read == len(line(2, loss=4))


def test_a_poll_is_bounded_and_reports_that_more_is_left(objects: Counting) -> None:
    lines = [line(step, loss=step) for step in range(200)]
    put(objects, b"".join(lines))
    put(objects, b"".join(lines), "002-abc-algo-1")
    reader = MetricsReader(objects, PREFIX, max_bytes=1000)
    points = []
    for _ in range(100):
        before = objects.bytes_read
        points += reader.poll()
        assert objects.bytes_read - before <= 1000
        if not reader.more:
            break
    assert [point.step for point in points] == [*range(200), *range(200)]


@pytest.mark.parametrize("max_bytes", range(130, 260, 3))
def test_a_limit_inside_a_line_loses_no_line(objects: Counting, max_bytes: int) -> None:
    for name in ("001-a-algo-1", "001-b-algo-1"):
        put(objects, line(1, loss=1) + line(2, loss=2) + line(3, loss=3), name)
    reader = MetricsReader(objects, PREFIX, max_bytes=max_bytes)
    points = reader.poll()
    while reader.more:
        points += reader.poll()
    assert [(point.run, point.step) for point in points] == [(run, step) for run in "ab" for step in (1, 2, 3)]


def test_a_line_without_an_end_does_not_stop_the_reader(objects: Counting) -> None:
    put(objects, b"x" * 5000 + b"\n" + line(1, loss=1))
    reader = MetricsReader(objects, PREFIX, max_bytes=1000)
    points = []
    for _ in range(8):
        points += reader.poll()
    assert brief(points) == [(1, "loss", 1.0)]
    assert not reader.more


def test_a_file_that_shrank_is_read_again(objects: Counting) -> None:
    reader = MetricsReader(objects, PREFIX)
    put(objects, line(1, loss=1) + line(2, loss=2))
    assert len(reader.poll()) == 2
    put(objects, line(1, loss=1))
    assert brief(reader.poll()) == [(1, "loss", 1.0)]


BAD = [b"", b"{", b"[]", b'"x"', b"{}", b'{"step": 1, "at": 1}', b'{"step": 1, "at": 1, "metrics": [1]}',
       line("1", loss=1), line(1.5, loss=1), line(True, loss=1), line(2**63, loss=1), line(1, at="x", loss=1),
       line(1, at=1e300, loss=1), line(1, loss=None), line(1, loss="much"), line(1, loss=True), line(1, loss=10**400),
       line(1, loss=[]), b"[" * 100_000, b"\xff\xfe", b'{"step": 1, "at": NaN, "metrics": {"a": 1}}',
       b'{"step": ' + b"9" * 5000 + b', "at": 1, "metrics": {"a": 1}}']  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_foreign_line_is_skipped(objects: Counting, bad: bytes) -> None:
    put(objects, line(1, a=1) + bad.rstrip(b"\n") + b"\n" + line(2, a=2))
    points = MetricsReader(objects, PREFIX).poll()
    assert brief(points) == [(1, "a", 1.0), (2, "a", 2.0)]


def test_files_of_other_names_are_not_read(objects: Counting) -> None:
    for name in ("notes", "1-a-b", "001-ABC-algo-1", "x/001-abc-algo-1"):
        put(objects, line(1, a=1), name)
    for suffix in (".sagemaker-uploaded", ".sagemaker-ignore", ".gz"):
        objects.write(f"{PREFIX}metrics/001-abc-algo-1.jsonl{suffix}", line(1, a=1))
    assert MetricsReader(objects, PREFIX).poll() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=12), st.integers(80, 500))
def test_however_a_file_grows_each_line_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], max_bytes: int
) -> None:
    objects = DirectoryObjects(tmp_path_factory.mktemp("s3"))
    whole = b"".join(line(step, loss=step / 7) for step in range(20))
    reader = MetricsReader(objects, PREFIX, max_bytes=max_bytes)
    points, end = [], 0
    for cut in [*cuts, len(whole)]:
        end = min(len(whole), end + cut)
        put(objects, whole[:end])
        points += reader.poll()
    while reader.more:
        points += reader.poll()
    assert brief(points) == [(step, "loss", step / 7) for step in range(20)]


def test_records_of_runs_are_returned_once(objects: Counting) -> None:
    reader = MetricsReader(objects, PREFIX)
    record = {"attempt": 2, "run": "abc", "host": "algo-1", "started_at": AT, "own_files": 3}
    for number, (resume_step, saved_at) in enumerate([(None, None), (7, AT)]):
        found = {**record, "resume_step": resume_step, "resume_saved_at": saved_at}
        objects.write(f"{PREFIX}runs/002-{number}.json", json.dumps(found).encode())
    objects.write(PREFIX + "runs/002-torn.json", b'{"attempt": 2, "ru')
    objects.write(PREFIX + "runs/002-0.json.sagemaker-uploaded", b"")
    expected = {"attempt": 2, "run": "abc", "host": "algo-1", "started_at": MOMENT, "own_files": 3}
    assert reader.records() == [
        factories.run_record(**expected, resume_step=None, resume_saved_at=None),
        factories.run_record(**expected, resume_step=7, resume_saved_at=MOMENT),
    ]
    objects.calls.clear()
    assert reader.records() == []
    assert objects.calls == {"list": 1}
    objects.write(
        PREFIX + "runs/002-torn.json", json.dumps({**record, "resume_step": 1, "resume_saved_at": 1}).encode()
    )
    assert len(reader.records()) == 1


def test_only_a_prefix_inside_the_study_is_deleted(objects: Counting) -> None:
    kept = ["s3://bucket/study/000011/x", "s3://bucket/study2/x", "s3://bucket/x"]
    for uri in [*kept, PREFIX + "a/b", PREFIX + "c"]:
        objects.write(uri, b"")
    for prefix, root in [
        (PREFIX.rstrip("/"), "s3://bucket/study/"),
        ("s3://bucket/study/", "s3://bucket/study/"),
        ("s3://bucket/study2/", "s3://bucket/study/"),
        ("s3://bucket/study/../", "s3://bucket/study/"),
        (PREFIX, "s3://bucket/stu"),
        (PREFIX, "s3://bucket/"),
        ("s3://bucket/", "s3://bucket/"),
        ("", ""),
    ]:
        with pytest.raises(ValueError, match=r"inside|prefix"):
            delete_prefix(objects, prefix, study_root=root)
    assert delete_prefix(objects, PREFIX, study_root="s3://bucket/study/") == 2
    assert delete_prefix(objects, PREFIX, study_root="s3://bucket/study/") == 0
    assert [info.uri for info in objects.list("s3://bucket/")] == sorted(kept)


@pytest.mark.parametrize("prefix", ["s3://bucket/study/1", "s3://bucket/", "", "/"])
def test_an_invalid_prefix_is_refused(objects: Counting, prefix: str) -> None:
    with pytest.raises(ValueError, match="not a prefix"):
        scan(objects, prefix)
    with pytest.raises(ValueError, match="not a prefix"):
        MetricsReader(objects, prefix)
