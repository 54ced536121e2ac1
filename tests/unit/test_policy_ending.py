"""What an ended attempt means for its trial, rule by rule."""

from datetime import timedelta

import pytest
from policy_cases import NOW, attempt, policy, trial

from tuner.core.policy import ending
from tuner.core.policy.ending import EndedAttempt, Verdict
from tuner.core.records import AttemptEnd, Intent, StopReason, TrialState
from tuner.core.states import TrialEvent

E = AttemptEnd


def after_end(of, ended, **changes):
    return ending.after_end(EndedAttempt(trial=of, attempts=[ended], **{"policy": policy(), "now": NOW} | changes))


TABLE = [
    (E.COMPLETED, None, True, TrialEvent.SUCCEED, None),
    (E.COMPLETED, StopReason.PRUNE, True, TrialEvent.SUCCEED, None),
    (E.COMPLETED, StopReason.USER, True, TrialEvent.SUCCEED, None),
    (E.COMPLETED, StopReason.CANCEL, True, TrialEvent.CANCEL, "cancelled"),
    (E.COMPLETED, StopReason.PAUSE, True, TrialEvent.PAUSE, None),
    (E.COMPLETED, None, False, TrialEvent.FAIL, "no_metric"),
    (E.MAX_WAIT, None, True, TrialEvent.BACK_OFF, "max_wait"),
    (E.CAPACITY, None, True, TrialEvent.BACK_OFF, "capacity"),
    (E.SERVICE_FAULT, None, True, TrialEvent.BACK_OFF, "the reason"),
    (E.SCRIPT_ERROR, None, True, TrialEvent.FAIL, "the reason"),
    (E.REJECTED, None, False, TrialEvent.FAIL, "the reason"),
    (E.MAX_RUN, None, True, TrialEvent.FAIL, "max_run"),
    (E.STOPPED, StopReason.PRUNE, True, TrialEvent.PRUNE, "pruned"),
    (E.STOPPED, StopReason.PAUSE, True, TrialEvent.PAUSE, None),
    (E.STOPPED, StopReason.MOVE, True, TrialEvent.BACK_OFF, "move"),
    (E.STOPPED, StopReason.LIMIT, True, TrialEvent.BACK_OFF, "limit"),
    (E.STOPPED, StopReason.USER, True, TrialEvent.BACK_OFF, "the study was stopped"),
    (E.STOPPED, StopReason.CANCEL, True, TrialEvent.CANCEL, "cancelled"),
    (E.STOPPED, StopReason.STALL, True, TrialEvent.BACK_OFF, "stall"),
    (E.STOPPED, StopReason.TRIAL_BUDGET, True, TrialEvent.BACK_OFF, "trial_budget"),
    (E.STOPPED, StopReason.NO_PROGRESS, True, TrialEvent.FAIL, "no_progress"),
    (E.STOPPED, None, True, TrialEvent.BACK_OFF, "stopped from outside"),
    (E.FOREIGN, None, False, TrialEvent.BACK_OFF, "the job name was taken by a foreign job"),
]


@pytest.mark.parametrize(("end", "stop", "has_value", "event", "reason"), TABLE)
def test_what_an_ended_attempt_means_for_its_trial(end, stop, has_value, event, reason):
    ended = attempt(end=end, stop_reason=stop, reason="the reason")
    verdict = after_end(trial(), ended, has_value=has_value)
    assert (verdict.event, verdict.reason) == (event, reason)


def test_every_end_and_every_stop_reason_stands_in_the_table():
    assert {row[0] for row in TABLE} == set(AttemptEnd)
    assert {row[1] for row in TABLE} == {None, *StopReason}


def test_only_the_users_stop_waits_without_a_deadline():
    def due(**changes):
        return after_end(trial(), attempt(end=E.STOPPED, **changes), has_value=True).due_at

    assert due(stop_reason=StopReason.USER) is None
    assert due(stop_reason=StopReason.LIMIT) == NOW
    assert due(stop_reason=None) == NOW + timedelta(seconds=30)


@pytest.mark.parametrize("end", [E.MAX_WAIT, E.CAPACITY])
def test_capacity_is_never_a_fault(end):
    verdict = after_end(trial(faults=99), attempt(end=end, number=50), has_value=True)
    assert verdict.event is TrialEvent.BACK_OFF
    assert not verdict.fault


def test_faults_are_counted_and_bounded():
    fault = attempt(end=E.SERVICE_FAULT, reason="InternalServerError")
    assert after_end(trial(faults=1), fault, has_value=False).fault
    last = after_end(trial(faults=2), fault, has_value=False)
    assert last.event is TrialEvent.FAIL


@pytest.mark.parametrize("end", [E.MAX_WAIT, E.CAPACITY, E.STOPPED, E.SERVICE_FAULT, E.SCRIPT_ERROR])
def test_a_stored_verdict_holds_however_the_job_ended(end):
    pruned = trial(pruned_at_step=4)
    verdict = after_end(pruned, attempt(end=end, reason="x"), has_value=True)
    assert verdict == Verdict(TrialEvent.PRUNE, "pruned at step 4")


def test_a_script_that_dies_of_our_sigterm_has_not_failed():
    ended = attempt(end=E.SCRIPT_ERROR, stop_reason=StopReason.USER, reason="ExitCode 143")
    assert after_end(trial(), ended, has_value=True).event is TrialEvent.BACK_OFF


@pytest.mark.parametrize(
    ("failure", "retried"),
    [
        ("AlgorithmError: ExecuteUserScriptError: ExitCode 75\n…", True),
        ("AlgorithmError: ExecuteUserScriptError: ExitCode 7\n…", False),
        ("AlgorithmError: NCCL watchdog", True),
        ("AlgorithmError: ValueError", False),
    ],
)
def test_retry_on_names_exit_codes_and_words(failure, retried):
    rules = policy(retry_exit_codes=frozenset({75}), retry_logs=("NCCL|ECC",))
    assert ending.retryable(failure, rules) is retried


def test_back_off_doubles_and_is_bounded():
    waits = [ending.back_off(n, 30.0).total_seconds() for n in range(1, 40)]
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert max(waits) == waits[-1] == 600.0


# --- the rules, one case a rule

OOM = "out_of_memory: CUDA out of memory"
CASES = {
    "cancelled": {"end": E.STOPPED, "stop_reason": StopReason.CANCEL, "pruned_at_step": 3},
    "no metric": {"end": E.COMPLETED, "has_value": False, "pruned_at_step": 3},
    "reached its rung": {"end": E.COMPLETED, "stop_reason": StopReason.PAUSE, "pruned_at_step": 3},
    "completed": {"end": E.COMPLETED, "stop_reason": StopReason.PRUNE, "pruned_at_step": 3},
    "verdict of the pruner": {"end": E.MAX_RUN, "pruned_at_step": 3},
    "max_run": {"end": E.MAX_RUN, "stop_reason": StopReason.USER},
    "stopped to prune": {"end": E.STOPPED, "stop_reason": StopReason.PRUNE, "run_s": 3600.0},
    "stopped to pause": {"end": E.STOPPED, "stop_reason": StopReason.PAUSE, "run_s": 3600.0},
    "stopped without progress": {"end": E.SCRIPT_ERROR, "stop_reason": StopReason.NO_PROGRESS, "run_s": 3600.0},
    "out of memory": {"end": E.SCRIPT_ERROR, "reason": OOM, "run_s": 3600.0},
    "script error": {"end": E.SCRIPT_ERROR, "reason": "AlgorithmError: ValueError", "run_s": 3600.0},
    "rejected": {"end": E.REJECTED, "reason": "ValidationException", "run_s": 3600.0},
    "faults used up": {"end": E.STOPPED, "stop_reason": StopReason.STALL, "faults": 2, "run_s": 3600.0},
    "max_run used up": {"end": E.CAPACITY, "run_s": 3599.5, "spend_microusd": 1000, "no_progress": True},
    "per-trial budget used up": {"end": E.CAPACITY, "spend_microusd": 1000, "no_progress": True},
    "no progress": {"end": E.CAPACITY, "no_progress": True},
    "stopped by the user": {"end": E.SCRIPT_ERROR, "stop_reason": StopReason.USER, "reason": "ExitCode 75"},
    "stopped to move": {
        "end": E.STOPPED,
        "stop_reason": StopReason.MOVE,
        "no_progress": True,
        "may_go_on_demand": True,
    },
    "stopped for a limit": {"end": E.STOPPED, "stop_reason": StopReason.LIMIT, "run_s": 3599.0},
    "stopped for its budget": {"end": E.STOPPED, "stop_reason": StopReason.TRIAL_BUDGET, "spend_microusd": 899},
    "fault": {"end": E.SCRIPT_ERROR, "reason": "ExitCode 75", "faults": 1},
    "capacity": {"end": E.MAX_WAIT, "stop_reason": StopReason.USER, "spend_microusd": 999},
    "stopped from outside": {"end": E.STOPPED},
    "foreign job": {"end": E.FOREIGN},
}
_OF_TRIAL = {"faults", "pruned_at_step", "state"}
_OF_ATTEMPT = {"end", "stop_reason", "reason", "run_s", "spend_microusd", "number"}
RULES = policy(trial_budget_microusd=1000, retry_exit_codes=frozenset({75}))


def case(**changes):
    """An ended attempt; what belongs to the trial or to the attempt is given by its name."""
    of_trial = {key: value for key, value in changes.items() if key in _OF_TRIAL}
    of_attempt = {key: value for key, value in changes.items() if key in _OF_ATTEMPT}
    rest = {key: value for key, value in changes.items() if key not in _OF_TRIAL | _OF_ATTEMPT}
    return EndedAttempt(
        trial=trial(**of_trial),
        attempts=[attempt(**of_attempt)],
        **{"policy": RULES, "now": NOW, "has_value": True} | rest,
    )


def test_every_rule_has_its_case_and_its_own_name():
    assert [rule.name for rule in ending.RULES] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_rule_that_decides_is_the_first_that_applies(name):
    assert ending.first_rule(case(**CASES[name])).name == name


@pytest.mark.parametrize("name", CASES)
def test_a_trial_goes_on_only_by_the_rules_after_the_limits(name):
    """A limit ends a trial only where it would get another attempt."""
    names = [rule.name for rule in ending.RULES]
    goes_on = names.index(name) > names.index("no progress")
    assert (ending.after_end(case(**CASES[name])).event is TrialEvent.BACK_OFF) == goes_on


def test_a_fault_counts_also_where_a_limit_ends_the_trial():
    verdict = ending.after_end(case(end=E.SERVICE_FAULT, run_s=3600.0))
    assert verdict == Verdict(TrialEvent.FAIL, "max_run", fault=True)


@pytest.mark.parametrize("intent", [Intent.DRAIN, Intent.STOP, Intent.STOP_NOW])
def test_a_trial_waits_for_resume_unless_its_study_runs(intent):
    assert ending.after_end(case(end=E.CAPACITY, intent=intent)).due_at is None
    assert ending.after_end(case(end=E.CAPACITY)).due_at == NOW + timedelta(seconds=30)


def test_a_trial_that_waits_is_given_up_once_it_has_cost_its_limit():
    waiting = {"state": TrialState.BACKING_OFF, "end": E.SERVICE_FAULT}
    given_up = ending.after_end(case(**waiting, spend_microusd=1000))
    assert given_up == Verdict(TrialEvent.FAIL, "trial_budget")
    assert ending.after_end(case(**waiting, spend_microusd=999)) is None
    assert ending.after_end(case(**waiting, spend_microusd=1000, intent=Intent.STOP)) is None
    # its other limits were asked when its attempt ended
    assert ending.after_end(case(**waiting, run_s=3600.0, no_progress=True)) is None
