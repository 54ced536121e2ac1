"""Three engines of one account on one store, for simulated hours: never above the buckets, and nothing starves."""

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rates.fleet import CloudHints, Fleet, overdrawn
from tuner.aws.rates import RATES
from tuner.core.calls import Call
from tuner.core.jobs import JobRequest
from tuner.core.records import CallRate, Intent
from tuner.simulator.parts import Script

pytestmark = pytest.mark.slow

# A fifteenth of what AWS gives for as small a part of the jobs, so that a simulated hour takes seconds.
SCARCE = {call: CallRate(per_s=rate.per_s / 15, burst=rate.burst / 15) for call, rate in RATES.items()}
HOUR = timedelta(hours=1)


def script(request: JobRequest) -> Script:
    """About twenty minutes."""
    draw = random.Random(request.name).uniform(0.5, 1.5)
    return Script(epochs=2, step_s=600.0 * draw, start_s=60.0, upload_s=10.0)


def never_above(fleet: Fleet, rates: dict[Call, CallRate]) -> bool:
    return all(overdrawn(times, rates[call]) <= 1e-6 for call, times in fleet.meter.made.items())


def test_engines_together_never_go_above_the_buckets(tmp_path: Path) -> None:
    """Sixty jobs want to start and the pool is lost once, whole: far more than the buckets hold."""
    fleet = Fleet(
        tmp_path,
        engines=3,
        parallel=20,
        script=script,
        rates=SCARCE,
        outages=[(1500.0, 1600.0)],
    )
    fleet.run(HOUR)
    assert never_above(fleet, SCARCE)
    # they were not idle either, and each had its part
    made = {call: len(times) for call, times in fleet.meter.made.items()}
    assert made[Call.CREATE] > 60
    assert made[Call.DESCRIBE] > 0.6 * 3600 * SCARCE[Call.DESCRIBE].per_s
    for sweep in fleet.sweeps:
        assert len([a for a in fleet.store.attempts(sweep.study.id) if a.arn is not None]) > 15
    # and that calls were short was nobody's refusal and no trouble
    assert fleet.kinds().keys().isdisjoint({"refused", "refused.capacity", "trouble"})
    assert {attempt.refusals for attempt in fleet.attempts()} == {0}


def test_without_anybody_who_counts_they_would(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    fleet = Fleet(tmp_path, engines=3, parallel=20, script=script, rates=None)
    fleet.run(timedelta(minutes=2))
    assert overdrawn(fleet.meter.made[Call.CREATE], SCARCE[Call.CREATE]) > 50


def test_no_job_starves_while_calls_are_short(tmp_path: Path) -> None:
    """Every end is noticed, the first ones as well as the last, in about the time that the calls take."""
    calls_short = {**RATES, Call.DESCRIBE: CallRate(per_s=0.05, burst=10.0)}
    fleet = Fleet(tmp_path, engines=3, parallel=8, script=lambda _: Script(epochs=1, step_s=600.0), rates=calls_short)
    fleet.run(HOUR)
    assert never_above(fleet, calls_short)
    ended = Counter(attempt.job_name.split("-")[0] for attempt in fleet.attempts() if attempt.ended_at is not None)
    assert len(ended) == 3
    assert min(ended.values()) > 0.8 * max(ended.values()) > 15
    # at three calls a minute, about twenty jobs are due all the time
    assert max(fleet.delays_s()) < 600


def test_stops_go_out_at_their_rate_and_all_of_them(tmp_path: Path) -> None:
    """Sixty jobs take their time to stop, so that their stops are sent again: only once all others were told."""
    deaf = Script(epochs=1, step_s=9e4, ignores_sigterm=True)
    fleet = Fleet(tmp_path, engines=1, parallel=60, script=lambda _: deaf, rates=RATES)
    fleet.cloud.settings = replace(fleet.cloud.settings, stop_grace_s=700.0)
    fleet.run(timedelta(minutes=5))
    [sweep] = fleet.sweeps
    slow = {**RATES, Call.STOP: CallRate(per_s=0.1, burst=3.0)}
    fleet.engines[0]._services.calls._rates = slow
    sweep.store.add_request(sweep.study.id, "stop", {"intent": Intent.STOP_NOW}, "ann", fleet.clock.now())
    fleet.run(timedelta(minutes=25))
    assert {attempt.end for attempt in fleet.attempts()} == {"stopped"}
    told = fleet.meter.stopped
    assert len(told) > 60  # some were told twice
    assert len(set(told[:60])) == 60
    assert overdrawn(fleet.meter.made[Call.STOP], slow[Call.STOP]) <= 1e-6


@pytest.mark.parametrize("lost", [False, True])
def test_hints_spare_lists_and_their_loss_costs_time_alone(tmp_path: Path, *, lost: bool) -> None:
    """Each comes twice; or else none at all."""

    def hints(fleet: Fleet, study) -> CloudHints:
        return CloudHints(fleet.cloud, fleet.clock, study.key, lost=lambda _number: lost)

    fleet = Fleet(tmp_path, engines=2, parallel=12, script=script, hints=hints)
    fleet.run(HOUR)
    assert len(fleet.delays_s()) > 30
    if lost:
        assert max(fleet.delays_s()) <= 330  # a list comes every five minutes, whatever hints say
    else:
        assert max(fleet.delays_s()) <= 32
        assert len(fleet.meter.made[Call.LIST]) < 40  # one a poll each would be 240
