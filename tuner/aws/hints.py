"""Hints from SageMaker's events: EventBridge puts one into a queue as soon as a job changes.

It exists because lists are scarce and late. `events_setup` makes the rule and the queue and records the queue with the
account; every engine of that account and region finds it there. Nothing depends on it: an event may be missing, late,
doubled or out of order, and a hint only makes a job due to be described.

Rules: one queue serves all studies. An engine deletes only the messages about its own jobs. The queue shows the
others to other engines a moment later and drops them after minutes. Each tick reads a bounded number of messages. A
queue that does not answer is reported now and then, and has no other effect.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tuner.aws.connections import Aws, AwsError, ask
from tuner.core.clock import Clock
from tuner.core.hints import Hint
from tuner.core.jobs import ServiceUnavailable, trial_and_attempt
from tuner.core.records import Fact
from tuner.store.store import Store

QUEUE_FACT = "events.queue"
# So long a message stays hidden from others once somebody saw it; SQS wants whole seconds.
VISIBILITY_S = 5

_BATCH = 10  # the most that SQS gives at once
_BATCHES_MAX = 30
# The first question of a look asks all of SQS's servers, for which it may wait; without, a message may be missed.
_WAIT_S = 1
_TRY_AGAIN = timedelta(minutes=5)


def hints_for(store: Store, scope: str, aws: Aws, study_key: str, clock: Clock) -> "QueueHints | None":
    """The hints of a study, where a queue is recorded for its account and region."""
    queue = queue_of(store.facts(scope))
    return None if queue is None else QueueHints(aws.lasting("sqs"), queue, study_key, clock)


def queue_of(facts: Iterable[Fact]) -> str | None:
    """The queue that is recorded for an account and region."""
    found = next((fact.value for fact in facts if fact.name == QUEUE_FACT), None)
    return found if isinstance(found, str) else None


class QueueHints:
    """`Hints` from an SQS queue, about the jobs of one study."""

    def __init__(self, client: Any, url: str, study_key: str, clock: Clock, *, wait_s: int = _WAIT_S) -> None:  # noqa: ANN401 - botocore makes its methods at run time
        self._client, self._url, self._clock = client, url, clock
        self._study_key = study_key
        self._wait_s = wait_s
        self._failed_at: datetime | None = None

    def receive(self) -> list[Hint]:
        """The hints since the last call. Raises ServiceUnavailable, then stays quiet for minutes."""
        if self._failed_at is not None and abs(self._clock.now() - self._failed_at) < _TRY_AGAIN:
            return []
        self._failed_at = None
        try:
            events = list(receive(self._client, self._url, self._is_ours, wait_s=self._wait_s))
        except AwsError as error:
            self._failed_at = self._clock.now()
            minutes = _TRY_AGAIN.total_seconds() / 60
            raise ServiceUnavailable(
                f"no hints from {self._url}: {error}; asked again in {minutes:.0f} minutes, lists tell meanwhile"
            ) from error
        return [_hint(event) for event in events]

    def _is_ours(self, job: str) -> bool:
        return trial_and_attempt(job, self._study_key) is not None


def receive(
    client: Any,  # noqa: ANN401 - botocore makes its methods at run time
    url: str,
    is_ours: Callable[[str], bool],
    *,
    wait_s: int = _WAIT_S,
) -> Iterator[Mapping[str, Any]]:
    """The details of events about our jobs. Only these are deleted; if that fails, they come twice.

    Raises AwsError.
    """
    for messages in _batches(client, url, wait_s):
        found = [(message, event) for message in messages if (event := _detail(message.get("Body", ""))) is not None]
        ours = [(message, event) for message, event in found if is_ours(event["TrainingJobName"])]
        if ours:
            entries = [
                {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                for number, (message, _) in enumerate(ours)
            ]
            ask(client.delete_message_batch, QueueUrl=url, Entries=entries)
        yield from (event for _, event in ours)


def _batches(client: Any, url: str, wait_s: int) -> Iterator[list[dict[str, Any]]]:  # noqa: ANN401 - as above
    for _ in range(_BATCHES_MAX):
        reply = ask(
            client.receive_message,
            QueueUrl=url,
            MaxNumberOfMessages=_BATCH,
            VisibilityTimeout=VISIBILITY_S,
            WaitTimeSeconds=wait_s,
        )
        messages = reply.get("Messages", [])
        if not messages:
            return
        yield messages
        wait_s = 0


def parse(body: str) -> Hint | None:
    """The job that an event is about, and when it changed; None for anything else."""
    event = _detail(body)
    return None if event is None else _hint(event)


def _detail(body: str) -> Mapping[str, Any] | None:
    """The details of an event about a named job; None for anything else."""
    try:
        detail = json.loads(body)["detail"]
        name = detail["TrainingJobName"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return detail if isinstance(detail, dict) and isinstance(name, str) else None


def _hint(event: Mapping[str, Any]) -> Hint:
    return Hint(event["TrainingJobName"], _moment(event.get("LastModifiedTime")))


def _moment(value: object) -> datetime | None:
    """Milliseconds since 1970, as a number or as text: both are seen."""
    try:
        return datetime.fromtimestamp(float(str(value)) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
