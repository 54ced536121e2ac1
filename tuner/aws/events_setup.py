"""The rule and the queue that bring SageMaker's events to engines: as a template to deploy, or made and removed here.

A user without the right to create queues hands the template to somebody who has it; a user with the right needs one
command. Both ways make the same: one rule and one queue for an account in a region, for all its studies.

Rules: the queue takes messages from that rule alone, is encrypted, and forgets within minutes, since late hints are
worth nothing. Making is repeatable, and so is removing. The queue is recorded in the store only once it is there, and
forgotten first: an engine never looks for one that was never made.
"""

import json
from datetime import datetime

from tuner.aws.connections import Aws, AwsError, ask
from tuner.aws.hints import QUEUE_FACT, VISIBILITY_S
from tuner.core.records import Fact, Json
from tuner.store.store import Store

NAME = "spot-tuner-events"
PATTERN: dict[str, Json] = {
    "source": ["aws.sagemaker"],
    "detail-type": ["SageMaker Training Job State Change"],
}

_SOURCE = "doctor --events"
_RETENTION_S = 300
_TARGET = "queue"
_ATTRIBUTES: dict[str, Json] = {
    "MessageRetentionPeriod": _RETENTION_S,
    "VisibilityTimeout": VISIBILITY_S,
    "SqsManagedSseEnabled": True,
}
_NO_QUEUE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")
_NO_RULE = "ResourceNotFoundException"


def template() -> dict[str, Json]:
    """A CloudFormation template of the queue and the rule."""
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "State changes of SageMaker training jobs, as hints for the tuner's engines",
        "Resources": {
            "Queue": {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": NAME, **_ATTRIBUTES}},
            "Rule": {
                "Type": "AWS::Events::Rule",
                "Properties": {
                    "Name": NAME,
                    "EventPattern": PATTERN,
                    "State": "ENABLED",
                    "Targets": [{"Id": _TARGET, "Arn": {"Fn::GetAtt": ["Queue", "Arn"]}}],
                },
            },
            "QueuePolicy": {
                "Type": "AWS::SQS::QueuePolicy",
                "Properties": {
                    "Queues": [{"Ref": "Queue"}],
                    "PolicyDocument": _policy({"Fn::GetAtt": ["Queue", "Arn"]}, {"Fn::GetAtt": ["Rule", "Arn"]}),
                },
            },
        },
        "Outputs": {"QueueUrl": {"Value": {"Ref": "Queue"}}},
    }


def _policy(queue_arn: Json, rule_arn: Json) -> dict[str, Json]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "events.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": queue_arn,
                "Condition": {"ArnEquals": {"aws:SourceArn": rule_arn}},
            }
        ],
    }


def create(aws: Aws, store: Store, scope: str, now: datetime) -> str:
    """Make queue and rule, or mend them where they are there; returns the queue's URL. Raises AwsError."""
    sqs, events = aws.client("sqs"), aws.client("events")
    url = str(ask(sqs.create_queue, QueueName=NAME)["QueueUrl"])
    queue_arn = ask(sqs.get_queue_attributes, QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rule_arn = ask(events.put_rule, Name=NAME, EventPattern=json.dumps(PATTERN), State="ENABLED")["RuleArn"]
    attributes = {name: str(value).lower() for name, value in _ATTRIBUTES.items()}
    policy = json.dumps(_policy(queue_arn, rule_arn))
    ask(sqs.set_queue_attributes, QueueUrl=url, Attributes={**attributes, "Policy": policy})
    refused = ask(events.put_targets, Rule=NAME, Targets=[{"Id": _TARGET, "Arn": queue_arn}])
    if refused.get("FailedEntryCount"):
        first = refused["FailedEntries"][0]
        raise AwsError(f"PutTargets: {first.get('ErrorMessage', '')}", str(first.get("ErrorCode", "Unknown")))
    _record(store, scope, url, now)
    return url


def use(aws: Aws, store: Store, scope: str, now: datetime) -> str:
    """Record the queue that somebody made by the template; returns its URL. Raises AwsError where there is none."""
    url = str(ask(aws.client("sqs").get_queue_url, QueueName=NAME)["QueueUrl"])
    _record(store, scope, url, now)
    return url


def remove(aws: Aws, store: Store, scope: str) -> None:
    """Remove rule and queue, as far as they are there. Raises AwsError. Engines at work notice, and list more often."""
    store.forget_fact(scope, QUEUE_FACT)
    sqs, events = aws.client("sqs"), aws.client("events")
    try:
        ask(events.remove_targets, Rule=NAME, Ids=[_TARGET])
        ask(events.delete_rule, Name=NAME)
    except AwsError as error:
        if error.code != _NO_RULE:
            raise
    try:
        url = ask(sqs.get_queue_url, QueueName=NAME)["QueueUrl"]
        ask(sqs.delete_queue, QueueUrl=url)
    except AwsError as error:
        if error.code not in _NO_QUEUE:
            raise


def _record(store: Store, scope: str, url: str, now: datetime) -> None:
    store.put_fact(Fact(scope=scope, name=QUEUE_FACT, value=url, learned_at=now, source=_SOURCE))
