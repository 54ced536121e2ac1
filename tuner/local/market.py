"""The spot market of this machine: a pure function of a file and the time.

Every supervisor computes the same interruptions from the same few numbers, so a whole pool goes at once without
anybody telling anybody. Times are epoch seconds; a market begins at `started_at` and is up before it.

Rules: standard library only (the supervisor reads it), no clock, no state but what is derived from the seed.
"""

import json
import os
import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

# The least gap between two interruptions of kind `every`, as a share of the mean: a pool that is never up long
# enough to start anything would prove nothing.
_LEAST_GAP = 0.25
_STUDY_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class BadMarket(ValueError):  # noqa: N818 - named for what it says to the reader of the message
    """A market that cannot be used; the message names the key."""


class Market:
    """When capacity is there. `outages` are (from, to) seconds after the start, ascending, possibly without end."""

    def __init__(self, started_at: float, outages: Iterator[tuple[float, float]]) -> None:
        self._started_at = started_at
        self._outages = _merged(outages)
        # Down, up, down, up, … as absolute moments, so that a moment given out is the one compared with.
        self._edges: list[float] = []

    def up(self, at: float) -> bool:
        """Whether spot capacity is there at this moment."""
        self._know(at)
        return bisect_right(self._edges, at) % 2 == 0

    def next_change(self, at: float) -> float | None:
        """The first moment after `at` at which `up` changes; None if it never does."""
        self._know(at)
        position = bisect_right(self._edges, at)
        return self._edges[position] if position < len(self._edges) else None

    def _know(self, at: float) -> None:
        """Draw outages until one edge beyond `at` is known."""
        while not self._edges or self._edges[-1] <= at:
            outage = next(self._outages, None)
            if outage is None:
                return
            self._edges.extend(self._started_at + offset for offset in outage)


def parse_market(raw: Mapping[str, Any]) -> Market:
    """Build a market from the JSON of its file. Raises `BadMarket`."""
    try:
        started_at = datetime.fromisoformat(raw["started_at"])
        if started_at.tzinfo is None:
            raise BadMarket("market: started_at has no time zone; write it as 2026-01-31T12:00:00+00:00")
        return Market(started_at.timestamp(), _outages(raw))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadMarket):
            raise
        raise BadMarket(f"market: missing or unusable: {error}") from error


def _outages(raw: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    kind = raw["kind"]
    if kind == "none":
        return iter(())
    if kind == "at":
        return iter(_at([float(at) for at in raw["at_s"]], _positive(raw, "down_s")))
    if kind == "every":
        return _every(_positive(raw, "mean_s"), _positive(raw, "down_s"), int(raw["seed"]))
    if kind == "trace":
        runs = [(float(start), float(duration), float(up)) for start, duration, up in raw["runs"]]
        return _trace(runs, _positive(raw, "speed"))
    raise BadMarket(f"market: kind cannot be {kind!r}; it is one of at, every, trace, none")


def _merged(outages: Iterator[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Outages that touch or overlap are one."""
    current = next(outages, None)
    while current is not None:
        following = next(outages, None)
        if following is not None and following[0] <= current[1]:
            current = (current[0], max(current[1], following[1]))
        else:
            yield current
            current = following


def _positive(raw: Mapping[str, Any], key: str) -> float:
    value = float(raw[key])
    if not 0 < value < float("inf"):
        raise BadMarket(f"market: {key} cannot be {raw[key]!r}; a number above 0 is expected")
    return value


def _at(starts: Sequence[float], down_s: float) -> list[tuple[float, float]]:
    return [(start, start + down_s) for start in sorted(starts)]


def _every(mean_s: float, down_s: float, seed: int) -> Iterator[tuple[float, float]]:
    source = random.Random(seed)  # noqa: S311 - a market, not a secret
    up_again = 0.0
    while True:
        down = up_again + max(_LEAST_GAP * mean_s, source.expovariate(1.0 / mean_s))
        up_again = down + down_s
        yield down, up_again


def _trace(runs: Sequence[tuple[float, float, float]], speed: float) -> Iterator[tuple[float, float]]:
    """Replay (start_s, duration_s, instances up) `speed` times as fast, over and over."""
    if not runs or any(later[0] < earlier[0] for earlier, later in pairwise(runs)):
        raise BadMarket("market: runs must be there, in ascending order")
    length = runs[-1][0] + runs[-1][1]
    down = [(start, start + duration) for start, duration, up in runs if up <= 0 and duration > 0]
    if length <= 0 or (down and sum(end - start for start, end in down) >= length):
        raise BadMarket("market: this trace never has capacity")
    return _replay(down, length, speed)


def _replay(down: Sequence[tuple[float, float]], length: float, speed: float) -> Iterator[tuple[float, float]]:
    lap = 0
    while down:
        for start, end in down:
            yield (lap * length + start) / speed, (lap * length + end) / speed
        lap += 1


def write_market(state_dir: Path, study_key: str, market: Mapping[str, Any]) -> Path:
    """Check a market and put it where the jobs of this study look for it. Raises `BadMarket`."""
    parse_market(market)
    path = market_path(state_dir, study_key)
    if path is None:
        raise BadMarket(f"market: study key {study_key!r} cannot name a file")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(market, allow_nan=False), encoding="utf-8")
    temporary.replace(path)
    return path


def market_path(state_dir: Path, study_key: str) -> Path | None:
    """Where the market of a study is; None for a key that cannot be one (keys come from tags: anybody's text)."""
    return state_dir / "markets" / f"{study_key}.json" if _STUDY_KEY.fullmatch(study_key) else None
