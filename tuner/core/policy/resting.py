"""What state a study is in: it runs, drains towards a rest, rests, or has ended.

Rules: pure. A study ends only as `finished` or `cancelled`. Every other state can go on: `resume` or `set` ends a rest.
A study with jobs in flight never rests: it drains.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tuner.core.records import Intent, StudyState


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """A study at the end of a tick."""

    intent: Intent
    busy: bool  # an attempt is in flight, or the meaning of an ended one is not written yet
    unfinished: int  # trials
    waiting: int  # of these, trials without a job
    wants_more: bool  # not all trials are proposed yet
    past_deadline: bool
    fits: Callable[[], bool]  # whether the budget has room for the next attempt of any trial, or for a new trial


def state(study: StudyView) -> StudyState:
    """What the study is doing."""
    if study.intent is Intent.CANCEL:
        return StudyState.DRAINING if study.busy else StudyState.CANCELLED
    if not study.unfinished and not study.wants_more:
        return StudyState.FINISHED
    rest = _rest(study)
    if rest is None:
        return StudyState.RUNNING
    return StudyState.DRAINING if study.busy else rest


def begins_attempts(intent: Intent, *, past_deadline: bool) -> bool:
    """Whether a study in this situation submits anything new, as far as its budget allows."""
    return intent is Intent.RUN and not past_deadline


def _rest(study: StudyView) -> StudyState | None:
    """The rest that the study is in or drains towards; None while it goes on."""
    if study.intent is not Intent.RUN:
        return StudyState.STOPPED
    if study.past_deadline:
        return StudyState.PAST_DEADLINE
    if not study.waiting and not study.wants_more:
        return None
    return None if study.fits() else StudyState.OUT_OF_BUDGET
