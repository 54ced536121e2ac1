"""The worlds that an engine can be put into: which job service, which object store, which market.

Only this module, its caller `study` and tests choose a world. Heavy imports (boto3, Optuna) stand inside functions, so
that verbs that only read the store do not pay for them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import workload
from tuner.clock import Clock
from tuner.model import Json, Study
from tuner.spec import StudySpec
from tuner.spec_records import LocalMarket

if TYPE_CHECKING:
    from tuner.engine import Watcher, World
    from tuner.objects import Objects
    from tuner.packaging import Bundle
    from tuner.proposals import Proposer
    from tuner.sagemaker import SageMakerJobs
    from tuner.store import Store

LOCAL_DIR_VARIABLE = "TUNER_LOCAL"


def default_local_dir() -> Path:
    """Where a local study that is launched now keeps its jobs: TUNER_LOCAL, else `.tuner` here."""
    return Path(os.environ.get(LOCAL_DIR_VARIABLE) or ".tuner").absolute()


def make_proposer(spec: StudySpec) -> "Proposer":
    """The sampler's view of a study. Raises ProposalError for a sampler, pruner or space that cannot work."""
    from tuner.proposals import Proposer  # noqa: PLC0415 - Optuna is slow to import

    return Proposer(
        study_name=spec.name,
        objectives=spec.objectives,
        space=spec.space,
        sampler=spec.search.sampler,
        pruner=spec.search.pruner,
    )


def job_service(study: Study, spec: StudySpec) -> "SageMakerJobs":
    """The job service of a recorded study."""
    from tuner.local.transport import make_client  # noqa: PLC0415 - boto3 is slow to import
    from tuner.sagemaker import SageMakerJobs  # noqa: PLC0415

    return SageMakerJobs(make_client(local_dir(study), region=spec.region))


def object_store(directory: Path) -> "Objects":
    """What `s3://` means for a local study: a tree in its state directory."""
    from tuner.objects import DirectoryObjects  # noqa: PLC0415 - keeps `status` lean

    return DirectoryObjects(directory / "s3")


def make_bundle(spec: StudySpec) -> "Bundle":
    """The code of a study as it lies on disk now. Raises BundleRefused."""
    from tuner import packaging  # noqa: PLC0415 - keeps `status` lean

    training = spec.training
    assert training.source_dir is not None, "refused until algorithms are built"
    assert training.entry_point is not None, "refused until algorithms are built"
    return packaging.make_bundle(
        training.source_dir,
        training.entry_point,
        training.launcher,
        [(metric.name, metric.regex, metric.step_regex) for metric in training.metrics],
        exclude=[default_local_dir(), *([spec.file] if spec.file else [])],
    )


def upload_bundle(spec: StudySpec, directory: Path) -> str:
    """Store that code, unless it is stored already; its address."""
    from tuner import packaging  # noqa: PLC0415

    return packaging.upload(make_bundle(spec), object_store(directory), workload.root(spec))


def local_dir(study: Study) -> Path:
    assert study.local_dir is not None, f"study {study.name} is not a local one"
    return Path(study.local_dir)


def make_world(study: Study, spec: StudySpec, *, store: "Store", clock: Clock, watcher: "Watcher") -> "World":
    """Everything that the engine of a local study is given; its market starts at the study's launch."""
    from tuner.engine import World  # noqa: PLC0415 - imports Optuna
    from tuner.local.market import write_market  # noqa: PLC0415
    from tuner.progress import PrefixProgress  # noqa: PLC0415

    directory = local_dir(study)
    if spec.local is not None:
        write_market(directory, study.key, _market(spec.local, study))
    objects = object_store(directory)
    return World(
        store=store,
        clock=clock,
        jobs=job_service(study, spec),
        progress=lambda: PrefixProgress(objects),
        proposer=make_proposer,
        watcher=watcher,
    )


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
    from tuner.traces import read  # noqa: PLC0415 - only replays need it

    assert market.trace is not None, "spec demands a file with kind: trace"
    return [[run.start_s, run.duration_s, run.instances_up] for run in read(market.trace).runs]
