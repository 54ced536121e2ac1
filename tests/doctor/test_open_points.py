"""What AWS leaves open: the switches of the local service that are not tested with what they belong to."""

import inspect
import re

import pytest

from tests.docs import pages
from tests.local.local_world import LocalWorld, request
from tuner.aws import probe_findings
from tuner.aws.rates import RATES_FACT
from tuner.core.jobs import JobNameTaken
from tuner.engine.liveness import SYNC_FACT
from tuner.local.billing import bill
from tuner.local.jobdir import Row
from tuner.local.settings import LocalSettings
from tuner.local.views import description
from tuner.sagemaker.service import SageMakerJobs

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path):
    made = LocalWorld(tmp_path / "state")
    yield made
    made.leave_nothing()


ROWS = [
    *(Row("Starting", 0), Row("Training", 100), Row("Interrupted", 200), Row("Starting", 260)),
    *(Row("Training", 300), Row("Uploading", 390)),
]


class Job:
    """A job that exists in words alone."""

    name = "job-1"

    def __init__(self, **settings):
        self.request = {"TrainingJobName": self.name, "ResourceConfig": {}}
        self.record = {"arn": "arn", "created_at": 0.0, "saving": 0.5, "settings": settings}


@pytest.mark.parametrize(("reading", "training_s"), [("up", 190 + 10), ("elapsed", 290 + 10)])
def test_training_time_with_and_without_the_gap(reading, training_s):
    shown = description(Job(billable_mid_run=True, training_time=reading), ROWS, now=400.0)
    assert shown["TrainingTimeInSeconds"] == training_s
    assert shown["BillableTimeInSeconds"] == 100, "the gap is billed in neither reading"


def test_seconds_of_a_running_job_are_shown_only_where_it_is_switched_on():
    assert "BillableTimeInSeconds" not in description(Job(), ROWS, now=400.0)
    assert "BillableTimeInSeconds" not in description(Job(billable_mid_run=True), ROWS[:1], now=400.0)
    seen = description(Job(billable_mid_run=True), ROWS[:2], now=150.0)
    assert (seen["TrainingTimeInSeconds"], seen["BillableTimeInSeconds"]) == (50, 25)


def test_the_bill_of_a_job_reads_training_time_as_its_settings_do(world):
    world.settings(training_time="elapsed", billable_mid_run=True)
    world.create(script="print('here', flush=True)\nimport time\ntime.sleep(600)")
    world.printed("here")
    running = world.describe()
    assert running["TrainingJobStatus"] == "InProgress"
    assert running["BillableTimeInSeconds"] >= 1
    world.client.stop_training_job(TrainingJobName="job-1")
    ended = world.ended()
    assert bill(world.state_dir, "job-1").training_s == ended["TrainingTimeInSeconds"]
    assert bill(world.state_dir, "job-1").billable_s == ended["BillableTimeInSeconds"]


@pytest.mark.parametrize(("switch", "words"), [("explained", "must be unique"), ("bare", "Resource is in use")])
def test_a_name_that_is_taken_is_known_by_its_code_alone(world, switch, words):
    world.settings(name_taken=switch)
    world.create()
    with pytest.raises(world.client.exceptions.ResourceInUse, match=words):
        world.create()
    service = SageMakerJobs(world.client)
    with pytest.raises(JobNameTaken):
        service._ask("CreateTrainingJob", world.client.create_training_job, "job-1", **request())


def test_each_open_point_of_the_documentation_has_a_switch_and_its_facts_are_recorded():
    source = inspect.getsource(probe_findings)
    recorded = set(re.findall(r'yield "(\w+)"', source)) | {"sync_delay_s", "rates"}
    rows = pages.open_points()
    assert len(rows) == 10
    for assumed, switches, facts in rows:
        assert assumed
        assert pages.code(switches), "each can be turned the other way here"
        assert set(pages.code(switches)) <= set(LocalSettings.__dataclass_fields__)
        named = set(pages.code(facts))
        assert named <= recorded
        assert named or "open" in facts
        used = named & {SYNC_FACT.removeprefix("probe."), RATES_FACT.removeprefix("probe.")}
        assert ("used" in facts, "to read" in facts) == (bool(used), bool(named - used)), facts
