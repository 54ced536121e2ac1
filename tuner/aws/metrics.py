"""The progress of jobs without our bootstrap, from CloudWatch: no file under their prefixes holds their metrics.

They are built-in algorithms and images that start themselves (`entrypoint: image`). SageMaker finds the metrics in
such a job's log and puts them into CloudWatch, averaged over each minute and without a step; the last
value of each stands exactly in the job's description once it has ended.

Rules: the n-th minute in which a trial's job reported a metric stands for step n: the n-th epoch where epochs are
longer than a minute. One request asks for many jobs, at most once a minute; a minute is read when it is over and
settled, since log lines take a while to arrive. An attempt that has ended is read whole once a look covers its end:
then the last value replaces the one at its own highest step, so that a trial's value is exact, and not before, nor
before all earlier attempts are whole. So a reader that lived through everything and a new one give the same steps.
What follows from the rows is asked of the store, so that a new reader begins at the beginning. Checkpoints are looked
for under the prefix, as everywhere, and metrics as well: a script may report by `tuner.training` all the same. A metric
that lies there has true steps, so CloudWatch says no more of it, and never takes the place of what it says.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from tuner.aws.connections import Aws, AwsError, ask
from tuner.core.clock import Clock
from tuner.core.jobs import JobError, JobNotFound, JobService
from tuner.core.records import Attempt, MetricPoint, ProgressReport, Trial
from tuner.storage.progress import Progress

NAMESPACE = "/aws/sagemaker/TrainingJobs"
# Stands for the runs of a job, which cannot be told apart; it sorts before them, so that what they report wins.
RUN = "-cloudwatch"

_DIMENSION = "TrainingJobName"
_HOST = "algo-1"
_PERIOD_S = 60
_QUERIES_MAX = 500  # of one GetMetricData
_LOOK_EVERY = timedelta(seconds=60)
_ROWS_EVERY = timedelta(seconds=1)  # all trials of a tick are read within less
_SETTLES = timedelta(seconds=120)


@dataclass(slots=True)
class _MetricSeen:
    """How far one metric of a job was read."""

    until: datetime
    covered: datetime | None = None  # the last look asked for everything before this
    fresh: list[tuple[datetime, float]] = field(default_factory=list)


@dataclass(slots=True)
class _TrialView:
    """One trial, as read so far."""

    attempts: Sequence[Attempt]
    steps: dict[str, int] = field(default_factory=dict)  # by metric: the highest step given out
    told: set[tuple[int, str]] = field(default_factory=set)  # attempts and metrics with a step of their own
    elsewhere: set[str] = field(default_factory=set)  # metrics that lie under the prefix
    final: set[int] = field(default_factory=set)  # attempts that were read whole, their last values too

    @property
    def whole_through(self) -> int:
        """The last of the attempts that were read whole, as were all before it; 0 for none."""
        missing = (each.number for each in self.attempts if each.number not in self.final)
        return next(missing, self.attempts[-1].number + 1 if self.attempts else 1) - 1


class CloudMetrics:
    """`Progress` of one study. `live` are its unfinished trials with their attempts, as recorded."""

    def __init__(
        self,
        inner: Progress,
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
        self._seen: dict[tuple[str, str], _MetricSeen] = {}  # by job, metric
        self._asked_at: datetime | None = None  # the store
        self._looked_at: datetime | None = None

    def expect(self, prefixes: Iterable[str]) -> None:
        """Note which prefixes will be read next."""
        self._inner.expect(prefixes)

    def read(self, prefix: str) -> ProgressReport:
        """The new progress. Raises OSError if a service does not answer."""
        try:
            self._look()
        except AwsError as error:
            raise OSError(str(error)) from error
        report = self._inner.read(prefix)
        view = self._views.get(prefix, _TrialView(()))
        view.elsewhere |= {point.name for point in report.points}
        # what else lies there may be the same metrics
        points = () if report.more else self._points(view)
        return replace(report, points=(*report.points, *points), whole_through=view.whole_through)

    def forget(self, prefix: str) -> None:
        """Forget a trial that has ended."""
        self._inner.forget(prefix)
        view = self._views.pop(prefix, None)
        for attempt in view.attempts if view else ():
            for metric in self._metrics:
                self._seen.pop((attempt.job_name, metric), None)

    # --- CloudWatch

    def _look(self) -> None:
        """Bring everything up to date: CloudWatch at most once a minute, the rows once a tick."""
        now = self._clock.now()
        # a clock that was ahead, and was set back, hides nothing until it is there again
        if self._asked_at is None or abs(now - self._asked_at) >= _ROWS_EVERY:
            for trial, attempts, _ in self._live():
                self._views.setdefault(trial.prefix, _TrialView(())).attempts = attempts
            self._asked_at = now
        if self._looked_at is not None and abs(now - self._looked_at) < _LOOK_EVERY:
            return
        until = (now - _SETTLES).replace(second=0, microsecond=0)
        asked = {
            (attempt.job_name, metric): self._since(attempt, metric)
            for view in self._views.values()
            for attempt in view.attempts
            if attempt.arn is not None and attempt.number not in view.final
            for metric in self._metrics
        }
        waiting = iter([each for each, seen in asked.items() if seen.until < until])
        try:
            while some := list(islice(waiting, _QUERIES_MAX)):
                self._fetch(some, until)
        except AwsError as error:
            if not error.is_about_rights:
                raise
            # `doctor` told of it; what jobs were worth stands in their descriptions, and trials must end
        for seen in asked.values():
            seen.covered = until
        self._looked_at = now

    def _since(self, attempt: Attempt, metric: str) -> _MetricSeen:
        begun_at = attempt.submitted_at or attempt.created_at
        return self._seen.setdefault((attempt.job_name, metric), _MetricSeen(begun_at.replace(second=0, microsecond=0)))

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

    def _points(self, view: _TrialView) -> Iterator[MetricPoint]:
        for attempt in view.attempts:
            for metric in self._metrics:
                seen = self._seen.get((attempt.job_name, metric))
                for at, value in seen.fresh if seen and metric not in view.elsewhere else ():
                    yield _point(attempt, metric, _next_step(view, attempt, metric), at, value)
                if seen:
                    seen.fresh = []
            if not attempt.live and attempt.number not in view.final and self._is_settled(attempt):
                yield from self._last_values(view, attempt)
            if attempt.number not in view.final:
                return  # steps are counted in the order of attempts

    def _is_settled(self, attempt: Attempt) -> bool:
        """Whether a look has covered the end of an attempt that has ended."""
        if attempt.arn is None:
            return True
        ended_at = attempt.ended_at or self._clock.now()
        looks = (self._since(attempt, metric).covered for metric in self._metrics)
        return all(covered is not None and covered >= ended_at for covered in looks)

    def _last_values(self, view: _TrialView, attempt: Attempt) -> Iterator[MetricPoint]:
        """Read the final values once, or later if the service does not answer (the observer of jobs reports that)."""
        try:
            found = {} if attempt.arn is None else self._jobs.describe(attempt.job_name).final_metrics
        except JobNotFound:
            found = {}  # deleted by somebody: what CloudWatch kept is all there is
        except JobError:
            return
        for metric, value in found.items():
            has_own = (attempt.number, metric) in view.told
            if metric in self._metrics and (has_own or metric not in view.elsewhere):
                step = view.steps[metric] if has_own else _next_step(view, attempt, metric)
                yield _point(attempt, metric, step, attempt.ended_at or self._clock.now(), value)
        view.final.add(attempt.number)


def _next_step(view: _TrialView, attempt: Attempt, metric: str) -> int:
    view.told.add((attempt.number, metric))
    view.steps[metric] = view.steps.get(metric, 0) + 1
    return view.steps[metric]


def _query(name: str, job: str, metric: str) -> dict[str, Any]:
    dimension = {"Name": _DIMENSION, "Value": job}
    about = {"Namespace": NAMESPACE, "MetricName": metric, "Dimensions": [dimension]}
    return {"Id": name, "MetricStat": {"Metric": about, "Period": _PERIOD_S, "Stat": "Average"}}


def _point(attempt: Attempt, metric: str, step: int, at: datetime, value: float) -> MetricPoint:
    return MetricPoint(attempt=attempt.number, run=RUN, host=_HOST, step=step, at=at, name=metric, value=value)
