"""The one job of `doctor --first-dollar`: what is asked for, and what it can cost at most.

Rules: the ceiling is known before anything is created and is below five cents even if AWS bills the whole of
`MaxWaitTimeInSeconds`. All of it lies below one prefix. The job is as the study's own jobs are, except for its machine,
its code and its limits; where its image is another, the user is told before.
"""

import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib import resources
from pathlib import Path

from tuner.aws.iam_policy import PROBE_PREFIX
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import (
    Channel,
    JobRequest,
)
from tuner.core.prices import PriceUnknown, Rate, RateCard, cost_microusd, usd
from tuner.core.records import Json
from tuner.spec.records import MICROUSD
from tuner.spec.study_file import StudySpec
from tuner.spec.workload import ENTRYPOINT, STUDY_TAG, root
from tuner.storage import bundle as packaging
from tuner.storage.objects import Objects

INSTANCE_TYPE = "ml.m5.large"  # the cheapest of those that accounts may use on spot without asking
CEILING_USD = Decimal("0.05")

_MAX_RUN_S = 300
_MAX_WAIT_S, _MAX_WAIT_LEAST_S = 900, 420
# What may be billed after the last limit: the stop's grace, and uploading next to nothing.
AFTER_S = 120 + 180
# Room for a framework image. The study's own volume may cost more than the instance: a terabyte is $0.20 an hour.
_VOLUME_GB = 30
_LETTERS = "bcdfghjklmnpqrstvwxz"
_SCRIPT = "first_dollar_probe.py"
# A framework's image for these is another than the one for CPUs.
_ACCELERATED = ("ml.p", "ml.g", "ml.trn", "ml.inf")
# Members of `sagemaker.request` that the probe leaves out. Some are about other machines, which may be billed
# separately; one limit is for accelerated instances only; and one would register a version of a model without use.
_NOT_OURS = (
    "ResourceConfig", "StoppingCondition", "DebugRuleConfigurations", "ProfilerRuleConfigurations",
    "ModelPackageConfig",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The intervals of the probe; tests use shorter ones."""

    poll_s: float = 5.0
    beat_s: float = 5.0
    beats: int = 12  # files in the store before the job is stopped
    settle_s: float = 30.0  # how long the bill, the list and the last event may follow the end
    listen_s: int = 1  # how long a look into the queue of events waits, in whole seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """The request, and the most that it can cost."""

    spec: StudySpec
    name: str
    rate: Rate
    max_wait_s: int
    ceiling_microusd: int

    @property
    def base(self) -> str:
        """The prefix of everything that is written."""
        return f"{root(self.spec)}doctor/{self.name}/"

    def lines(self, study: StudySpec) -> list[str]:
        """The lines that the user agrees to; `study` is the file as written."""
        spec = self.spec
        source = f"{self.rate.basis}, {self.rate.as_of}" if self.rate.as_of else self.rate.basis
        return [
            f"one spot job on 1 x {INSTANCE_TYPE} in {spec.region}, named {self.name}",
            f"image {spec.training.image_uri}, role {spec.sagemaker.role}",
            *_other_image(study),
            f"it is stopped after a minute or two of training, at the latest after {self.max_wait_s} s of waiting",
            f"at ${self.rate.usd_per_hour:f}/h ({source}) it costs at most {usd(self.ceiling_microusd)}; its disk less",
        ]


def _other_image(study: StudySpec) -> Iterator[str]:
    kinds = [kind for kind in study.training.instance_types if kind.startswith(_ACCELERATED)]
    if study.training.framework is not None and kinds:
        yield f"that is the framework's image for CPUs: the one for {', '.join(kinds)} is another, and is not tried"


def smallest(spec: StudySpec) -> StudySpec:
    """The study, cut down to the one job: then image, quota and price are looked up for its type, and its request.

    Raises UserError for a study that has no image to try it with.
    """
    if spec.training.algorithm is not None:
        raise UserError(
            f"doctor: study {spec.name} trains a built-in algorithm, which carries no code of ours: "
            "name a study with an image",
            Exit.USAGE,
        )
    return replace(
        spec,
        trials=1,
        parallel=1,
        training=replace(spec.training, instance_types=(INSTANCE_TYPE,), instance_count=1, inputs=(), secrets={}),
        sagemaker=replace(spec.sagemaker, request=_raw(spec.sagemaker.request)),
        capacity=replace(spec.capacity, policy="spot", on_demand_after_losses=None),
        budget=replace(spec.budget, usd=None, per_trial_usd=None),
    )


def plan(spec: StudySpec, rates: Mapping[str, Rate], rng: random.Random) -> ProbePlan:
    """What a completed study's account is asked for. Raises UserError where five cents cannot be promised."""
    try:
        rate = rates.get(INSTANCE_TYPE) or RateCard(spec.prices).rate(INSTANCE_TYPE, spec.region)
    except PriceUnknown as error:
        raise UserError(f"doctor: no ceiling can be promised: {error}", Exit.USAGE) from error
    affordable_s = int(CEILING_USD * MICROUSD * 3600 / rate.microusd_per_hour) - AFTER_S - 1
    max_wait_s = min(_MAX_WAIT_S, affordable_s)
    if max_wait_s < _MAX_WAIT_LEAST_S:
        raise UserError(
            f"doctor: at ${rate.usd_per_hour:f}/h a job on {INSTANCE_TYPE} cannot be kept below ${CEILING_USD}: "
            "use a region where it is cheaper",
            Exit.REFUSED,
        )
    return ProbePlan(
        spec=spec,
        name=PROBE_PREFIX + "".join(rng.choice(_LETTERS) for _ in range(6)),
        rate=rate,
        max_wait_s=max_wait_s,
        ceiling_microusd=cost_microusd(max_wait_s + AFTER_S, 1, rate.microusd_per_hour),
    )


def upload_probe(planned: ProbePlan, objects: Objects) -> str:
    with tempfile.TemporaryDirectory() as folder:
        script = resources.files("tuner.aws").joinpath(_SCRIPT).read_bytes()
        (Path(folder) / _SCRIPT).write_bytes(script)
        bundle = packaging.make_bundle(Path(folder), _SCRIPT, "python", [])
    return packaging.upload(bundle, objects, planned.base)


def probe_request(planned: ProbePlan, code_uri: str, pace: Pace) -> JobRequest:
    spec = planned.spec
    cloud = spec.sagemaker
    return JobRequest(
        name=planned.name,
        hyperparameters={"beat": str(pace.beat_s)},
        environment={},
        entrypoint=ENTRYPOINT,
        image_uri=spec.training.image_uri or "",
        channels=(Channel(name="code", uri=code_uri),),
        checkpoint_uri=f"{planned.base}checkpoints/",
        output_uri=f"{planned.base}outputs/",
        instance_type=INSTANCE_TYPE,
        instance_count=1,
        volume_gb=min(cloud.volume_gb, _VOLUME_GB),
        spot=True,
        max_run_s=_MAX_RUN_S,
        max_wait_s=planned.max_wait_s,
        role_arn=cloud.role or "",
        tags={**spec.tags, STUDY_TAG: planned.name},
        security_groups=cloud.vpc.security_groups,
        subnets=cloud.vpc.subnets or tuple(cloud.zones.values()),
        kms_key=cloud.kms_key or "",
        network_isolation=cloud.network_isolation,
        raw=cloud.request,
    )


def _raw(request: Mapping[str, Json]) -> dict[str, Json]:
    """The members of the study's own request that the probe needs too, such as those for a private registry."""
    kept = {name: value for name, value in request.items() if name not in _NOT_OURS}
    algorithm = kept.get("AlgorithmSpecification")
    if isinstance(algorithm, dict):  # the container is started by us, also where the study leaves it to its image
        ours = ("ContainerEntrypoint", "ContainerArguments")
        kept["AlgorithmSpecification"] = {name: value for name, value in algorithm.items() if name not in ours}
    return kept
