"""Two things that fall due at once, or are found late: what happened first counts, however slow whoever looks is."""

import os
import time

import pytest
from local_world import request

from tuner.local.ending import begin_stop
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
