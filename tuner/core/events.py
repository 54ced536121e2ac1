"""What can happen to a study: every kind of event, by name.

Rules: a kind is stored as its value, so a value never changes. The kind of a transition is the name of its machine and
of its event. Writers name a member; a record that was read keeps plain text, because a newer version may have written
a kind that this one does not know. A new kind is a member here and a row in the table of `reports.events`, with its
sentence or the reason for its silence.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from tuner.core.records import Json


class EventKind(StrEnum):
    """A kind of event, as it is stored."""

    TRIAL_PROPOSE = "trial.propose"
    TRIAL_SUBMIT = "trial.submit"
    TRIAL_BACK_OFF = "trial.back_off"
    TRIAL_PAUSE = "trial.pause"
    TRIAL_SUCCEED = "trial.succeed"
    TRIAL_PRUNE = "trial.prune"
    TRIAL_FAIL = "trial.fail"
    TRIAL_CANCEL = "trial.cancel"
    ATTEMPT_SUBMIT = "attempt.submit"
    ATTEMPT_WAIT = "attempt.wait"
    ATTEMPT_TRAIN = "attempt.train"
    ATTEMPT_INTERRUPT = "attempt.interrupt"
    ATTEMPT_RESTART = "attempt.restart"
    ATTEMPT_STOP = "attempt.stop"
    ATTEMPT_END = "attempt.end"
    HISTORY = "history"
    UNFORESEEN = "unforeseen"
    LEDGER = "ledger"
    BILLING_MISSING = "billing_missing"
    RUN_RESUMED = "run.resumed"
    RUN_RESTARTED_FROM_ZERO = "run.restarted_from_zero"
    RUN_OLDER_CHECKPOINT = "run.older_checkpoint"
    RUN_NOTHING_SAVED = "run.nothing_saved"
    CHECKPOINT_TORN = "checkpoint.torn"
    STOP_WANTED = "stop.wanted"
    REROUTED = "rerouted"
    REFUSED = "refused"
    REFUSED_CAPACITY = "refused.capacity"
    ADOPTED = "adopted"
    FOREIGN = "foreign"
    RETRY = "retry"
    COPIED = "copied"
    WARNING = "warning"
    TROUBLE = "trouble"
    RECOVERED = "recovered"
    DIFFERS = "differs"
    HALTED = "halted"
    METRIC_DIFFERS = "metric.differs"
    EXHAUSTED = "exhausted"
    REQUEST = "request"
    REQUEST_REFUSED = "request.refused"
    RESUME = "resume"
    MOVED = "moved"
    CHANGES_ACCEPTED = "changes_accepted"
    STUDY = "study"


def known_kind(kind: str) -> EventKind | None:
    """The member of a stored kind; None for a kind of a newer version."""
    try:
        return EventKind(kind)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDraft:
    """An event before it has its number."""

    kind: EventKind
    happened_at: datetime
    before: str | None = None
    after: str | None = None
    details: dict[str, Json] = field(default_factory=dict)
