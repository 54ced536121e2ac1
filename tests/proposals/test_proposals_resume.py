"""A sweep that loses its proposer, again and again, proposes and judges what it would have without."""

import pytest
from sweep_of_rows import FINITE, MIXED, NUMERIC, ONE, TWO, Sweep, proposer, seen

from tuner.core.records import TrialState
from tuner.spec.records import SpaceFunction

pytestmark = pytest.mark.slow

SAMPLERS = [
    pytest.param("RandomSampler", MIXED, ONE, {}, id="random"),
    pytest.param("QMCSampler", MIXED, ONE, {"scramble": True}, id="qmc"),
    pytest.param("GridSampler", FINITE, ONE, {}, id="grid"),
    pytest.param("BruteForceSampler", FINITE, ONE, {}, id="bruteforce"),
    pytest.param("TPESampler", MIXED, ONE, {"n_startup_trials": 5}, id="tpe"),
    pytest.param("TPESampler", MIXED, ONE, {"n_startup_trials": 5, "multivariate": False}, id="tpe-independent"),
    pytest.param("TPESampler", MIXED, ONE, {"n_startup_trials": 5, "group": True}, id="tpe-group"),
    pytest.param("TPESampler", MIXED, TWO, {"n_startup_trials": 5}, id="tpe-two-objectives"),
    pytest.param("CmaEsSampler", NUMERIC, ONE, {}, id="cma"),
    pytest.param("CmaEsSampler", MIXED, ONE, {}, id="cma-with-categorical"),
    pytest.param("CmaEsSampler", NUMERIC, ONE, {"use_separable_cma": True, "popsize": 5}, id="cma-separable"),
    pytest.param("CmaEsSampler", NUMERIC, ONE, {"with_margin": True, "popsize": 5}, id="cma-margin"),
    pytest.param("GPSampler", NUMERIC, ONE, {"n_startup_trials": 20}, id="gp", marks=pytest.mark.torch),
    pytest.param("NSGAIISampler", MIXED, ONE, {"population_size": 6}, id="nsga2"),
    pytest.param("NSGAIISampler", MIXED, TWO, {"population_size": 6}, id="nsga2-two-objectives"),
    pytest.param("NSGAIIISampler", MIXED, TWO, {"population_size": 6}, id="nsga3-two-objectives"),
    pytest.param(
        "PartialFixedSampler",
        MIXED,
        ONE,
        {"fixed_params": {"lr": 0.01}, "base_sampler": {"name": "TPESampler"}},
        id="fixed",
    ),
]


@pytest.mark.parametrize("parallel", [1, 5])
@pytest.mark.parametrize(("sampler", "space", "objectives", "arguments"), SAMPLERS)
def test_proposals_after_losses_are_those_without(sampler, space, objectives, arguments, parallel):
    def make():
        return proposer(sampler, space, objectives=objectives, **arguments)

    whole = Sweep(make, parallel=parallel).run(24)
    broken = Sweep(make, parallel=parallel, lose_every=7).run(24)
    assert broken.proposals == whole.proposals
    assert seen(broken.proposer) == seen(whole.proposer)
    assert broken.study_attrs == whole.study_attrs


@pytest.mark.parametrize(
    ("pruner", "arguments"),
    [
        ("SuccessiveHalvingPruner", {"min_resource": 1, "reduction_factor": 2}),
        ("SuccessiveHalvingPruner", {}),
        ("HyperbandPruner", {"max_resource": 6, "reduction_factor": 2}),
        ("HyperbandPruner", {"reduction_factor": 2}),
        ("MedianPruner", {"n_startup_trials": 2}),
        ("PercentilePruner", {"percentile": 30.0, "n_startup_trials": 2}),
        ("PatientPruner", {"wrapped_pruner": {"name": "SuccessiveHalvingPruner"}, "patience": 0}),
        ("ThresholdPruner", {"lower": 0.5}),
    ],
)
def test_verdicts_after_losses_are_those_without(pruner, arguments):
    def make():
        return proposer("TPESampler", pruner=pruner, pruner_arguments=arguments, n_startup_trials=2)

    whole = Sweep(make, parallel=4, steps=6).run(24)
    broken = Sweep(make, parallel=4, steps=6, lose_every=5).run(24)
    assert broken.verdicts == whole.verdicts
    assert broken.proposals == whole.proposals
    assert seen(broken.proposer) == seen(whole.proposer)
    verdicts = {verdict for _, _, verdict in whole.verdicts}
    assert verdicts == {False} if pruner == "PatientPruner" else verdicts == {False, True}


@pytest.mark.parametrize("pruner", ["SuccessiveHalvingPruner", "PatientPruner"])
def test_a_rung_that_was_guessed_stays_where_it_is(pruner):
    """`auto` makes a hundredth of the longest finished trial the first rung; later, longer trials must not move it."""
    nested = {"wrapped_pruner": "SuccessiveHalvingPruner", "patience": 0}
    arguments = nested if pruner == "PatientPruner" else {}

    def rungs_after(*, lose: bool) -> dict:
        sweep = Sweep(lambda: proposer("RandomSampler", pruner=pruner, pruner_arguments=arguments))
        for number, steps in enumerate([(100, 200), (2, 3, 900)]):
            sweep.ask()
            for falling, step in enumerate(steps):
                sweep.report(number, step, 1.0 - falling / 10)
            sweep.tell(number, TrialState.SUCCEEDED, 0.5)
        if lose:
            sweep.lose()
        sweep.ask()
        for falling, step in enumerate((2, 3, 4)):
            sweep.report(2, step, 1.0 - falling / 10)
        return dict(sweep.rows[2].attrs)

    assert rungs_after(lose=True) == rungs_after(lose=False)
    assert "completed_rung_0" in rungs_after(lose=True)


def test_the_brackets_that_were_guessed_stay():
    sweep = Sweep(lambda: proposer("TPESampler", pruner="HyperbandPruner"))
    for number, steps in enumerate([9, 90, 9]):
        sweep.ask()
        sweep.report(number, steps, 0.5)
        sweep.tell(number, TrialState.SUCCEEDED, 0.5)
        sweep.lose()
        assert sweep.study_attrs == ({"tuner:HyperbandPruner.max_resource": 10} if number else {})


@pytest.mark.parametrize(
    ("sampler", "space", "arguments"),
    [
        ("RandomSampler", MIXED, {}),
        ("QMCSampler", MIXED, {"qmc_type": "halton"}),
        ("GridSampler", FINITE, {}),
        ("BruteForceSampler", FINITE, {}),
    ],
)
def test_samplers_without_history_do_not_mind_the_order(sampler, space, arguments):
    def make():
        return proposer(sampler, space, **arguments)

    sweeps = [
        Sweep(make, parallel=parallel, order_seed=order, lose_every=lose).run(20)
        for parallel, order, lose in [(1, 1, None), (4, 2, None), (7, 3, 5)]
    ]
    assert sweeps[0].proposals == sweeps[1].proposals == sweeps[2].proposals
    assert len({str(params) for params in sweeps[0].proposals}) == 20


CONDITIONAL = """
def space(trial):
    kind = trial.suggest_categorical("kind", ["tree", "line"])
    if kind == "tree":
        trial.suggest_int("depth", 1, 3)
        trial.suggest_float("rate", 0.1, 0.3, step=0.1)
    else:
        trial.suggest_categorical("slope", [None, True, 2])
"""


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler", "QMCSampler", "BruteForceSampler"])
def test_define_by_run_survives_losses(tmp_path, sampler, parallel):
    file = tmp_path / "search_space.py"
    file.write_text(CONDITIONAL)

    def make():
        return proposer(sampler, SpaceFunction(str(file), "space"))

    whole = Sweep(make, parallel=parallel).run(24)
    broken = Sweep(make, parallel=parallel, lose_every=5).run(24)
    assert broken.proposals == whole.proposals
    assert {frozenset(p) for p in whole.proposals} == {
        frozenset({"kind", "depth", "rate"}),
        frozenset({"kind", "slope"}),
    }
    if sampler == "BruteForceSampler":
        assert whole.exhausted
        assert len({str(sorted(p.items(), key=str)) for p in whole.proposals}) == len(whole.proposals) == 12


def test_the_name_of_the_study_is_the_seed_when_none_is_given():
    def first(name: str, **arguments: object):
        return proposer("RandomSampler", name=name, **arguments).ask(0).params

    assert first("a") == first("a") != first("b")
    assert first("a", seed=3) == first("b", seed=3) != first("a", seed=4)
    assert first("a", seed=None) == first("a")


def test_rebuild_forgets_a_proposal_that_was_not_committed():
    sweep = Sweep(lambda: proposer("CmaEsSampler", NUMERIC), parallel=3).run(25)
    first = sweep.proposer.ask(25)
    for _ in range(2):
        sweep.proposer.rebuild(tuple(sweep.rows.values()), sweep.study_attrs)
        assert sweep.proposer.ask(25) == first


def test_nothing_pickled_is_handed_out_to_be_stored():
    sweep = Sweep(lambda: proposer("CmaEsSampler", NUMERIC, popsize=4)).run(20)
    kept = [str(row.attrs) for row in sweep.rows.values()]
    in_view = [str(t.system_attrs) for t in sweep.proposer.study.get_trials(deepcopy=False)]
    assert any("optimizer:0" in attrs for attrs in in_view)
    assert not any("optimizer:0" in attrs for attrs in kept)
