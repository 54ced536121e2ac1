"""Progress of built-in algorithms, from CloudWatch: they carry no bootstrap, so no metrics lie under their prefixes.

SageMaker finds the metrics in such a job's log and puts them into CloudWatch, averaged over each minute and without a
step; the last value of each stands exactly in the job's description once it has ended.

Rules: the n-th minute in which a trial's job reported a metric stands for step n: the n-th epoch where epochs are
longer than a minute. The last value replaces the one at the highest step when the job has ended, so that a trial's
value is exact, and only then is everything read. One request asks for many jobs, at most once a minute; a minute is
read when it is settled, since log lines take a while to arrive. What follows from the rows is asked of the store, so
that a new reader begins at the beginning. Checkpoints are looked for under the prefix, as everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Protocol

from tuner.aws import Aws, AwsError, ask
from tuner.clock import Clock
from tuner.jobs import JobError, JobNotFound, JobService
from tuner.model import Attempt, MetricPoint, ProgressReport, Trial

NAMESPACE = "/aws/sagemaker/TrainingJobs"
RUN = "cloudwatch"  # stands for the runs of a job, which cannot be told apart

_DIMENSION = "TrainingJobName"
_HOST = "algo-1"
_PERIOD_S = 60
_QUERIES_MAX = 500  # of one GetMetricData
_LOOK_EVERY = timedelta(seconds=60)
_ROWS_EVERY = timedelta(seconds=1)  # all trials of a tick are read within less
_SETTLES = timedelta(seconds=120)


class PrefixReader(Protocol):
    """What lies under a prefix beside metrics."""

    def read(self, prefix: str) -> ProgressReport: ...

    def forget(self, prefix: str) -> None: ...


@dataclass(slots=True)
class _Seen:
    """How far a metric of one job was read."""

    until: datetime
    fresh: list[tuple[datetime, float]] = field(default_factory=list)


@dataclass(slots=True)
class _TrialView:
    """One trial, as read so far."""

    attempts: Sequence[Attempt]
    steps: dict[str, int] = field(default_factory=dict)  # by metric: the highest step given out
    final: set[int] = field(default_factory=set)  # attempts whose last values were read


class CloudMetrics:
    """`Progress` of one study. `live` are its unfinished trials with their attempts, as recorded."""

    def __init__(
        self,
        inner: PrefixReader,
        aws: Aws,
        jobs: JobService,
        *,
        live: Callable[[], Iterable[tuple[Trial, Sequence[Attempt], object]]],
        metrics: Sequence[str],
        clock: Clock,
    ) -> None:
        self._inner = inner
        self._aws = aws
        self._jobs = jobs
        self._live = live
        self._metrics = tuple(metrics)
        self._clock = clock
        self._views: dict[str, _TrialView] = {}  # by prefix
        self._seen: dict[tuple[str, str], _Seen] = {}  # by job, metric
        self._asked_at: datetime | None = None  # the store
        self._looked_at: datetime | None = None

    def read(self, prefix: str) -> ProgressReport:
        """What is new. Raises OSError for services that do not answer."""
        report = self._inner.read(prefix)
        try:
            self._look()
            points = list(self._points(prefix))
        except AwsError as error:
            raise OSError(str(error)) from error
        return replace(report, points=tuple(points), more=report.more or not self._is_complete(prefix))

    def forget(self, prefix: str) -> None:
        """A trial has ended."""
        self._inner.forget(prefix)
        view = self._views.pop(prefix, None)
        for attempt in view.attempts if view else ():
            for metric in self._metrics:
                self._seen.pop((attempt.job_name, metric), None)

    def _is_complete(self, prefix: str) -> bool:
        """Whether the last attempt is recorded as ended and its last values were read."""
        view = self._views.get(prefix)
        return view is None or not view.attempts or view.attempts[-1].number in view.final

    # --- CloudWatch

    def _look(self) -> None:
        """Bring everything up to date: CloudWatch at most once a minute, the rows once a tick."""
        now = self._clock.now()
        if self._asked_at is None or now - self._asked_at >= _ROWS_EVERY:
            for trial, attempts, _ in self._live():
                self._views.setdefault(trial.prefix, _TrialView(())).attempts = attempts
            self._asked_at = now
        if self._looked_at is not None and now - self._looked_at < _LOOK_EVERY:
            return
        wanted = [
            (attempt.job_name, metric)
            for view in self._views.values()
            for attempt in view.attempts
            if attempt.arn is not None and attempt.number not in view.final
            for metric in self._metrics
            if self._since(attempt, metric).until < now - _SETTLES
        ]
        waiting = iter(wanted)
        while some := list(islice(waiting, _QUERIES_MAX)):
            self._fetch(some, now - _SETTLES)
        self._looked_at = now

    def _since(self, attempt: Attempt, metric: str) -> _Seen:
        begun_at = attempt.submitted_at or attempt.created_at
        return self._seen.setdefault((attempt.job_name, metric), _Seen(begun_at.replace(second=0, microsecond=0)))

    def _fetch(self, wanted: Sequence[tuple[str, str]], until: datetime) -> None:
        request: dict[str, Any] = {
            "MetricDataQueries": [_query(f"q{place}", *each) for place, each in enumerate(wanted)],
            "StartTime": min(self._seen[each].until for each in wanted),
            "EndTime": until,
            "ScanBy": "TimestampAscending",
        }
        found: dict[tuple[str, str], list[tuple[datetime, float]]] = {}
        while True:
            page = ask(self._aws.client("cloudwatch").get_metric_data, **request)
            for each in page["MetricDataResults"]:
                minutes = zip(each["Timestamps"], each["Values"], strict=True)
                found.setdefault(wanted[int(each["Id"][1:])], []).extend(minutes)
            if not page.get("NextToken"):
                break
            request["NextToken"] = page["NextToken"]
        for each in wanted:  # only now: a page that failed leaves nothing half read
            seen = self._seen[each]
            seen.fresh += sorted(minute for minute in found.get(each, ()) if minute[0] >= seen.until)
            if seen.fresh:
                seen.until = max(seen.until, seen.fresh[-1][0] + timedelta(seconds=_PERIOD_S))

    # --- points

    def _points(self, prefix: str) -> Iterator[MetricPoint]:
        view = self._views.get(prefix)
        for attempt in view.attempts if view else ():
            assert view is not None, "it has attempts"
            for metric in self._metrics:
                seen = self._seen.get((attempt.job_name, metric))
                for at, value in seen.fresh if seen else ():
                    view.steps[metric] = view.steps.get(metric, 0) + 1
                    yield _point(attempt, metric, view.steps[metric], at, value)
                if seen:
                    seen.fresh = []
            if not attempt.live and attempt.number not in view.final:
                yield from self._last_values(view, attempt)

    def _last_values(self, view: _TrialView, attempt: Attempt) -> Iterator[MetricPoint]:
        """Read once; later where the service does not answer now, which whoever observes jobs says."""
        try:
            found = {} if attempt.arn is None else self._jobs.describe(attempt.job_name).final_metrics
        except JobNotFound:
            found = {}  # deleted by somebody: what CloudWatch kept is all there is
        except JobError:
            return
        for metric, value in found.items():
            if metric in self._metrics:
                step = view.steps.setdefault(metric, 1)
                yield _point(attempt, metric, step, attempt.ended_at or self._clock.now(), value)
        view.final.add(attempt.number)


def _query(name: str, job: str, metric: str) -> dict[str, Any]:
    dimension = {"Name": _DIMENSION, "Value": job}
    about = {"Namespace": NAMESPACE, "MetricName": metric, "Dimensions": [dimension]}
    return {"Id": name, "MetricStat": {"Metric": about, "Period": _PERIOD_S, "Stat": "Average"}}


def _point(attempt: Attempt, metric: str, step: int, at: datetime, value: float) -> MetricPoint:
    return MetricPoint(attempt=attempt.number, run=RUN, host=_HOST, step=step, at=at, name=metric, value=value)
