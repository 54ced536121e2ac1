"""The engine's process dies at every point at which dying makes a difference; nothing is lost and nothing is twice."""

from datetime import timedelta

import pytest
from checkers import broken, succeeded, terminal, view_is_the_rows
from simulated import script_of
from sweeps import Died, Sweep

from tuner.core.records import StudyState

pytestmark = pytest.mark.slow

OUTAGES = [(400.0, 500.0), (1300.0, 9000.0)]
CHANGES = {
    "trials": 3,
    "parallel": 2,
    "training": {"max_wait": "70m"},
    "search": {"pruner": {"name": "MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 1}},
}


def story(make_sweep, name: int = 0) -> Sweep:
    """Interruptions, an attempt that ends at max_wait, a second attempt, pruning: everything in one small sweep."""
    return make_sweep(outages=OUTAGES, script=script_of(epochs=12, step_s=60.0), changes=CHANGES, seed=name + 1)


def outcome(sweep: Sweep) -> list:
    return [(trial.number, trial.params, trial.state, trial.values) for trial in sweep.trials()]


def crash_points(make_sweep) -> list[str]:
    """Every point that the uninterrupted story passes, in order."""
    sweep, seen = story(make_sweep), []
    sweep.crash_point = seen.append
    sweep.run()
    return seen


def drive_with_deaths(sweep: Sweep, at: set[int]) -> None:
    """Run to the end; at these passages of crash points the process dies, and a new one takes over."""
    passed = 0

    def maybe_die(point: str) -> None:
        nonlocal passed
        passed += 1
        if passed in at:
            raise Died(point)

    sweep.crash_point = maybe_die
    for _ in range(len(at) + 1):
        try:
            assert sweep.run() is StudyState.FINISHED
        except Died:
            assert broken(sweep) == []
        else:
            return


def test_death_at_every_single_point(make_sweep):
    points = crash_points(make_sweep)
    expected = outcome(run_quietly(make_sweep))
    # ticks in which nothing happens pass the same points again and again: each name's first four and last two do
    chosen = sorted(
        {
            index
            for name in set(points)
            for indexes in [[i for i, point in enumerate(points, start=1) if point == name]]
            for index in (*indexes[:4], *indexes[-2:])
        }
    )
    assert {points[index - 1] for index in chosen} == set(points)
    assert {"after create", "before create", "after stop", "after intended", "before observed"} <= set(points)
    for index in chosen:
        sweep = story(make_sweep)
        drive_with_deaths(sweep, {index})
        assert terminal(sweep), f"death at passage {index} ({points[index - 1]})"
        assert broken(sweep) == [], f"death at passage {index} ({points[index - 1]})"
        assert outcome(sweep) == expected, f"death at passage {index} ({points[index - 1]})"
        assert len(sweep.cloud.jobs) == sum(attempt.arn is not None for attempt in sweep.attempts())
        sweep.store.close()


def run_quietly(make_sweep) -> Sweep:
    sweep = story(make_sweep)
    sweep.run()
    return sweep


def test_death_again_and_again(make_sweep):
    total = len(crash_points(make_sweep))
    sweep = story(make_sweep)
    drive_with_deaths(sweep, set(range(3, total, 7)))
    assert outcome(sweep) == outcome(run_quietly(make_sweep))
    assert broken(sweep) == []


@pytest.mark.parametrize("sampler", ["RandomSampler", "QMCSampler", "TPESampler", "CmaEsSampler"])
def test_a_stopped_and_resumed_sweep_proposes_what_the_other_does(make_sweep, sampler):
    changes = {"trials": 14, "parallel": 1, "search": {"sampler": {"name": sampler, "seed": 5}}}
    script = script_of(epochs=2, step_s=60.0)
    whole = make_sweep(script=script, changes=changes)
    whole.run()
    pieces = make_sweep(script=script, changes=changes)
    passed = 0

    def die_now_and_then(_point: str) -> None:
        nonlocal passed
        passed += 1
        if passed % 40 == 0:
            raise Died

    pieces.crash_point = die_now_and_then
    for _ in range(200):
        try:
            pieces.run()
            break
        except Died:
            continue
    assert pieces.engines > 3
    assert outcome(pieces) == outcome(whole)
    assert succeeded(pieces) == list(range(14))


def test_the_view_in_memory_is_what_a_restart_would_build(make_sweep):
    sweep = story(make_sweep)
    engine = sweep.engine()
    while engine.tick().active:
        assert view_is_the_rows(sweep, engine) == []
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=120))


def test_same_seed_same_events(make_sweep):
    one, other = run_quietly(make_sweep), run_quietly(make_sweep)
    assert one.store.events(one.study.id) == other.store.events(other.study.id)
