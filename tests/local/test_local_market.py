"""The market: a pure function of its file and the time."""

import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.local.market import BadMarket, market_path, parse_market, write_market

START = "2026-01-31T12:00:00+00:00"
T0 = 1769860800.0


def market(**raw):
    return parse_market({"started_at": START} | raw)


def outages(made, until_s):
    """(from, to) seconds after the start, read through the public questions alone."""
    edges, at = [], T0 - 1
    while (at := made.next_change(at)) is not None and at < T0 + until_s:
        edges.append(round(at - T0, 6))
    return list(zip(edges[::2], edges[1::2], strict=False))


def test_at_takes_capacity_at_these_seconds():
    made = market(kind="at", at_s=[35, 15], down_s=3)
    assert outages(made, 100) == [(15, 18), (35, 38)]
    assert [made.up(T0 + s) for s in (-100, 0, 14.9, 15, 17.9, 18, 1000)] == [
        True,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert made.next_change(T0 + 38) is None


def test_outages_that_touch_are_one_whatever_is_asked_first():
    for first in (0, 16, 18, 19):
        made = market(kind="at", at_s=[15, 18, 19], down_s=3)
        made.up(T0 + first)
        assert outages(made, 100) == [(15, 22)]


def test_every_is_drawn_from_its_seed_and_never_too_dense():
    raw = {"kind": "every", "mean_s": 20, "down_s": 2, "seed": 1}
    found = outages(market(**raw), 20_000)
    assert found == outages(market(**raw), 20_000)
    assert found != outages(market(**raw | {"seed": 2}), 20_000)
    ends = [0.0, *(end for _, end in found)]
    gaps = [start - end for (start, _), end in zip(found, ends, strict=False)]
    assert min(gaps) >= 0.25 * 20 - 1e-6
    assert 18 < sum(gaps) / len(gaps) < 25


def test_a_trace_is_replayed_faster_and_over_and_over():
    made = market(kind="trace", speed=10, runs=[[0, 100, 1], [100, 50, 0], [150, 50, 4]])
    assert outages(made, 60) == [(10, 15), (30, 35), (50, 55)]


def test_a_trace_that_ends_down_and_begins_down_has_one_outage_there():
    made = market(kind="trace", speed=1, runs=[[0, 10, 0], [10, 80, 1], [90, 10, 0]])
    assert outages(made, 250) == [(0, 10), (90, 110), (190, 210)]


def test_none_is_always_up():
    assert market(kind="none").up(T0)
    assert market(kind="none").next_change(T0) is None


# Eighths of seconds are exact beside an epoch time.
EIGHTHS = st.integers(0, 50 * 8).map(lambda n: n / 8)


@given(st.lists(EIGHTHS, max_size=6), EIGHTHS.map(lambda s: s + 0.125), st.lists(EIGHTHS, max_size=10))
def test_capacity_changes_exactly_where_next_change_says(at_s, down_s, moments):
    made = market(kind="at", at_s=at_s, down_s=down_s)
    for moment in moments:
        change = made.next_change(T0 + moment)
        if change is not None:
            assert change > T0 + moment
            assert made.up(change) != made.up(T0 + moment)
            assert made.up((change + T0 + moment) / 2) == made.up(T0 + moment)
        assert made.up(T0 + moment) == (not any(s <= T0 + moment - T0 < s + down_s for s in at_s))


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"kind": "sometimes"},
        {"kind": "at", "at_s": [1]},
        {"kind": "at", "at_s": ["soon"], "down_s": 1},
        {"kind": "at", "at_s": [1], "down_s": 0},
        {"kind": "every", "mean_s": -1, "down_s": 1, "seed": 1},
        {"kind": "every", "mean_s": 20, "down_s": 1},
        {"kind": "trace", "speed": 1, "runs": []},
        {"kind": "trace", "speed": 0, "runs": [[0, 1, 1]]},
        {"kind": "trace", "speed": 1, "runs": [[0, 10, 0]]},
        {"kind": "trace", "speed": 1, "runs": [[5, 10, 1], [0, 5, 1]]},
        {"kind": "none", "started_at": "2026-01-31T12:00:00"},
    ],
)
def test_what_is_no_market_is_refused(raw, tmp_path):
    with pytest.raises(BadMarket, match="market:"):
        write_market(tmp_path, "study-a", {"started_at": START} | raw)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("key", ["../jobs", "a/b", "", ".", "a" * 64, "a\0"])
def test_a_study_key_never_leads_elsewhere(key, tmp_path):
    assert market_path(tmp_path, key) is None
    with pytest.raises(BadMarket):
        write_market(tmp_path, key, {"started_at": START, "kind": "none"})


def test_a_market_is_replaced_as_a_whole(tmp_path):
    for kind in ("none", "none"):
        path = write_market(tmp_path / "state", "study-a", {"started_at": START, "kind": kind})
    assert json.loads(path.read_text())["kind"] == "none"
    assert [entry.name for entry in path.parent.iterdir()] == ["study-a.json"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
