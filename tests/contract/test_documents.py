"""The JSON documents against their contract: every key is there, and two documents never disagree on one figure."""

import pytest

from tests.engine.sweeps import Sweep
from tuner.core.jobs import JobRequest
from tuner.core.records import Intent
from tuner.operations import change as verbs
from tuner.reports import views
from tuner.simulator.parts import Script

STATUS_KEYS = (
    "study owner state backend simulated engine trials attempts interruptions resumed_runs restarted_from_zero "
    "never_checkpointed best spend_usd estimated_usd reserved_usd on_demand_usd saved_pct lost_work_s budget_usd "
    "deadline warnings"
)
TRIAL_KEYS = (
    "number state reason value values params step attempts interruptions runs jobs instance capacity billable_s "
    "training_s lost_work_s spend_usd estimated on_demand_usd checkpoint_prefix model_uri bundle"
)
RUN_KEYS = "attempt run resumed_from_step last_step started ended end"
JOB_KEYS = "attempt name arn end billable_s"


@pytest.fixture
def interrupted(tmp_path) -> Sweep:
    """A finished study of four trials, all of them interrupted once."""
    sweep = Sweep(tmp_path, outages=[(200.0, 500.0)])
    sweep.run()
    return sweep


def documents(sweep: Sweep) -> tuple[dict, list[dict]]:
    study = sweep.store.study_by_id(sweep.study.id)
    return views.status_view(sweep.store, study, sweep.clock.now()), views.trials_view(sweep.store, study)


def test_status_has_every_key_of_the_contract(interrupted):
    status, _ = documents(interrupted)

    assert set(STATUS_KEYS.split()) <= set(status)
    assert {"host", "pid", "last_tick", "alive"} <= set(status["engine"])
    assert {"number", "value", "params"} <= set(status["best"])


def test_trials_have_every_key_of_the_contract(interrupted):
    _, trials = documents(interrupted)

    for trial in trials:
        assert set(TRIAL_KEYS.split()) <= set(trial)
        assert all(set(RUN_KEYS.split()) <= set(run) for run in trial["runs"])
        assert all(set(JOB_KEYS.split()) <= set(job) for job in trial["jobs"])


@pytest.mark.parametrize("key", ["spend_usd", "on_demand_usd", "interruptions"])
def test_a_figure_of_the_study_is_the_sum_over_its_trials(interrupted, key):
    status, trials = documents(interrupted)

    assert status[key] == pytest.approx(sum(trial[key] for trial in trials))
    assert status["interruptions"] > 0


def test_lost_work_of_interruptions_is_the_sum_over_trials(interrupted):
    status, trials = documents(interrupted)

    assert status["lost_work_s"] == pytest.approx(sum(trial["lost_work_s"] for trial in trials)) != 0


def test_lost_work_of_a_stalled_attempt_is_the_sum_over_trials(tmp_path):
    def first_attempt_hangs(request: JobRequest) -> Script:
        return Script(epochs=4, step_s=60.0, hangs_after=2 if request.name.endswith("-001") else None)

    sweep = Sweep(tmp_path, changes={"trials": 1, "training": {"stall_after": "10m"}}, script=first_attempt_hangs)
    sweep.run()

    status, trials = documents(sweep)
    assert status["trials"]["succeeded"] == 1
    assert status["lost_work_s"] == pytest.approx(sum(trial["lost_work_s"] for trial in trials))


def test_a_cancelled_study_refuses_set(tmp_path):
    sweep = Sweep(tmp_path, script=lambda _request: Script(epochs=1, step_s=60.0))
    sweep.store.add_request(sweep.study.id, "cancel", {"intent": Intent.CANCEL.value}, "ann", sweep.clock.now())
    sweep.run()

    with pytest.raises(verbs.UserError, match="cancelled"):
        verbs.request_set("sweep", sweep.store, ["trials=9"], clock=sweep.clock)
