"""What a study is doing, case by case."""

import pytest

from tuner.core.policy.resting import StudyView, state
from tuner.core.records import Intent, StudyState

S = StudyState
CASES = [
    ({}, S.RUNNING),
    ({"busy": True}, S.RUNNING),
    ({"intent": Intent.CANCEL, "busy": True}, S.DRAINING),
    ({"intent": Intent.CANCEL}, S.CANCELLED),
    ({"intent": Intent.CANCEL, "unfinished": 0, "wants_more": False}, S.CANCELLED),
    ({"unfinished": 0, "wants_more": False}, S.FINISHED),
    ({"unfinished": 0, "wants_more": False, "intent": Intent.STOP, "past_deadline": True}, S.FINISHED),
    ({"unfinished": 0}, S.RUNNING),  # there is more to propose
    ({"intent": Intent.STOP}, S.STOPPED),
    ({"intent": Intent.STOP, "busy": True}, S.DRAINING),
    ({"intent": Intent.DRAIN, "past_deadline": True}, S.STOPPED),
    ({"past_deadline": True, "fits": False}, S.PAST_DEADLINE),
    ({"past_deadline": True, "busy": True}, S.DRAINING),
    ({"fits": False}, S.OUT_OF_BUDGET),
    ({"fits": False, "busy": True}, S.DRAINING),
    ({"fits": False, "waiting": 0}, S.OUT_OF_BUDGET),  # a new trial does not fit
    ({"fits": False, "wants_more": False}, S.OUT_OF_BUDGET),  # the next attempt of one that waits does not
    ({"fits": False, "waiting": 0, "wants_more": False, "busy": True}, S.RUNNING),  # nothing is to be begun
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_what_a_study_is_doing(changes, expected):
    base = {
        "intent": Intent.RUN,
        "busy": False,
        "unfinished": 2,
        "waiting": 1,
        "wants_more": True,
        "past_deadline": False,
        "fits": True,
    } | changes
    fits = base.pop("fits")
    assert state(StudyView(**base, fits=lambda: fits)) is expected


def test_every_state_of_a_study_is_reached():
    assert {expected for _, expected in CASES} == set(StudyState)
