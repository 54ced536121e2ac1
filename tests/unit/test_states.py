"""Both tables, every state against every event."""

import subprocess
import sys

import pytest

from tuner.core.records import AttemptState, TrialState
from tuner.core.states import (
    ATTEMPT_TABLE,
    TRIAL_TABLE,
    AttemptEvent,
    IllegalTransition,
    TrialEvent,
    diagram,
    next_attempt_state,
    next_trial_state,
)


def test_every_state_has_a_row():
    assert set(TRIAL_TABLE) == set(TrialState)
    assert set(ATTEMPT_TABLE) == set(AttemptState)


def test_terminal_rows_are_empty_and_others_are_not():
    assert {state for state, moves in TRIAL_TABLE.items() if not moves} == {s for s in TrialState if s.terminal}
    assert {state for state, moves in ATTEMPT_TABLE.items() if not moves} == {AttemptState.ENDED}


@pytest.mark.parametrize("event", TrialEvent)
@pytest.mark.parametrize("state", TrialState)
def test_a_trial_moves_by_its_table_or_not_at_all(state, event):
    if event in TRIAL_TABLE[state]:
        assert next_trial_state(state, event) is TRIAL_TABLE[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state} cannot {event}"):
            next_trial_state(state, event)


@pytest.mark.parametrize("event", AttemptEvent)
@pytest.mark.parametrize("state", AttemptState)
def test_an_attempt_moves_by_its_table_or_not_at_all(state, event):
    if event in ATTEMPT_TABLE[state]:
        assert next_attempt_state(state, event) is ATTEMPT_TABLE[state][event]
    else:
        with pytest.raises(IllegalTransition, match=f"{state} cannot {event}"):
            next_attempt_state(state, event)


def reachable(table, first):
    seen, todo = {first}, [first]
    while todo:
        for state in table[todo.pop()].values():
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return seen


def test_every_state_can_be_reached_and_left_for_an_end():
    assert reachable(TRIAL_TABLE, TrialState.PROPOSED) == set(TrialState)
    assert reachable(ATTEMPT_TABLE, AttemptState.SUBMITTING) == set(AttemptState)
    for state in AttemptState:
        assert AttemptState.ENDED in reachable(ATTEMPT_TABLE, state)
    for state in TrialState:
        assert any(end.terminal for end in reachable(TRIAL_TABLE, state))


def test_an_attempt_never_steps_back_but_to_train_again_or_after_a_restart():
    order = list(AttemptState)
    back = {
        (state, event)
        for state, moves in ATTEMPT_TABLE.items()
        for event, after in moves.items()
        if order.index(after) < order.index(state)
    }
    assert back == {
        (AttemptState.INTERRUPTED, AttemptEvent.TRAIN),
        (AttemptState.TRAINING, AttemptEvent.RESTART),
    }


def test_the_diagram_is_printed_by_the_module():
    done = subprocess.run([sys.executable, "-m", "tuner.core.states"], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == diagram()
