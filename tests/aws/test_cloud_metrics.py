"""Progress of jobs without our bootstrap, against moto's CloudWatch: steps, batches, last values, new readers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from aws_account import Account

from tests import factories
from tuner.aws.metrics import NAMESPACE, CloudMetrics
from tuner.core.clock import VirtualClock
from tuner.core.jobs import JobError, JobNotFound, JobStatus, Observation, ServiceUnavailable
from tuner.core.records import Attempt, AttemptState, MetricPoint, ProgressReport, Trial
from tuner.engine.live_trial import LiveTrial

START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)


def trial(number: int) -> Trial:
    return factories.trial(number, prefix=f"s3://bucket/k/{number:05d}/", created_at=START)


def attempt(of: int, number: int = 1, **changes: Any) -> Attempt:
    return factories.attempt(
        of, number, key="k", **{"arn": "arn", "created_at": START, "submitted_at": START, **changes}
    )


class Prefix:
    """What lies under every prefix: a checkpoint, and what a test puts there."""

    def __init__(self) -> None:
        self.fresh: list[MetricPoint] = []
        self.more = False

    def read(self, prefix: str) -> ProgressReport:
        points, self.fresh = tuple(self.fresh), []
        return ProgressReport(points=points, checkpoint_step=7, more=self.more)

    def forget(self, prefix: str) -> None:
        pass


@dataclass
class Cloud:
    """What the rows, the job service and CloudWatch know."""

    account: Account
    rows: list[tuple[Trial, Sequence[Attempt], object]] = field(default_factory=list)
    final: dict[str, Mapping[str, float] | JobError] = field(default_factory=dict)
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(START))
    prefix: Prefix = field(default_factory=Prefix)

    def describe(self, name: str) -> Observation:
        found = self.final[name]
        if isinstance(found, JobError):
            raise found
        return factories.observation(
            name, status=JobStatus.COMPLETED, secondary="Completed", created_at=START, final_metrics=found
        )

    def put(self, job: str, minute: float, value: float, metric: str = "score") -> None:
        data = {
            "MetricName": metric,
            "Dimensions": [{"Name": "TrainingJobName", "Value": job}],
            "Timestamp": START + timedelta(minutes=minute),
            "Value": value,
        }
        boto3.client("cloudwatch").put_metric_data(Namespace=NAMESPACE, MetricData=[data])

    def end(self, of: int, number: int = 1) -> None:
        for place, (each, attempts, runs) in enumerate(self.rows):
            if each.number == of:
                ended = [
                    replace(one, state=AttemptState.ENDED, ended_at=self.clock.now()) if one.number == number else one
                    for one in attempts
                ]
                self.rows[place] = (each, ended, runs)

    def reader(self, *metrics: str) -> CloudMetrics:
        return CloudMetrics(
            self.prefix,
            self.account.aws(),
            self,  # type: ignore[arg-type]
            live=lambda: self.rows,
            metrics=metrics or ("score",),
            clock=self.clock,
        )

    def pass_minutes(self, minutes: float) -> None:
        self.clock.jump(timedelta(minutes=minutes))


@pytest.fixture
def cloud(account: Account) -> Cloud:
    return Cloud(account, rows=[(trial(1), [attempt(1)], None)])


def steps(points: Sequence[MetricPoint]) -> list[tuple[int | None, float]]:
    return [(point.step, point.value) for point in points]


def read(reader: CloudMetrics, number: int = 1) -> list[tuple[int | None, float]]:
    return steps(reader.read(trial(number).prefix).points)


def test_a_clock_that_was_ahead_hides_no_minute_once_it_is_right(cloud: Cloud) -> None:
    """By what it said at the last look, there was nothing to look for until it says so again."""
    reader = cloud.reader()
    cloud.pass_minutes(120)
    assert read(reader) == []
    cloud.pass_minutes(-110)
    cloud.rows.append((trial(2), [attempt(2)], None))
    cloud.put("k-00002-001", 1, 0.5)
    assert read(reader, 2) == [(1, 0.5)]


def test_the_nth_minute_with_a_value_is_step_n(cloud: Cloud) -> None:
    for minute, value in ((1, 0.1), (4, 0.2), (7.2, 0.3), (7.6, 0.5)):
        cloud.put("k-00001-001", minute, value)
    reader = cloud.reader()
    cloud.pass_minutes(20)
    report = reader.read(trial(1).prefix)
    assert steps(report.points) == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.4))]
    assert {point.name for point in report.points} == {"score"}
    assert report.points[0].at == START + timedelta(minutes=1)
    assert report.checkpoint_step == 7, "checkpoints are looked for under the prefix"


def test_without_the_right_to_look_a_trial_still_ends_with_its_last_value(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    cloud.account.refuse["GetMetricData"] = ("AccessDenied", "not authorized to perform: cloudwatch:GetMetricData")
    reader = cloud.reader()
    cloud.pass_minutes(10)
    assert read(reader) == []
    cloud.final["k-00001-001"] = {"score": 0.7}
    cloud.end(1)
    cloud.pass_minutes(10)
    report = reader.read(trial(1).prefix)
    assert steps(report.points) == [(1, 0.7)]
    assert report.whole_through == 1


def test_one_look_a_minute_whatever_is_read(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    reader = cloud.reader()
    cloud.pass_minutes(10)
    assert read(reader) == [(1, 0.1)]
    cloud.put("k-00001-001", 2, 0.2)
    for _ in range(5):
        cloud.pass_minutes(0.1)
        assert read(reader) == []
    assert cloud.account.calls.count("GetMetricData") == 1
    cloud.pass_minutes(1)
    assert read(reader) == [(2, 0.2)]
    assert cloud.account.calls.count("GetMetricData") == 2


def test_a_minute_is_read_once_it_is_settled(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    reader = cloud.reader()
    cloud.pass_minutes(2)
    assert read(reader) == []
    cloud.pass_minutes(2)
    assert read(reader) == [(1, 0.1)]


def test_many_jobs_share_a_call(cloud: Cloud) -> None:
    cloud.rows = [(trial(number), [attempt(number)], None) for number in range(300)]
    for number in (0, 299):
        cloud.put(f"k-{number:05d}-001", 1, float(number))
    reader = cloud.reader("score", "loss")
    cloud.pass_minutes(10)
    assert read(reader, 0) == [(1, 0.0)]
    assert read(reader, 299) == [(1, 299.0)]
    assert read(reader, 5) == []
    assert cloud.account.calls.count("GetMetricData") == 2, "600 queries, 500 to a call"


def test_the_last_value_is_exact_and_only_then_everything_is_read(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    cloud.put("k-00001-001", 2, 0.2)
    reader = cloud.reader()
    cloud.pass_minutes(10)
    report = reader.read(trial(1).prefix)
    assert steps(report.points) == [(1, 0.1), (2, 0.2)]
    assert report.whole_through == 0, "the job has not ended"

    cloud.end(1)
    cloud.final["k-00001-001"] = {"score": 0.25, "other": 9.0}
    cloud.pass_minutes(1)
    report = reader.read(trial(1).prefix)
    assert (report.points, report.whole_through) == ((), 0), "its last minutes may still come"
    cloud.pass_minutes(2)
    report = reader.read(trial(1).prefix)
    assert steps(report.points) == [(2, 0.25)]
    assert (report.whole_through, report.more) == (1, False)
    assert reader.read(trial(1).prefix).points == ()


def test_a_job_too_short_for_a_minute_has_its_last_value(cloud: Cloud) -> None:
    cloud.end(1)
    cloud.final["k-00001-001"] = {"score": 0.5}
    cloud.pass_minutes(3)
    report = cloud.reader().read(trial(1).prefix)
    assert steps(report.points) == [(1, 0.5)]
    assert report.whole_through == 1


def test_an_attempt_without_a_job_is_whole_at_once(cloud: Cloud) -> None:
    cloud.rows = [(trial(1), [attempt(1, arn=None)], None)]
    cloud.end(1)
    assert cloud.reader().read(trial(1).prefix).whole_through == 1


@pytest.mark.parametrize("poll_minutes", [0.5, 2.8])
def test_a_reader_that_lived_through_the_end_and_a_new_one_give_the_same_steps(
    cloud: Cloud, poll_minutes: float
) -> None:
    """A job of ten minutes, whose last ones are not settled when it is seen to have ended."""
    for minute in range(1, 11):
        cloud.put("k-00001-001", minute, float(minute))
    lived, told = cloud.reader(), []
    while cloud.clock.now() < START + timedelta(minutes=11.2):
        cloud.pass_minutes(poll_minutes)
        told += read(lived)
    assert len(told) < 10
    cloud.end(1)
    cloud.final["k-00001-001"] = {"score": 9.5}
    report = lived.read(trial(1).prefix)
    while report.whole_through != 1:
        told += steps(report.points)
        cloud.pass_minutes(poll_minutes)
        assert cloud.clock.now() < START + timedelta(minutes=20)
        report = lived.read(trial(1).prefix)
    told += steps(report.points)
    assert told == read(cloud.reader()) == [*((minute, float(minute)) for minute in range(1, 11)), (10, 9.5)]


def test_the_steps_of_an_attempt_wait_for_the_last_value_of_the_one_before(cloud: Cloud) -> None:
    """Else that value would take the place of a step of the later attempt."""
    cloud.rows = [(trial(1), [attempt(1), attempt(1, 2)], None)]
    cloud.end(1, 1)
    cloud.put("k-00001-001", 1, 0.1)
    cloud.put("k-00001-002", 10, 0.3)
    cloud.final["k-00001-001"] = ServiceUnavailable("later")
    cloud.pass_minutes(20)
    reader = cloud.reader()
    assert read(reader) == [(1, 0.1)]
    cloud.final["k-00001-001"] = {"score": 0.15}
    assert read(reader) == [(1, 0.15), (2, 0.3)]


def test_the_last_value_of_a_short_attempt_is_a_step_of_its_own(cloud: Cloud) -> None:
    cloud.rows = [(trial(1), [attempt(1), attempt(1, 2)], None)]
    cloud.put("k-00001-001", 1, 0.1)
    cloud.final = {"k-00001-001": {"score": 0.15}, "k-00001-002": {"score": 0.4}}
    for number in (1, 2):
        cloud.end(1, number)
    cloud.pass_minutes(20)
    report = cloud.reader().read(trial(1).prefix)
    assert steps(report.points) == [(1, 0.1), (1, 0.15), (2, 0.4)]
    assert report.whole_through == 2


def test_steps_go_on_over_attempts(cloud: Cloud) -> None:
    cloud.rows = [(trial(1), [attempt(1), attempt(1, 2)], None)]
    cloud.end(1, 1)
    cloud.final["k-00001-001"] = {"score": 0.2}
    cloud.put("k-00001-001", 1, 0.1)
    cloud.put("k-00001-001", 2, 0.2)
    cloud.put("k-00001-002", 30, 0.3)
    reader = cloud.reader()
    cloud.pass_minutes(40)
    report = reader.read(trial(1).prefix)
    assert [(point.attempt, point.step, point.value) for point in report.points] == [
        (1, 1, 0.1),
        (1, 2, 0.2),
        (1, 2, 0.2),
        (2, 3, 0.3),
    ]
    assert report.whole_through == 1


def test_a_new_reader_says_the_same_again(cloud: Cloud) -> None:
    for minute in range(1, 5):
        cloud.put("k-00001-001", minute, minute / 10)
    first = cloud.reader()
    cloud.pass_minutes(4)
    told = read(first)
    cloud.pass_minutes(6)
    told += read(first)
    assert read(cloud.reader()) == told == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_a_description_that_does_not_come_is_asked_for_again(cloud: Cloud) -> None:
    cloud.end(1)
    cloud.final["k-00001-001"] = ServiceUnavailable("later")
    cloud.pass_minutes(5)
    reader = cloud.reader()
    assert reader.read(trial(1).prefix).whole_through == 0
    cloud.final["k-00001-001"] = {"score": 0.5}
    report = reader.read(trial(1).prefix)
    assert (steps(report.points), report.whole_through) == ([(1, 0.5)], 1)


def test_a_deleted_job_leaves_what_cloudwatch_kept(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    cloud.end(1)
    cloud.final["k-00001-001"] = JobNotFound("deleted")
    cloud.pass_minutes(10)
    report = cloud.reader().read(trial(1).prefix)
    assert (steps(report.points), report.whole_through) == ([(1, 0.1)], 1)


def reported(step: int, value: float, name: str = "score") -> MetricPoint:
    """As a script reports by `tuner.training` that nobody else reads."""
    run = f"{time.time_ns():016x}abcd"
    return factories.metric_point(step, value, run=run, at=START, name=name)


def test_a_metric_that_lies_under_the_prefix_is_not_read_twice(cloud: Cloud) -> None:
    for minute in (1, 2, 3):
        cloud.put("k-00001-001", minute, 0.1 * minute)
        cloud.put("k-00001-001", minute, 5.0, "loss")
    cloud.prefix.fresh = [reported(1, 0.9), reported(2, 0.8)]
    reader = cloud.reader("score", "loss")
    cloud.pass_minutes(10)
    points = reader.read(trial(1).prefix).points
    assert [(point.name, point.step, point.value) for point in points] == [
        ("score", 1, 0.9),
        ("score", 2, 0.8),
        ("loss", 1, 5.0),
        ("loss", 2, 5.0),
        ("loss", 3, 5.0),
    ]
    cloud.end(1)
    cloud.final["k-00001-001"] = {"score": 0.3, "loss": 4.0}
    cloud.pass_minutes(5)
    report = reader.read(trial(1).prefix)
    assert [(point.name, point.step, point.value) for point in report.points] == [("loss", 3, 4.0)]
    assert report.whole_through == 1


def test_cloudwatch_waits_until_the_prefix_was_read(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    cloud.prefix.more = True
    reader = cloud.reader()
    cloud.pass_minutes(10)
    report = reader.read(trial(1).prefix)
    assert (report.points, report.more) == ((), True)
    cloud.prefix.more, cloud.prefix.fresh = False, [reported(1, 0.9)]
    assert read(reader) == [(1, 0.9)]


def test_what_a_script_reports_itself_wins_over_a_minute_that_came_before(cloud: Cloud) -> None:
    live = LiveTrial(trial(1))
    cloud.put("k-00001-001", 1, 0.1)
    reader = cloud.reader()
    cloud.pass_minutes(10)
    live.take(reader.read(trial(1).prefix))
    assert live.value("score") == 0.1
    cloud.prefix.fresh = [reported(1, 0.9)]
    live.take(reader.read(trial(1).prefix))
    assert live.value("score") == 0.9


def test_a_refusal_loses_nothing_of_the_prefix(cloud: Cloud) -> None:
    reader = cloud.reader()
    cloud.pass_minutes(10)
    cloud.prefix.fresh = [reported(1, 0.9)]
    cloud.account.refuse["GetMetricData"] = ("Throttling", "Rate exceeded")
    with pytest.raises(OSError, match="Rate exceeded"):
        reader.read(trial(1).prefix)
    cloud.account.refuse.clear()
    assert read(reader) == [(1, 0.9)]


def test_a_refusal_is_trouble_and_nothing_is_lost(cloud: Cloud) -> None:
    cloud.put("k-00001-001", 1, 0.1)
    reader = cloud.reader()
    cloud.pass_minutes(10)
    cloud.account.refuse["GetMetricData"] = ("Throttling", "Rate exceeded")
    with pytest.raises(OSError, match="Rate exceeded"):
        reader.read(trial(1).prefix)
    cloud.account.refuse.clear()
    assert read(reader) == [(1, 0.1)]


def test_a_trial_that_was_forgotten_leaves_nothing(cloud: Cloud) -> None:
    reader = cloud.reader()
    cloud.pass_minutes(10)
    read(reader)
    reader.forget(trial(1).prefix)
    assert (reader._views, reader._seen) == ({}, {})
