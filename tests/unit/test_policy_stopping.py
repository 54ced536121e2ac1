"""Why and when a job is stopped, rule by rule."""

from dataclasses import replace
from datetime import timedelta

import pytest
from policy_cases import NOW, at, attempt, policy, trial

from tuner.core.policy import stopping
from tuner.core.policy.stopping import LiveJob, may_stop_now, reason_to_stop, stop_by
from tuner.core.records import AttemptState, Intent, StopReason

S = AttemptState
# everything at once: each rule is tried with all that stand below it
ALL = {
    "intent": Intent.STOP,
    "pruned_at_step": 3,
    "past_limit": True,
    "no_progress": True,
    "may_go_on_demand": True,
    "silent_s": 601.0,
    "deadline_at": NOW,
    "run_s": 3601.0,
    "waits": True,
}
CASES = {
    "cancelled": (ALL | {"intent": Intent.CANCEL, "halted": True, "state": S.SUBMITTING}, StopReason.CANCEL),
    "not sent yet": (ALL | {"halted": True, "state": S.SUBMITTING}, StopReason.USER),
    "pruned": (ALL | {"halted": True}, StopReason.PRUNE),
    "over budget": (ALL | {"pruned_at_step": None}, StopReason.TRIAL_BUDGET),
    "no progress on spot": (ALL | {"pruned_at_step": None, "past_limit": False}, StopReason.MOVE),
    "no progress": (
        ALL | {"pruned_at_step": None, "past_limit": False, "may_go_on_demand": False},
        StopReason.NO_PROGRESS,
    ),
    "stalled": (ALL | {"pruned_at_step": None, "past_limit": False, "no_progress": False}, StopReason.STALL),
    "stopped by the user": ({"intent": Intent.STOP, "deadline_at": NOW, "run_s": 3601.0}, StopReason.USER),
    "past the deadline": ({"deadline_at": NOW, "run_s": 3601.0, "waits": True}, StopReason.LIMIT),
    "ran out": ({"run_s": 3600.5, "waits": True, "may_go_on_demand": True}, StopReason.LIMIT),
    "waits on spot": ({"waits": True, "may_go_on_demand": True, "state": S.WAITING}, StopReason.MOVE),
}
# no rule applies to these
HEALTHY = [
    {},
    {"intent": Intent.DRAIN},
    {"halted": True, "state": S.SUBMITTING, "arn": "arn"},  # its job exists
    {"halted": True, "state": S.WAITING},
    {"silent_s": 600.0},
    {"silent_s": None},  # something is unread
    {"silent_s": 601.0, "state": S.WAITING},  # it does not train
    {"silent_s": 601.0, "stall_after_s": None},
    {"deadline_at": NOW + timedelta(seconds=1)},
    {"run_s": 3600.0},
    {"waits": True},
    {"may_go_on_demand": True},
]
_OF_ATTEMPT = {"state", "arn", "run_s", "stop_reason", "stop_wanted_at", "stop_by"}
_OF_POLICY = {"deadline_at", "stall_after_s"}


def case(**changes):
    """A live job; what belongs to the trial, the attempt or the policy is given by its name."""
    of_attempt = {key: changes.pop(key) for key in _OF_ATTEMPT & changes.keys()}
    of_policy = {key: changes.pop(key) for key in _OF_POLICY & changes.keys()}
    pruned_at_step = changes.pop("pruned_at_step", None)
    return LiveJob(
        trial=trial(pruned_at_step=pruned_at_step),
        attempt=attempt(**{"state": S.TRAINING} | of_attempt),
        policy=policy(**{"stall_after_s": 600.0} | of_policy),
        now=NOW,
        **{"silent_s": 0.0} | changes,
    )


def test_every_rule_has_its_case_its_own_name_and_its_sentence():
    assert [rule.name for rule in stopping.RULES] == list(CASES)
    assert all(rule.why.endswith(".") for rule in stopping.RULES)


@pytest.mark.parametrize("name", CASES)
def test_the_rule_that_decides_is_the_first_that_applies(name):
    changes, reason = CASES[name]
    rule = reason_to_stop(case(**changes))
    assert (rule.name, rule.reason) == (name, reason)


@pytest.mark.parametrize("changes", HEALTHY)
def test_a_job_without_a_reason_goes_on(changes):
    assert reason_to_stop(case(**changes)) is None


@pytest.mark.parametrize("name", CASES)
def test_only_stops_of_the_user_and_for_the_studys_limits_wait_for_a_checkpoint(name):
    changes, reason = CASES[name]
    job = case(**changes)
    waits_s = 300.0 if reason in (StopReason.USER, StopReason.LIMIT) else 0.0
    assert stop_by(reason_to_stop(job), job) == at(waits_s)
    at_once = replace(job, intent=Intent.STOP_NOW)
    assert stop_by(reason_to_stop(job), at_once) == NOW


WANTED = {"stop_reason": StopReason.USER, "stop_wanted_at": at(-60), "stop_by": at(240)}


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({}, False),
        (WANTED, False),
        (WANTED | {"stop_by": NOW}, True),  # it has waited long enough
        (WANTED | {"stop_by": None}, True),
        (WANTED | {"state": S.WAITING}, True),  # nothing trains
        (WANTED | {"state": S.INTERRUPTED}, True),
        (WANTED | {"run_s": 3601.0}, True),  # it ran out
        (WANTED | {"checkpoint_at": at(-60)}, False),  # no newer than the wish
        (WANTED | {"checkpoint_at": at(-59)}, True),
        (WANTED | {"stop_wanted_at": None, "checkpoint_at": NOW}, False),
    ],
)
def test_when_a_stop_is_sent(changes, now):
    assert may_stop_now(case(**changes)) is now
