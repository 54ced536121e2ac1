"""The two state tables. They know nothing about clouds, clocks or databases.

There are two machines. A *trial* is what the sampler proposed; an *attempt* is one training job
made for it. A trial has at most one live attempt.

The attempt machine is driven by the job's own status history, row by row, and by two decisions of ours: to
submit it (the row's first state) and to stop it. A poll may have missed rows, so any later state may be reached
directly. There is no step back, with two exceptions, which are the point of this project: an interrupted attempt
trains again, and a job that the service restarted waits again. Once an attempt is
stopping, rows about running change nothing any more; they are still recorded.

The trial machine is driven by ends of attempts, by verdicts of the pruner and by the user. Which event an ended
attempt means is policy and stands in `policy.ending`; which events are possible stands here.

Rules: an event that is not in a table is an error of ours (`IllegalTransition`), and nothing changes. Terminal
states are empty rows. The diagram in the documentation is generated from these tables (`python -m tuner.core.states`).
"""

from enum import StrEnum

from tuner.core.records import AttemptState, TrialState


class IllegalTransition(Exception):  # noqa: N818 - the field's name for it
    """Our own logic asked for a transition that the table does not have; nothing was changed."""


class TrialEvent(StrEnum):
    SUBMIT = "submit"  # an attempt was recorded
    BACK_OFF = "back_off"
    PAUSE = "pause"
    SUCCEED = "succeed"
    PRUNE = "prune"
    FAIL = "fail"
    CANCEL = "cancel"


class AttemptEvent(StrEnum):
    WAIT = "wait"  # the job waits for capacity or prepares instances
    TRAIN = "train"
    INTERRUPT = "interrupt"
    RESTART = "restart"  # training began again without an interruption
    STOP = "stop"
    END = "end"


_T, _TE = TrialState, TrialEvent
TRIAL_TABLE: dict[TrialState, dict[TrialEvent, TrialState]] = {
    _T.PROPOSED: {_TE.SUBMIT: _T.RUNNING, _TE.FAIL: _T.FAILED, _TE.CANCEL: _T.CANCELLED},
    _T.RUNNING: {
        _TE.BACK_OFF: _T.BACKING_OFF,
        _TE.PAUSE: _T.PAUSED,
        _TE.SUCCEED: _T.SUCCEEDED,
        _TE.PRUNE: _T.PRUNED,
        _TE.FAIL: _T.FAILED,
        _TE.CANCEL: _T.CANCELLED,
    },
    _T.BACKING_OFF: {
        _TE.SUBMIT: _T.RUNNING,
        _TE.BACK_OFF: _T.BACKING_OFF,
        _TE.PRUNE: _T.PRUNED,
        _TE.FAIL: _T.FAILED,
        _TE.CANCEL: _T.CANCELLED,
    },
    _T.PAUSED: {_TE.SUBMIT: _T.RUNNING, _TE.PRUNE: _T.PRUNED, _TE.CANCEL: _T.CANCELLED},
    _T.SUCCEEDED: {},
    _T.PRUNED: {},
    _T.FAILED: {},
    _T.CANCELLED: {},
}

_A, _AE = AttemptState, AttemptEvent
ATTEMPT_TABLE: dict[AttemptState, dict[AttemptEvent, AttemptState]] = {
    _A.SUBMITTING: {
        _AE.WAIT: _A.WAITING,
        _AE.TRAIN: _A.TRAINING,
        _AE.INTERRUPT: _A.INTERRUPTED,
        _AE.STOP: _A.STOPPING,
        _AE.END: _A.ENDED,
    },
    _A.WAITING: {
        _AE.WAIT: _A.WAITING,
        _AE.TRAIN: _A.TRAINING,
        _AE.INTERRUPT: _A.INTERRUPTED,
        _AE.STOP: _A.STOPPING,
        _AE.END: _A.ENDED,
    },
    _A.TRAINING: {
        _AE.TRAIN: _A.TRAINING,
        _AE.INTERRUPT: _A.INTERRUPTED,
        _AE.RESTART: _A.WAITING,
        _AE.STOP: _A.STOPPING,
        _AE.END: _A.ENDED,
    },
    _A.INTERRUPTED: {
        _AE.WAIT: _A.INTERRUPTED,
        _AE.TRAIN: _A.TRAINING,
        _AE.INTERRUPT: _A.INTERRUPTED,
        _AE.STOP: _A.STOPPING,
        _AE.END: _A.ENDED,
    },
    _A.STOPPING: {
        _AE.WAIT: _A.STOPPING,
        _AE.TRAIN: _A.STOPPING,
        _AE.INTERRUPT: _A.STOPPING,
        _AE.RESTART: _A.STOPPING,
        _AE.STOP: _A.STOPPING,
        _AE.END: _A.ENDED,
    },
    _A.ENDED: {},
}


def next_trial_state(state: TrialState, event: TrialEvent) -> TrialState:
    """The state after `event`, or IllegalTransition."""
    try:
        return TRIAL_TABLE[state][event]
    except KeyError:
        raise IllegalTransition(f"a trial that is {state} cannot {event}") from None


def next_attempt_state(state: AttemptState, event: AttemptEvent) -> AttemptState:
    """The state after `event`, or IllegalTransition."""
    try:
        return ATTEMPT_TABLE[state][event]
    except KeyError:
        raise IllegalTransition(f"an attempt that is {state} cannot {event}") from None


def diagram() -> str:
    """Both machines as one Mermaid chart; transitions that change no state are left out."""
    lines = ["stateDiagram-v2"]
    for title, table in (("trial", TRIAL_TABLE), ("attempt", ATTEMPT_TABLE)):
        lines.append(f"  state {title} {{")
        first = next(iter(table))
        lines.append(f"    [*] --> {title}_{first}")
        for state, moves in table.items():
            lines.append(f"    {title}_{state}: {state}")
            by_target: dict[str, list[str]] = {}
            for event, target in moves.items():
                if target is not state:
                    by_target.setdefault(target, []).append(event)
            lines += [f"    {title}_{state} --> {title}_{to}: {', '.join(why)}" for to, why in by_target.items()]
            if not moves:
                lines.append(f"    {title}_{state} --> [*]")
        lines.append("  }")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())  # noqa: T201 - the command that prints the diagram of the documentation
