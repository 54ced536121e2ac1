"""A plain document to a `StudySpec`: one function per section of the study file, in its order.

What is checked here concerns one section alone; rules between sections and the world outside are `spec_check`'s. So a
spec that was accepted once can always be read back from the store, wherever its files have gone since.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tuner.spec.records import (
    DEFAULT_REGION,
    Backend,
    Budget,
    Capacity,
    Checkpoints,
    Component,
    Json,
    LocalMarket,
    Objective,
    SageMakerSettings,
    Search,
    Settings,
    StudySpec,
)
from tuner.spec.space import parse_space
from tuner.spec.training import parse_training
from tuner.spec.values import (
    INSTANCE_TYPE,
    METRIC_NAME,
    Reader,
    Section,
    SpecError,
    anything,
    distinct,
    duration,
    each,
    entries,
    flag,
    inside,
    money,
    one_of,
    path_from,
    positive,
    prose,
    s3_uri,
    shown,
    text,
    whole,
)

# What SageMaker takes (CreateTrainingJob), less what we add ourselves.
_MAX_TAGS = 40
# Job names have five digits for the trial.
_MAX_TRIALS = 99_999
_MAX_PARALLEL = 10_000

_NAME = text(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", "a name of a-z, 0-9 and - that neither begins nor ends in -", most=32)
_IDENTIFIER = text(r"[A-Za-z_][A-Za-z0-9_]*", "a class name such as TPESampler")
_REGION = text(r"[a-z]{2}(-[a-z]+)+-\d", f"an AWS region such as {DEFAULT_REGION}", most=32)
_AWS_ID = text(r"[-0-9a-zA-Z]+", "an id such as sg-0123456789abcdef0", most=32)
_TAG_TEXT = r"[\w\s.:/=+\-@]*"
_RESERVED_TAGS = ("aws:", "tuner:")

# Where a local study keeps its checkpoints: a directory of the local state behind an S3 URI.
_LOCAL_ROOT = "s3://tuner-local/"
_POLL = {"local": "1s", "sagemaker": "30s"}

TOP_LEVEL = (
    "name", "description", "objective", "space", "search", "trials", "parallel", "training", "capacity", "budget",
    "checkpoints", "prices", "tags", "backend", "sagemaker", "local", "settings",
)  # fmt: skip


def parse(document: Mapping[str, Json], base: Path, file: Path | None) -> StudySpec:
    """The spec that this document describes; relative paths in it are relative to `base`. Raises `SpecError`."""
    top = Section.open(dict(document), "", TOP_LEVEL)
    backend: Backend = top.get("backend", one_of("local", "sagemaker"), "local")
    return StudySpec(
        name=top.need("name", _NAME, "my-study"),
        description=top.get("description", prose, ""),
        objectives=top.need("objective", _objectives, "{metric: val_accuracy, direction: maximize}"),
        space=top.need("space", parse_space(base), "{lr: {type: float, low: 0.001, high: 0.1, log: true}}"),
        search=_search(top),
        trials=top.need("trials", whole(1, _MAX_TRIALS), "20"),
        parallel=top.get("parallel", whole(1, _MAX_PARALLEL), 1),
        training=top.need("training", parse_training(base), "{entry_point: train.py}"),
        capacity=_capacity(top),
        budget=_budget(top),
        checkpoints=_checkpoints(top, backend),
        prices=top.get("prices", entries(money, INSTANCE_TYPE), {}),
        tags=top.get("tags", _tags, {}),
        backend=backend,
        sagemaker=_sagemaker(top),
        local=top.find("local", _local(base)),
        settings=_settings(top, backend),
        file=file,
    )


def _section(top: Section, key: str, *known: str) -> Section:
    return Section.open(top.values.get(key), top.at(key), known)


def _objectives(value: Json, where: str) -> tuple[Objective, ...]:
    if not isinstance(value, list):
        return (_objective(value, where),)
    objectives = each(_objective, least=1, most=8)(value, where)
    distinct([objective.metric for objective in objectives], where)
    return objectives


def _objective(value: Json, where: str) -> Objective:
    section = Section.open(value, where, ("metric", "direction"))
    return Objective(
        metric=section.need("metric", METRIC_NAME, "val_accuracy"),
        direction=section.need("direction", one_of("maximize", "minimize"), "maximize"),
    )


def _search(top: Section) -> Search:
    section = _section(top, "search", "sampler", "pruner", "warm_start")
    return Search(
        sampler=section.get("sampler", _component, Component("TPESampler")),
        pruner=section.find("pruner", _component),
        warm_start=section.get("warm_start", each(_NAME), ()),
    )


def _component(value: Json, where: str) -> Component:
    if not isinstance(value, dict):
        raise SpecError(f"{where}: must be a mapping with a name, as in {{name: TPESampler}}, not {shown(value)}")
    section = Section(value, where)
    name = section.need("name", _IDENTIFIER, "TPESampler")
    arguments = {key: argument for key, argument in value.items() if key != "name"}
    for key in arguments:
        if not key.isidentifier():
            raise SpecError(f"{inside(where, key)}: is not the name of an argument")
    return Component(name, arguments)


def _capacity(top: Section) -> Capacity:
    section = _section(top, "capacity", "policy", "on_demand_after", "max_faults")
    after = _section(section, "on_demand_after", "losses")
    if section.has("on_demand_after") and not after.has("losses"):
        raise SpecError(f"{after.at('losses')}: is missing; write for example on_demand_after: {{losses: 3}}")
    return Capacity(
        policy=section.get("policy", one_of("spot", "on-demand", "auto"), "spot"),
        on_demand_after_losses=after.find("losses", whole(1, 1000)),
        max_faults=section.get("max_faults", whole(0, 1000), 3),
    )


def _budget(top: Section) -> Budget:
    section = _section(top, "budget", "usd", "per_trial_usd", "deadline")
    return Budget(section.find("usd", money), section.find("per_trial_usd", money), section.find("deadline", duration))


def _checkpoints(top: Section, backend: Backend) -> Checkpoints:
    section = _section(top, "checkpoints", "root", "keep")
    root = section.find("root", _s3_folder)
    return Checkpoints(
        root=root or (_LOCAL_ROOT if backend == "local" else None),
        keep=section.get("keep", one_of("best", "latest", "all", "none"), "all"),
    )


def _s3_folder(value: Json, where: str) -> str:
    """A prefix that ends in `/`: without it, the prefix of trial 1 would be one of trial 10, too."""
    uri = s3_uri(value, where)
    return uri if uri.endswith("/") else f"{uri}/"


def _tags(value: Json, where: str) -> dict[str, str]:
    what = "a text of letters, digits, spaces and . : / = + - @"
    tags = entries(text(_TAG_TEXT, what, most=256), text(_TAG_TEXT, what, most=128), most=_MAX_TAGS)(value, where)
    for name in tags:
        if name.lower().startswith(_RESERVED_TAGS):
            raise SpecError(f"{inside(where, name)}: tags that begin with aws: or tuner: are reserved; rename it")
    return tags


def _sagemaker(top: Section) -> SageMakerSettings:
    section = _section(
        top, "sagemaker", "region", "role", "profile", "volume_gb", "kms_key", "vpc", "zones", "network_isolation",
        "outputs", "request",
    )  # fmt: skip
    vpc = _section(section, "vpc", "security_groups", "subnets")
    has_groups, has_subnets = bool(vpc.values.get("security_groups")), bool(vpc.values.get("subnets"))
    if has_groups != has_subnets and not (has_groups and section.values.get("zones")):
        raise SpecError(f"{vpc.where}: needs both security_groups and subnets (or sagemaker.zones)")
    return SageMakerSettings(
        region=section.find("region", _REGION),
        role=section.find("role", text(r"\S+", "the name or ARN of an IAM role", most=2048)),
        profile=section.find("profile", text()),
        volume_gb=section.get("volume_gb", whole(1, 65_536), 30),
        kms_key=section.find("kms_key", text(r"\S+", "the id or ARN of a KMS key", most=2048)),
        security_groups=vpc.get("security_groups", each(_AWS_ID, most=5), ()),
        subnets=vpc.get("subnets", each(_AWS_ID, most=16), ()),
        zones=section.get("zones", entries(_AWS_ID), {}),
        network_isolation=section.get("network_isolation", flag, False),
        outputs=section.find("outputs", _s3_folder),
        request=section.get("request", entries(anything), {}),
    )


def _local(base: Path) -> Reader[LocalMarket | None]:
    def read(value: Json, where: str) -> LocalMarket | None:
        section = Section.open(value, where, ("interruptions",))
        return section.find("interruptions", lambda inner, at: _market(inner, at, base))

    return read


_MarketKind = Literal["at", "every", "trace"]
_MARKET_KEYS: dict[_MarketKind, tuple[str, ...]] = {"at": ("down",), "every": ("seed", "down"), "trace": ("speed",)}


def _market(value: Json, where: str, base: Path) -> LocalMarket:
    section = Section.open(value, where, ("at", "every", "trace", "seed", "speed", "down"))
    kinds = [key for key in _MARKET_KEYS if section.has(key)]
    if len(kinds) != 1:
        raise SpecError(f"{where}: needs exactly one of at, every and trace, as in {{every: 20s, seed: 1}}")
    for key in section.values:
        if section.has(key) and key not in (kinds[0], *_MARKET_KEYS[kinds[0]]):
            raise SpecError(f"{section.at(key)}: has no meaning beside {kinds[0]}; remove it")
    return LocalMarket(
        kind=kinds[0],
        at_s=_moments(section),
        every_s=section.find("every", duration),
        seed=section.get("seed", whole(0, 2**32 - 1), 0),
        trace=section.find("trace", path_from(base)),
        speed=section.get("speed", positive, 1.0),
        down_s=section.get("down", duration, 3.0),
    )


def _moments(section: Section) -> tuple[float, ...]:
    moments: tuple[float, ...] = section.get("at", each(duration, least=1), ())
    if list(moments) != sorted(set(moments)):
        raise SpecError(f"{section.at('at')}: must be in rising order, each moment once")
    return moments


def _settings(top: Section, backend: Backend) -> Settings:
    section = _section(top, "settings", "poll", "stop_within", "stop_grace", "upload_allowance")
    return Settings(
        poll_interval_s=section.get("poll", duration, duration(_POLL[backend], "")),
        stop_within_s=section.get("stop_within", duration, 300.0),
        stop_grace_s=section.get("stop_grace", duration, 120.0),
        upload_allowance_s=section.get("upload_allowance", duration, 300.0),
    )
