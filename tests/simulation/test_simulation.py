"""A fixed share of the soak, and a few broken rules that it must find. The whole is `python -m tests.simulation`."""

from dataclasses import replace

import pytest

from tests.simulation import coverage
from tests.simulation.__main__ import main
from tests.simulation.mutations import MUTATIONS, find
from tests.simulation.soak import run
from tests.simulation.world import postgres_stores

SHARES = 4
SEEDS_PER_SHARE = 5
POSTGRES_SEEDS = (1, 2)
# Rules whose loss shows within a few seeds; `python -m tests.simulation.mutations` tries them all.
QUICK = (
    "it fits whatever it is",
    "acts before it records",
    "a new name for each call",
    "the fence is ignored",
    "told after the commit that says it",
    "interruptions are counted as they are seen",
    "a known one is ignored",
    "it goes without leave",
)


@pytest.mark.parametrize("share", range(SHARES))
def test_no_seed_breaks_an_invariant(share):
    first = share * SEEDS_PER_SHARE
    outcomes = [run(seed) for seed in range(first, first + SEEDS_PER_SHARE)]
    assert [(outcome.seed, outcome.broken) for outcome in outcomes if outcome.broken is not None] == []


def test_no_seed_breaks_an_invariant_on_postgresql(postgres):
    """The same stories to the last event: what is recorded depends on no database."""
    stores = postgres_stores(postgres)
    for seed in POSTGRES_SEEDS:
        outcome = run(seed, stores)
        assert outcome.broken is None, f"seed {seed}"
        assert outcome.digest == run(seed).digest


def test_the_same_seed_tells_the_same_story():
    one, other = run(7), run(7)
    assert one.digest == other.digest
    assert one.ticks == other.ticks > 0


def test_different_seeds_tell_different_stories():
    assert run(3).digest != run(4).digest


def test_the_old_menu_stays_selectable(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tests.simulation", "--menu", "1", "--first-seed", "3", "--seeds", "1"])
    assert main() == 0
    assert "1 seeds, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tests.simulation", "--menu", "0"])
    with pytest.raises(SystemExit):
        main()


def test_a_failing_seed_names_its_menu(monkeypatch, capsys):
    broken = replace(run(3), broken="a rule")
    monkeypatch.setattr("tests.simulation.__main__.run", lambda *_: broken)
    monkeypatch.setattr("sys.argv", ["tests.simulation", "--first-seed", "3", "--seeds", "1"])
    assert main() == 1
    assert "a rule -- python -m tests.simulation --first-seed 3 --seeds 1 --menu 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("broken", QUICK)
def test_a_broken_rule_is_found(broken):
    mutation = next(each for each in MUTATIONS if each.broken == broken)
    assert find(mutation, range(20)) is not None


def test_what_cannot_happen_stands_in_the_tables():
    assert set(coverage.UNREACHABLE) <= set(coverage.TRANSITIONS)
