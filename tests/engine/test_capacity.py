"""Sweeps over several pools: quotas, droughts in one of them, and going on demand."""

import math
from datetime import timedelta
from itertools import pairwise

import pytest
from checkers import broken, budget_is_kept, succeeded
from simulated import script_of
from sweeps import Sweep

from tuner.core.jobs import CapacityUnavailable, ServiceUnavailable
from tuner.core.records import AttemptEnd, Pool, StopReason, StudyState, TrialState
from tuner.simulator.parts import SimulatorSettings

pytestmark = pytest.mark.slow

FIRST, SECOND, THIRD = "ml.g5.xlarge", "ml.g4dn.xlarge", "ml.m5.xlarge"
FOREVER = [(0.0, math.inf)]


def study(*types: str, **changes) -> dict:
    training = {"instance_types": list(types), "max_run": "1h", "max_wait": "4h"} | changes.pop("training", {})
    return {"trials": 1, "parallel": 1, "training": training, **changes}


def types_of(sweep: Sweep, trial: int | None = None) -> list[str]:
    return [attempt.instance_type for attempt in sweep.attempts(trial)]


# --- quotas


def test_a_type_at_its_quota_hands_over_to_the_next_before_a_job_exists(make_sweep):
    sweep = make_sweep(
        changes=study(FIRST, SECOND, trials=6, parallel=4), settings=SimulatorSettings(quotas={FIRST: 1, SECOND: 2})
    )
    most: dict[str, int] = {}
    engine = sweep.engine()
    while engine.tick().active:
        live = [job.request.instance_type for job in sweep.cloud.jobs.values() if not job.status.final]
        most |= {kind: max(live.count(kind), most.get(kind, 0)) for kind in live}
        assert broken(sweep) == []
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=30))
    assert succeeded(sweep) == list(range(6))
    assert most == {FIRST: 1, SECOND: 2}
    # one job a trial under its first name; nothing was asked for twice while its quota was known to be used up
    assert len(sweep.attempts()) == 6
    assert sweep.kinds().count("rerouted") == 3
    assert sweep.kinds().count("refused.capacity") == 1


def test_a_quota_is_known_after_a_restart(make_sweep):
    sweep = make_sweep(changes=study(FIRST, trials=3, parallel=3), settings=SimulatorSettings(quota=1))
    engine = sweep.engine()
    for _ in range(3):
        engine.tick()
        sweep.clock.wait(sweep.clock.now() + timedelta(seconds=30), due=sweep.clock.now())
    creates = sweep.cloud.calls["create"]
    assert sweep.engine().tick() is StudyState.RUNNING
    assert sweep.cloud.calls["create"] == creates
    sweep.run()
    assert succeeded(sweep) == [0, 1, 2]


def test_a_type_without_any_quota_is_left_alone_for_good(make_sweep):
    sweep = make_sweep(
        changes=study(FIRST, SECOND, trials=40, parallel=2), settings=SimulatorSettings(quotas={FIRST: 0})
    )
    refused: list[str] = []
    create = sweep.cloud.create

    def recorded(request):
        try:
            return create(request)
        except CapacityUnavailable:
            refused.append(request.instance_type)
            raise

    sweep.cloud.create = recorded
    sweep.run()
    assert len(succeeded(sweep)) == 40
    assert sweep.clock.now() - sweep.study.created_at > timedelta(hours=1)  # longer than a limit is believed
    assert refused == [FIRST]
    assert set(types_of(sweep)) == {SECOND}


def test_a_job_that_shows_itself_after_its_attempt_went_elsewhere_is_booked_as_it_is(make_sweep):
    """Its first create was not answered, its second refused, and then the first took effect after all."""
    sweep = make_sweep(changes=study(FIRST, SECOND), script=script_of(epochs=30, step_s=60.0))
    plain, asked = sweep.cloud.create, []

    def create(request):
        asked.append(request)
        if len(asked) == 1:
            raise ServiceUnavailable("no answer")
        if len(asked) == 2:
            raise CapacityUnavailable("at its quota", limit=0, used=0)
        if len(asked) == 3:
            plain(asked[0])
        return plain(request)

    sweep.cloud.create = create
    engine = sweep.engine()
    assert engine.run(lambda: False) is StudyState.FINISHED
    assert engine.live.halted is None
    assert [request.instance_type for request in asked] == [FIRST, FIRST, SECOND]
    [attempt] = sweep.attempts()
    assert (attempt.instance_type, attempt.end) == (FIRST, AttemptEnd.COMPLETED)
    assert attempt.rate_microusd_per_h == engine.live.policy.rate_microusd_per_h(FIRST)
    assert {"rerouted", "adopted"} <= set(sweep.kinds())
    assert broken(sweep) == []


def test_where_no_type_has_any_quota_it_is_asked_for_again(make_sweep):
    """A raised quota shows within half an hour; nobody has to restart anything."""
    sweep = make_sweep(changes=study(FIRST, SECOND), settings=SimulatorSettings(quota=0))
    engine = sweep.engine()
    until = sweep.clock.now() + timedelta(hours=2)
    engine.run(lambda: sweep.clock.now() >= until)
    assert len(sweep.attempts()) == 1
    sweep.cloud.settings = SimulatorSettings()
    engine.run(lambda: False)
    assert succeeded(sweep) == [0]
    assert sweep.store.study_by_id(sweep.study.id).attrs["tuner:limits"] != []


def test_a_raised_quota_is_used_after_half_an_hour(make_sweep):
    long = script_of(epochs=100, step_s=60.0)
    changes = study(FIRST, trials=3, parallel=3, training={"max_run": "3h"})
    sweep = make_sweep(changes=changes, settings=SimulatorSettings(quota=1), script=long)
    engine = sweep.engine()
    engine.tick()
    sweep.cloud.settings = SimulatorSettings(quota=3)
    until = sweep.clock.now() + timedelta(minutes=40)
    engine.run(lambda: sweep.clock.now() >= until)
    assert sum(not job.status.final for job in sweep.cloud.jobs.values()) == 3


def test_an_attempt_is_not_given_to_another_type_while_its_job_may_exist(make_sweep):
    """The first answer was lost; the second call is refused for a quota that this very job uses."""
    sweep = make_sweep(changes=study(FIRST, SECOND), settings=SimulatorSettings(quota=1))
    sweep.cloud.fail_next("create", ServiceUnavailable("timed out"), lost=True)
    engine = sweep.engine()
    engine.tick()
    sweep.cloud.fail_next("create", CapacityUnavailable("used up", limit=1))
    engine.run(lambda: False)
    assert types_of(sweep) == [FIRST]
    assert [job.request.instance_type for job in sweep.cloud.jobs.values()] == [FIRST]
    assert broken(sweep) == []


def test_a_dearer_type_is_not_taken_where_the_budget_has_no_room_for_it(make_sweep):
    """The first type's price fits twice, the second's does not fit in addition."""
    sweep = make_sweep(
        changes=study(THIRD, FIRST, trials=2, parallel=2, budget={"usd": 0.7}),
        settings=SimulatorSettings(quotas={THIRD: 1}),
    )
    sweep.run()
    assert set(types_of(sweep)) == {THIRD}
    assert succeeded(sweep) == [0, 1]
    assert budget_is_kept(sweep) == []


def test_the_reservation_is_made_anew_where_the_type_changes(make_sweep):
    sweep = make_sweep(changes=study(FIRST, THIRD, budget={"usd": 9}), settings=SimulatorSettings(quotas={FIRST: 0}))
    engine = sweep.engine()
    engine.tick()
    (attempt,) = sweep.attempts()
    assert (attempt.instance_type, attempt.arn, attempt.refusals) == (THIRD, None, 1)
    assert attempt.rate_microusd_per_h == 230_000
    assert attempt.reserved_microusd == math.ceil((3600 + 750) * 230_000 / 3600)
    engine.tick()
    assert [job.request.instance_type for job in sweep.cloud.jobs.values()] == [THIRD]


# --- droughts


def test_a_job_that_waits_in_a_drought_goes_on_elsewhere_with_its_checkpoints(make_sweep):
    sweep = make_sweep(
        changes=study(FIRST, SECOND), script=script_of(epochs=20, step_s=60.0), pools={FIRST: [(400.0, math.inf)]}
    )
    sweep.run()
    first, second = sweep.attempts()
    assert (first.instance_type, first.end, first.stop_reason) == (FIRST, AttemptEnd.STOPPED, StopReason.MOVE)
    assert (second.instance_type, second.end) == (SECOND, AttemptEnd.COMPLETED)
    assert second.submitted_at - sweep.study.created_at < timedelta(seconds=400 + 30 * 60)
    runs = sweep.store.runs(sweep.study.id)
    assert runs[-1].attempt == 2
    assert runs[-1].resumed_from_step > 0
    assert broken(sweep) == []


def test_a_job_that_never_started_goes_elsewhere(make_sweep):
    sweep = make_sweep(changes=study(FIRST, SECOND), pools={FIRST: FOREVER})
    sweep.run()
    assert [(each.instance_type, each.spend_microusd > 0) for each in sweep.attempts()] == [
        (FIRST, False),
        (SECOND, True),
    ]


def test_who_waits_goes_to_a_pool_that_the_budget_allows_past_one_that_it_does_not(make_sweep):
    """The first type is dry, the second is likelier and too dear: the third is taken, as it is for a first job."""
    sweep = make_sweep(changes=study(SECOND, FIRST, THIRD, budget={"usd": 0.9}), pools={SECOND: FOREVER})
    assert sweep.run(hours=3) is StudyState.FINISHED
    assert types_of(sweep) == [SECOND, THIRD]
    assert broken(sweep) == []


def test_a_short_loss_moves_nobody(make_sweep):
    sweep = make_sweep(
        changes=study(FIRST, SECOND, trials=4, parallel=4),
        script=script_of(epochs=20, step_s=60.0),
        outages=[(400.0, 800.0), (1500.0, 1900.0)],
    )
    sweep.run()
    assert types_of(sweep) == [FIRST] * 4
    assert sweep.store.summary(sweep.study.id).interruptions == 8


def test_one_goes_ahead_and_the_others_follow_where_it_got_in(make_sweep):
    """With capacity nowhere only one finds out; where there is some, all go."""
    changes = study(FIRST, SECOND, trials=4, parallel=4)
    script = script_of(epochs=20, step_s=60.0)
    dry = make_sweep(changes=changes, script=script, outages=[(400.0, 400.0 + 2 * 3600)])
    dry.run()
    stops = [event for event in dry.store.events(dry.study.id) if event.kind == "stop.wanted"]
    assert 1 <= len(stops) <= 6
    assert len(succeeded(dry)) == 4
    wet = make_sweep(changes=changes, script=script, pools={FIRST: [(400.0, math.inf)]})
    wet.run()
    moved = [attempt for attempt in wet.attempts() if attempt.stop_reason is StopReason.MOVE]
    assert moved[0].trial == 0
    assert {attempt.trial for attempt in moved} == {0, 1, 2, 3}
    assert types_of(wet).count(SECOND) == 4
    # the first went alone, and was up before the next was stopped
    went = wet.cloud.jobs[wet.attempts(0)[1].job_name]
    up_at = next(row.started_at for row in went.history if row.status == "Downloading")
    assert sorted(attempt.stop_wanted_at for attempt in moved)[1] > up_at


def test_a_drought_everywhere_moves_a_trial_ever_less_often(make_sweep):
    sweep = make_sweep(changes=study(FIRST, SECOND, training={"max_wait": "5d"}), outages=[(200.0, 200.0 + 12 * 3600)])
    sweep.run()
    moves = [attempt.stop_wanted_at for attempt in sweep.attempts() if attempt.stop_wanted_at]
    assert 4 <= len(moves) <= 6
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moves)]
    assert gaps[:4] == sorted(gaps[:4])
    assert min(gaps) >= 1200
    assert succeeded(sweep) == [0]


def test_a_stop_that_waits_and_a_user_who_stops_end_in_one_place(make_sweep):
    """No moves while the user wants the study to stop or to drain."""
    sweep = make_sweep(changes=study(FIRST, SECOND), pools={FIRST: FOREVER})
    engine = sweep.engine()
    engine.tick()
    sweep.store.add_request(sweep.study.id, "stop", {"intent": "drain"}, "me", sweep.clock.now())
    until = sweep.clock.now() + timedelta(hours=2)
    engine.run(lambda: sweep.clock.now() >= until)
    assert types_of(sweep) == [FIRST]
    assert sweep.attempts()[0].stop_reason is None


def test_zones_are_pools_with_a_subnet_of_their_own(make_sweep):
    changes = study(FIRST, sagemaker={"zones": {"us-east-1a": "subnet-a1", "us-east-1b": "subnet-b2"}})
    changes["sagemaker"]["vpc"] = {"security_groups": ["sg-12345678"], "subnets": []}
    sweep = make_sweep(changes=changes, pools={(FIRST, "subnet-a1"): FOREVER})
    sweep.run()
    assert [attempt.zone for attempt in sweep.attempts()] == ["us-east-1a", "us-east-1b"]
    assert [job.request.subnets for job in sweep.cloud.jobs.values()] == [("subnet-a1",), ("subnet-b2",)]
    assert succeeded(sweep) == [0]


# --- on demand


OFTEN = [(200.0 + 400 * n, 230.0 + 400 * n) for n in range(200)]


def test_after_so_many_losses_a_trial_goes_on_demand(make_sweep):
    script = script_of(epochs=30, step_s=60.0)
    sweep = make_sweep(changes=study(FIRST, capacity={"on_demand_after": {"losses": 3}}), outages=OFTEN, script=script)
    sweep.run()
    spot, on_demand = sweep.attempts()
    assert (spot.spot, spot.interruptions, spot.stop_reason, spot.end) == (True, 3, "move", AttemptEnd.STOPPED)
    assert (on_demand.spot, on_demand.max_wait_s, on_demand.end) == (False, None, AttemptEnd.COMPLETED)
    runs = [run for run in sweep.store.runs(sweep.study.id) if run.attempt == 2]
    assert runs[0].resumed_from_step > 0
    # on demand, all of the time is billed
    assert on_demand.spend_microusd == on_demand.on_demand_microusd
    assert broken(sweep) == []


def test_without_leave_a_trial_stays_on_spot(make_sweep):
    sweep = make_sweep(changes=study(FIRST), outages=OFTEN, script=script_of(epochs=30, step_s=60.0))
    sweep.run()
    assert [attempt.spot for attempt in sweep.attempts()] == [True]
    assert sweep.attempts()[0].interruptions > 3


def test_waiting_in_vain_is_a_loss_too(make_sweep):
    changes = study(FIRST, capacity={"on_demand_after": {"losses": 2}}, training={"max_run": "20m", "max_wait": "30m"})
    sweep = make_sweep(changes=changes, outages=FOREVER)
    sweep.run()
    ends = [(attempt.spot, attempt.end) for attempt in sweep.attempts()]
    assert ends == [
        (True, AttemptEnd.MAX_WAIT),
        (True, AttemptEnd.MAX_WAIT),
        (False, AttemptEnd.COMPLETED),
    ]


def test_on_demand_that_lacks_capacity_tries_the_next_type_on_demand(make_sweep):
    changes = study(FIRST, SECOND, capacity={"policy": "on-demand"})
    failing = script_of(failure="CapacityError: Unable to provision requested ML compute capacity.")
    sweep = make_sweep(changes=changes, script=lambda r: failing(r) if r.instance_type == FIRST else script_of()(r))
    sweep.run()
    assert [(each.instance_type, each.spot, each.end) for each in sweep.attempts()] == [
        (FIRST, False, AttemptEnd.CAPACITY),
        (SECOND, False, AttemptEnd.COMPLETED),
    ]


NEVER_SAVES = script_of(epochs=20, step_s=60.0, checkpoint_every=0)


@pytest.mark.parametrize("losses", [4, 100])
def test_who_trains_for_nothing_on_spot_trains_on_demand_where_that_is_allowed(make_sweep, losses):
    changes = study(FIRST, capacity={"on_demand_after": {"losses": losses}})
    sweep = make_sweep(changes=changes, outages=OFTEN, script=NEVER_SAVES)
    sweep.run()
    assert [(each.spot, each.end, each.stop_reason) for each in sweep.attempts()] == [
        (True, AttemptEnd.STOPPED, StopReason.MOVE),
        (False, AttemptEnd.COMPLETED, None),
    ]
    assert succeeded(sweep) == [0]


def test_who_trains_for_nothing_over_attempts_goes_on_demand_as_well(make_sweep):
    """Each attempt ends by `max_wait`, which stops no live job of ours."""
    outages = [(400.0 + 9000 * n, 8900.0 + 9000 * n) for n in range(8)]
    changes = study(FIRST, capacity={"on_demand_after": {"losses": 100}}, training={"max_wait": "65m"})
    sweep = make_sweep(changes=changes, outages=outages, script=NEVER_SAVES)
    sweep.run()
    assert [each.spot for each in sweep.attempts()] == [True] * (len(sweep.attempts()) - 1) + [False]
    assert succeeded(sweep) == [0]


def test_who_trains_for_nothing_on_demand_fails(make_sweep):
    """The service replaces its instance again and again."""
    changes = study(FIRST, capacity={"policy": "on-demand"})
    sweep = make_sweep(changes=changes, script=NEVER_SAVES)
    engine = sweep.engine()
    for _ in range(3):
        engine.tick()
        until = sweep.clock.now() + timedelta(minutes=5)
        engine.run(lambda until=until: sweep.clock.now() >= until)
        sweep.cloud.restart(sweep.attempts()[0].job_name)
    engine.run(lambda: False)
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [(TrialState.FAILED, "no_progress")]


# --- max_run where the service counts each run separately


@pytest.mark.parametrize("per_run", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_trial_uses_no_more_than_its_max_run_whichever_way_the_service_counts(make_sweep, per_run, seed):
    """It is interrupted every few minutes; if the limit counts each run by itself, only the engine ends it."""
    changes = study(
        FIRST,
        trials=2,
        parallel=2,
        budget={"usd": 3.0},
        training={"max_run": "30m", "max_wait": "2d"},
        settings={"stop_within": "10s", "upload_allowance": "30s"},
    )
    sweep = make_sweep(
        changes=changes,
        outages=OFTEN,
        seed=seed,
        settings=SimulatorSettings(saving=0.0, max_run_per_run=per_run),
        script=script_of(epochs=200, step_s=60.0),
    )
    sweep.run()
    assert {(trial.state, trial.reason) for trial in sweep.trials()} == {(TrialState.FAILED, "max_run")}
    for attempt in sweep.attempts():
        assert 30 * 60 <= attempt.run_s <= 30 * 60 + 30 + 10  # a poll later it is seen, stopped, and uploads
        assert attempt.spend_microusd <= attempt.reserved_microusd
    assert broken(sweep) == []


# --- what is learned


def test_what_was_met_in_a_pool_is_told_and_recalled(make_sweep):
    sweep = make_sweep(changes=study(FIRST, trials=2), outages=[(200.0, 1000.0)], script=script_of(epochs=10))
    sweep.run()
    totals = sweep.store.pool_totals([sweep.study.id])
    assert set(totals) == {Pool(FIRST, spot=True)}
    found = totals[Pool(FIRST, spot=True)]
    assert (found.attempts, found.live, found.interruptions, found.waits) == (2, 0, 1, 3)
    assert found.up_s == pytest.approx(sum(attempt.run_s for attempt in sweep.attempts()))
    assert found.wait_s > 600
    live = sweep.engine().live
    assert live.totals == totals


def test_a_pool_that_is_known_to_be_bad_loses_its_place(make_sweep):
    """Two trials are interrupted every few minutes in the first pool; the third starts in the second."""
    often = [(300.0 + 500 * n, 700.0 + 500 * n) for n in range(100)]
    changes = study(FIRST, SECOND, trials=4)
    sweep = make_sweep(changes=changes, pools={FIRST: often}, script=script_of(epochs=20, step_s=60.0))
    sweep.run()
    assert types_of(sweep)[0] == FIRST
    assert types_of(sweep)[-1] == SECOND


def no_quota_on_demand(sweep: Sweep) -> list[str]:
    """Every job on demand is refused for good; the names of those that were asked for."""
    asked, create = [], sweep.cloud.create

    def refusing(request):
        if request.spot:
            return create(request)
        asked.append(request.name)
        raise CapacityUnavailable("'ml.g5.xlarge for training job usage' is 0 Instances", limit=0, used=0)

    sweep.cloud.create = refusing
    return asked


def test_an_account_without_quota_on_demand_leaves_trials_on_spot(make_sweep):
    """GPU types often have none: the trial would wait for ever for what spot gives it."""
    changes = study(FIRST, SECOND, trials=2, parallel=2, capacity={"on_demand_after": {"losses": 1}})
    script = script_of(epochs=40, step_s=60.0)
    sweep = make_sweep(changes=changes | {"budget": {"usd": 50}}, script=script, outages=[(600.0, 700.0)])
    asked = no_quota_on_demand(sweep)
    sweep.run(hours=12)
    assert succeeded(sweep) == [0, 1]
    assert 1 <= len(asked) <= 4  # each type once a trial, at most
    for attempt in sweep.attempts():
        assert (attempt.spot, attempt.max_wait_s) == (True, 4 * 3600)
    assert broken(sweep) == []
    assert budget_is_kept(sweep) == []


# --- a budget that not every pool fits


def test_a_study_does_not_rest_for_a_dearer_type_that_it_prefers_just_now(make_sweep):
    """The first type is dry, the second does not fit: the study waits for the first, and goes on with it."""
    cheap, dear = SECOND, FIRST
    reserved = math.ceil((600 + 750) * 736_400 / 3600) / 1e6
    changes = study(cheap, dear, trials=3, training={"max_run": "10m", "max_wait": "4h"})
    changes["budget"] = {"usd": round(1.3 * reserved, 4)}
    sweep = make_sweep(
        changes=changes,
        script=script_of(epochs=2, step_s=30.0),
        pools={cheap: [(100.0, 8000.0)]},
        settings=SimulatorSettings(saving=0.65),
    )
    assert sweep.run() is StudyState.FINISHED
    assert succeeded(sweep) == [0, 1, 2]
    assert set(types_of(sweep)) == {cheap}
    assert broken(sweep) == []


def test_a_study_rests_once_no_type_fits(make_sweep):
    cheap, dear = SECOND, FIRST
    reserved = math.ceil((600 + 750) * 736_400 / 3600) / 1e6
    changes = study(cheap, dear, trials=9, training={"max_run": "10m", "max_wait": "4h"})
    changes["budget"] = {"usd": round(1.1 * reserved, 4)}
    sweep = make_sweep(changes=changes, script=script_of(epochs=8, step_s=60.0), settings=SimulatorSettings(saving=0.0))
    assert sweep.run() is StudyState.OUT_OF_BUDGET
    left = sweep.spec.budget.microusd - sum(attempt.spend_microusd for attempt in sweep.attempts())
    assert left < reserved * 1e6
    assert broken(sweep) == []
