"""Finished trials of earlier studies stand before ours: they teach, and are counted nowhere."""

import pytest
from sweep_of_rows import FINITE, MIXED, NUMERIC, Sweep, proposer

from tuner.core.records import TrialState
from tuner.search.proposer import ProposalError
from tuner.spec.records import CategoricalParam, FloatParam, IntParam

NARROW = (
    FloatParam("lr", 1e-3, 1e-2, log=True),
    *MIXED[1:],
)


def finished(space=MIXED, count=12):
    """The finished trials of an earlier study."""
    sweep = Sweep(lambda: proposer("RandomSampler", space, seed=5)).run(count)
    return [row for row in sweep.rows.values() if row.state in (TrialState.SUCCEEDED, TrialState.PRUNED)]


def params(made, count, first=0):
    drawn = []
    for number in range(first, first + count):
        proposal = made.ask(number)
        drawn.append(proposal.params)
        made.tell(number, TrialState.SUCCEEDED, [0.0])
    return drawn


def test_ours_keep_their_numbers_and_stand_behind():
    earlier = finished()
    made = proposer("RandomSampler", pruner="MedianPruner", seed=1)
    made.rebuild((), {}, earlier)
    proposal = made.ask(0)
    assert proposal.number == 0
    made.report(0, 1, 0.5)
    made.replay(0, 1, 0.6)
    made.tell(0, TrialState.SUCCEEDED, [0.6])
    trials = made.study.get_trials(deepcopy=False)
    assert len(trials) == len(earlier) + 1
    assert [trial.values for trial in trials[:-1]] == [list(row.values) for row in earlier if row.values]
    assert (trials[-1].values, trials[-1].params) == ([0.6], proposal.params)


def test_history_free_samplers_propose_as_without_them():
    plain, taught = (proposer("RandomSampler", seed=1) for _ in range(2))
    taught.rebuild((), {}, finished())
    assert params(plain, 5) == params(taught, 5)


def test_tpe_learns_from_them():
    """After more earlier trials than it draws at random, its first proposal is no random one."""
    plain, taught = (proposer("TPESampler", NUMERIC, seed=1, n_startup_trials=5) for _ in range(2))
    taught.rebuild((), {}, finished(NUMERIC, 20))
    assert params(plain, 1) != params(taught, 1)


@pytest.mark.parametrize("sampler", ["TPESampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler"])
def test_a_proposer_that_is_lost_proposes_the_same_again(sampler):
    earlier = finished(NUMERIC)

    def make():
        made = proposer(sampler, NUMERIC, seed=2)
        made.rebuild((), {}, earlier)
        return made

    class Taught(Sweep):
        def lose(self):
            self.proposer = make()
            self.proposer.rebuild(tuple(self.rows.values()), self.study_attrs, earlier)

    def run(lose_every):
        return Taught(make, parallel=2, order_seed=3, lose_every=lose_every).run(9).proposals

    assert run(None) == run(4)


def test_values_outside_of_todays_range_teach_nothing_but_keep_their_place():
    earlier = finished()
    outside = sum(not 1e-3 <= row.params["lr"] <= 1e-2 for row in earlier)
    assert 0 < outside < len(earlier)
    made = proposer("TPESampler", NARROW, seed=1)
    made.rebuild((), {}, earlier)
    states = [trial.state.name for trial in made.study.get_trials(deepcopy=False)]
    assert (len(states), states.count("FAIL")) == (len(earlier), outside)
    assert all(1e-3 <= drawn["lr"] <= 1e-2 for drawn in params(made, 5))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (MIXED[1:], r"parameter lr .*\(log float there, absent here\)"),
        ((*MIXED, IntParam("depth", 1, 2)), "parameter depth"),
        ((FloatParam("lr", 1e-4, 1e-1), *MIXED[1:]), r"\(log float there, float here\)"),
        ((*MIXED[:3], CategoricalParam("activation", ("relu", "tanh"))), "parameter activation"),
        ((*MIXED[:2], FloatParam("hidden", 16, 256, log=True), MIXED[3]), r"\(log int there, log float here\)"),
    ],
)
def test_other_kinds_of_parameters_are_refused(space, said):
    with pytest.raises(ProposalError, match=rf"search\.warm_start: .*{said}"):
        proposer("TPESampler", space).check_earlier("earlier", finished())


def test_other_ranges_are_no_other_kinds():
    proposer("TPESampler", NARROW).check_earlier("earlier", finished())


def test_a_grid_is_walked_whole_beside_earlier_points():
    made = proposer("GridSampler", FINITE)
    made.rebuild((), {}, finished(FINITE, 10))
    seen = []
    while (proposal := made.ask(len(seen))) is not None:
        seen.append(tuple(proposal.params.values()))
        made.tell(len(seen) - 1, TrialState.SUCCEEDED, [0.0])
    assert len(seen) == len(set(seen)) == 24


def test_brute_force_tries_what_earlier_studies_left():
    earlier = finished(FINITE, 10)
    tried = {tuple(row.params.values()) for row in earlier}
    made = proposer("BruteForceSampler", FINITE, seed=1)
    made.rebuild((), {}, earlier)
    seen = []
    while (proposal := made.ask(len(seen))) is not None:
        seen.append(tuple(proposal.params.values()))
        made.tell(len(seen) - 1, TrialState.SUCCEEDED, [0.0])
    assert len(seen) == len(set(seen)) == 24 - len(tried)
    assert not tried & set(seen)
