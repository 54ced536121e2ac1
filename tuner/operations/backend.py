"""The worlds that an engine can be put into: which job service, which object store, which market.

A recorded study has a *place*: a state directory on this machine, or an account and region of AWS. Everything that
touches its jobs or objects asks its place for them, and cannot tell which one it is.

Rules: only this module, its callers and tests choose a world. Heavy imports (boto3, Optuna) stand inside functions, so
that verbs that only read the store do not pay for them. A study's place on AWS never speaks to another account than
the one recorded: there its jobs would seem deleted and its budget unspent.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tuner.aws.connections import Aws
from tuner.core.clock import Clock
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import trial_and_attempt
from tuner.core.records import Fact, Json, Study
from tuner.spec import workload
from tuner.spec.records import LocalMarket
from tuner.spec.study_file import COST_METRIC, StudySpec, from_json

if TYPE_CHECKING:
    from tuner.aws.rates import SharedCalls
    from tuner.core.jobs import JobService
    from tuner.engine.engine import Watcher, World
    from tuner.sagemaker.service import SageMakerJobs
    from tuner.search.proposer import Proposer
    from tuner.storage.bundle import Bundle
    from tuner.storage.objects import Objects
    from tuner.store.store import Store

LOCAL_DIR_VARIABLE = "TUNER_LOCAL"


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


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A state directory: jobs are processes of this machine, `s3://` is a tree."""

    directory: Path
    region: str

    def verify(self) -> None:
        """Raise UserError unless it is there: without it, every job would seem deleted and its work undone."""
        if not self.directory.is_dir():
            raise UserError(
                f"the state directory {self.directory} is not there; where it was moved or copied to DIR: "
                f"{LOCAL_DIR_VARIABLE}=DIR tuner resume",
                Exit.REFUSED,
            )

    def jobs(self) -> "SageMakerJobs":
        from tuner.local.transport import make_client  # noqa: PLC0415 - boto3 is slow to import
        from tuner.sagemaker.service import SageMakerJobs  # noqa: PLC0415

        return SageMakerJobs(make_client(self.directory, region=self.region))

    def objects(self) -> "Objects":
        from tuner.storage.objects import DirectoryObjects  # noqa: PLC0415 - keeps `status` lean

        return DirectoryObjects(self.directory / "s3")


@dataclass(frozen=True, slots=True)
class AwsPlace:
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


Place: TypeAlias = LocalPlace | AwsPlace


def moved_to(study: Study) -> Path | None:
    """Where a state directory went that is not where it was recorded: TUNER_LOCAL says it, and its jobs prove it."""
    if study.local_dir is None or Path(study.local_dir).is_dir():
        return None
    here = default_local_dir()
    found = here.glob(f"jobs/{study.key}-*")
    return here if any(trial_and_attempt(path.name, study.key) for path in found) else None


def place_of(study: Study) -> Place:
    """Where a recorded study's jobs and objects are."""
    return place(from_json(study.spec), None if study.local_dir is None else Path(study.local_dir))


def place(spec: StudySpec, local_dir: Path | None) -> Place:
    """The place of a study that may not be recorded yet; on AWS its study file is completed (`prepare`)."""
    if local_dir is not None:
        return LocalPlace(local_dir, spec.region)
    account = spec.account
    assert account is not None, "prepare gives every study of AWS a role, whose ARN names the account"
    settings = spec.sagemaker
    return AwsPlace(account, Aws(region=settings.region, profile=settings.profile, account=account))


def jobs_in_turn(study: Study, store: "Store", clock: Clock) -> "JobService":
    """The job service for a verb: it shares the account's calls with the engines, and waits for its turn."""
    from tuner.aws.rates import RateLimited, RetryingJobService  # noqa: PLC0415 - few verbs need it

    where = place_of(study)
    if isinstance(where, LocalPlace):
        return where.jobs()
    calls = _shared_calls(store, where.scope, clock, store.facts(where.scope))
    return RetryingJobService(RateLimited(where.jobs(next_page=calls.page), calls), clock)


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


def make_world(study: Study, spec: StudySpec, *, store: "Store", clock: Clock, watcher: "Watcher") -> "World":
    """Everything that the engine of a recorded study is given; a local market starts at the study's launch."""
    from tuner.engine.engine import World  # noqa: PLC0415 - imports Optuna
    from tuner.local.market import write_market  # noqa: PLC0415
    from tuner.storage.progress import PrefixProgress  # noqa: PLC0415

    where = place_of(study)
    if isinstance(where, LocalPlace):
        if spec.local is not None:
            write_market(where.directory, study.key, _market(spec.local, study))
        objects = where.objects()
    else:
        objects = where.objects(patient=False)
    world = World(
        store=store,
        clock=clock,
        jobs=where.jobs(),
        progress=lambda: PrefixProgress(objects),
        proposer=make_proposer,
        watcher=watcher,
    )
    if isinstance(where, LocalPlace):
        return world
    world = _counted(world, where, study)
    return world if workload.starts_bootstrap(spec) else _watched_by_cloudwatch(world, where, study, spec)


def _counted(world: "World", where: AwsPlace, study: Study) -> "World":
    """The world of an engine that shares its account's calls with others, and hears of changes where it can."""
    from tuner.aws.hints import hints_for  # noqa: PLC0415 - only engines on AWS need these
    from tuner.aws.rates import RateLimited  # noqa: PLC0415
    from tuner.engine.liveness import sync_delay_s  # noqa: PLC0415
    from tuner.storage.progress import ReadAhead  # noqa: PLC0415

    known = world.store.facts(where.scope)
    calls = _shared_calls(world.store, where.scope, world.clock, known)
    return replace(
        world,
        jobs=RateLimited(where.jobs(next_page=calls.page), calls),
        progress=lambda: ReadAhead(world.progress()),
        calls=calls,
        hints=hints_for(world.store, where.scope, where.aws, study.key, world.clock),
        sync_delay_s=sync_delay_s(known),
    )


def _watched_by_cloudwatch(world: "World", where: AwsPlace, study: Study, spec: StudySpec) -> "World":
    """The world of jobs without our bootstrap, which writes metrics under their prefixes."""
    from tuner.aws.metrics import CloudMetrics  # noqa: PLC0415 - few studies need it

    def progress() -> CloudMetrics:
        live = partial(world.store.live, study.id)
        return CloudMetrics(
            world.progress(), where.aws, world.jobs, live=live, metrics=_metrics(spec), clock=world.clock
        )

    return replace(world, progress=progress)


def _metrics(spec: StudySpec) -> list[str]:
    """What is looked for in CloudWatch: the objectives, and what the study file names beside them."""
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
