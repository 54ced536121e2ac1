"""What one trial may cost: never passed by more than a look and a stop, and no trial failed that is clearly below."""

from dataclasses import replace
from datetime import timedelta

import pytest
from checkers import broken, succeeded
from simulated import script_of

from tuner.core.records import AttemptEnd, StudyState, TrialState
from tuner.simulator.parts import SimulatorSettings

RATE = 1_408_000  # of ml.g5.xlarge, micro-dollars an hour
# What is billed between the look that would stop a job and the next, while it stops, and while it uploads.
SLACK = RATE * (30 + 30 + 120 + 10) / 3600
LONG = {"training": {"max_run": "9h", "max_wait": "24h"}}


def study(limit_usd, **changes):
    training = {**LONG["training"], **changes.pop("training", {})}
    return {"trials": 1, "parallel": 1, "training": training, "budget": {"per_trial_usd": limit_usd}, **changes}


def final(sweep, trial=0):
    return sum(attempt.spend_microusd for attempt in sweep.attempts(trial))


def ends(sweep):
    return [(trial.state, trial.reason) for trial in sweep.trials()]


@pytest.mark.parametrize("saving", [0.0, 0.35, 0.65, 0.9])
def test_a_trial_fails_once_it_has_cost_its_limit(make_sweep, saving):
    """The first one of the study too, of which nobody knows the discount."""
    sweep = make_sweep(
        script=script_of(epochs=900, step_s=60.0),
        changes=study(0.5),
        settings=SimulatorSettings(saving=saving),
        outages=[],
    )
    sweep.run()
    assert ends(sweep) == [(TrialState.FAILED, "trial_budget")]
    assert 0.9 * 500_000 <= final(sweep) <= 500_000 + SLACK
    assert len(sweep.attempts()) <= 3
    assert broken(sweep) == []


def test_a_trial_that_fits_its_limit_succeeds_though_it_was_stopped_for_what_it_might_have_cost(make_sweep):
    sweep = make_sweep(
        script=script_of(epochs=45, step_s=60.0), changes=study(0.5), settings=SimulatorSettings(saving=0.65)
    )
    sweep.run()
    assert succeeded(sweep) == [0]
    assert [attempt.stop_reason for attempt in sweep.attempts()] == ["trial_budget", None]
    assert final(sweep) <= 500_000
    assert broken(sweep) == []


def test_once_the_discount_is_known_no_trial_is_stopped_that_fits(make_sweep):
    script = script_of(epochs=45, step_s=60.0)
    sweep = make_sweep(script=script, changes=study(0.5, trials=3), settings=SimulatorSettings(saving=0.65))
    engine = sweep.engine()
    engine.run(lambda: len(sweep.trials()) > 1)
    sweep.run()  # another engine knows it too
    assert succeeded(sweep) == [0, 1, 2]
    assert [len(sweep.attempts(trial)) for trial in range(3)] == [2, 1, 1]


def test_on_demand_has_no_discount_whatever_spot_had(make_sweep):
    """A trial that goes on demand after losses costs what it says, and is stopped there."""
    changes = study(0.5, trials=2, capacity={"on_demand_after": {"losses": 1}})
    sweep = make_sweep(
        script=lambda request: script_of(epochs=10 if "-00000-" in request.name else 900, step_s=60.0)(request),
        changes=changes,
        settings=SimulatorSettings(saving=0.65),
    )
    engine = sweep.engine()
    engine.run(lambda: bool(succeeded(sweep)))
    engine.run(lambda: any(job.up_since is not None and "-00001-" in job.name for job in sweep.cloud.jobs.values()))
    sweep.cloud.fail(sweep.attempts(1)[-1].job_name, "CapacityError: no capacity")
    sweep.run()
    assert [attempt.spot for attempt in sweep.attempts(1)] == [True, False]
    assert ends(sweep)[1] == (TrialState.FAILED, "trial_budget")
    assert 0.9 * 500_000 <= final(sweep, 1) <= 500_000 + SLACK


def test_what_has_cost_its_limit_gets_no_other_job_however_the_last_one_ended(make_sweep):
    sweep = make_sweep(
        script=script_of(epochs=900, step_s=60.0), changes=study(0.5), settings=SimulatorSettings(saving=0.0)
    )
    engine = sweep.engine()
    name = f"{sweep.study.key}-00000-001"
    engine.run(lambda: name in sweep.cloud.jobs and sweep.cloud.jobs[name].up_since is not None)
    sweep.clock.wait(sweep.clock.now() + timedelta(hours=1), due=sweep.clock.now())  # the engine is away
    sweep.cloud.fail(name, "CapacityError: no capacity")
    sweep.run()
    assert final(sweep) > 500_000
    assert ends(sweep) == [(TrialState.FAILED, "trial_budget")]
    assert [attempt.end for attempt in sweep.attempts()] == [AttemptEnd.CAPACITY]


def test_a_limit_set_below_what_a_waiting_trial_has_cost_ends_it(make_sweep):
    changes = study(0.5, budget={"per_trial_usd": 0.5, "deadline": "20m"})
    sweep = make_sweep(script=script_of(epochs=45, step_s=60.0), changes=changes)
    assert sweep.run() is StudyState.PAST_DEADLINE
    sweep.store.add_request(
        sweep.study.id, "set", {"budget.per_trial_usd": "0.01", "budget.deadline": "48h"}, "me", sweep.clock.now()
    )
    assert sweep.run() is StudyState.FINISHED
    assert ends(sweep) == [(TrialState.FAILED, "trial_budget")]
    assert len(sweep.attempts()) == 1
    assert broken(sweep) == []


def test_the_limit_is_seen_between_two_descriptions_of_a_job(make_sweep):
    """A job that nothing happens to is described each tenth poll: it must not cost so much more until then."""
    sweep = make_sweep(
        script=script_of(epochs=900, step_s=60.0),
        changes=study(0.2),
        settings=SimulatorSettings(saving=0.0, stop_grace_s=0.0),
    )
    sweep.run()
    assert 200_000 < final(sweep) <= 200_000 + RATE * 60 / 3600


@pytest.mark.parametrize("status", ["Updating", "Levitating"])
def test_a_job_that_shows_an_unknown_status_costs_on(make_sweep, status):
    """Each description would unsay what was estimated since that status came, and the limit would never be met."""
    sweep = make_sweep(
        script=script_of(epochs=900, step_s=60.0),
        changes=study(0.2),
        settings=SimulatorSettings(saving=0.0, stop_grace_s=0.0),
    )
    engine = sweep.engine()
    name = f"{sweep.study.key}-00000-001"
    engine.run(lambda: name in sweep.cloud.jobs and sweep.cloud.jobs[name].secondary == "Training")
    sweep.cloud.show(name, status)
    engine.run(lambda: False)
    assert "unforeseen" in sweep.kinds()
    assert ends(sweep) == [(TrialState.FAILED, "trial_budget")]
    assert 200_000 < final(sweep) <= 200_000 + RATE * 60 / 3600


def test_a_job_that_was_not_billed_tells_no_discount(make_sweep):
    """As one that failed for a fault of the service's may be; its engine went down with it, and each one after it."""
    sweep = make_sweep(
        script=script_of(epochs=900, step_s=60.0), changes=study(0.5, trials=2), settings=SimulatorSettings(saving=0.0)
    )
    plain = sweep.cloud.describe

    def describe(name):
        seen = plain(name)
        return replace(seen, billable_s=0) if name.endswith("00000-001") and seen.status.final else seen

    sweep.cloud.describe = describe
    began = sweep.clock.now()
    sweep.engine().run(lambda: sweep.clock.now() > began + timedelta(minutes=20))
    sweep.cloud.fail(sweep.attempts(0)[-1].job_name, "InternalServerError: it is ours")
    sweep.run()
    assert sweep.attempts(0)[0].billable_s == 0
    assert [reason for _, reason in ends(sweep)] == ["trial_budget"] * 2
    assert all(final(sweep, trial) <= 500_000 + SLACK for trial in (0, 1))
