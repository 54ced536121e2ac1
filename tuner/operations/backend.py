"""The backend of a study: which job service, which object store, which market.

A recorded study has one backend: a state directory of this machine, or an account and region of AWS. A use case is
given `Backends`, asks it for the backend of a study, and cannot tell which of the two it has. Tests hand in others.

Rules: only `Backends` chooses a backend. Heavy imports (boto3, Optuna) stand inside functions, so that verbs that only
read the store do not pay for them. A backend on AWS never speaks to another account than the recorded one: there the
study's jobs would seem deleted and its budget unspent.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tuner.aws.connections import Aws
from tuner.core.clock import Clock
from tuner.core.commands import Command, Message
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import trial_and_attempt
from tuner.core.records import Fact, Json, Study
from tuner.spec import workload
from tuner.spec.records import LocalMarket
from tuner.spec.study_file import COST_METRIC, StudySpec, spec_of

if TYPE_CHECKING:
    from tuner.aws.prepare import Prepared
    from tuner.aws.rates import SharedCalls
    from tuner.core.jobs import JobService
    from tuner.engine.engine import EngineListener, Services
    from tuner.sagemaker.service import SageMakerJobs
    from tuner.search.proposer import Proposer
    from tuner.storage.bundle import Bundle
    from tuner.storage.objects import Objects
    from tuner.store.store import Store

LOCAL_DIR_VARIABLE = "TUNER_LOCAL"
# Names of jobs, oldest first, and whether more may come.
ListedJobs: TypeAlias = Callable[[], tuple[Sequence[str], bool]]


def default_local_dir() -> Path:
    """Where a local study that is launched now keeps its jobs: TUNER_LOCAL, else `.tuner` here."""
    return Path(os.environ.get(LOCAL_DIR_VARIABLE) or ".tuner").absolute()


def make_proposer(spec: StudySpec) -> "Proposer":
    """The sampler's view of a study. Raises ProposalError for a sampler, pruner or space that cannot work."""
    from tuner.search.proposer import Proposer  # noqa: PLC0415 - Optuna is slow to import

    return Proposer(
        study_name=spec.name,
        objectives=spec.objectives,
        space=spec.space,
        sampler=spec.search.sampler,
        pruner=spec.search.pruner,
    )


class Backend(Protocol):
    """What a use case asks of the backend of one study."""

    def verify(self) -> None:
        """Raise UserError or AwsError unless it can be reached: else every job would seem deleted."""
        ...

    def objects(self) -> "Objects":
        """The object store for a verb: it tries again by itself."""
        ...

    def jobs_in_turn(self, store: "Store", clock: Clock) -> "JobService":
        """The job service for a verb: it shares the account's calls with the engines, and waits for its turn."""
        ...

    def services(
        self, study: Study, spec: StudySpec, *, store: "Store", clock: Clock, listener: "EngineListener"
    ) -> "Services":
        """Everything that the engine of a recorded study is given."""
        ...

    def logs(self, jobs: ListedJobs, spec: StudySpec, *, clock: Clock, tail: int | None, follow: bool) -> Iterator[str]:
        """The output of these jobs, run after run."""
        ...

    def prepared(self, spec: StudySpec, store: "Store", now: datetime) -> "Prepared":
        """The settings of a study after an accepted change, completed and checked. Raises UserError."""
        ...


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """A state directory: jobs are processes of this machine, `s3://` is a tree."""

    directory: Path
    region: str
    study: str  # for the command that goes on with it

    def verify(self) -> None:
        if not self.directory.is_dir():
            moved = f"the state directory {self.directory} is not there; where it was moved or copied to DIR: "
            raise UserError(Message(f"{moved}{LOCAL_DIR_VARIABLE}=DIR ", Command("resume", self.study)), Exit.REFUSED)

    def jobs(self) -> "SageMakerJobs":
        from tuner.local.transport import make_client  # noqa: PLC0415 - boto3 is slow to import
        from tuner.sagemaker.service import SageMakerJobs  # noqa: PLC0415

        return SageMakerJobs(make_client(self.directory, region=self.region))

    def objects(self) -> "Objects":
        from tuner.storage.objects import DirectoryObjects  # noqa: PLC0415 - keeps `status` lean

        return DirectoryObjects(self.directory / "s3")

    def jobs_in_turn(self, store: "Store", clock: Clock) -> "JobService":  # noqa: ARG002 - nobody counts local calls
        return self.jobs()

    def services(
        self, study: Study, spec: StudySpec, *, store: "Store", clock: Clock, listener: "EngineListener"
    ) -> "Services":
        """A local market starts at the study's launch."""
        from tuner.local.market import write_market  # noqa: PLC0415 - as above

        if spec.local is not None:
            write_market(self.directory, study.key, _market(spec.local, study))
        return _services(self.jobs(), self.objects(), store=store, clock=clock, listener=listener)

    def logs(
        self,
        jobs: ListedJobs,
        spec: StudySpec,  # noqa: ARG002 - a local job has one host
        *,
        clock: Clock,
        tail: int | None,
        follow: bool,
    ) -> Iterator[str]:
        from tuner.reports.local_jobs import read_logs  # noqa: PLC0415 - only `logs` needs it

        return read_logs(self.directory, jobs, tail=tail, follow=follow, clock=clock)

    def prepared(self, spec: StudySpec, store: "Store", now: datetime) -> "Prepared":  # noqa: ARG002 - nobody is asked
        from tuner.aws.prepare import Prepared  # noqa: PLC0415 - few verbs need it

        return Prepared(spec=spec, rates={}, warnings=(), quotas={})


@dataclass(frozen=True, slots=True)
class AwsBackend:
    """An account and a region of AWS."""

    account: str
    aws: Aws

    @property
    def scope(self) -> str:
        """What limits and facts of the account are recorded under."""
        return f"{self.account}/{self.aws.region}"

    def verify(self) -> None:
        """Raise AwsError unless these credentials work and are the account's."""
        self.aws.client("sts")

    def jobs(self, *, next_page: Callable[[], None] = lambda: None) -> "SageMakerJobs":
        from tuner.sagemaker.service import SageMakerJobs  # noqa: PLC0415 - as above

        return SageMakerJobs(self.aws.lasting("sagemaker"), next_page=next_page)

    def objects(self, *, patient: bool = True) -> "Objects":
        """`patient` tries again by itself: for verbs. An engine has a next tick, and a lease that runs out."""
        from tuner.storage.objects import S3Objects  # noqa: PLC0415 - as above

        return S3Objects(self.aws.lasting("s3", patient=patient))

    def jobs_in_turn(self, store: "Store", clock: Clock) -> "JobService":
        from tuner.aws.rates import RateLimited, RetryingJobService  # noqa: PLC0415 - few verbs need it

        calls = _shared_calls(store, self.scope, clock, store.facts(self.scope))
        return RetryingJobService(RateLimited(self.jobs(next_page=calls.page), calls), clock)

    def services(
        self, study: Study, spec: StudySpec, *, store: "Store", clock: Clock, listener: "EngineListener"
    ) -> "Services":
        given = _services(self.jobs(), self.objects(patient=False), store=store, clock=clock, listener=listener)
        given = self._shared(given, study)
        return given if workload.starts_bootstrap(spec) else self._with_cloudwatch(given, study, spec)

    def _shared(self, given: "Services", study: Study) -> "Services":
        """For an engine that shares its account's calls with others, and learns early of changes where it can."""
        from tuner.aws.hints import hints_for  # noqa: PLC0415 - only engines on AWS need these
        from tuner.aws.rates import RateLimited  # noqa: PLC0415
        from tuner.engine.liveness import sync_delay_s  # noqa: PLC0415
        from tuner.storage.progress import ReadAhead  # noqa: PLC0415

        known = given.store.facts(self.scope)
        calls = _shared_calls(given.store, self.scope, given.clock, known)
        return replace(
            given,
            jobs=RateLimited(self.jobs(next_page=calls.page), calls),
            progress=lambda: ReadAhead(given.progress()),
            calls=calls,
            hints=hints_for(given.store, self.scope, self.aws, study.key, given.clock),
            sync_delay_s=sync_delay_s(known),
        )

    def _with_cloudwatch(self, given: "Services", study: Study, spec: StudySpec) -> "Services":
        """For jobs without our bootstrap, which writes metrics under their prefixes."""
        from tuner.aws.metrics import CloudMetrics  # noqa: PLC0415 - few studies need it

        def progress() -> CloudMetrics:
            live = partial(given.store.live, study.id)
            return CloudMetrics(
                given.progress(), self.aws, given.jobs, live=live, metrics=_metrics(spec), clock=given.clock
            )

        return replace(given, progress=progress)

    def logs(self, jobs: ListedJobs, spec: StudySpec, *, clock: Clock, tail: int | None, follow: bool) -> Iterator[str]:
        from tuner.aws.logs import CloudLogs  # noqa: PLC0415 - only `logs` needs it

        hosts = spec.training.instance_count
        return CloudLogs(self.aws, jobs, clock, name_hosts=hosts > 1).read(tail=tail, follow=follow)

    def prepared(self, spec: StudySpec, store: "Store", now: datetime) -> "Prepared":
        from tuner.aws.prepare import prepare  # noqa: PLC0415 - few verbs need it

        return prepare(spec, self.aws, store, now)


class Backends:
    """Makes the backend of a study; what tests hand in says what the study's jobs and objects are."""

    def of(self, study: Study) -> Backend:
        """Where a recorded study's jobs and objects are."""
        return self.make(spec_of(study), None if study.local_dir is None else Path(study.local_dir))

    def make(self, spec: StudySpec, local_dir: Path | None) -> Backend:
        """For a study that may not be recorded yet; on AWS its study file is completed (`prepare`)."""
        return self.on_aws(spec) if local_dir is None else LocalBackend(local_dir, spec.region, spec.name)

    def on_aws(self, spec: StudySpec) -> AwsBackend:
        """The account and region of a completed study."""
        account = spec.account
        assert account is not None, "prepare gives every study of AWS a role, whose ARN names the account"
        settings = spec.sagemaker
        return AwsBackend(account, Aws(region=settings.region, profile=settings.profile, account=account))


BACKENDS = Backends()


def moved_to(study: Study) -> Path | None:
    """Where a state directory went that is not where it was recorded: TUNER_LOCAL says it, and its jobs prove it."""
    if study.local_dir is None or Path(study.local_dir).is_dir():
        return None
    here = default_local_dir()
    found = here.glob(f"jobs/{study.key}-*")
    return here if any(trial_and_attempt(path.name, study.key) for path in found) else None


def _services(
    jobs: "JobService", objects: "Objects", *, store: "Store", clock: Clock, listener: "EngineListener"
) -> "Services":
    from tuner.engine.engine import Services  # noqa: PLC0415 - imports Optuna
    from tuner.storage.progress import PrefixProgress  # noqa: PLC0415

    return Services(
        store=store,
        clock=clock,
        jobs=jobs,
        progress=lambda: PrefixProgress(objects),
        proposer=make_proposer,
        listener=listener,
    )


def _shared_calls(store: "Store", scope: str, clock: Clock, facts: Iterable[Fact]) -> "SharedCalls":
    """The account's calls. Raises UserError for a TUNER_CALLS that says nothing."""
    from tuner.aws.rates import SharedCalls, rates_within  # noqa: PLC0415 - only studies on AWS need it

    try:
        return SharedCalls(store, scope, clock, rates_within(facts))
    except ValueError as error:
        raise UserError(str(error), Exit.USAGE) from error


def make_bundle(spec: StudySpec) -> "Bundle":
    """The code of a study as it lies on disk now. Raises BundleRefused."""
    from tuner.storage import bundle as packaging  # noqa: PLC0415 - keeps `status` lean

    training = spec.training
    assert training.source_dir is not None, "an algorithm runs no code of ours"
    assert training.entry_point is not None, "an algorithm runs no code of ours"
    bundle = packaging.make_bundle(
        training.source_dir,
        training.entry_point,
        training.launcher,
        [(metric.name, metric.regex, metric.step_regex) for metric in training.metrics],
        exclude=[default_local_dir(), *([spec.file] if spec.file else [])],
    )
    if spec.backend == "sagemaker" and spec.sagemaker.network_isolation and workload.starts_bootstrap(spec):
        packaging.refuse_downloads(bundle)
    return bundle


def check_code(spec: StudySpec) -> None:
    """Raise BundleRefused for a source directory that cannot be packed. An algorithm runs no code of ours."""
    if spec.training.algorithm is None:
        make_bundle(spec)


def upload_bundle(spec: StudySpec, objects: "Objects") -> str:
    """Store that code, unless it is stored already; its address. Empty for an algorithm, which runs none of ours."""
    from tuner.storage import bundle as packaging  # noqa: PLC0415

    if spec.training.algorithm is not None:
        return ""
    return packaging.upload(make_bundle(spec), objects, workload.root(spec))


def _metrics(spec: StudySpec) -> list[str]:
    """Names of the metrics to read from CloudWatch: the objectives, and further ones that the study file names."""
    names = [objective.metric for objective in spec.objectives] + [metric.name for metric in spec.training.metrics]
    return [name for name in dict.fromkeys(names) if name != COST_METRIC]


def _market(market: LocalMarket, study: Study) -> dict[str, Json]:
    described: dict[str, Json] = {"started_at": study.created_at.isoformat(), "kind": market.kind}
    match market.kind:
        case "at":
            described |= {"at_s": list(market.at_s), "down_s": market.down_s}
        case "every":
            described |= {"mean_s": market.every_s, "seed": market.seed, "down_s": market.down_s}
        case "trace":
            described |= {"runs": _runs(market), "speed": market.speed}
    return described


def _runs(market: LocalMarket) -> list[Json]:
    from tuner.spec.traces import read  # noqa: PLC0415 - only replays need it

    assert market.trace is not None, "spec demands a file with kind: trace"
    return [[run.start_s, run.duration_s, run.instances_up] for run in read(market.trace).runs]
