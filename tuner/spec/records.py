"""What a study file says, as records.

They mirror the file section by section: who knows one knows the other. Everything is in its final form: durations are
seconds, amounts are exact decimals, paths are absolute, defaults are filled in. Nothing is checked here, because
records come from `study_file.load` or `study_file.from_json`, which check.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, TypeAlias

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Scalar: TypeAlias = str | int | float | bool | None

Direction = Literal["maximize", "minimize"]
Backend = Literal["local", "sagemaker"]

# The metric of an objective that no script reports: what the trial has cost.
COST_METRIC = "cost_usd"
# Prices are looked up here if the file names no region, as in most local studies.
DEFAULT_REGION = "us-east-1"
MICROUSD = 1_000_000


@dataclass(frozen=True, slots=True)
class Objective:
    metric: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class FloatParam:
    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True, slots=True)
class IntParam:
    name: str
    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True, slots=True)
class CategoricalParam:
    name: str
    choices: tuple[Scalar, ...]


Param: TypeAlias = FloatParam | IntParam | CategoricalParam


@dataclass(frozen=True, slots=True)
class SpaceFunction:
    """A define-by-run space: `function(trial)` in the Python file at the absolute `path`."""

    path: str
    function: str


Space: TypeAlias = tuple[Param, ...] | SpaceFunction


@dataclass(frozen=True, slots=True)
class Component:
    """A sampler or a pruner by name, with the keyword arguments of the file as they stand there."""

    name: str
    arguments: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Search:
    sampler: Component
    pruner: Component | None
    warm_start: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is found in the script's output: each regular expression has exactly one group."""

    name: str
    regex: str
    step_regex: str | None


@dataclass(frozen=True, slots=True)
class Input:
    """A channel, in SageMaker's own words. None leaves a setting to SageMaker's default."""

    channel: str
    uri: str
    mode: Literal["File", "FastFile", "Pipe"]
    content_type: str | None = None
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] | None = None
    compression: Literal["None", "Gzip"] | None = None
    record_wrapper: Literal["None", "RecordIO"] | None = None
    data_type: Literal["S3Prefix", "ManifestFile", "AugmentedManifestFile"] | None = None
    attributes: tuple[str, ...] = ()  # of the lines of an augmented manifest


@dataclass(frozen=True, slots=True)
class Framework:
    name: str
    version: str
    python: str


@dataclass(frozen=True, slots=True)
class RetryRule:
    """A script error that is worth another attempt: by its exit code or by a match in its last lines."""

    exit_code: int | None
    log: str | None


@dataclass(frozen=True, slots=True)
class Training:
    """What runs. `entry_point` is relative to the absolute `source_dir`; both are None with an `algorithm`.

    `secrets` maps the name in the job's environment to the name in the launcher's environment. Values are never here.
    """

    entry_point: str | None
    source_dir: Path | None
    algorithm: str | None
    hyperparameters: Mapping[str, Json]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    metrics: tuple[Metric, ...]
    instance_types: tuple[str, ...]
    instance_count: int
    launcher: Literal["python", "torchrun"]
    entrypoint: Literal["bootstrap", "image"]
    image_uri: str | None
    framework: Framework | None
    inputs: tuple[Input, ...]
    max_run_s: int
    max_wait_s: int
    stall_after_s: float | None
    retry_on: tuple[RetryRule, ...]


@dataclass(frozen=True, slots=True)
class Capacity:
    policy: Literal["spot", "on-demand", "auto"]
    on_demand_after_losses: int | None
    max_faults: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Totals of the study; None is unlimited."""

    usd: Decimal | None
    per_trial_usd: Decimal | None
    deadline_s: float | None

    @property
    def microusd(self) -> int | None:
        return None if self.usd is None else int(self.usd * MICROUSD)

    @property
    def per_trial_microusd(self) -> int | None:
        return None if self.per_trial_usd is None else int(self.per_trial_usd * MICROUSD)


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """`root` is an `s3://` URI that ends in `/`; None is the account's default bucket (never for a local study)."""

    root: str | None
    keep: Literal["best", "latest", "all", "none"]


@dataclass(frozen=True, slots=True)
class LocalMarket:
    """When a local study loses its whole pool, in seconds since its launch.

    `at`: at these moments. `every`: at random gaps with this mean, drawn from `seed`. Both times for `down_s`.
    `trace`: as the recorded trace says, `speed` times faster.
    """

    kind: Literal["at", "every", "trace"]
    at_s: tuple[float, ...] = ()
    every_s: float | None = None
    seed: int = 0
    trace: Path | None = None
    speed: float = 1.0
    down_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Vpc:
    """The network of jobs. Both are set or neither; if `zones` names the subnets, groups alone are set."""

    security_groups: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SageMakerSettings:
    """`request` is merged into each CreateTrainingJob; `zones` maps an availability zone to a subnet."""

    region: str | None
    role: str | None
    profile: str | None
    volume_gb: int
    kms_key: str | None
    vpc: Vpc
    zones: Mapping[str, str]
    network_isolation: bool
    outputs: str | None
    request: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Settings:
    """Timings of the engine; all of them are part of what an attempt reserves."""

    poll_interval_s: float
    stop_within_s: float
    stop_grace_s: float
    upload_allowance_s: float


@dataclass(frozen=True, slots=True)
class StudySpec:
    """A whole study file.

    `warnings` belong to one reading of the file: they are neither stored nor compared. `overrides` are the assignments
    of `--set`. They are stored, so that the file can be read again in the same way.
    """

    name: str
    description: str
    objectives: tuple[Objective, ...]
    space: Space
    search: Search
    trials: int
    parallel: int
    training: Training
    capacity: Capacity
    budget: Budget
    checkpoints: CheckpointSettings
    prices: Mapping[str, Decimal]
    tags: Mapping[str, str]
    backend: Backend
    sagemaker: SageMakerSettings
    local: LocalMarket | None
    settings: Settings
    file: Path | None = None
    overrides: tuple[str, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def judges_steps(self) -> bool:
        """Whether a pruner looks at single steps of a trial: only then does the sampler's view hold them."""
        return len(self.objectives) == 1 and self.search.pruner is not None

    @property
    def region(self) -> str:
        """Where prices are looked up."""
        return self.sagemaker.region or DEFAULT_REGION

    @property
    def account(self) -> str | None:
        """The AWS account that a completed study runs in: that of its role, because a job takes no role of another."""
        parts = (self.sagemaker.role or "").split(":")
        return parts[4] if parts[0] == "arn" and len(parts) > 5 else None  # noqa: PLR2004 - arn:aws:iam::ACCOUNT:role/x

    @property
    def reservation_s(self) -> int:
        """The seconds that a first attempt reserves on each instance, by the rule of the budget."""
        timings = self.settings
        extra_s = timings.poll_interval_s + timings.stop_within_s + timings.stop_grace_s + timings.upload_allowance_s
        return math.ceil(self.training.max_run_s + extra_s)
