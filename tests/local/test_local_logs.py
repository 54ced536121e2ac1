"""What CloudWatch Logs is sent of jobs' output."""

import json

import pytest
from botocore.exceptions import ClientError
from local_world import request

from tuner.core.clock import SystemClock
from tuner.local.jobdir import create_job
from tuner.local.served.logs import LogSender

NOW = 1_800_000_000.0


class Logs:
    """What was sent, by stream; refuses as often as it is told to."""

    def __init__(self):
        self.streams = {}
        self.groups = set()
        self.refuses = 0

    def create_log_group(self, *, logGroupName):  # noqa: N803 - as the SDK calls it
        if logGroupName in self.groups:
            raise ClientError({"Error": {"Code": "ResourceAlreadyExistsException"}}, "CreateLogGroup")
        self.groups.add(logGroupName)

    def create_log_stream(self, *, logGroupName, logStreamName):  # noqa: N803
        assert logGroupName in self.groups
        self.streams[logStreamName] = []

    def put_log_events(self, *, logGroupName, logStreamName, logEvents):  # noqa: N803
        assert logGroupName in self.groups
        if self.refuses:
            self.refuses -= 1
            raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "no"}}, "PutLogEvents")
        assert 1 <= len(logEvents) <= 10_000
        assert sum(len(event["message"].encode()) + 26 for event in logEvents) <= 1 << 20
        self.streams[logStreamName] += [event["message"] for event in logEvents]


@pytest.fixture
def logs():
    return Logs()


@pytest.fixture
def job(tmp_path):
    asked = request()
    made, _lock = create_job(
        tmp_path, "job-1", {"arn": "a", "created_at": NOW, "saving": 0.5, "request": asked}, asked["Tags"]
    )
    made.append("Training", NOW + 1, "")
    return made


@pytest.fixture
def sender(tmp_path, logs, job):
    return LogSender(tmp_path, logs, SystemClock())


def test_each_start_has_a_stream_of_its_own(job, sender, logs):
    job.log_path(1).write_text("one\n\ntwo\n")
    sender.look()
    job.append("Interrupted", NOW + 5, "")
    job.append("Training", NOW + 9.5, "")
    job.log_path(2).write_text("three\n")
    sender.look()
    assert logs.streams == {"job-1/algo-1-1800000001": ["one", "two"], "job-1/algo-1-1800000009": ["three"]}


def test_a_line_is_sent_once_it_is_whole_or_nothing_follows(job, sender, logs):
    log = job.log_path(1)
    log.write_text("one\ntw")
    sender.look()
    assert logs.streams == {"job-1/algo-1-1800000001": ["one"]}
    log.write_text("one\ntwo\nthr")
    sender.look()
    job.append("Completed", NOW + 9, "")
    sender.look()
    sender.look()
    assert logs.streams == {"job-1/algo-1-1800000001": ["one", "two", "thr"]}


def test_what_was_printed_before_is_not_sent(job, tmp_path, logs):
    job.log_path(1).write_text("before\n")
    late = LogSender(tmp_path, logs, SystemClock())
    with job.log_path(1).open("a") as log:
        log.write("after\n")
    late.look()
    assert logs.streams == {"job-1/algo-1-1800000001": ["after"]}


def test_a_lot_of_output_is_sent_a_part_at_a_time_and_all_of_it(job, sender, logs):
    lines = [f"{number} {'x' * (number % 300)}" for number in range(30_000)]
    job.log_path(1).write_text("\n".join(lines) + "\n" + "y" * 100_000)
    job.append("Completed", NOW + 9, "")
    looks = 0
    while "job-1" not in sender._ended:
        sender.look()
        looks += 1
        assert looks < 100
    sent = logs.streams["job-1/algo-1-1800000001"]
    assert sent[:30_000] == lines
    assert all(len(line) <= 1 << 14 for line in sent)
    assert looks > 10


def test_what_is_no_text_is_shown_as_such(job, sender, logs):
    job.log_path(1).write_bytes(b"\xff\xfe\x00\r\n")
    sender.look()
    assert json.dumps(logs.streams["job-1/algo-1-1800000001"])


def test_what_could_not_be_sent_is_tried_again(job, sender, logs, capfd):
    job.log_path(1).write_text("one\n")
    logs.refuses = 2
    for _ in range(3):
        sender.look()
    assert logs.streams == {"job-1/algo-1-1800000001": ["one"]}
    assert capfd.readouterr().err.count("cannot be sent") == 1


def test_a_job_that_is_deleted_while_its_logs_are_read_does_no_harm(job, sender, logs):
    job.log_path(1).symlink_to("gone")  # listed, and not there when it is opened
    sender.look()
    assert logs.streams == {}
