"""What `launch` calls "at most": it is not passed under the reading that is printed with it."""

import re

import pytest
from simulated import script_of

from tuner.cli import printing
from tuner.core.policy.budget import reservation_microusd
from tuner.core.prices import RateCard
from tuner.operations import launch
from tuner.simulator.parts import SimulatorSettings
from tuner.spec import workload
from tuner.spec.records import MICROUSD

CHEAP, DEAR = "ml.m5.large", "ml.g5.xlarge"


def shown(spec):
    """The dollars of each printed line, by its label."""
    lines = printing.plan(launch._planned(spec, {})).splitlines()
    found = (re.fullmatch(r"(.*?)  +.*?\$([0-9.]+)[^0-9].*", f"{line} ") for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


def spent(sweep):
    return sum(attempt.spend_microusd for attempt in sweep.attempts()) / MICROUSD


def test_without_a_budget_it_is_what_the_engine_reserves_on_the_dearest_type(make_sweep):
    sweep = make_sweep(changes={"training": {"instance_types": [CHEAP, DEAR]}})
    rules = workload.policy(sweep.spec, sweep.study)
    dear = RateCard({}).rate(DEAR, "us-east-1").microusd_per_hour
    at_most = 4 * reservation_microusd(3600, dear, rules) / MICROUSD
    assert launch._planned(sweep.spec, {}).ceiling_usd == at_most
    assert shown(sweep.spec)["at most, with one job a trial"] == pytest.approx(at_most, abs=0.01)
    assert launch._planned(sweep.spec, {}).estimated_usd < at_most


def test_with_a_budget_it_is_the_budget(make_sweep):
    sweep = make_sweep(changes={"budget": {"usd": 7.5}})
    lines = shown(sweep.spec)
    assert lines["at most"] == launch._planned(sweep.spec, {}).ceiling_usd == 7.5
    assert not any("further" in label for label in lines)


def test_each_type_has_its_rate(make_sweep):
    sweep = make_sweep(changes={"training": {"instance_types": [CHEAP, DEAR]}})
    lines = shown(sweep.spec)
    rates = [float(RateCard({}).rate(kind, "us-east-1").usd_per_hour) for kind in (CHEAP, DEAR)]
    assert [lines[f"rate of {kind}"] for kind in (CHEAP, DEAR)] == rates
    assert lines["if every trial used its whole max_run"] == pytest.approx(4 * rates[1], abs=0.01)


def test_a_study_that_a_quota_sends_to_the_dearer_type_stays_below(make_sweep):
    """The preferred type has no quota, every trial uses all of its max_run, and spot saves nothing."""
    sweep = make_sweep(
        changes={"training": {"instance_types": [CHEAP, DEAR], "max_run": "5m"}},
        script=script_of(epochs=100, step_s=60.0),
        settings=SimulatorSettings(quotas={CHEAP: 0}, saving=0.0),
    )
    sweep.run()
    assert {attempt.instance_type for attempt in sweep.attempts() if attempt.arn} == {DEAR}
    assert 4 * 300 * 1.4 / 3600 < spent(sweep) <= launch._planned(sweep.spec, {}).ceiling_usd


def test_further_jobs_add_no_more_than_is_printed(make_sweep):
    """Capacity is lost again and again, so that trials have several jobs."""
    minutes = [(8, 48), (60, 100), (112, 152)]
    sweep = make_sweep(
        changes={"training": {"max_run": "20m", "max_wait": "25m"}},
        script=script_of(epochs=15, step_s=60.0),
        outages=[(begin * 60.0, end * 60.0) for begin, end in minutes],
        settings=SimulatorSettings(saving=0.0),
    )
    sweep.run()
    further = len(sweep.attempts()) - 4
    assert further > 0
    lines = shown(sweep.spec)
    at_most, each = lines["at most, with one job a trial"], lines["a trial's further jobs add, each at most"]
    assert spent(sweep) <= at_most + further * each
