"""Whole sweeps in virtual time: the ordinary ones, and each way an attempt can end."""

from dataclasses import replace
from datetime import timedelta

import pytest
from checkers import broken, succeeded, view_is_the_rows
from simulated import script_of

from tuner.core.jobs import CapacityUnavailable, CredentialsRefused, RequestRejected, ServiceUnavailable, Throttled
from tuner.core.records import AttemptEnd, AttemptState, Change, Intent, StudyState, TrialState
from tuner.engine.dispatch import submit_due
from tuner.engine.unit_of_work import UnitOfWork
from tuner.reports.events import narrate
from tuner.simulator.parts import Script, SimulatorSettings
from tuner.spec import workload


def test_a_quiet_sweep_ends_with_every_trial_succeeded(make_sweep):
    sweep = make_sweep()
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1, 2, 3]
    assert broken(sweep) == []
    assert sweep.cloud.calls["create"] == 4


def test_a_whole_pool_that_goes_away_again_and_again(make_sweep):
    outages = [(300.0 + 400.0 * n, 400.0 + 400.0 * n) for n in range(12)]
    sweep = make_sweep(outages=outages, script=script_of(epochs=10, step_s=60.0))
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1, 2, 3]
    summary = sweep.store.summary(sweep.study.id)
    assert summary.interruptions >= 4
    assert (
        summary.resumed_runs == sum(run.resumed_from_step is not None for run in sweep.store.runs(sweep.study.id)) > 0
    )
    assert summary.restarted_from_zero == 0
    assert summary.lost_work_s > 0
    assert broken(sweep) == []


def test_each_step_is_counted_once_however_often_it_was_reported(make_sweep):
    outages = [(400.0, 500.0), (900.0, 950.0)]
    sweep = make_sweep(outages=outages, script=script_of(epochs=10, step_s=60.0, checkpoint_every=3))
    sweep.run()
    quiet = make_sweep(script=script_of(epochs=10, step_s=60.0, checkpoint_every=3))
    quiet.run()
    for one, other in zip(sweep.trials(), quiet.trials(), strict=True):
        assert (one.params, one.values, one.last_step) == (other.params, other.values, other.last_step)


def test_a_script_that_does_not_resume_is_noticed(make_sweep):
    sweep = make_sweep(
        outages=[(400.0, 500.0)], script=script_of(epochs=8, step_s=60.0, resumes=False), changes={"trials": 2}
    )
    sweep.run()
    summary = sweep.store.summary(sweep.study.id)
    assert summary.restarted_from_zero == 2
    assert summary.resumed_runs == 0
    assert sweep.kinds().count("run.restarted_from_zero") == 2


@pytest.mark.parametrize("behind", [1, 3])
def test_a_script_that_does_not_load_its_newest_checkpoint_is_noticed(make_sweep, behind):
    """Nothing is claimed beyond its first step; a step that may only have been evaluated again is no alarm."""
    script = script_of(epochs=8, step_s=60.0, behind=behind)
    sweep = make_sweep(outages=[(500.0, 600.0)], script=script, changes={"trials": 2})
    sweep.run()
    runs = [run for run in sweep.store.runs(sweep.study.id) if run.number == 2]
    assert [run.resumed_from_step for run in runs] == [run.first_step - 1 for run in runs]
    assert all(run.resumed_from_step == run.resume_step - behind > 0 for run in runs)
    lost = [run.lost_work_s for run in sweep.store.runs(sweep.study.id) if run.number == 1]
    assert all(60.0 * behind <= lost_s < 60.0 * (behind + 1) for lost_s in lost)
    alarms = [event for event in sweep.store.events(sweep.study.id) if event.kind == "run.older_checkpoint"]
    assert len(alarms) == sweep.store.summary(sweep.study.id).resumed_from_older == (2 if behind > 1 else 0)
    for line in narrate(alarms):
        assert line.level == "error"
        assert "BEGAN BEFORE ITS NEWEST CHECKPOINT" in line.text
    assert broken(sweep) == []


def test_a_script_that_tells_no_steps_is_counted_as_unproven(make_sweep):
    script = script_of(epochs=8, step_s=60.0, manifests=False, numbered=False, resumes=False)
    sweep = make_sweep(outages=[(400.0, 500.0)], script=script, changes={"trials": 2})
    sweep.run()
    summary = sweep.store.summary(sweep.study.id)
    assert (summary.interruptions, summary.resumed_runs, summary.restarted_from_zero) == (2, 0, 0)
    assert summary.unproven_runs == 2
    assert (summary.lost_work_s, summary.lost_work_unknown_runs) == (None, 2)


def test_a_script_without_manifests_is_proven_by_its_steps(make_sweep):
    sweep = make_sweep(
        outages=[(400.0, 500.0)], script=script_of(epochs=8, step_s=60.0, manifests=False), changes={"trials": 2}
    )
    sweep.run()
    runs = [run for run in sweep.store.runs(sweep.study.id) if run.resumed_from_step is not None]
    assert len(runs) == 2
    assert all(run.first_step == run.resumed_from_step + 1 for run in runs)


# --- the table "attempt ended with"


def test_no_metric_fails_the_trial(make_sweep):
    sweep = make_sweep(script=script_of(metric=None), changes={"trials": 1})
    sweep.run()
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_metric")]


def test_a_metric_that_is_not_finite_is_no_metric(make_sweep):
    sweep = make_sweep(script=script_of(curve=lambda *_: float("nan")), changes={"trials": 1})
    sweep.run()
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_metric")]


def test_a_metric_without_steps_counts_by_its_last_line(make_sweep):
    sweep = make_sweep(script=script_of(numbered=False), changes={"trials": 2})
    sweep.run()
    assert succeeded(sweep) == [0, 1]


def test_max_wait_is_followed_by_another_attempt_with_the_same_prefix(make_sweep):
    sweep = make_sweep(
        outages=[(500.0, 20_000.0)],
        script=script_of(epochs=10, step_s=60.0),
        changes={"trials": 1, "training": {"max_wait": "2h"}},
    )
    assert sweep.run() is StudyState.FINISHED
    ends = [attempt.end for attempt in sweep.attempts()]
    assert ends == [AttemptEnd.MAX_WAIT, AttemptEnd.MAX_WAIT, AttemptEnd.COMPLETED]
    prefixes = {job.request.checkpoint_uri for job in sweep.cloud.jobs.values()}
    assert len(prefixes) == 1
    assert sweep.trials()[0].faults == 0
    assert sweep.store.runs(sweep.study.id)[-1].resumed_from_step is not None
    assert broken(sweep) == []


@pytest.mark.parametrize(
    ("failure", "ends", "state"),
    [
        ("CapacityError: Unable to provision", [AttemptEnd.CAPACITY], TrialState.SUCCEEDED),
        ("InternalServerError: We encountered", [AttemptEnd.SERVICE_FAULT], TrialState.SUCCEEDED),
        ("Riddle: never seen before", [AttemptEnd.SERVICE_FAULT], TrialState.SUCCEEDED),
        ("AlgorithmError: ExecuteUserScriptError: ExitCode 1", [AttemptEnd.SCRIPT_ERROR], TrialState.FAILED),
        ("AlgorithmError: ExecuteUserScriptError: ExitCode 75", [AttemptEnd.SCRIPT_ERROR], TrialState.SUCCEEDED),
        ("AlgorithmError: NCCL timeout", [AttemptEnd.SCRIPT_ERROR], TrialState.SUCCEEDED),
        ("ClientError: no such data", [AttemptEnd.SCRIPT_ERROR], TrialState.FAILED),
    ],
)
def test_a_failed_job_is_retried_exactly_if_its_failure_says_so(make_sweep, failure, ends, state):
    def first_fails(request):
        return Script(epochs=3, failure=failure, fails_at=2) if request.name.endswith("-001") else Script(epochs=3)

    retry_on = [{"exit_code": 75}, {"log": "NCCL|ECC"}]
    sweep = make_sweep(script=first_fails, changes={"trials": 1, "training": {"retry_on": retry_on}})
    sweep.run()
    trial = sweep.trials()[0]
    assert trial.state is state
    expected = [*ends, AttemptEnd.COMPLETED] if state is TrialState.SUCCEEDED else ends
    assert [attempt.end for attempt in sweep.attempts()] == expected
    if state is TrialState.FAILED:
        assert failure in trial.reason
    assert broken(sweep) == []


def test_faults_are_bounded_and_capacity_is_not(make_sweep):
    sweep = make_sweep(
        script=script_of(failure="InternalServerError: again"),
        changes={"trials": 1, "capacity": {"max_faults": 2}},
    )
    sweep.run()
    assert len(sweep.attempts()) == 3
    assert sweep.trials()[0].state is TrialState.FAILED
    assert "after 2 retried faults" in sweep.trials()[0].reason


def test_max_run_bounds_the_training_of_a_trial_over_all_its_attempts(make_sweep):
    sweep = make_sweep(
        outages=[(1000.0, 20_000.0)],
        script=script_of(epochs=100, step_s=60.0),
        changes={"trials": 1, "training": {"max_run": "30m", "max_wait": "1h"}},
    )
    sweep.run()
    trial, attempts = sweep.trials()[0], sweep.attempts()
    assert (trial.state, trial.reason) == (TrialState.FAILED, "max_run")
    assert len(attempts) > 1
    assert attempts[-1].max_run_s < 1800
    assert sum(attempt.run_s for attempt in attempts) <= 1800 + 120 + 60


def test_a_rejected_request_fails_its_trial_and_uses_up_its_number(make_sweep):
    sweep = make_sweep(changes={"trials": 2, "parallel": 1})
    sweep.cloud.fail_next("create", RequestRejected("no such image"))
    sweep.run()
    assert [trial.state for trial in sweep.trials()] == [TrialState.FAILED, TrialState.SUCCEEDED]
    assert "no such image" in sweep.trials()[0].reason
    assert sweep.attempts(0)[0].end is AttemptEnd.REJECTED


@pytest.mark.parametrize("error", [CapacityUnavailable, Throttled, CredentialsRefused, ServiceUnavailable])
def test_a_refusal_keeps_the_attempt_under_its_name(make_sweep, error):
    sweep = make_sweep(changes={"trials": 1})
    for _ in range(3):
        sweep.cloud.fail_next("create", error("not now"))
    assert sweep.run() is StudyState.FINISHED
    assert [(attempt.number, attempt.refusals) for attempt in sweep.attempts()] == [(1, 3)]
    assert succeeded(sweep) == [0]


def test_a_creation_whose_answer_was_lost_is_adopted(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    sweep.cloud.fail_next("create", ServiceUnavailable("timed out"), lost=True)
    sweep.run()
    assert len(sweep.cloud.jobs) == 1
    assert "adopted" in sweep.kinds()
    assert broken(sweep) == []


def test_a_foreign_job_of_our_name_is_left_alone(make_sweep):
    sweep = make_sweep(changes={"trials": 1})
    engine = sweep.engine()
    name = f"{sweep.study.key}-00000-001"
    sweep.cloud.create(foreign_request(engine, name))
    engine.run(lambda: False)
    assert [attempt.end for attempt in sweep.attempts()] == [AttemptEnd.FOREIGN, AttemptEnd.COMPLETED]
    assert sweep.attempts()[0].spend_microusd == 0
    assert not [row for row in sweep.cloud.jobs[name].history if row.status == "Stopping"]


def foreign_request(engine, name):
    unit = UnitOfWork(engine.study, last_seq=0, now=engine.study.created_at)
    submit_due(engine.live, unit)
    trial = engine.live.trials[0]
    request = workload.job_request(engine.live.spec, engine.study, trial.record, trial.attempts[0])
    engine._load()
    return replace(request, name=name, environment={**request.environment, "TUNER_DIGEST": "somebody else's"})


def test_a_job_that_is_stopped_from_outside_is_taken_up_again(make_sweep):
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=10, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, seconds=400)
    sweep.cloud.stop(sweep.attempts()[0].job_name)
    engine.run(lambda: False)
    assert [attempt.end for attempt in sweep.attempts()] == [AttemptEnd.STOPPED, AttemptEnd.COMPLETED]
    assert sweep.store.runs(sweep.study.id)[-1].resumed_from_step >= 3


def drive(sweep, engine, seconds):
    until = sweep.clock.now() + timedelta(seconds=seconds)
    engine.run(lambda: sweep.clock.now() >= until)


@pytest.mark.parametrize("intent", [Intent.STOP, Intent.STOP_NOW, Intent.DRAIN])
def test_a_stopped_study_rests_and_resumes_where_it_was(make_sweep, intent):
    sweep = make_sweep(script=script_of(epochs=10, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, seconds=400)
    sweep.store.add_request(sweep.study.id, "stop", {"intent": intent.value}, "me", sweep.clock.now())
    assert engine.run(lambda: False) is StudyState.STOPPED
    waiting = [trial for trial in sweep.trials() if trial.state is TrialState.BACKING_OFF]
    assert len(waiting) == (0 if intent is Intent.DRAIN else 2)
    assert all(trial.due_at is None for trial in waiting)
    resume(sweep)
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1, 2, 3]
    assert sweep.store.summary(sweep.study.id).restarted_from_zero == 0
    assert broken(sweep) == []


def test_a_stop_waits_for_a_checkpoint_newer_than_the_wish(make_sweep):
    sweep = make_sweep(script=script_of(epochs=10, step_s=100.0), changes={"trials": 1})
    engine = sweep.engine()
    drive(sweep, engine, seconds=300)
    asked_at = sweep.clock.now()
    sweep.store.add_request(sweep.study.id, "stop", {"intent": "stop"}, "me", asked_at)
    engine.run(lambda: False)
    attempt = sweep.attempts()[0]
    assert timedelta(0) < attempt.stop_sent_at - asked_at <= timedelta(seconds=150)
    saved = sweep.cloud.prefixes[sweep.trials()[0].prefix].saved
    assert max(saved.values()) > asked_at


def resume(sweep):
    engine = sweep.engine()
    study = engine.study
    after = replace(study, intent=Intent.RUN, version=study.version + 1)
    sweep.store.commit(engine.lease, Change(study=(study, after)), now=sweep.clock.now())


def test_cancel_ends_everything(make_sweep):
    sweep = make_sweep(script=script_of(epochs=10, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, seconds=400)
    sweep.store.add_request(sweep.study.id, "cancel", {"intent": "cancel"}, "me", sweep.clock.now())
    assert engine.run(lambda: False) is StudyState.CANCELLED
    assert {trial.state for trial in sweep.trials()} == {TrialState.CANCELLED}
    assert all(job.status.final for job in sweep.cloud.jobs.values())
    assert broken(sweep) == []


def test_a_stop_that_is_refused_is_sent_again(make_sweep):
    sweep = make_sweep(script=script_of(epochs=50, step_s=60.0), changes={"trials": 1})
    engine = sweep.engine()
    drive(sweep, engine, seconds=300)
    for _ in range(3):
        sweep.cloud.fail_next("stop", Throttled("slow down"))
    sweep.store.add_request(sweep.study.id, "cancel", {"intent": "cancel"}, "me", sweep.clock.now())
    assert engine.run(lambda: False) is StudyState.CANCELLED
    assert all(job.status.final for job in sweep.cloud.jobs.values())


def test_pruned_trials_stop_and_keep_their_verdict(make_sweep):
    changes = {
        "trials": 12,
        "parallel": 1,
        "search": {"pruner": {"name": "MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 2}},
    }
    sweep = make_sweep(script=script_of(epochs=10, step_s=60.0), changes=changes)
    engine = sweep.engine()
    engine.run(lambda: False)
    pruned = [trial for trial in sweep.trials() if trial.state is TrialState.PRUNED]
    assert pruned
    assert all(trial.pruned_at_step is not None and trial.pruned_at_step <= trial.last_step for trial in pruned)
    assert view_is_the_rows(sweep, engine) == []
    assert broken(sweep) == []


# --- limits


def test_the_budget_is_never_passed_and_can_be_raised(make_sweep):
    sweep = make_sweep(script=script_of(epochs=10, step_s=60.0), changes={"trials": 20, "budget": {"usd": 3.0}})
    assert sweep.run() is StudyState.OUT_OF_BUDGET
    done = len(sweep.trials())
    assert 0 < done < 20
    assert broken(sweep) == []
    sweep.store.add_request(sweep.study.id, "set", {"budget.usd": "50"}, "me", sweep.clock.now())
    assert sweep.run() is StudyState.FINISHED
    assert len(succeeded(sweep)) == 20


def test_the_deadline_stops_jobs_at_their_next_checkpoint(make_sweep):
    sweep = make_sweep(script=script_of(epochs=30, step_s=60.0), changes={"budget": {"deadline": "20m"}})
    assert sweep.run() is StudyState.PAST_DEADLINE
    assert {trial.state for trial in sweep.trials()} == {TrialState.BACKING_OFF}
    sweep.store.add_request(sweep.study.id, "set", {"budget.deadline": "48h"}, "me", sweep.clock.now())
    assert sweep.run() is StudyState.FINISHED
    assert broken(sweep) == []


def test_a_job_that_hangs_is_stopped_and_retried_as_a_fault(make_sweep):
    def hangs_once(request):
        return Script(epochs=6, step_s=60.0, hangs_after=3 if request.name.endswith("-001") else None)

    sweep = make_sweep(script=hangs_once, changes={"trials": 1, "training": {"stall_after": "10m"}})
    sweep.run()
    assert succeeded(sweep) == [0]
    assert sweep.trials()[0].faults == 1
    assert [attempt.stop_reason for attempt in sweep.attempts()] == ["stall", None]


def test_an_unknown_status_is_recorded_and_changes_nothing(make_sweep):
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=10, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, seconds=300)
    sweep.cloud.show(sweep.attempts()[0].job_name, "Pondering")
    engine.run(lambda: False)
    assert "unforeseen" in sweep.kinds()
    assert succeeded(sweep) == [0]


def test_a_restart_without_an_interruption_is_counted_apart(make_sweep):
    sweep = make_sweep(changes={"trials": 1}, script=script_of(epochs=10, step_s=60.0))
    engine = sweep.engine()
    drive(sweep, engine, seconds=300)
    sweep.cloud.restart(sweep.attempts()[0].job_name)
    engine.run(lambda: False)
    attempt = sweep.attempts()[0]
    assert (attempt.interruptions, attempt.restarts) == (0, 1)
    assert succeeded(sweep) == [0]


def test_a_quota_below_parallel_is_waited_for(make_sweep):
    sweep = make_sweep(settings=SimulatorSettings(quota=1))
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1, 2, 3]
    assert "refused.capacity" in sweep.kinds()


def test_a_grid_ends_when_it_is_exhausted(make_sweep):
    space = {"lr": {"type": "categorical", "choices": [0.1, 0.2]}, "width": {"type": "int", "low": 1, "high": 3}}
    sweep = make_sweep(space=space, changes={"trials": 50, "search": {"sampler": {"name": "BruteForceSampler"}}})
    assert sweep.run() is StudyState.FINISHED
    points = {(trial.params["lr"], trial.params["width"]) for trial in sweep.trials()}
    assert len(points) == len(sweep.trials()) == 6


def test_attempts_in_flight_have_one_state_each(make_sweep):
    sweep = make_sweep()
    engine = sweep.engine()
    engine.tick()
    assert [attempt.state for attempt in sweep.attempts()] == [AttemptState.SUBMITTING] * 2
    assert all(attempt.arn for attempt in sweep.attempts())
