"""Spot traces: read strictly, replayed without end."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.spec.traces import Trace, TraceError, TraceRun, read

HEADER = "start_s,duration_s,instances_up\n"


def trace_of(*runs: tuple[float, int]) -> Trace:
    made, start_s = [], 0.0
    for duration_s, up in runs:
        made.append(TraceRun(start_s, duration_s, up))
        start_s += duration_s
    return Trace(tuple(made), start_s)


def test_a_file_is_read(tmp_path: Path):
    file = tmp_path / "trace.csv"
    file.write_text(HEADER + "0,600,1\n600,1200,0\n1800,2400.5,4\n")
    assert read(file) == Trace((TraceRun(0, 600, 1), TraceRun(600, 1200, 0), TraceRun(1800, 2400.5, 4)), 4200.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the first line must be start_s"),
        ("a,b\n0,1\n", "the first line must be start_s"),
        (HEADER, "has no runs"),
        (HEADER + "0,600\n", "line 2: must be two numbers"),
        (HEADER + "0,600,1,1\n", "line 2: must be two numbers"),
        (HEADER + "0,600,0.5\n", "line 2: must be two numbers"),
        (HEADER + "0,0,1\n", "line 2: needs"),
        (HEADER + "0,-1,1\n", "line 2: needs"),
        (HEADER + "0,inf,1\n", "line 2: needs"),
        (HEADER + "nan,1,1\n", "line 2: needs"),
        (HEADER + "0,600,-1\n", "line 2: needs"),
        (HEADER + "5,600,1\n", "line 2: starts at 5 s, but must start at 0 s"),
        (HEADER + "0,600,1\n700,1,0\n", "line 3: starts at 700 s, but must start at 600 s"),
        (HEADER + "0,600,1\n\n600,1,0\n", "line 3: must be two numbers"),
        ("\0\x89PNG", "the first line must be|is not a CSV"),
    ],
)
def test_a_bad_file_is_refused_by_one_line(tmp_path: Path, text: str, says: str):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=says) as refusal:
        read(file)
    assert "\n" not in str(refusal.value)
    assert str(file) in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\x00")
    for path, says in (
        (tmp_path, "cannot be read"),
        (tmp_path / "gone", "No such file"),
        (tmp_path / "latin.csv", "CSV"),
    ):
        with pytest.raises(TraceError, match=says):
            read(path)


def test_a_trace_starts_over_at_its_end():
    trace = trace_of((10, 1), (5, 0))
    assert [trace.up(at_s) for at_s in (0, 9.9, 10, 14.9, 15, 24.9, 25, 30)] == [1, 1, 0, 0, 1, 1, 0, 1]
    assert [trace.next_change(at_s) for at_s in (0, 9.9, 10, 15, 29)] == [10, 10, 15, 25, 30]


def test_equal_neighbours_are_not_a_change():
    trace = trace_of((10, 1), (5, 1), (5, 0), (5, 1))
    assert trace.next_change(0) == 15
    assert trace.next_change(20) == 40, "the end of the last run is no change, since the first goes on with the same"


def test_a_constant_trace_never_changes():
    assert trace_of((10, 1)).next_change(3) is None
    assert trace_of((10, 1), (10, 1)).next_change(13) is None


runs = st.lists(st.tuples(st.floats(0.01, 1e5), st.integers(0, 2)), min_size=1, max_size=8)


@given(runs, st.floats(0, 1e6), st.sampled_from([1.0, 3.0, 600.0, 0.7]))
def test_following_the_changes_misses_none_and_always_advances(
    described: list[tuple[float, int]], at_s: float, speed: float
):
    trace = trace_of(*((duration_s / speed, up) for duration_s, up in described))
    for _ in range(10):
        change_s = trace.next_change(at_s)
        if change_s is None:
            assert len({run.instances_up for run in trace.runs}) == 1
            break
        assert change_s > at_s
        assert trace.up(change_s) != trace.up(at_s)
        between_s = (at_s + change_s) / 2
        assert between_s >= change_s or trace.up(between_s) == trace.up(at_s)
        at_s = change_s
