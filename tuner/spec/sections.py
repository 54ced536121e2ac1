"""The sections of a study file, in its order, and the file as a whole: `STUDY`.

Rules: a check here concerns one section alone. Rules between sections, and rules about files and prices, are in
`check`. Therefore a spec that was accepted once can always be read back from the store, even if its files are gone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tuner.spec.keys import Key, Section, mapping_schema, record, wrapped
from tuner.spec.records import (
    DEFAULT_REGION,
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
    Vpc,
)
from tuner.spec.space import SPACE
from tuner.spec.training import TRAINING
from tuner.spec.values import (
    INSTANCE_TYPE,
    METRIC_NAME,
    SECONDS,
    Form,
    Kind,
    SpecError,
    Where,
    anything,
    duration,
    each,
    entries,
    flag,
    money,
    one_of,
    path,
    positive,
    prose,
    s3_folder,
    shown,
    text,
    whole,
)

# The limits of CreateTrainingJob, less what the tuner adds itself.
_MAX_TAGS = 40
# Job names have five digits for the trial.
_MAX_TRIALS = 99_999
_MAX_PARALLEL = 10_000

_NAME = text(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", "a name of a-z, 0-9 and - that neither begins nor ends in -", most=32)
_IDENTIFIER = text(r"[A-Za-z_][A-Za-z0-9_]*", "a class name such as TPESampler")
_REGION = text(r"[a-z]{2}(-[a-z]+)+-\d", f"an AWS region such as {DEFAULT_REGION}", most=32)
_AWS_ID = text(r"[-0-9a-zA-Z]+", "an id such as sg-0123456789abcdef0", most=32)
_TAG_TEXT = r"[\w\s.:/=+\-@]*"
_TAG_WHAT = "a text of letters, digits, spaces and . : / = + - @"
_RESERVED_TAGS = ("aws:", "tuner:")

# Where a local study keeps its checkpoints: a directory of the local state behind an S3 URI.
_LOCAL_ROOT = "s3://tuner-local/"
_POLL_S = {"local": 1.0, "sagemaker": 30.0}

# -- objective --

_OBJECTIVE = record(
    Objective,
    (
        Key(
            name="metric",
            kind=METRIC_NAME,
            about="The metric that is optimised; `cost_usd` is what a trial has cost.",
            example="val_accuracy",
        ),
        Key(
            name="direction",
            kind=one_of("maximize", "minimize"),
            about="Whether a larger value is better, or a smaller one.",
            example="maximize",
        ),
    ),
)
_SEVERAL = each(_OBJECTIVE, least=1, most=8, unique=lambda objective: objective.metric)


def _read_objectives(value: Json, where: Where) -> tuple[Objective, ...]:
    return _SEVERAL.read(value, where) if isinstance(value, list) else (_OBJECTIVE.read(value, where),)


_OBJECTIVES = replace(_SEVERAL, read=_read_objectives, schema={"anyOf": [_OBJECTIVE.schema, _SEVERAL.schema]}, many="")

# -- search --


_CLASS = Key(
    name="name", kind=_IDENTIFIER, about="The name of Optuna's class; its arguments follow.", example="TPESampler"
)


def _read_component(value: Json, where: Where) -> Component:
    if not isinstance(value, dict):
        raise SpecError(f"{where}: must be a mapping with a name, as in {{name: TPESampler}}, not {shown(value)}")
    name = Section(value, where).read(_CLASS)
    arguments = {key: argument for key, argument in value.items() if key != "name"}
    for key in arguments:
        if not key.isidentifier():
            raise SpecError(f"{where.inside(key)}: is not the name of an argument")
    return Component(name, arguments)


def _write_component(component: Component, form: Form) -> Json:  # noqa: ARG001 - a writer as the others
    return {"name": component.name, **component.arguments}


_COMPONENT = Kind(
    _read_component,
    {
        **mapping_schema((_CLASS,)),
        "additionalProperties": True,
        "propertyNames": {"pattern": r"^[^\d\W]\w*$"},
    },
    _write_component,
    (_CLASS,),
)

_SEARCH = record(
    Search,
    (
        Key(
            name="sampler",
            kind=_COMPONENT,
            about="Any Optuna sampler by its name, with its arguments.",
            default={"name": "TPESampler"},
        ),
        Key(name="pruner", kind=_COMPONENT, about="Any Optuna pruner by its name, with its arguments."),
        Key(
            name="warm_start",
            kind=each(_NAME),
            about=(
                "Earlier studies of the same store by name: the sampler learns from their finished trials, which count "
                "neither in `trials` nor in `best`."
            ),
            default=[],
            change="never",
        ),
    ),
)

# -- capacity, budget, checkpoints --

_LOSSES = Key(
    name="losses",
    kind=whole(1, 1000),
    about="How many losses a trial has before it goes on on demand.",
    example="3",
)


_CAPACITY = record(
    Capacity,
    (
        Key(
            name="policy",
            kind=one_of("spot", "on-demand", "auto"),
            about="What jobs run on; `auto` is not built.",
            default="spot",
        ),
        Key(
            name="on_demand_after",
            field="on_demand_after_losses",
            kind=wrapped(_LOSSES),
            about=(
                "`{losses: N}`: a trial that lost its capacity N times (interruptions, and attempts that never got "
                "capacity) goes on on demand. So does a trial that trained through three whole runs without a newer "
                "checkpoint, or from zero each time."
            ),
        ),
        Key(
            name="max_faults",
            kind=whole(0, 1000),
            about="Service faults and retried script errors that a trial may have; interruptions never count.",
            default=3,
        ),
    ),
)

_BUDGET = record(
    Budget,
    (
        Key(
            name="usd",
            kind=money,
            about="The most that the study may spend.",
            unit="US dollars",
            settable=True,
        ),
        Key(
            name="per_trial_usd",
            kind=money,
            about="The most that one trial may spend.",
            unit="US dollars",
            settable=True,
        ),
        Key(
            name="deadline",
            field="deadline_s",
            kind=duration,
            about="The time since launch after which jobs stop at their next checkpoint and the study rests.",
            unit=SECONDS,
            settable=True,
        ),
    ),
)

_CHECKPOINTS = record(
    Checkpoints,
    (
        Key(
            name="root",
            kind=s3_folder,
            about="Where checkpoints lie; a trial's prefix is `ROOT/STUDY-KEY/TRIAL/`.",
            unset=f"`{_LOCAL_ROOT}`; on SageMaker the account's default bucket",
            change="never",
        ),
        Key(
            name="keep",
            kind=one_of("best", "latest", "all", "none"),
            about=(
                "What stays of trials that have ended: `latest` (the newest complete step), `best` (the latest step of "
                "the best and the failed trials), `none` or `all`. Models and other outputs stay with them; under "
                "`none` the models of the best trials stay, and `sagemaker.outputs` is never deleted from. It is "
                "applied when a study comes to rest, and by `tuner gc`. The step that stays is read once and its "
                "hashes compared before others go."
            ),
            default="all",
            change="harmless",
        ),
    ),
)

# -- tags, sagemaker --


def _tag_name(value: Json, where: Where) -> str:
    name = text(_TAG_TEXT, _TAG_WHAT, most=128).read(value, where)
    if name.lower().startswith(_RESERVED_TAGS):
        raise SpecError(f"{where}: tags that begin with aws: or tuner: are reserved; rename it")
    return name


_TAGS = entries(
    text(_TAG_TEXT, _TAG_WHAT, most=256, unicode=True),
    Kind(_tag_name, {"pattern": "^(?![aA][wW][sS]:|[tT][uU][nN][eE][rR]:)", "maxLength": 128}),
    most=_MAX_TAGS,
)

_VPC = record(
    Vpc,
    (
        Key(name="security_groups", kind=each(_AWS_ID, most=5), about="Security groups of the jobs.", default=[]),
        Key(name="subnets", kind=each(_AWS_ID, most=16), about="Subnets that jobs may run in.", default=[]),
    ),
)


def _check_vpc(section: Section, values: dict[str, Any]) -> None:
    vpc: Vpc = values["vpc"]
    if bool(vpc.security_groups) != bool(vpc.subnets) and not (vpc.security_groups and values["zones"]):
        raise SpecError(f"{section.at('vpc')}: needs both security_groups and subnets (or sagemaker.zones)")


_SAGEMAKER = record(
    SageMakerSettings,
    (
        Key(
            name="region",
            kind=_REGION,
            about="The AWS region; a local study looks up its prices there.",
            unset="the region of your profile; locally `us-east-1`",
            change="never",
        ),
        Key(
            name="role",
            kind=text(r"\S+", "the name or ARN of an IAM role", most=2048),
            about="The name or ARN of the role that jobs run as.",
            unset="in a notebook its role (extra `sagemaker`)",
        ),
        Key(name="profile", kind=text(), about="The AWS profile whose credentials are used."),
        Key(
            name="volume_gb",
            kind=whole(1, 65_536),
            about="The size of each instance's volume; not sent for instances whose volume is their own NVMe disk.",
            default=30,
            unit="GB",
        ),
        Key(
            name="kms_key",
            kind=text(r"\S+", "the id or ARN of a KMS key", most=2048),
            about="The key that encrypts volumes and outputs.",
        ),
        Key(name="vpc", kind=_VPC, about="The network of the jobs.", default={}),
        Key(
            name="zones",
            kind=entries(_AWS_ID),
            about="Maps a zone to a subnet: an attempt then runs in the zone that placement chose.",
            default={},
        ),
        Key(
            name="network_isolation",
            kind=flag,
            about=(
                "Jobs have no network, so a packed `requirements.txt` needs a line `--no-index` (what it names is in "
                "the image, or a wheel in the bundle). The local service accepts it and cannot enforce it."
            ),
            default=False,
        ),
        Key(
            name="outputs",
            kind=s3_folder,
            about="Where jobs put their models and other outputs.",
            unset="a folder under `checkpoints.root`",
        ),
        Key(
            name="request",
            kind=replace(entries(anything), many=""),
            about=(
                "Other members of CreateTrainingJob, merged into each request, as in "
                "`{EnableInterContainerTrafficEncryption: true}`. What the tuner sets itself, and what SageMaker does "
                "not know, is refused by name."
            ),
            default={},
        ),
    ),
    settle=_check_vpc,
)

# -- local, settings --

_MarketKind = Literal["at", "every", "trace"]
_MARKET_KEYS: dict[_MarketKind, tuple[str, ...]] = {"at": ("down",), "every": ("seed", "down"), "trace": ("speed",)}


def _check_market(section: Section) -> None:
    kinds = [key for key in _MARKET_KEYS if section.has(key)]
    if len(kinds) != 1:
        raise SpecError(f"{section.where}: needs exactly one of at, every and trace, as in {{every: 20s, seed: 1}}")
    for key in section.values:
        if section.has(key) and key not in (kinds[0], *_MARKET_KEYS[kinds[0]]):
            raise SpecError(f"{section.at(key)}: has no meaning beside {kinds[0]}; remove it")


def _settle_market(section: Section, values: dict[str, Any]) -> None:
    values["kind"] = next(key for key in _MARKET_KEYS if section.has(key))
    values["at_s"] = moments = values["at_s"] or ()
    if list(moments) != sorted(set(moments)):
        raise SpecError(f"{section.at('at')}: must be in rising order, each moment once")


def _write_market(market: LocalMarket, form: Form) -> Json:
    """The keys that have a meaning for this kind of market."""
    document = _ANY_MARKET.write(market, form)
    assert isinstance(document, dict), "a record is a mapping"
    used = (market.kind, *_MARKET_KEYS[market.kind])
    return {key: value for key, value in document.items() if key in used}


_ANY_MARKET = record(
    LocalMarket,
    (
        Key(
            name="at",
            field="at_s",
            kind=each(duration, least=1),
            about="Interrupt at these moments since launch, in rising order.",
            unit=SECONDS,
        ),
        Key(
            name="every",
            field="every_s",
            kind=duration,
            about="Interrupt at random gaps with this mean.",
            unit=SECONDS,
        ),
        Key(
            name="trace",
            kind=path,
            about="Interrupt as this recorded trace says: a CSV file of `start_s,duration_s,instances_up`.",
        ),
        Key(
            name="seed",
            kind=whole(0, 2**32 - 1),
            about="The seed of the gaps of `every`.",
            default=0,
        ),
        Key(name="speed", kind=positive, about="How many times faster `trace` runs.", default=1),
        Key(
            name="down",
            field="down_s",
            kind=duration,
            about="How long capacity is away; with `at` and `every`.",
            default="3s",
            unit=SECONDS,
        ),
    ),
    check=_check_market,
    settle=_settle_market,
    rules={
        "oneOf": [
            {
                "required": [kind],
                "properties": {
                    kind: {"not": {"type": "null"}},
                    **{
                        other: {"type": "null"}
                        for other in ("at", "every", "trace", "seed", "speed", "down")
                        if other not in (kind, *used)
                    },
                },
            }
            for kind, used in _MARKET_KEYS.items()
        ]
    },
)
_MARKET = replace(_ANY_MARKET, write=_write_market)
_LOCAL = wrapped(
    Key(
        name="interruptions",
        kind=_MARKET,
        about="When a local study loses its whole pool: one of `at`, `every` and `trace`.",
    )
)

_SETTINGS = record(
    Settings,
    (
        Key(
            name="poll",
            field="poll_interval_s",
            kind=duration,
            about="How often the engine looks at jobs.",
            unset="`1s`; on SageMaker `30s`",
            unit=SECONDS,
        ),
        Key(
            name="stop_within",
            field="stop_within_s",
            kind=duration,
            about="How long a stop waits for a checkpoint that is newer than the request.",
            default="5m",
            unit=SECONDS,
        ),
        Key(
            name="stop_grace",
            field="stop_grace_s",
            kind=duration,
            about="The time between SIGTERM and SIGKILL, as the budget reserves it.",
            default="2m",
            unit=SECONDS,
        ),
        Key(
            name="upload_allowance",
            field="upload_allowance_s",
            kind=duration,
            about="The time of the final upload, as the budget reserves it.",
            default="5m",
            unit=SECONDS,
        ),
    ),
)

# -- the whole file --


def _settle(_: Section, values: dict[str, Any]) -> None:
    """Fill in what depends on the backend and is not in the file."""
    backend = values["backend"]
    checkpoints, settings = values["checkpoints"], values["settings"]
    if checkpoints.root is None and backend == "local":
        values["checkpoints"] = replace(checkpoints, root=_LOCAL_ROOT)
    if settings.poll_interval_s is None:
        values["settings"] = replace(settings, poll_interval_s=_POLL_S[backend])


KEYS = (
    Key(
        name="name",
        kind=_NAME,
        about="The study's name, in the store and in the name of each job.",
        example="my-study",
        change="never",
    ),
    Key(name="description", kind=prose, about="A text of yours.", default="", change="harmless"),
    Key(
        name="objective",
        field="objectives",
        kind=_OBJECTIVES,
        about="What is optimised: `{metric, direction}`, or a list of them.",
        example="{metric: val_accuracy, direction: maximize}",
        change="never",
    ),
    Key(
        name="space",
        kind=SPACE,
        about=("The parameters by name, or `file.py:function` for a define-by-run function of an Optuna trial."),
        example="{lr: {type: float, low: 0.001, high: 0.1, log: true}}",
        shapes=True,
    ),
    Key(name="search", kind=_SEARCH, about="How parameters are proposed and trials judged.", default={}),
    Key(
        name="trials",
        kind=whole(1, _MAX_TRIALS),
        about="The total number of trials; a resumed study does not run as many more.",
        example="20",
        change="harmless",
        settable=True,
    ),
    Key(
        name="parallel",
        kind=whole(1, _MAX_PARALLEL),
        about="The number of jobs at a time.",
        default=1,
        change="harmless",
        settable=True,
    ),
    Key(
        name="training",
        kind=TRAINING,
        about="What runs, on what, and how its output is read.",
        example="{entry_point: train.py}",
    ),
    Key(name="capacity", kind=_CAPACITY, about="Spot or on demand.", default={}, change="harmless"),
    Key(name="budget", kind=_BUDGET, about="Limits of money and time.", default={}, change="harmless"),
    Key(name="checkpoints", kind=_CHECKPOINTS, about="Where checkpoints lie and which ones stay.", default={}),
    Key(
        name="prices",
        kind=entries(money, INSTANCE_TYPE),
        about="On-demand prices by instance type, which replace those of the shipped table.",
        default={},
        unit="US dollars an hour",
    ),
    Key(name="tags", kind=_TAGS, about="Tags of each job.", default={}, change="harmless"),
    Key(
        name="backend",
        kind=one_of("local", "sagemaker"),
        about="Where jobs run: on this machine or on SageMaker.",
        default="local",
        change="never",
    ),
    Key(name="sagemaker", kind=_SAGEMAKER, about="Settings of the account and of each request.", default={}),
    Key(name="local", kind=_LOCAL, about="Settings of a local study.", change="harmless"),
    Key(
        name="settings",
        kind=_SETTINGS,
        about="Timings of the engine; all of them are part of what an attempt reserves.",
        default={},
        change="harmless",
    ),
)

STUDY = record(StudySpec, KEYS, settle=_settle)


def parse(document: Mapping[str, Json], base: Path, file: Path | None, form: Form = "file") -> StudySpec:
    """The spec that this document describes; relative paths in it are relative to `base`. Raises `SpecError`."""
    return replace(STUDY.read(dict(document), Where("", base, form)), file=file)
