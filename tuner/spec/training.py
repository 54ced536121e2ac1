"""The `training` section of a study file: what runs, on what, and how its output is read.

Its limits are those of CreateTrainingJob, less what the tuner adds of its own, so that no job is refused later for
what stands here.
"""

import os
import re
import warnings
from pathlib import Path

from tuner.spec.records import Framework, Input, Json, Metric, RetryRule, Training
from tuner.spec.space import PARAM_NAME
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
    inside,
    one_of,
    path_from,
    s3_uri,
    shown,
    text,
    whole,
    whole_seconds,
)

_MAX_METRICS = 40
_MAX_REGEX = 500
_MAX_CHANNELS = 19
INPUT_KEYS = (
    "uri", "mode", "content_type", "distribution", "compression", "record_wrapper", "data_type", "attributes",
)  # fmt: skip
_MAX_ENVIRONMENT = 512
_MAX_RUN_S = 28 * 86_400
# How long SageMaker lets spot jobs of algorithms that do not checkpoint wait and run.
ALGORITHM_WAIT_S = 3600
_VARIABLE = text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable", most=_MAX_ENVIRONMENT)
# Variables whose values a study file would not get through, by who sets them.
_SET_BY_OTHERS = (
    ("the tuner", re.compile("TUNER_.*")),
    ("SageMaker", re.compile("TRAINING_JOB_(NAME|ARN)|AWS_REGION|AWS_CONTAINER_.*")),
    (
        "whatever starts the script, as SageMaker's toolkit does",
        re.compile(
            "SM_(HPS|HP_.*|USER_ARGS|USER_ENTRY_POINT|MODULE_NAME|MODULE_DIR|MODEL_DIR|INPUT_DIR|INPUT_CONFIG_DIR"
            "|INPUT_DATA_CONFIG|OUTPUT_DIR|OUTPUT_DATA_DIR|OUTPUT_INTERMEDIATE_DIR|CHANNELS|CHANNEL_.*|RESOURCE_CONFIG"
            "|CURRENT_HOST|HOSTS|CURRENT_INSTANCE_TYPE|NETWORK_INTERFACE_NAME|NUM_CPUS|NUM_GPUS|NUM_NEURONS|LOG_LEVEL"
            "|TRAINING_ENV)"
        ),
    ),
)
_NEVER_WRITTEN = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def parse_training(base: Path) -> Reader[Training]:
    def read(value: Json, where: str) -> Training:
        section = Section.open(
            value, where,
            ("entry_point", "source_dir", "algorithm", "hyperparameters", "environment", "secrets", "metrics",
             "instance_types", "instance_count", "launcher", "entrypoint", "image_uri", "framework", "inputs",
             "max_run", "max_wait", "stall_after", "retry_on"),
        )  # fmt: skip
        _check_program(section)
        max_run_s = section.get("max_run", whole_seconds(_MAX_RUN_S), 3600)
        by_algorithm = section.has("algorithm")
        wait_s = max(ALGORITHM_WAIT_S, max_run_s) if by_algorithm else 4 * max_run_s
        max_wait_s = section.get("max_wait", whole_seconds(), wait_s)
        if max_wait_s < max_run_s:
            raise SpecError(f"{section.at('max_wait')}: must be at least max_run, since it includes the running")
        return Training(
            entry_point=section.find("entry_point", _relative),
            source_dir=None if by_algorithm else section.get("source_dir", path_from(base), path_from(base)(".", "")),
            algorithm=section.find("algorithm", text(r"[a-zA-Z0-9./:_-]+", "the name of an algorithm", most=170)),
            hyperparameters=section.get("hyperparameters", entries(_hyperparameter, PARAM_NAME), {}),
            environment=section.get("environment", entries(_variable, _plain_variable), {}),
            secrets=section.get("secrets", entries(_secret, _own_variable), {}),
            metrics=section.get("metrics", _metrics, ()),
            instance_types=section.get("instance_types", _instance_types, ("ml.m5.xlarge",)),
            instance_count=section.get("instance_count", whole(1, 1000), 1),
            launcher=section.get("launcher", one_of("python", "torchrun"), "python"),
            entrypoint=section.get("entrypoint", one_of("bootstrap", "image"), "bootstrap"),
            image_uri=section.find("image_uri", text(r"\S+", "the URI of an image", most=255)),
            framework=section.find("framework", _framework),
            inputs=section.get("inputs", _inputs(base), ()),
            max_run_s=max_run_s,
            max_wait_s=max_wait_s,
            stall_after_s=section.find("stall_after", duration),
            retry_on=section.get("retry_on", each(_retry_rule), ()),
        )

    return read


def _check_program(section: Section) -> None:
    if section.has("algorithm"):
        for key in ("entry_point", "source_dir", "launcher", "framework"):
            if section.has(key):
                raise SpecError(f"{section.at(key)}: cannot stand beside algorithm; remove one of them")
    elif not section.has("entry_point"):
        raise SpecError(f"{section.at('entry_point')}: is missing; write for example entry_point: train.py")


def _relative(value: Json, where: str) -> str:
    path = text(r"[^\\]+", "a path relative to source_dir")(value, where)
    if path.startswith("/") or ".." in path.split("/"):
        raise SpecError(f"{where}: must lie inside source_dir, not {shown(path)}; write it relative to source_dir")
    return os.path.normpath(path)


def _hyperparameter(value: Json, where: str) -> Json:
    if value is None:
        raise SpecError(f"{where}: has no value; give it one or remove it")
    return value


def _variable(value: Json, where: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise SpecError(f"{where}: must be a text, not {shown(value)}; put it in quotes")
    if len(value) > _MAX_ENVIRONMENT:
        raise SpecError(f"{where}: has {len(value)} characters; at most {_MAX_ENVIRONMENT} are allowed")
    return value


def _own_variable(value: Json, where: str) -> str:
    name = _VARIABLE(value, where)
    for who, names in _SET_BY_OTHERS:
        if names.fullmatch(name):
            raise SpecError(f"{where}: is reserved: {who} sets it; give yours another name")
    return name


def _plain_variable(value: Json, where: str) -> str:
    name = _own_variable(value, where)
    if name in _NEVER_WRITTEN:
        raise SpecError(f"{where}: is a secret, and would be stored; write it as training.secrets")
    return name


def _secret(value: Json, where: str) -> str:
    if not isinstance(value, dict):
        # the value is not repeated: it may be the secret itself
        raise SpecError(f"{where}: must be a reference, as in {{from_env: NAME}}; never write a secret here")
    return Section.open(value, where, ("from_env",)).need("from_env", _VARIABLE, "WANDB_API_KEY")


def _metrics(value: Json, where: str) -> tuple[Metric, ...]:
    metrics = each(_metric, most=_MAX_METRICS)(value, where)
    distinct([metric.name for metric in metrics], where)
    return metrics


def _metric(value: Json, where: str) -> Metric:
    section = Section.open(value, where, ("name", "regex", "step_regex"))
    return Metric(
        name=section.need("name", METRIC_NAME, "val_accuracy"),
        regex=section.need("regex", _regex(groups=1), "'val_accuracy=([-+0-9.e]+)'"),
        step_regex=section.find("step_regex", _regex(groups=1)),
    )


def _regex(groups: int | None = None) -> Reader[str]:
    def read(value: Json, where: str) -> str:
        pattern = text(r".+", "a regular expression", most=_MAX_REGEX)(value, where)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = re.compile(pattern).groups
        except (re.error, OverflowError, RecursionError, Warning) as error:
            raise SpecError(f"{where}: is not a valid regular expression: {error}") from None
        if groups is not None and found != groups:
            raise SpecError(f"{where}: must have exactly one group (…), not {found}; write (?:…) for the others")
        return pattern

    return read


def _instance_types(value: Json, where: str) -> tuple[str, ...]:
    types = each(INSTANCE_TYPE, least=1, most=20)(value, where)
    distinct(types, where)
    return types


def _framework(value: Json, where: str) -> Framework:
    section = Section.open(value, where, ("name", "version", "python"))
    version = text(r"\d+(\.\d+)*", "a version in quotes, such as '2.5.1'", most=20)
    return Framework(
        name=section.need("name", text(r"[a-z][a-z0-9-]*", "a name such as pytorch", most=40), "pytorch"),
        version=section.need("version", version, "2.5.1"),
        python=section.need("python", text(r"py\d+", "a Python version such as py311", most=8), "py311"),
    )


def _inputs(base: Path) -> Reader[tuple[Input, ...]]:
    channel = text(r"[A-Za-z0-9._-]+", "a channel name of letters, digits, . _ and -", most=64)

    def read(value: Json, where: str) -> tuple[Input, ...]:
        inputs = entries(anything, channel, most=_MAX_CHANNELS)(value, where)
        if "code" in inputs:
            raise SpecError(f"{inside(where, 'code')}: is the channel of the code bundle; give yours another name")
        return tuple(_input(name, item, inside(where, name), base) for name, item in inputs.items())

    return read


def _input(channel: str, value: Json, where: str, base: Path) -> Input:
    section = Section.open({"uri": value} if isinstance(value, str) else value, where, INPUT_KEYS)
    uri = section.need("uri", text(what="an s3:// or file:// URI"), "s3://bucket/data/")
    if uri.startswith("file://"):
        uri = f"file://{path_from(base)(uri.removeprefix('file://'), section.at('uri'))}"
    else:
        s3_uri(uri, section.at("uri"))
    found = Input(
        channel,
        uri,
        mode=section.get("mode", one_of("File", "FastFile", "Pipe"), "File"),
        content_type=section.find("content_type", text(what="a type such as text/csv", most=256)),
        distribution=section.find("distribution", one_of("FullyReplicated", "ShardedByS3Key")),
        compression=section.find("compression", one_of("None", "Gzip")),
        record_wrapper=section.find("record_wrapper", one_of("None", "RecordIO")),
        data_type=section.find("data_type", one_of("S3Prefix", "ManifestFile", "AugmentedManifestFile")),
        attributes=section.get("attributes", each(text(most=256), least=1, most=16), ()),
    )
    _check_input(found, section)
    return found


def _check_input(found: Input, section: Section) -> None:
    """What SageMaker refuses: some things come through a pipe only."""
    is_augmented = found.data_type == "AugmentedManifestFile"
    for key, is_piped in (
        ("compression", found.compression == "Gzip"),
        ("record_wrapper", found.record_wrapper == "RecordIO"),
        ("data_type", is_augmented),
    ):
        if is_piped and found.mode != "Pipe":
            raise SpecError(f"{section.at(key)}: {section.values[key]} needs mode: Pipe, as SageMaker reads it")
    if is_augmented != bool(found.attributes):
        says = (
            "is missing; name those to read, as [source-ref, label]" if is_augmented else "needs an augmented manifest"
        )
        raise SpecError(f"{section.at('attributes')}: {says}")


def _retry_rule(value: Json, where: str) -> RetryRule:
    section = Section.open(value, where, ("exit_code", "log"))
    if section.has("exit_code") == section.has("log"):
        raise SpecError(f"{where}: must be one of {{exit_code: 75}} and {{log: 'regular expression'}}")
    return RetryRule(section.find("exit_code", whole(1, 255)), section.find("log", _regex()))
