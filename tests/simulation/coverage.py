"""What a soak has met: kinds of faults, and transitions of both state tables.

A soak that never met a fault proves nothing about it, so one that is long enough must meet them all. The transitions
that no story can contain are listed with the reason.
"""

from collections import Counter

from tests.simulation.faults import MENU, STANDING
from tests.simulation.soak import Outcome
from tuner.core.records import AttemptState, TrialState
from tuner.core.states import ATTEMPT_TABLE, TRIAL_TABLE, AttemptEvent, TrialEvent

# Fewer seeds than these cannot be expected to meet everything.
COMPLETE_FROM = 200

_T, _TE, _A, _AE = TrialState, TrialEvent, AttemptState, AttemptEvent
UNREACHABLE: dict[tuple[str, str, str], str] = {
    ("trial", _T.RUNNING, _TE.PAUSE): "promotion is not built",
    ("trial", _T.PAUSED, _TE.SUBMIT): "promotion is not built",
    ("trial", _T.PAUSED, _TE.PRUNE): "promotion is not built",
    ("trial", _T.PAUSED, _TE.CANCEL): "promotion is not built",
    ("trial", _T.PROPOSED, _TE.FAIL): "a proposal is recorded together with its first attempt",
    ("trial", _T.PROPOSED, _TE.CANCEL): "a proposal is recorded together with its first attempt",
    ("trial", _T.BACKING_OFF, _TE.BACK_OFF): "nothing ends while a trial backs off",
    ("trial", _T.BACKING_OFF, _TE.PRUNE): "nothing is reported while a trial backs off",
    ("trial", _T.BACKING_OFF, _TE.FAIL): "what fails a trial is decided when its attempt ends",
    ("attempt", _A.SUBMITTING, _AE.TRAIN): "a whole history begins with Starting",
    ("attempt", _A.SUBMITTING, _AE.INTERRUPT): "a whole history begins with Starting",
}

TRANSITIONS = [
    *(("trial", str(state), str(event)) for state, moves in TRIAL_TABLE.items() for event in moves),
    *(("attempt", str(state), str(event)) for state, moves in ATTEMPT_TABLE.items() for event in moves),
]


def report(outcomes: list[Outcome]) -> list[str]:
    """Print what was met, how often; returns what was not."""
    hits: Counter[str] = sum((outcome.hits for outcome in outcomes), Counter())
    moves: Counter[tuple[str, str, str]] = sum((outcome.transitions for outcome in outcomes), Counter())
    kinds = [*MENU, *STANDING]
    possible = [each for each in TRANSITIONS if each not in UNREACHABLE]
    print(f"fault kinds hit: {sum(hits[kind] > 0 for kind in kinds)} of {len(kinds)}")
    print("  " + ", ".join(f"{kind} {hits[kind]}" for kind in kinds))
    print(
        f"transitions covered: {sum(moves[each] > 0 for each in possible)} of {len(possible)}"
        f" ({len(UNREACHABLE)} more cannot happen)"
    )
    print("  " + ", ".join(f"{'.'.join(each)} {moves[each]}" for each in possible))
    missing = [kind for kind in kinds if not hits[kind]]
    return missing + [".".join(each) for each in possible if not moves[each]]
