"""Spot traces: how many instances of a pool were up, over time, as recorded.

A trace is a CSV file of runs, `start_s,duration_s,instances_up`: run-length coded, gapless, from zero on. It is
replayed faster by scaling it, and for longer than it lasts by starting over at its end, so that every moment from zero
on has an answer. Pure: the same file gives the same answers in every process.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_HEADER = ["start_s", "duration_s", "instances_up"]
# 45 days in steps of 195 s are 20,158 samples before run-length coding; this is room for years.
_MAX_BYTES = 10_000_000
# Starts and ends written with decimals may differ in the last digits.
_SLACK_S = 1e-6


class TraceError(ValueError):
    """The file is not a usable trace. The message is one line and names the file and the line."""


@dataclass(frozen=True, slots=True)
class TraceRun:
    start_s: float
    duration_s: float
    instances_up: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Runs in order, without gaps, from zero to `length_s`; then it repeats."""

    runs: tuple[TraceRun, ...]
    length_s: float

    def up(self, at_s: float) -> int:
        """How many instances are up at this moment."""
        return self.runs[self._locate(at_s)[1]].instances_up

    def next_change(self, at_s: float) -> float | None:
        """The first moment after `at_s` at which `up` differs from what it is then; None if it never does."""
        turn, index = self._locate(at_s)
        for later in range(index + 1, index + len(self.runs)):
            wraps, position = divmod(later, len(self.runs))
            if self.runs[position].instances_up != self.runs[index].instances_up:
                return self._begin(turn + wraps, position)
        return None

    def _begin(self, turn: int, index: int) -> float:
        # This is the only place that computes a boundary: another computation would differ in the last digit, and
        # a replay would stand still or skip a change.
        return turn * self.length_s + self.runs[index].start_s

    def _locate(self, at_s: float) -> tuple[int, int]:
        turn = int(at_s // self.length_s)
        if at_s >= self._begin(turn + 1, 0):
            turn += 1
        index = bisect_right(range(len(self.runs)), at_s, key=lambda i: self._begin(turn, i)) - 1
        return turn, max(index, 0)


def read(path: Path) -> Trace:
    """The trace in this file. Raises `TraceError`."""
    runs = tuple(_checked(path, list(_rows(path))))
    length_s = runs[-1].start_s + runs[-1].duration_s
    return Trace(runs, length_s)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TraceError(f"{path}: larger than {_MAX_BYTES:,} bytes; a trace is run-length coded")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise TraceError(f"{path}: is not a CSV text file") from None


def _checked(path: Path, rows: Sequence[tuple[int, list[str]]]) -> Iterator[TraceRun]:
    if not rows or rows[0][1] != _HEADER:
        raise TraceError(f"{path}: the first line must be {','.join(_HEADER)}")
    if len(rows) == 1:
        raise TraceError(f"{path}: has no runs after its first line")
    end_s = 0.0
    for line, row in rows[1:]:
        where = f"{path}: line {line}"
        run = _run(where, row)
        if abs(run.start_s - end_s) > _SLACK_S:
            raise TraceError(f"{where}: starts at {run.start_s:g} s, but must start at {end_s:g} s (no gaps)")
        end_s = run.start_s + run.duration_s
        yield run


def _run(where: str, row: Sequence[str]) -> TraceRun:
    try:
        start_s, duration_s, instances_up = row
        run = TraceRun(float(start_s), float(duration_s), int(instances_up))
    except ValueError:
        raise TraceError(f"{where}: must be two numbers and a whole number, as in 0,600,1") from None
    if not (math.isfinite(run.start_s) and 0 < run.duration_s < math.inf and run.instances_up >= 0):
        raise TraceError(f"{where}: needs a finite start, a duration above 0 and no negative count")
    return run
