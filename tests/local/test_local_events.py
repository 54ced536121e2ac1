"""What EventBridge is told of jobs: real-shaped, through the real SDK, to a queue behind a rule on moto."""

import json
from datetime import UTC, datetime

import pytest
from local_world import LocalWorld, request
from served import moto_client, moto_server

from tuner.local.jobdir import create_job
from tuner.local.served.events import EventSender
from tuner.local.service import LocalSageMaker

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
STORY = ["Starting", "Downloading", "Training", "Interrupted", "Starting", "Training", "Uploading", "Completed"]


class Bus:
    """What was put, and how many puts it refuses first."""

    def __init__(self):
        self.entries = []
        self.refuses = 0

    def put_events(self, *, Entries):  # noqa: N803 - as the SDK calls it
        if self.refuses:
            self.refuses -= 1
            return {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure", "ErrorMessage": "no"}]}
        assert 1 <= len(Entries) <= 10
        self.entries += Entries
        return {"FailedEntryCount": 0, "Entries": [{"EventId": "1"} for _ in Entries]}

    def told(self, name="job-1"):
        details = [json.loads(entry["Detail"]) for entry in self.entries]
        return [detail["SecondaryStatus"] for detail in details if detail["TrainingJobName"] == name]


@pytest.fixture
def bus():
    return Bus()


@pytest.fixture
def service(tmp_path):
    return LocalSageMaker(tmp_path / "state")


def switch(service, **settings):
    (service.state_dir / "settings.json").write_text(json.dumps(settings))


def a_job(service, name="job-1"):
    asked = request(name, Environment={"TOKEN": "secret"})
    record = {"arn": f"arn:aws:sagemaker:us-east-1:0:training-job/{name}", "created_at": NOW, "saving": 0.5}
    record |= {"request": {key: value for key, value in asked.items() if key != "Tags"}}
    job, _lock = create_job(service.state_dir, name, record, asked["Tags"])
    return job


def sender(service, bus):
    return EventSender(service.state_dir, bus.put_events)


def live(job, story=STORY):
    for seconds, status in enumerate(story[1:], 1):
        job.append(status, NOW + seconds, "")


def test_each_change_is_an_event_in_order(service, bus):
    made = sender(service, bus)
    job = a_job(service)
    made.look()
    assert bus.told() == ["Starting"]
    live(job)
    made.look()
    made.look()
    assert bus.told() == STORY


def test_an_event_has_the_shape_of_the_real_one(service, bus):
    made = sender(service, bus)
    live(a_job(service))
    made.look()
    last = bus.entries[-1]
    detail = json.loads(last["Detail"])
    assert (last["Source"], last["DetailType"]) == ("aws.sagemaker", "SageMaker Training Job State Change")
    assert last["Resources"] == [detail["TrainingJobArn"]]
    assert detail["TrainingJobStatus"] == "Completed"
    assert detail["CreationTime"] == str(int(NOW * 1000))
    assert detail["LastModifiedTime"] == str(int((NOW + 7) * 1000))
    assert detail["SecondaryStatusTransitions"][1] == {
        "Status": "Downloading",
        "StartTime": str(int((NOW + 1) * 1000)),
        "EndTime": str(int((NOW + 2) * 1000)),
        "StatusMessage": "",
    }
    assert detail["Tags"] == {"tuner:study": "study-a"}
    assert "secret" not in last["Detail"]


def test_what_was_before_the_start_is_not_told_again(service, bus):
    live(a_job(service, "old"))
    job = a_job(service)
    made = sender(service, bus)
    live(job, ["Starting", "Training"])
    made.look()
    assert (bus.told("old"), bus.told()) == ([], ["Training"])


def test_changes_of_secondary_status_may_be_left_out(service, bus):
    switch(service, events_of="status_change")
    made = sender(service, bus)
    live(a_job(service))
    made.look()
    assert bus.told() == ["Starting", "Completed"]


def test_events_come_twice_and_late(service, bus):
    switch(service, events_twice_share=0.5, events_late_share=0.5, fault_seed=3)
    made = sender(service, bus)
    live(a_job(service))
    made.look()
    made.look()
    told = bus.told()
    assert set(told) == set(STORY)
    assert len(told) > len(STORY)
    assert list(dict.fromkeys(told)) != list(dict.fromkeys(STORY))


def test_what_could_not_be_put_is_tried_again(service, bus, capfd):
    made = sender(service, bus)
    live(a_job(service))
    bus.refuses = 2
    for _ in range(3):
        made.look()
    assert bus.told() == STORY
    assert capfd.readouterr().err.count("cannot be put") == 1


def test_settings_in_the_making_and_deleted_jobs_do_no_harm(service, bus):
    made = sender(service, bus)
    job = a_job(service)
    job.path.rename(job.path.with_name("gone"))
    made.look()
    assert bus.told() == []


def test_a_rule_on_a_real_bus_brings_them_to_a_queue(tmp_path):
    world = LocalWorld(tmp_path / "state")
    with moto_server() as url:
        events, queues = moto_client("events", url), moto_client("sqs", url)
        queue = queues.create_queue(QueueName="jobs")["QueueUrl"]
        arn = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        pattern = {"source": ["aws.sagemaker"], "detail": {"TrainingJobName": [{"prefix": "job-"}]}}
        events.put_rule(Name="jobs", EventPattern=json.dumps(pattern))
        events.put_targets(Rule="jobs", Targets=[{"Id": "1", "Arn": arn}])
        made = EventSender(world.state_dir, events.put_events)
        try:
            world.create()
            world.ended()
            made.look()
        finally:
            world.leave_nothing()
        received = queues.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
    told = [json.loads(message["Body"]) for message in received]
    assert {event["detail-type"] for event in told} == {"SageMaker Training Job State Change"}
    assert {event["detail"]["SecondaryStatus"] for event in told} >= {"Training", "Completed"}
