"""What an engine does where a call is missing at the worst moment: it waits for the next look, and says nothing."""

from datetime import timedelta
from pathlib import Path

import pytest

from tests.engine.sweeps import Sweep
from tuner.core.calls import OutOfCalls
from tuner.core.jobs import CredentialsRefused, ServiceUnavailable
from tuner.core.records import AttemptState, StudyState

POLL = timedelta(seconds=30)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, changes={"trials": 1, "parallel": 1})


def tick(sweep: Sweep, engine) -> None:
    engine.tick()
    sweep.clock.wait(sweep.clock.now() + POLL, due=sweep.clock.now())


def silent(sweep: Sweep) -> bool:
    refusals = {attempt.refusals for attempt in sweep.attempts()}
    return refusals == {0} and not {"trouble", "refused", "refused.capacity"} & set(sweep.kinds())


def test_a_create(sweep: Sweep) -> None:
    engine = sweep.engine()
    for _ in range(3):
        sweep.cloud.fail_next("create", OutOfCalls("none left"))
        tick(sweep, engine)
        assert [attempt.state for attempt in sweep.attempts()] == [AttemptState.SUBMITTING]
    tick(sweep, engine)
    assert sweep.attempts()[0].arn is not None
    assert silent(sweep)


def test_finding_out_whose_job_has_our_name(sweep: Sweep) -> None:
    """The answer of a create was lost; the next one finds the name taken, and may not ask."""
    engine = sweep.engine()
    sweep.cloud.fail_next("create", ServiceUnavailable("lost"), lost=True)
    tick(sweep, engine)
    tick(sweep, engine)
    before = sweep.attempts()[0]
    sweep.cloud.fail_next("describe", OutOfCalls("none left"))
    for _ in range(4):
        tick(sweep, engine)
    [attempt] = sweep.attempts()
    assert (attempt.arn is not None, attempt.refusals) == (True, before.refusals)
    assert sweep.kinds().count("adopted") == 1


def test_a_stop(sweep: Sweep) -> None:
    engine = sweep.engine()
    for _ in range(4):
        tick(sweep, engine)
    sweep.store.add_request(sweep.study.id, "stop", {"intent": "stop_now"}, "ann", sweep.clock.now())
    sweep.cloud.fail_next("stop", OutOfCalls("none left"))
    for _ in range(8):
        tick(sweep, engine)
    assert engine.study.state is StudyState.STOPPED
    assert silent(sweep)


def test_a_list_does_not_keep_what_is_due_from_being_described(sweep: Sweep) -> None:
    """Before, an error of the list ended the look."""
    engine = sweep.engine()
    tick(sweep, engine)
    for _ in range(40):
        sweep.cloud.fail_next("list", OutOfCalls("none left"))
    while sweep.attempts()[0].observed_at is None:
        tick(sweep, engine)
    assert sweep.clock.now() < sweep.attempts()[0].created_at + timedelta(minutes=7)
    assert silent(sweep)


def test_refused_credentials_end_the_look_at_once(sweep: Sweep) -> None:
    engine = sweep.engine()
    tick(sweep, engine)
    sweep.cloud.fail_next("list", CredentialsRefused("expired"))
    described = sweep.cloud.calls["describe"]
    tick(sweep, engine)
    assert sweep.cloud.calls["describe"] == described
    assert sweep.kinds().count("trouble") == 1
