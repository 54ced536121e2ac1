"""What the view shows, when it ends, and what it keeps quiet about."""

import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState as Seen
from sweep_of_rows import FINITE, MIXED, NUMERIC, TWO, Sweep, proposer, seen

from tuner.core.records import TrialState
from tuner.search.proposer import ViewTrial
from tuner.spec.records import CategoricalParam, FloatParam, IntParam

POINTS = 4 * 3 * 2


@pytest.mark.parametrize("parallel", [1, 7, 40])
@pytest.mark.parametrize("sampler", ["GridSampler", "BruteForceSampler"])
def test_a_finite_space_is_walked_through_once_and_ends(sampler, parallel):
    sweep = Sweep(lambda: proposer(sampler, FINITE), parallel=parallel, lose_every=9).run(100)
    assert sweep.exhausted
    assert len({tuple(params.values()) for params in sweep.proposals}) == len(sweep.proposals) == POINTS
    assert {params["rate"] for params in sweep.proposals} == {0.1, 0.2, 0.3, 0.4}
    assert {params["depth"] for params in sweep.proposals} == {1, 3, 5}
    assert sweep.proposer.ask(POINTS) is None
    assert len(sweep.proposer.study.trials) == POINTS


def test_an_exhausted_space_leaves_the_view_as_it_was():
    sweep = Sweep(lambda: proposer("BruteForceSampler", FINITE), parallel=40)
    while not sweep.exhausted:
        sweep.ask()
    before = seen(sweep.proposer)
    assert sweep.proposer.ask(POINTS) is None
    assert seen(sweep.proposer) == before
    for number in sweep.in_flight:
        sweep.tell(number, TrialState.SUCCEEDED, 1.0)
    assert {t.state for t in sweep.proposer.study.trials} == {Seen.COMPLETE}


def test_a_grid_may_be_listed():
    grid = {"lr": [0.01, 0.001], "dropout": [0.0, 0.25], "hidden": [16, 32], "activation": ["gelu"]}
    sweep = Sweep(lambda: proposer("GridSampler", MIXED, search_space=grid)).run(100)
    assert len(sweep.proposals) == 8
    assert all(value in grid[name] for params in sweep.proposals for name, value in params.items())


def test_parameters_are_what_was_declared():
    space = (
        FloatParam("lr", 1e-5, 1e-1, log=True),
        FloatParam("drop", 0.0, 0.5, step=0.25),
        IntParam("units", 16, 64, step=16),
        IntParam("power", 1, 1000, log=True),
        CategoricalParam("any", (None, True, 3, 2.5, "x")),
    )
    for number, params in enumerate(Sweep(lambda: proposer("TPESampler", space)).run(40).proposals):
        assert list(params) == ["lr", "drop", "units", "power", "any"], number
        assert 1e-5 <= params["lr"] <= 1e-1
        assert params["drop"] in (0.0, 0.25, 0.5)
        assert params["units"] in (16, 32, 48, 64)
        assert type(params["power"]) is int
        assert any(params["any"] is choice or params["any"] == choice for choice in (None, True, 3, 2.5, "x"))


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (TrialState.PROPOSED, Seen.RUNNING),
        (TrialState.RUNNING, Seen.RUNNING),
        (TrialState.BACKING_OFF, Seen.RUNNING),
        (TrialState.SUCCEEDED, Seen.COMPLETE),
        (TrialState.PRUNED, Seen.PRUNED),
        (TrialState.FAILED, Seen.FAIL),
        (TrialState.CANCELLED, Seen.FAIL),
    ],
)
def test_states_as_optuna_sees_them(state, shown):
    sweep = Sweep(lambda: proposer("TPESampler"))
    sweep.ask()
    sweep.report(0, 1, 0.25)
    told = {"told_seq": 9, "values": [0.5] if state is TrialState.SUCCEEDED else None} if state.terminal else {}
    sweep.rows[0] = replace(sweep.rows[0], state=state, **told)
    sweep.lose()
    (trial,) = sweep.proposer.study.trials
    assert trial.state == shown
    assert trial.value == {Seen.COMPLETE: 0.5, Seen.PRUNED: 0.25}.get(shown)


@pytest.mark.parametrize(
    ("sampler", "shown"),
    [
        ("TPESampler", Seen.PRUNED),
        ("RandomSampler", Seen.PRUNED),
        ("CmaEsSampler", Seen.COMPLETE),
        ("NSGAIISampler", Seen.COMPLETE),
    ],
)
def test_a_paused_trial_shows_its_last_value_and_can_go_on(sampler, shown):
    sweep = Sweep(lambda: proposer(sampler))
    sweep.ask()
    sweep.report(0, 1, 0.25)
    sweep.report(0, 3, 0.5)
    sweep.rows[0] = replace(sweep.rows[0], state=TrialState.PAUSED)
    sweep.lose()
    study = sweep.proposer.study
    for trials in (study.get_trials(deepcopy=False), study.trials, study.get_trials(states=[shown])):
        (trial,) = trials
        assert (trial.state, trial.value) == (shown, 0.5)
    assert study.get_trials(states=[Seen.RUNNING]) == []
    sweep.report(0, 9, 0.75)
    assert study.trials[0].value == 0.75
    sweep.tell(0, TrialState.SUCCEEDED, 0.875)
    (trial,) = study.trials
    assert (trial.state, trial.value) == (Seen.COMPLETE, 0.875)


def test_paused_trials_teach_the_sampler():
    """With its trials paused at a rung, TPE proposes as with the same trials pruned, not as at random."""

    def next_after(state: TrialState | None) -> dict:
        sweep = Sweep(lambda: proposer("TPESampler", NUMERIC, n_startup_trials=5))
        for number in range(12):
            sweep.ask()
            sweep.report(number, 1, sweep.rows[number].params["x"])
        for number, row in sweep.rows.items():
            if state is not None:
                sweep.rows[number] = replace(row, state=state, told_seq=100 + number if state.terminal else None)
        sweep.lose()
        return sweep.proposer.ask(12).params

    assert next_after(TrialState.PAUSED) == next_after(TrialState.PRUNED) != next_after(None)


def test_a_verdict_is_asked_for_once_and_replay_asks_for_none():
    arguments = {"min_resource": 1, "reduction_factor": 2}
    sweep = Sweep(lambda: proposer("RandomSampler", pruner="SuccessiveHalvingPruner", pruner_arguments=arguments))
    for number, value in enumerate([5.0, 4.0, 6.0]):
        sweep.ask()
        sweep.report(number, 1, value)
    assert [verdict for _, _, verdict in sweep.verdicts] == [False, True, False]
    assert sweep.rows[1].attrs == {"completed_rung_0": 4.0}
    # a later run of trial 1 repeats the step with another value: its rung stays
    sweep.proposer.replay(1, 1, 9.0)
    trial = sweep.proposer.study.trials[1]
    assert trial.intermediate_values == {1: 9.0}
    assert trial.system_attrs == {"completed_rung_0": 4.0}


def test_several_objectives_are_told_and_never_pruned():
    sweep = Sweep(lambda: proposer("TPESampler", objectives=TWO), parallel=3).run(12)
    assert not any(verdict for _, _, verdict in sweep.verdicts)
    study = sweep.proposer.study
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.best_trials
    sweep.ask()
    sweep.proposer.report(12, 1, 0.5)
    sweep.rows[12] = replace(sweep.rows[12], points=((1, 0.5),))
    sweep.tell(12, TrialState.PRUNED)
    live = seen(sweep.proposer)
    sweep.lose()
    assert seen(sweep.proposer) == live


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_the_callers_business(value):
    sweep = Sweep(lambda: proposer("TPESampler"))
    sweep.ask()
    for call in (
        lambda: sweep.proposer.tell(0, TrialState.SUCCEEDED, [value]),
        lambda: sweep.proposer.report(0, 1, value),
        lambda: sweep.proposer.tell(0, TrialState.SUCCEEDED),
        lambda: sweep.proposer.tell(0, TrialState.FAILED, [1.0]),
    ):
        with pytest.raises(AssertionError):
            call()
    assert sweep.proposer.study.trials[0].state == Seen.RUNNING


def test_numbers_leave_no_gap():
    sweep = Sweep(lambda: proposer("RandomSampler")).run(3)
    with pytest.raises(AssertionError, match="asked for trial 7, the view is at 3"):
        sweep.proposer.ask(7)
    rows = [sweep.rows[0], sweep.rows[2]]
    with pytest.raises(AssertionError, match="trial 2 is recorded, trial 1 is missing"):
        sweep.proposer.rebuild(rows, {})
    sweep.lose()
    assert sweep.proposer.ask(3) is not None


def test_rows_are_json_and_the_view_is_equal_to_them():
    sweep = Sweep(
        lambda: proposer("TPESampler", pruner="HyperbandPruner", pruner_arguments={"max_resource": 4}), parallel=3
    ).run(20)
    for row, trial in zip(sweep.rows.values(), sweep.proposer.study.trials, strict=True):
        assert json.loads(json.dumps(dict(row.attrs))) == trial.system_attrs
        assert list(json.loads(row.distributions)) == list(row.params) == list(trial.params)
        assert dict(row.points) == trial.intermediate_values


def test_one_and_only_one_best_trial_survives_a_rebuild():
    sweep = Sweep(lambda: proposer("RandomSampler"), parallel=4).run(15)
    best = sweep.proposer.study.best_trial.number
    sweep.lose()
    assert sweep.proposer.study.best_trial.number == best


def said(caplog) -> list[str]:
    """Without what the garbage collector finds meanwhile of other tests of this worker: asyncio's tasks, for one."""
    return [record.getMessage() for record in caplog.records if record.name.partition(".")[0] in ("optuna", "tuner")]


def test_optuna_is_silent_and_its_settings_are_left_alone(caplog):
    optuna.logging.set_verbosity(logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for sampler, space in [("BruteForceSampler", FINITE), ("CmaEsSampler", NUMERIC), ("GridSampler", FINITE)]:
                Sweep(lambda s=sampler, p=space: proposer(s, p), lose_every=10).run(30)
        # files that another test left open are closed by the garbage collector, at any moment
        assert [str(w.message) for w in heard if not issubclass(w.category, ResourceWarning)] == []
        assert said(caplog) == []
        assert optuna.logging.get_verbosity() == logging.INFO
    finally:
        optuna.logging.set_verbosity(logging.WARNING)


def test_what_a_sampler_ignores_is_said_once(caplog):
    sweep = Sweep(lambda: proposer("CmaEsSampler", MIXED)).run(12)
    assert sweep.exhausted is False
    assert [message.count("`activation`") for message in said(caplog)] == [1]


def test_the_same_in_another_process():
    """Neither hash randomisation nor anything else of a process shows in proposals."""
    code = (
        "from sweep_of_rows import *; import json;"
        "print(json.dumps(Sweep(lambda: proposer('TPESampler', n_startup_trials=4), parallel=2).run(10).proposals))"
    )
    here = Sweep(lambda: proposer("TPESampler", n_startup_trials=4), parallel=2).run(10).proposals
    import_from = ["-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, *import_from], check=True, capture_output=True, text=True, env=environment)
    assert json.loads(there.stdout) == here


def test_a_trial_row_needs_its_tell_exactly_when_it_ended():
    row = ViewTrial(0, TrialState.FAILED, {}, "{}", {}, (), None, asked_seq=1, told_seq=None)
    with pytest.raises(AssertionError, match="told None"):
        proposer("RandomSampler").rebuild((row,), {})
