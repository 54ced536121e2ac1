"""Two things that fall due at once, or are found late: what happened first counts, however late the service looks."""

import os
import signal
import time
from datetime import UTC, datetime

import pytest
from local_world import command_line, request

from tuner.local.ending import begin_stop, end_stopped
from tuner.local.jobdir import create_job
from tuner.local.market import write_market
from tuner.local.service import LocalSageMaker
from tuner.local.supervisor import Supervisor

DOWN = {"started_at": "2026-01-01T00:00:00+00:00", "kind": "at", "at_s": [0], "down_s": 1e12}


@pytest.fixture
def job(tmp_path):
    """One that was created a minute ago, has waited too long since, and is held by a supervisor that does nothing."""
    asked = request(Tags=None, StoppingCondition={"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1})
    record = {"created_at": time.time() - 60, "request": asked, "study_key": "study-a", "settings": {}, "saving": 0.5}
    made, lock = create_job(tmp_path / "state", "job-1", record | {"arn": "arn"}, [])
    yield made
    os.close(lock)


def story(job):
    return [(row.status, row.message) for row in job.rows()]


def test_a_stop_that_two_ask_for_at_once_is_one(job, monkeypatch):
    service = LocalSageMaker(job.state_dir)
    before = service._look(job.name)
    monkeypatch.setattr(service, "_look", lambda _: before)  # each has looked before the other asks
    answers = [service.handle("StopTrainingJob", {"TrainingJobName": job.name}) for _ in range(2)]
    assert answers == [(200, {}), (200, {})]
    assert not begin_stop(job, time.time(), "", cause="max_wait")
    assert [status for status, _ in story(job)] == ["Starting", "Stopping"]
    assert job.rows()[-1].facts["cause"] == "user"


def test_a_supervisor_that_comes_up_when_the_wait_is_over_says_what_was_waited_for(job):
    write_market(job.state_dir, "study-a", DOWN)
    assert not Supervisor(job)._gets_instance()
    (starting, why), (stopping, limit) = story(job)
    assert (starting, stopping) == ("Starting", "Stopping")
    assert "Insufficient capacity" in why
    assert "max_wait reached" in limit


def test_what_was_waited_for_is_not_said_of_a_stop(job):
    write_market(job.state_dir, "study-a", DOWN)
    begin_stop(job, time.time(), "asked for", cause="user")
    assert not Supervisor(job)._gets_instance()
    assert story(job)[-1] == ("Stopping", "asked for")


@pytest.mark.parametrize(("taken_after_s", "interrupted"), [(0.5, True), (1.5, False)])
def test_of_a_loss_and_a_limit_that_are_found_together_the_first_counts(job, taken_after_s, interrupted):
    """The longest wait, of a second, was over a minute ago; capacity was lost before that, or after."""
    created_at = job.rows()[0].at
    job.append("Training", created_at + 0.1, "")
    lost_at = datetime.fromtimestamp(created_at + taken_after_s, UTC).isoformat()
    write_market(job.state_dir, "study-a", DOWN | {"started_at": lost_at, "down_s": 0.1})
    supervisor = Supervisor(job)
    assert supervisor.is_interrupted_since(created_at + 0.1) is interrupted
    assert supervisor.is_stopping()
    assert not supervisor.is_interrupted_since(created_at + 0.1)


def test_a_deleted_job_has_no_supervisor_left_that_would_tidy_up_after_the_next_of_its_name(world):
    """One that has entered the end is halted before it removes the disk: its folders are the next job's by then."""
    world.create(script="import time; time.sleep(600)")
    job = world.job()
    pid = world.until(world.supervisor_pid, bool)
    os.kill(pid, signal.SIGSTOP)
    begin_stop(job, time.time(), "", cause="user")
    end_stopped(job, time.time())
    world.client.delete_training_job(TrainingJobName="job-1")
    assert command_line(pid) == "", "it has ended"
    world.create()
    assert world.ended()["TrainingJobStatus"] == "Completed"
