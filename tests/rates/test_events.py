"""Events of SageMaker as hints: rule and queue on moto, one queue for several studies, and an engine that listens."""

import json
import random
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.rates.fleet import Fleet
from tuner.aws import events_setup, hints
from tuner.aws.connections import Aws, AwsError
from tuner.aws.hints import QUEUE_FACT, QueueHints, hints_for, parse
from tuner.aws.rates import scope
from tuner.cli import main
from tuner.core.calls import Call
from tuner.core.clock import SystemClock, VirtualClock
from tuner.core.hints import Hint
from tuner.core.jobs import ServiceUnavailable, job_name
from tuner.simulator.parts import Script
from tuner.store.store import Store

pytestmark = pytest.mark.slow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_MS = 1767225600000
SCOPE = scope("123456789012", "us-east-1")


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    with closing(Store.open(sqlite_url)) as opened:
        yield opened


@pytest.fixture
def url(aws: Aws, store: Store) -> str:
    return events_setup.create(aws, store, SCOPE, NOW)


def entry(name: str, modified_at: datetime = NOW, **changes: str) -> dict:
    detail = {
        "TrainingJobName": name,
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
        "LastModifiedTime": round(modified_at.timestamp() * 1000),
    }
    kind = "SageMaker Training Job State Change"
    return {"Source": "aws.sagemaker", "DetailType": kind, "Detail": json.dumps(detail), **changes}


def put(aws: Aws, *entries: dict) -> None:
    for start in range(0, len(entries), 10):
        reply = aws.client("events").put_events(Entries=list(entries[start : start + 10]))
        assert reply["FailedEntryCount"] == 0


def listener(aws: Aws, url: str, key: str = "mine") -> QueueHints:
    return QueueHints(aws.lasting("sqs"), url, key, VirtualClock(NOW), wait_s=0)


def left(aws: Aws, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = aws.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


# --- rule and queue


def test_the_rule_brings_changes_of_training_jobs_and_nothing_else(aws: Aws, url: str) -> None:
    put(
        aws,
        entry("mine-00001-001"),
        entry("mine-00002-001", Source="aws.ec2"),
        entry("mine-00003-001", DetailType="SageMaker Endpoint State Change"),
    )
    assert listener(aws, url).receive() == [Hint("mine-00001-001", NOW)]
    assert left(aws, url) == 0


def test_the_queue_takes_messages_of_the_rule_alone(aws: Aws, url: str) -> None:
    found = aws.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    rule = aws.client("events").describe_rule(Name=events_setup.NAME)["Arn"]
    [statement] = json.loads(found["Policy"])["Statement"]
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": found["QueueArn"],
        "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
    }
    assert (found["SqsManagedSseEnabled"], found["MessageRetentionPeriod"]) == ("true", "300")


def test_making_and_removing_may_be_repeated(aws: Aws, store: Store, url: str) -> None:
    assert events_setup.create(aws, store, SCOPE, NOW) == url
    assert [(fact.name, fact.value) for fact in store.facts(SCOPE)] == [(QUEUE_FACT, url)]
    for _ in range(2):
        events_setup.remove(aws, store, SCOPE)
        assert store.facts(SCOPE) == []
    assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
    assert aws.client("events").list_rules()["Rules"] == []


def test_a_queue_that_is_not_there_cannot_be_used(aws: Aws, store: Store) -> None:
    with pytest.raises(AwsError):
        events_setup.use(aws, store, SCOPE, NOW)
    assert store.facts(SCOPE) == []


def test_template_and_making_agree(aws: Aws, url: str) -> None:
    """moto deploys no queue policies, so that what a template means is compared with what is made."""
    resources = events_setup.template()["Resources"]
    rule = aws.client("events").describe_rule(Name=events_setup.NAME)
    assert json.loads(rule["EventPattern"]) == resources["Rule"]["Properties"]["EventPattern"]
    found = aws.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    wanted = {name: str(value).lower() for name, value in resources["Queue"]["Properties"].items()}
    assert url.endswith(f"/{wanted.pop('QueueName')}")
    assert {name: found[name] for name in wanted} == wanted
    made = json.dumps(json.loads(found["Policy"]), sort_keys=True)
    made = made.replace(found["QueueArn"], "QUEUE").replace(rule["Arn"], "RULE")
    described = json.dumps(resources["QueuePolicy"]["Properties"]["PolicyDocument"], sort_keys=True)
    described = described.replace('{"Fn::GetAtt": ["Queue", "Arn"]}', '"QUEUE"')
    assert made == described.replace('{"Fn::GetAtt": ["Rule", "Arn"]}', '"RULE"')


# --- hints


@pytest.mark.parametrize("value", [NOW_MS, str(NOW_MS), float(NOW_MS)])
def test_times_come_in_milliseconds_as_numbers_or_as_text(value: object) -> None:
    assert parse(json.dumps({"detail": {"TrainingJobName": "a", "LastModifiedTime": value}})) == Hint("a", NOW)


@pytest.mark.parametrize("value", [None, "soon", 1e300, [], {"a": 1}])
def test_a_time_that_is_none_leaves_the_name(value: object) -> None:
    assert parse(json.dumps({"detail": {"TrainingJobName": "a", "LastModifiedTime": value}})) == Hint("a", None)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "3", "null", "{}", '{"detail": 3}', '{"detail": {"TrainingJobName": 3}}', "[" * 100_000],
    ids=range(9),
)
def test_what_is_no_event_is_no_hint(body: str) -> None:
    assert parse(body) is None


def test_each_study_takes_its_own_and_leaves_the_others(aws: Aws, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with names that share a beginning, and with messages of no study."""
    monkeypatch.setattr(hints, "VISIBILITY_S", 1)  # so soon do the others see what one has left
    keys = ("mine", "mine2", "mine-abcdef", "theirs")  # the third one's study is named as the first one's key
    names = [job_name(key, n, 1) for key in keys for n in range(12)]
    random.Random(1).shuffle(names)
    put(aws, *(entry(name) for name in names), entry("someone-elses"))
    for key in keys:
        listening, found, until = listener(aws, url, key), set(), SystemClock().now() + timedelta(seconds=60)
        while len(found) < 12 and SystemClock().now() < until:
            found |= {hint.name for hint in listening.receive()}
        assert found == {job_name(key, n, 1) for n in range(12)}
    # moto counts the visible and then the hidden: one that turns visible in between is in neither
    until = SystemClock().now() + timedelta(seconds=60)
    while (count := left(aws, url)) != 1 and SystemClock().now() < until:
        pass
    assert count == 1


def test_a_queue_that_is_gone_is_said_once_in_a_while(aws: Aws, store: Store, url: str) -> None:
    clock = VirtualClock(NOW)
    listening = QueueHints(aws.lasting("sqs"), url, "mine", clock, wait_s=0)
    events_setup.remove(aws, store, SCOPE)
    with pytest.raises(ServiceUnavailable, match="lists tell meanwhile"):
        listening.receive()
    assert listening.receive() == []
    clock.jump(timedelta(minutes=6))
    with pytest.raises(ServiceUnavailable):
        listening.receive()


def test_engines_find_the_queue_of_their_account(aws: Aws, store: Store, url: str) -> None:
    assert hints_for(store, scope("123456789012", "eu-west-1"), aws, "mine", VirtualClock(NOW)) is None
    put(aws, entry("mine-00001-001"))
    found = hints_for(store, SCOPE, aws, "mine", VirtualClock(NOW))
    assert found is not None
    assert found.receive() == [Hint("mine-00001-001", NOW)]


# --- an engine that listens


def test_an_engine_hears_of_its_jobs_by_the_queue(aws: Aws, url: str, tmp_path: Path) -> None:
    """Events come twice and in the wrong order; lists become rare, and every end is noticed at the next look."""
    fleet = Fleet(
        tmp_path,
        engines=1,
        parallel=4,
        script=lambda _: Script(epochs=2, step_s=200.0),
        hints=lambda fleet, study: QueueHints(aws.lasting("sqs"), url, study.key, fleet.clock, wait_s=0),
    )
    told: dict[str, int] = {}
    for _ in range(40):
        news = [
            entry(job.name, version.modified_at)
            for job in fleet.cloud.jobs.values()
            for version in job.versions[told.get(job.name, 0) :]
        ]
        told = {job.name: len(job.versions) for job in fleet.cloud.jobs.values()}
        put(aws, *reversed(news * 2), entry("another-00001-001"))
        fleet.run(timedelta(seconds=30))
    assert len(fleet.delays_s()) >= 4
    assert max(fleet.delays_s()) <= 31
    assert len(fleet.meter.made[Call.LIST]) <= 10
    assert "trouble" not in fleet.kinds()


# --- the command


def test_printing_needs_no_account(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    assert main.main(["doctor", "--events"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == events_setup.template()
    assert "aws cloudformation deploy" in printed.err


def test_the_verb_makes_uses_and_removes(
    aws: Aws, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TUNER_STORE", sqlite_url)

    def queue_after(what: str) -> str | None:
        assert main.main(["doctor", "--events", what, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["scope"] == SCOPE
        with closing(Store.open(sqlite_url)) as store:
            assert [fact.value for fact in store.facts(SCOPE)] == [found["queue"]] * (found["queue"] is not None)
        return found["queue"]

    assert queue_after("create") == queue_after("use") is not None
    assert queue_after("remove") is None
    assert main.main(["doctor", "--events", "use"]) == 4
    assert capsys.readouterr().err.startswith("tuner: GetQueueUrl: ")
