"""The `training` section of a study file: what runs, on what, and how its output is read.

Its limits are those of CreateTrainingJob, less what the tuner adds itself, so that SageMaker refuses no job for what
stands here.
"""

import os
import re
import warnings
from dataclasses import replace
from typing import Any

from tuner.spec.channels import INPUTS
from tuner.spec.keys import Key, Section, record, wrapped
from tuner.spec.records import Framework, Json, Metric, RetryRule, Training
from tuner.spec.space import MAX_VALUE_CHARACTERS, PARAM_NAME
from tuner.spec.values import (
    INSTANCE_TYPE,
    METRIC_NAME,
    SECONDS,
    Form,
    Kind,
    Schema,
    SpecError,
    Where,
    duration,
    each,
    entries,
    one_of,
    path,
    shown,
    text,
    whole,
    whole_seconds,
)

_MAX_METRICS = 40
_MAX_REGEX = 500
_MAX_ENVIRONMENT = 512
_MAX_RUN_S = 28 * 86_400
# How long a spot job of an algorithm that does not checkpoint may wait and run on SageMaker.
ALGORITHM_WAIT_S = 3600
_WITHOUT_ALGORITHM = ("entry_point", "source_dir", "launcher", "framework")
_VARIABLE = text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable", most=_MAX_ENVIRONMENT)
# Variables that others set, so that the value of a study file would be lost.
_SET_BY_OTHERS = (
    ("the tuner", re.compile("TUNER_.*")),
    ("SageMaker", re.compile("TRAINING_JOB_(NAME|ARN)|AWS_REGION|AWS_CONTAINER_.*")),
    (
        "SageMaker's toolkit, or another starter of the script,",
        re.compile(
            "SM_(HPS|HP_.*|USER_ARGS|USER_ENTRY_POINT|MODULE_NAME|MODULE_DIR|MODEL_DIR|INPUT_DIR|INPUT_CONFIG_DIR"
            "|INPUT_DATA_CONFIG|OUTPUT_DIR|OUTPUT_DATA_DIR|OUTPUT_INTERMEDIATE_DIR|CHANNELS|CHANNEL_.*|RESOURCE_CONFIG"
            "|CURRENT_HOST|HOSTS|CURRENT_INSTANCE_TYPE|NETWORK_INTERFACE_NAME|NUM_CPUS|NUM_GPUS|NUM_NEURONS|LOG_LEVEL"
            "|TRAINING_ENV)"
        ),
    ),
)
_NEVER_WRITTEN = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


# -- readers of single values --


def _relative(value: Json, where: Where) -> str:
    inner = _RELATIVE.read(value, where)
    if inner.startswith("/") or ".." in inner.split("/"):
        raise SpecError(f"{where}: must lie inside source_dir, not {shown(inner)}; write it relative to source_dir")
    return os.path.normpath(inner)


def _hyperparameter(value: Json, where: Where) -> Json:
    if value is None:
        raise SpecError(f"{where}: has no value; give it one or remove it")
    return value


def _variable(value: Json, where: Where) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise SpecError(f"{where}: must be a text, not {shown(value)}; put it in quotes")
    if len(value) > _MAX_ENVIRONMENT:
        raise SpecError(f"{where}: has {len(value)} characters; at most {_MAX_ENVIRONMENT} are allowed")
    return value


def _own_variable(value: Json, where: Where) -> str:
    name = _VARIABLE.read(value, where)
    for who, names in _SET_BY_OTHERS:
        if names.fullmatch(name):
            raise SpecError(f"{where}: is reserved: {who} sets it; give yours another name")
    return name


def _plain_variable(value: Json, where: Where) -> str:
    name = _own_variable(value, where)
    if name in _NEVER_WRITTEN:
        raise SpecError(f"{where}: is a secret, and would be stored; write it as training.secrets")
    return name


def _secret(value: Json, where: Where) -> str:
    if not isinstance(value, dict):
        # the value is not repeated: it may be the secret itself
        raise SpecError(f"{where}: must be a reference, as in {{from_env: NAME}}; never write a secret here")
    return str(_FROM_ENV.read(value, where))


def _regex(groups: int | None = None) -> Kind[str]:
    plain = text(r".+", "a regular expression", most=_MAX_REGEX)

    def read(value: Json, where: Where) -> str:
        pattern = plain.read(value, where)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = re.compile(pattern).groups
        except (re.error, OverflowError, RecursionError, Warning) as error:
            raise SpecError(f"{where}: is not a valid regular expression: {error}") from None
        if groups is not None and found != groups:
            raise SpecError(f"{where}: must have exactly one group (…), not {found}; write (?:…) for the others")
        return pattern

    return Kind(read, plain.schema)


# -- what stands in lists and mappings --

_RELATIVE = text(r"[^\\]+", "a path relative to source_dir")
_NO_NAMES = "(?!(?:" + "|".join(names.pattern for _, names in _SET_BY_OTHERS) + ")$)"
_FROM_ENV = wrapped(
    Key(
        name="from_env",
        kind=_VARIABLE,
        about="The variable that holds the secret where the tuner runs.",
        example="WANDB_API_KEY",
    )
)


def _names(*never: str) -> Schema:
    beyond = "".join(f"(?!{name}$)" for name in never)
    return {**_VARIABLE.schema, "pattern": f"^{_NO_NAMES}{beyond}[A-Za-z_][A-Za-z0-9_]*$"}


_ENVIRONMENT = entries(
    Kind(_variable, {"type": ["string", "number"], "maxLength": _MAX_ENVIRONMENT}),
    Kind(_plain_variable, _names(*_NEVER_WRITTEN)),
)
_SECRETS = entries(replace(_FROM_ENV, read=_secret), Kind(_own_variable, _names()))
_ANY_VALUE = {"type": ["string", "number", "boolean", "object", "array"], "maxLength": MAX_VALUE_CHARACTERS}
_HYPERPARAMETERS = entries(Kind(_hyperparameter, _ANY_VALUE), PARAM_NAME)

_METRIC = record(
    Metric,
    (
        Key(name="name", kind=METRIC_NAME, about="The metric's name, as in `objective`.", example="val_accuracy"),
        Key(
            name="regex",
            kind=_regex(groups=1),
            about="A regular expression whose one group is the value.",
            example="'val_accuracy=([-+0-9.e]+)'",
        ),
        Key(
            name="step_regex",
            kind=_regex(groups=1),
            about="A regular expression whose one group is the step (epoch); resume is proven by steps.",
        ),
    ),
    nulls=False,
)

_FRAMEWORK = record(
    Framework,
    (
        Key(
            name="name",
            kind=text(r"[a-z][a-z0-9-]*", "a name such as pytorch", most=40),
            about="The framework, in SageMaker's words.",
            example="pytorch",
        ),
        Key(
            name="version",
            kind=text(r"\d+(\.\d+)*", "a version in quotes, such as '2.5.1'", most=20),
            about="Its version, in quotes.",
            example="2.5.1",
        ),
        Key(
            name="python",
            kind=text(r"py\d+", "a Python version such as py311", most=8),
            about="The version of Python, such as `py311`.",
            example="py311",
        ),
    ),
)


def _check_retry_rule(section: Section) -> None:
    if section.has("exit_code") == section.has("log"):
        raise SpecError(f"{section.where}: must be one of {{exit_code: 75}} and {{log: 'regular expression'}}")


_RETRY_RULE = record(
    RetryRule,
    (
        Key(name="exit_code", kind=whole(1, 255), about="The exit code of the script."),
        Key(name="log", kind=_regex(), about="A regular expression that matches in the script's last lines."),
    ),
    check=_check_retry_rule,
    rules={
        "oneOf": [
            {"required": ["exit_code"], "properties": {"exit_code": {"type": ["integer", "string"]}}},
            {"required": ["log"], "properties": {"log": {"type": "string"}}},
        ]
    },
    nulls=False,
)

# -- the section --


def _check_program(section: Section) -> None:
    if section.has("algorithm"):
        for key in _WITHOUT_ALGORITHM:
            if section.has(key):
                raise SpecError(f"{section.at(key)}: cannot stand beside algorithm; remove one of them")
    elif not section.has("entry_point"):
        raise SpecError(f"{section.at('entry_point')}: is missing; write for example entry_point: train.py")


def _settle(section: Section, values: dict[str, Any]) -> None:
    max_run_s = values["max_run_s"]
    if section.has("algorithm"):
        values["source_dir"] = None
    if values["max_wait_s"] is None:
        wait_s = max(ALGORITHM_WAIT_S, max_run_s) if section.has("algorithm") else 4 * max_run_s
        values["max_wait_s"] = wait_s
    if values["max_wait_s"] < max_run_s:
        raise SpecError(f"{section.at('max_wait')}: must be at least max_run, since it includes the running")


def _write(training: Training, form: Form) -> Json:
    document = _RECORD.write(training, form)
    assert isinstance(document, dict), "a record is a mapping"
    return {**document, "launcher": None} if training.algorithm else document


_KEYS = (
    Key(
        name="entry_point",
        kind=Kind(_relative, {**_RELATIVE.schema, "pattern": r"^(?!/)(?!(?:.*/)?\.\.(?:/|$))[^\\]+$"}),
        about="The script, inside `source_dir`.",
        unset="required, except with `algorithm`",
        shapes=True,
    ),
    Key(
        name="source_dir",
        kind=path,
        about="The folder that is packed for jobs; its file `.tunerignore` names what is not packed.",
        default=".",
        shapes=True,
    ),
    Key(
        name="algorithm",
        kind=text(r"[a-zA-Z0-9./:_-]+", "the name of an algorithm", most=170),
        about=(
            "In place of `entry_point`: an algorithm of the account by name or ARN, or with `image_uri` one of "
            "SageMaker's own; on SageMaker only, without code or bootstrap, and its resume is unproven."
        ),
        shapes=True,
    ),
    Key(
        name="hyperparameters",
        kind=_HYPERPARAMETERS,
        about="Fixed hyperparameters, which the script gets in addition to the proposed ones.",
        default={},
        shapes=True,
    ),
    Key(
        name="environment",
        kind=_ENVIRONMENT,
        about=(
            "Variables of the job, at most 95 with the secrets; names that the tuner, SageMaker or its toolkit sets "
            "are refused."
        ),
        default={},
        shapes=True,
    ),
    Key(
        name="secrets",
        kind=_SECRETS,
        about=(
            "Variables of the job whose values come from the environment of the process that submits it, as in "
            "`{WANDB_API_KEY: {from_env: WANDB_API_KEY}}`."
        ),
        default={},
    ),
    Key(
        name="metrics",
        kind=each(_METRIC, most=_MAX_METRICS, unique=lambda metric: metric.name),
        about="Metrics that are found in the script's output.",
        default=[],
        shapes=True,
    ),
    Key(
        name="instance_types",
        kind=each(INSTANCE_TYPE, least=1, most=20, unique=str),
        about="Instance types in order of preference.",
        default=["ml.m5.xlarge"],
    ),
    Key(
        name="instance_count",
        kind=whole(1, 1000),
        about="Instances of one job; more than 1 on SageMaker only.",
        default=1,
        # reservations and results are compared between all trials of a study
        change="never",
    ),
    Key(
        name="launcher",
        kind=one_of("python", "torchrun"),
        about=(
            "`torchrun` starts a process for each GPU (without GPUs as many as `PET_NPROC_PER_NODE` in `environment` "
            "says), over all hosts; rank 0 saves and reports. MPI and SageMaker's own libraries (SMDDP, SMP) are not "
            "supported."
        ),
        default="python",
        shapes=True,
    ),
    Key(
        name="entrypoint",
        kind=one_of("bootstrap", "image"),
        about="`image` leaves the image's own entrypoint: its resume is unproven; on SageMaker only.",
        default="bootstrap",
        shapes=True,
    ),
    Key(
        name="image_uri",
        kind=text(r"\S+", "the URI of an image", most=255),
        about="The container's image; locally this Python runs.",
        shapes=True,
    ),
    Key(
        name="framework",
        kind=_FRAMEWORK,
        about=(
            "In place of `image_uri`: the framework whose image the SageMaker SDK (extra `sagemaker`) finds at launch; "
            "on SageMaker only."
        ),
        shapes=True,
    ),
    Key(
        name="inputs",
        kind=INPUTS,
        about="Channels by name: an address (`s3://…`, locally also `file://…`), or a mapping.",
        default={},
        shapes=True,
    ),
    Key(
        name="max_run",
        kind=whole_seconds(_MAX_RUN_S),
        field="max_run_s",
        about="The training time of a trial over all its attempts, and what the budget reserves for it.",
        default="1h",
        unit=SECONDS,
    ),
    Key(
        name="max_wait",
        kind=whole_seconds(),
        field="max_wait_s",
        about=(
            "The time of one spot job, waiting and training. SageMaker takes at most 1h from spot jobs of algorithms "
            "that do not checkpoint."
        ),
        unset="four times `max_run`; with `algorithm` 1h, or `max_run` if that is longer",
        unit=SECONDS,
        change="harmless",
    ),
    Key(
        name="stall_after",
        kind=duration,
        field="stall_after_s",
        about=(
            "A job that gives no metric and no checkpoint for this long is stopped and tried again as a fault. Only "
            "the engine's own looks count: an engine that was away, or could not read the bucket, starts to count "
            "again, and cycles of `--once` only warn."
        ),
        unit=SECONDS,
    ),
    Key(
        name="retry_on",
        kind=each(_RETRY_RULE),
        about="Script errors that are worth another attempt: `{exit_code: 75}` or `{log: regex}`.",
        default=[],
    ),
)

_IS_TEXT = {"type": "string"}
_RECORD = record(
    Training,
    _KEYS,
    check=_check_program,
    settle=_settle,
    rules={
        "oneOf": [
            {"required": ["entry_point"], "properties": {"entry_point": _IS_TEXT, "algorithm": {"type": "null"}}},
            {
                "required": ["algorithm"],
                "properties": {
                    "algorithm": _IS_TEXT,
                    **{name: {"type": "null"} for name in _WITHOUT_ALGORITHM},
                },
            },
        ],
        "anyOf": [
            {"properties": {"image_uri": {"type": "null"}}},
            {"properties": {"framework": {"type": "null"}}},
        ],
    },
)
TRAINING = replace(_RECORD, write=_write)
# What shapes the result of a trial, as fields of the record.
SHAPING = tuple(key.attribute for key in _KEYS if key.shapes)
