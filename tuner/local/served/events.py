"""What EventBridge is told of training jobs, by a served local SageMaker.

Events are read off the jobs' histories, one for each row, so nobody who changes a job has to think of them, and a job
that changed while nobody served is told of at the next start only by its next change.

Rules: the shape is that of `SageMaker Training Job State Change`: what Describe says, times as epoch milliseconds in
text, tags as a map, no environment (it may hold secrets). AWS promises neither order nor that an event comes once, and
does not say whether each change of secondary status makes one: those are switches. An event that cannot be put is
tried again.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.aws.connections import AwsError, ask
from tuner.local import views
from tuner.local.faults import drawn
from tuner.local.jobdir import ENDS, JobDir, Row, job_names, open_job
from tuner.local.settings import BadSettings, LocalSettings, read_settings

_AT_A_TIME = 10  # PutEvents' limit
_TIMES = frozenset({"CreationTime", "LastModifiedTime", "TrainingStartTime", "TrainingEndTime", "StartTime", "EndTime"})
_SHOWN = (
    *("TrainingJobName", "TrainingJobArn", "TrainingJobStatus", "SecondaryStatus", "FailureReason", "HyperParameters"),
    *("AlgorithmSpecification", "RoleArn", "InputDataConfig", "OutputDataConfig", "ResourceConfig", "VpcConfig"),
    *("StoppingCondition", "CreationTime", "TrainingStartTime", "TrainingEndTime", "LastModifiedTime"),
    *("SecondaryStatusTransitions", "EnableManagedSpotTraining", "CheckpointConfig"),
)

Entry = dict[str, Any]


def entry(job: JobDir, rows: Sequence[Row]) -> Entry:
    """The event of the last of these rows, as an entry of PutEvents."""
    described = views.description(job, rows)
    detail = {key: _told(key, described[key]) for key in _SHOWN if key in described}
    detail["Tags"] = {tag["Key"]: tag["Value"] for tag in job.tags()}
    return {
        "Source": "aws.sagemaker",
        "DetailType": "SageMaker Training Job State Change",
        "Resources": [job.record["arn"]],
        "Detail": json.dumps(detail),
    }


def _told(key: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if key in _TIMES:
        return str(round(value * 1000))
    if isinstance(value, Mapping):
        return {name: _told(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [_told("", member) for member in value]
    return value


class EventSender:
    """Puts the changes of all jobs of a state directory, from now on, through `put` (a client's `put_events`)."""

    def __init__(self, state_dir: Path, put: Callable[..., Any]) -> None:
        self._state_dir = state_dir
        self._put = put
        self._told: dict[str, int] = {}
        self._ended: set[str] = set()
        self._waiting: deque[Entry] = deque()
        self._late: list[Entry] = []
        self._count = 0
        self._complained = False
        self._find(is_start=True)

    def look(self) -> None:
        """Put what has changed since the last look."""
        overdue, self._late = self._late, []
        try:
            self._find(is_start=False)
        except BadSettings as error:  # somebody edits them
            sys.stderr.write(f"{error}\n")
        self._waiting += overdue
        while self._waiting:
            batch = [self._waiting[n] for n in range(min(_AT_A_TIME, len(self._waiting)))]
            if not self._send(batch):
                return
            for _ in batch:
                self._waiting.popleft()

    def _find(self, *, is_start: bool) -> None:
        settings = read_settings(self._state_dir)
        for name in job_names(self._state_dir):
            if name in self._ended or (job := open_job(self._state_dir, name)) is None:
                continue
            try:
                rows = job.rows()
            except FileNotFoundError:  # deleted meanwhile
                continue
            first = len(rows) if is_start else self._told.get(name, 0)
            for count in range(first + 1, len(rows) + 1):
                if _makes_an_event(rows[:count], settings):
                    self._enter(entry(job, rows[:count]), settings)
            self._told[name] = len(rows)
            if rows[-1].status in ENDS:
                self._ended.add(name)

    def _enter(self, made: Entry, settings: LocalSettings) -> None:
        self._count += 1
        is_late = drawn(settings, "event late", self._count) < settings.events_late_share
        (self._late if is_late else self._waiting).append(made)
        if drawn(settings, "event twice", self._count) < settings.events_twice_share:
            self._waiting.append(made)

    def _send(self, batch: Sequence[Entry]) -> bool:
        try:
            reply = ask(self._put, Entries=list(batch))
        except AwsError as error:
            refusal = str(error)
        else:
            failed = [told for told in reply.get("Entries", []) if told.get("ErrorCode")]
            refusal = str(failed[0].get("ErrorMessage") or failed[0]["ErrorCode"]) if failed else ""
        if refusal and not self._complained:
            sys.stderr.write(f"events cannot be put: {refusal}; trying again\n")
        self._complained = bool(refusal)
        return not refusal


def _makes_an_event(rows: Sequence[Row], settings: LocalSettings) -> bool:
    """Whether the last row is told of."""
    if settings.events_of == "every_change" or len(rows) == 1:
        return True
    return views.job_status(rows[-1]) != views.job_status(rows[-2])
