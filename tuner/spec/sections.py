"""The sections of a study file, in its order, and the file as a whole: `STUDY`.

Rules: a check here concerns one section alone. Rules between sections, and rules about files and prices, are in
`check`. Therefore a spec that was accepted once can always be read back from the store, even if its files are gone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.spec.cloud import SAGEMAKER
from tuner.spec.keys import Key, Section, mapping_schema, record, wrapped
from tuner.spec.market import LOCAL
from tuner.spec.records import (
    Budget,
    Capacity,
    CheckpointSettings,
    Component,
    Json,
    Objective,
    Search,
    Settings,
    StudySpec,
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
    duration,
    each,
    entries,
    money,
    one_of,
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
    CheckpointSettings,
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

# -- tags --


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

# -- settings --

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
    Key(name="sagemaker", kind=SAGEMAKER, about="Settings of the account and of each request.", default={}),
    Key(name="local", kind=LOCAL, about="Settings of a local study.", change="harmless"),
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
