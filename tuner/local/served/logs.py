"""What jobs print, sent to CloudWatch Logs by a served local SageMaker, as SageMaker's own agent does.

Rules: one group, and for each start of a job a stream of its own, `JOB/algo-1-EPOCH`. What was printed before the
service started is not sent. Bounded: so much of a job's output at a look, however much it prints. An empty line is no
event there; one that is too long is cut. What cannot be sent is tried again.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuner.aws.connections import AwsError, ask
from tuner.core.clock import Clock
from tuner.local.jobdir import ENDS, JobDir, job_names, open_job

GROUP = "/aws/sagemaker/TrainingJobs"
_CHUNK_BYTES = 1 << 18  # of a log at a look; within PutLogEvents' limits, however short its lines are
_LINE_BYTES = 1 << 14
_LINES = 5_000


class LogSender:
    """Sends what the jobs of a state directory print, from now on, through a client of CloudWatch Logs."""

    def __init__(self, state_dir: Path, client: Any, clock: Clock) -> None:  # noqa: ANN401 - botocore makes its methods at run time
        self._state_dir = state_dir
        self._client = client
        self._clock = clock
        self._ended: set[str] = set()
        self._streams: set[str] = set()
        self._complained = False
        # How many bytes of a log were sent.
        self._sent: dict[Path, int] = {path: path.stat().st_size for job in self._jobs() for path in job.log_paths()}

    def look(self) -> None:
        """Send what has been printed since the last look."""
        try:
            for job in self._jobs():
                self._send_job(job)
        except AwsError as error:
            if not self._complained:
                sys.stderr.write(f"logs cannot be sent: {error}; trying again\n")
            self._complained = True
        else:
            self._complained = False

    def _jobs(self) -> Iterator[JobDir]:
        for name in job_names(self._state_dir):
            if name not in self._ended and (job := open_job(self._state_dir, name)) is not None:
                yield job

    def _send_job(self, job: JobDir) -> None:
        try:
            rows = job.rows()  # before its logs: what a job that has ended printed is all there
        except FileNotFoundError:  # deleted meanwhile
            return
        starts = [row.at for row in rows if row.status == "Training"]
        has_ended = rows[-1].status in ENDS
        try:
            sent = [
                self._send_run(path, f"{job.name}/algo-1-{int(at)}", is_whole=has_ended)
                for path, at in zip(job.log_paths(), starts, strict=False)
            ]
        except FileNotFoundError:  # deleted meanwhile
            return
        if has_ended and all(sent):
            self._ended.add(job.name)

    def _send_run(self, path: Path, stream: str, *, is_whole: bool) -> bool:
        """Send a part of one log; whether nothing of it is left."""
        first = self._sent.get(path, 0)
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(_CHUNK_BYTES)
            is_last = not file.read(1)
        lines, count = _lines(data, is_whole=is_whole and is_last)
        now_ms = round(self._clock.now().timestamp() * 1000)
        if events := [{"timestamp": now_ms, "message": line} for line in lines if line]:
            self._open(stream)
            ask(self._client.put_log_events, logGroupName=GROUP, logStreamName=stream, logEvents=events)
        self._sent[path] = first + count
        return is_last and count == len(data)

    def _open(self, stream: str) -> None:
        if stream not in self._streams:
            _make(self._client.create_log_group, logGroupName=GROUP)
            _make(self._client.create_log_stream, logGroupName=GROUP, logStreamName=stream)
            self._streams.add(stream)


def _make(call: Callable[..., Any], **parameters: str) -> None:
    try:
        ask(call, **parameters)
    except AwsError as error:
        if error.code != "ResourceAlreadyExistsException":
            raise


def _lines(data: bytes, *, is_whole: bool) -> tuple[list[str], int]:
    """The lines that are complete, and how many bytes they are; the rest too if nothing follows or it is too long."""
    lines = data.splitlines(keepends=True)[:_LINES]
    if lines and not lines[-1].endswith(b"\n") and not is_whole and len(lines[-1]) < _LINE_BYTES:
        lines.pop()
    texts = [line[:_LINE_BYTES].rstrip(b"\r\n").decode("utf-8", "replace") for line in lines]
    return texts, sum(map(len, lines))
