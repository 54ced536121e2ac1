"""What a script may leave under its prefix, as the reader of progress takes it: never an error, never out of bounds."""

import json
import math
from pathlib import Path

import pytest

from tuner.storage.checkpoints import MAX_DOCUMENT_BYTES, MAX_POLL_BYTES
from tuner.storage.objects import DirectoryObjects
from tuner.storage.progress import PrefixProgress

PREFIX = "s3://bucket/study/trial/"
FILE = "metrics/001-0a-algo-1.jsonl"
GOOD = b'{"step": 7, "at": 1.0, "metrics": {"loss": 0.5}}\n'
RECORD = {
    "attempt": 1,
    "run": "0a",
    "host": "algo-1",
    "started_at": 1.0,
    "resume_step": None,
    "resume_saved_at": None,
    "own_files": 0,
}


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryObjects:
    return DirectoryObjects(tmp_path / "s3")


def line(**changes: object) -> bytes:
    return json.dumps({"step": 1, "at": 1.0, "metrics": {"loss": 1.0}} | changes).encode() + b"\n"


@pytest.mark.parametrize(
    "dropped",
    [
        pytest.param(line(step=10**18), id="step beyond 64 bits of a step folder"),
        pytest.param(line(step=2**63), id="step beyond 64 bits"),
        pytest.param(line(step=-1), id="negative step, which means none to the store"),
        pytest.param(line(step=-(2**63)), id="very negative step"),
        pytest.param(line(step=1.5), id="fractional step"),
        pytest.param(line(step=True), id="boolean step"),
        pytest.param(line(step="1"), id="step as text"),
        pytest.param(b'{"step": 1, "at": 1, "metrics": {"loss": 1' + b"0" * 400 + b"}}\n", id="value beyond floats"),
        pytest.param(b'{"step": 1' + b"0" * 5000 + b', "at": 1, "metrics": {"loss": 1}}\n', id="5,000 digits"),
        pytest.param(line(at=math.nan), id="not a time"),
        pytest.param(line(at=-1.0), id="time before times"),
        pytest.param(line(at=253402300799), id="year 9999, which overflows with a time zone"),
        pytest.param(line(at=None), id="no time"),
        pytest.param(line(metrics={"x" * 257: 1.0}), id="name too long for anything"),
        pytest.param(line(metrics={"": 1.0}), id="empty name"),
        pytest.param(line(metrics={"a\x1b[2J": 1.0}), id="name that a terminal would obey"),
        pytest.param(b'{"step": 1, "at": 1, "metrics": {"\\ud800": 1}}\n', id="half a character"),
        pytest.param(b'{"step": 1, "at": 1, "metrics": {"\\u0000": 1}}\n', id="NUL"),
        pytest.param(line(metrics={"loss": "0.5"}), id="value as text"),
        pytest.param(line(metrics={"loss": None}), id="no value"),
        pytest.param(line(metrics=[1]), id="no names"),
        pytest.param(b"[" * 100_000 + b"\n", id="nested beyond recursion"),
        pytest.param(b"\xff\xfe\x00\n", id="no text"),
        pytest.param(b"x" * 100_000 + b"\n", id="long line"),
    ],
)
def test_a_line_that_could_not_be_recorded_is_dropped_alone(objects: DirectoryObjects, dropped: bytes) -> None:
    objects.write(PREFIX + FILE, dropped + GOOD)
    report = PrefixProgress(objects).read(PREFIX)
    assert [(point.step, point.value) for point in report.points] == [(7, 0.5)]


@pytest.mark.parametrize(("text", "value"), [("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)])
def test_values_that_json_has_no_number_for_arrive(objects: DirectoryObjects, text: str, value: float) -> None:
    objects.write(PREFIX + FILE, line(metrics={"loss": text}))
    (point,) = PrefixProgress(objects).read(PREFIX).points
    assert repr(point.value) == repr(value)


def test_steps_that_go_back_in_time_arrive_in_the_order_of_their_lines(objects: DirectoryObjects) -> None:
    objects.write(PREFIX + FILE, line(step=9, at=5.0) + line(step=3, at=4.0) + line(step=9, at=1.0))
    assert [point.step for point in PrefixProgress(objects).read(PREFIX).points] == [9, 3, 9]


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": math.inf},
        {"attempt": 2**70},
        {"attempt": -1},
        {"own_files": 2**31},
        {"resume_step": 2**70},
        {"resume_step": "1"},
        {"started_at": 1e300},
        {"run": "x" * 10_000},
        {"run": "\ud800"},
        {"host": "\0"},
        {"host": 1},
    ],
)
def test_a_record_that_could_not_be_recorded_is_none(objects: DirectoryObjects, changes: dict[str, object]) -> None:
    objects.write(PREFIX + "runs/001-0a-algo-1.json", json.dumps(RECORD | changes).encode())
    objects.write(PREFIX + "runs/001-0b-algo-1.json", json.dumps(RECORD | {"run": "0b"}).encode())
    assert [record.run for record in PrefixProgress(objects).read(PREFIX).records] == ["0b"]


@pytest.mark.parametrize("name", ["runs/001-0a-algo-1.json", "step-00000001/manifest.json"])
def test_documents_that_are_too_large_are_not_read(objects: DirectoryObjects, name: str) -> None:
    objects.write(PREFIX + name, b" " * (MAX_DOCUMENT_BYTES + 1))
    objects.read = None  # type: ignore[assignment, method-assign] # reading would crash
    report = PrefixProgress(objects).read(PREFIX)
    assert report.records == ()
    assert report.checkpoint_step is None


@pytest.mark.parametrize(
    "name",
    [
        "step-99999999999999999999/manifest.json",
        "step-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661/manifest.json",
        "step-00000001/../../../etc/passwd",
        "metrics/-1-0a-algo-1.jsonl",
        "metrics/9999999999-0a-algo-1.jsonl",
        "metrics/001-0a-algo-1.jsonl.sagemaker-uploading",
        "metrics/a\nb\x1b[31m.jsonl",
        "runs/x",
    ],
)
def test_names_that_are_none_of_ours_are_passed_over(tmp_path: Path, objects: DirectoryObjects, name: str) -> None:
    path = tmp_path / "s3" / PREFIX.removeprefix("s3://") / name
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD)
    report = PrefixProgress(objects).read(PREFIX)
    assert (report.points, report.records, report.checkpoint_step) == ((), (), None)


def test_a_link_in_the_store_is_not_followed_out_of_it(tmp_path: Path, objects: DirectoryObjects) -> None:
    (tmp_path / "outside").write_bytes(GOOD)
    metrics = tmp_path / "s3" / (PREFIX + FILE).removeprefix("s3://")
    metrics.parent.mkdir(parents=True)
    metrics.symlink_to(tmp_path / "outside")
    with pytest.raises(PermissionError, match="leads out of"):
        PrefixProgress(objects).read(PREFIX)


@pytest.mark.slow
def test_a_million_lines_come_in_slices(objects: DirectoryObjects) -> None:
    one = b'{"step": 0000000, "at": 1.0, "metrics": {"loss": 0.5}}\n'
    lines = 1_000_000
    text = b"".join(b'{"step": %d, "at": 1.0, "metrics": {"loss": 0.5}}\n' % step for step in range(lines))
    objects.write(PREFIX + FILE, text)
    progress, seen, slices = PrefixProgress(objects), 0, []
    while not slices or slices[-1].more:
        slices.append(progress.read(PREFIX))
        assert len(slices[-1].points) <= MAX_POLL_BYTES // (len(one) - 7)
        assert [point.step for point in slices[-1].points[:1]] == [seen]
        seen += len(slices[-1].points)
    assert seen == lines
    assert progress.read(PREFIX).points == ()


def test_one_line_without_end_is_passed_over_in_slices(objects: DirectoryObjects) -> None:
    objects.write(PREFIX + FILE, b"x" * (5 * MAX_POLL_BYTES // 2) + b"\n" + GOOD)
    progress = PrefixProgress(objects)
    reports = [progress.read(PREFIX)]
    while reports[-1].more:
        reports.append(progress.read(PREFIX))
        assert len(reports) < 10
    assert [point.step for report in reports for point in report.points] == [7]
