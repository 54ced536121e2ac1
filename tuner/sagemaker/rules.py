"""What SageMaker takes in a request: the shapes of botocore's own service model, and the rules between members.

botocore sends names that are too long, values that match no pattern and instance types that do not exist, and the
service refuses them one by one. Here all of it is found before anything is sent. The adapter and the local SageMaker
both use this module: there is one reading of the rules.

Rules: lengths, ranges, patterns, enums and required members come from the model, never from a list of ours; the texts
follow the service's. A value of the environment is never repeated, since it may be a secret. `file:///` passes where a
channel's S3 URI is meant: the local service reads it, and a study for AWS cannot hold it.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import botocore.session
from botocore.model import ServiceModel

_CREATE = "CreateTrainingJob"
MAX_RUN_S = 28 * 86_400

# The model is written for Java: its [\p{L}\p{Z}\p{N}_.:/=+\-@], for Python (whose \w has L, N and _).
_TAG_TEXT = r"[\w \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000.:/=+\-@]*"
_KINDS: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "timestamp": (int, float),
}
_SHOWN_CHARS = 80
_MANY_CHOICES = 20
# Instance families whose volume is the disk inside the machine: its size is fixed, and no key of ours encrypts it.
_LOCAL_DISKS = frozenset(
    (
        "g4dn", "g5", "g6", "g6e", "p3dn", "p4d", "p4de", "p5", "p5e", "p5en", "p6-b200", "p6-b300", "p6e-gb200",
        "r5d", "trn1", "trn1n", "trn2",
    )
)  # fmt: skip
_ACCELERATED = ("ml.p", "ml.g", "ml.trn")


@functools.cache
def aws_session() -> botocore.session.Session:
    """The one botocore session of this process that knows no user, since parsing SageMaker's model takes 50 ms.

    It reads no profile, no configuration and no credentials of the user.
    """
    nowhere = (None, None, "/dev/null", None)
    session = botocore.session.Session(
        session_vars={"profile": (None, None, None, None), "config_file": nowhere, "credentials_file": nowhere}
    )
    session.set_credentials("local", "local")
    return session


@functools.cache
def service_model() -> ServiceModel:
    return aws_session().get_service_model("sagemaker")


def has_local_disk(instance_type: str) -> bool:
    """Whether an instance's volume is its own NVMe disk, for which no size and no key can be asked."""
    return instance_type.removeprefix("ml.").rpartition(".")[0] in _LOCAL_DISKS


def violations(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Everything for which CreateTrainingJob would refuse these parameters, a line each; empty: nothing known."""
    shape = service_model().operation_model(_CREATE).input_shape
    nodes = list(_nodes(shape, dict(parameters), ""))
    faults = [fault for node in nodes for fault in _faults(*node)]
    # rules between members can only be asked of members that are what they should be
    is_sound = all(_is_a(each, value) for each, value, _ in nodes) and not any("not be null" in each for each in faults)
    return (*faults, *(create_faults(parameters) if is_sound else ()))


def shape_faults(operation: str, parameters: Mapping[str, Any]) -> list[str]:
    """What an operation's model refuses; unknown members are let through, as the service does."""
    shape = service_model().operation_model(operation).input_shape
    return [fault for node in _nodes(shape, dict(parameters), "") for fault in _faults(*node)]


# --- rules between members of CreateTrainingJob; the shapes hold


def create_faults(parameters: Mapping[str, Any]) -> Iterator[str]:
    for rule in (_stopping, _resources, _volume, _algorithm, _duplicates):
        yield from rule(parameters)


def _stopping(params: Mapping[str, Any]) -> Iterator[str]:
    condition = params.get("StoppingCondition", {})
    wait_s, run_s = condition.get("MaxWaitTimeInSeconds"), condition.get("MaxRuntimeInSeconds", 86_400)
    if params.get("EnableManagedSpotTraining"):
        if wait_s is None:
            yield "MaxWaitTimeInSeconds must be set when EnableManagedSpotTraining is set to true"
        elif wait_s < run_s:
            yield "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
    elif wait_s is not None:
        yield "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true"
    if run_s > MAX_RUN_S:
        yield f"MaxRuntimeInSeconds cannot exceed {MAX_RUN_S} seconds (28 days)"
    kind = params.get("ResourceConfig", {}).get("InstanceType", _ACCELERATED[0])
    if "MaxPendingTimeInSeconds" in condition and not kind.startswith(_ACCELERATED):
        yield f"MaxPendingTimeInSeconds is for accelerated instances only, which {kind} is not"


def _resources(params: Mapping[str, Any]) -> Iterator[str]:
    resources = params.get("ResourceConfig")
    if resources is None:
        yield "ResourceConfig is required to create a training job"
        return
    if params.get("EnableManagedSpotTraining"):
        for key in ("InstancePreferences", "KeepAlivePeriodInSeconds"):
            if resources.get(key):
                yield f"{key} cannot be used when EnableManagedSpotTraining is set to true"
    others = [key for key in ("InstanceGroups", "InstancePreferences") if resources.get(key)]
    for key in others:
        if resources.get("InstanceType"):
            yield f"InstanceType and {key} are mutually exclusive"
    if not others and not {"InstanceType", "InstanceCount"} <= resources.keys():
        yield "InstanceType and InstanceCount are required in ResourceConfig"


def _volume(params: Mapping[str, Any]) -> Iterator[str]:
    resources = params.get("ResourceConfig", {})
    kind = resources.get("InstanceType")
    if kind is None:
        return
    if has_local_disk(kind):
        if resources.get("VolumeKmsKeyId"):
            yield f"VolumeKmsKeyId cannot be set for {kind}: its volume is a local NVMe disk"
    elif "VolumeSizeInGB" not in resources:
        yield f"VolumeSizeInGB is required for {kind}, which has no local disk"


def _algorithm(params: Mapping[str, Any]) -> Iterator[str]:
    algorithm = params.get("AlgorithmSpecification")
    if algorithm is None:
        yield "AlgorithmSpecification is required to create a training job"
    elif ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm):
        yield "Exactly one of TrainingImage and AlgorithmName must be specified"


def _duplicates(params: Mapping[str, Any]) -> Iterator[str]:
    for member, key in (("Tags", "Key"), ("InputDataConfig", "ChannelName")):
        names = [entry[key] for entry in params.get(member, [])]
        if len(set(names)) < len(names):
            yield f"{member} has a duplicate {key}"
    if any(channel["ChannelName"] in {".", ".."} for channel in params.get("InputDataConfig", [])):
        yield "ChannelName cannot be '.' or '..'"


# --- what a study file may put into `sagemaker.request`

# What the tuner decides, and where a study file says it instead; None: nowhere, since the tuner rests on it.
_OURS: dict[tuple[str, ...], str | None] = {
    ("TrainingJobName",): None,
    ("CheckpointConfig",): "checkpoints.root",
    ("StoppingCondition", "MaxRuntimeInSeconds"): "training.max_run",
    ("StoppingCondition", "MaxWaitTimeInSeconds"): "training.max_wait",
    ("EnableManagedSpotTraining",): "capacity.policy",
    ("RetryStrategy",): "capacity.max_faults",
    ("HyperParameters",): "training.hyperparameters",
    ("Environment",): "training.environment",
    ("InputDataConfig",): "training.inputs",
    ("Tags",): "tags",
    ("RoleArn",): "sagemaker.role",
    ("VpcConfig",): "sagemaker.vpc",
    ("EnableNetworkIsolation",): "sagemaker.network_isolation",
    ("OutputDataConfig", "S3OutputPath"): "sagemaker.outputs",
    ("OutputDataConfig", "KmsKeyId"): "sagemaker.kms_key",
    ("AlgorithmSpecification", "TrainingImage"): "training.image_uri",
    ("AlgorithmSpecification", "AlgorithmName"): "training.algorithm",
    ("AlgorithmSpecification", "TrainingInputMode"): "training.inputs",
    ("AlgorithmSpecification", "MetricDefinitions"): "training.metrics",
    ("AlgorithmSpecification", "ContainerEntrypoint"): "training.entrypoint: image",
    ("AlgorithmSpecification", "ContainerArguments"): "training.entrypoint: image",
    ("ResourceConfig", "InstanceType"): "training.instance_types",
    ("ResourceConfig", "InstanceCount"): "training.instance_count",
    ("ResourceConfig", "VolumeSizeInGB"): "sagemaker.volume_gb",
    ("ResourceConfig", "VolumeKmsKeyId"): "sagemaker.kms_key",
    # other ways to instances, whose price and quota the tuner does not know
    ("ResourceConfig", "InstanceGroups"): "training.instance_types",
    ("ResourceConfig", "InstancePreferences"): "training.instance_types",
    ("ResourceConfig", "KeepAlivePeriodInSeconds"): None,
    ("ResourceConfig", "TrainingPlanArn"): None,
    ("ServerlessJobConfig",): None,
}
_FOR_IMAGES = ("ContainerEntrypoint", "ContainerArguments")


def raw_faults(raw: Mapping[str, Any], *, own_entrypoint: bool = True) -> Iterator[tuple[str, str]]:
    """Why raw members cannot be merged into a request of ours: dotted key and words, a pair for each fault.

    `own_entrypoint`: the container is started by our bootstrap, and not by what its image or `raw` says. Limits are
    those of the whole request: see `violations`.
    """
    for path, owner in _OURS.items():
        if _has(raw, path) and (own_entrypoint or path[-1] not in _FOR_IMAGES):
            yield ".".join(path), f"is set by the tuner itself; {f'use {owner}' if owner else 'remove it'}"
    yield from _strangers(service_model().operation_model(_CREATE).input_shape, raw, ())


def _has(raw: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    value: Any = raw
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def _strangers(shape: Any, value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON
    """Members that the model does not have, and values of another kind than it says."""
    if not _is_a(shape, value):
        yield ".".join(path), f"must be a {shape.type_name}"
    elif shape.type_name == "structure":
        for name, member in value.items():
            if name in shape.members:
                yield from _strangers(shape.members[name], member, (*path, name))
            else:
                near = get_close_matches(name, shape.members, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                yield ".".join((*path, name)), f"is not a member of SageMaker's {shape.name}{hint}"
    elif shape.type_name == "list":
        for number, member in enumerate(value):
            yield from _strangers(shape.member, member, (*path[:-1], f"{path[-1]}[{number}]"))
    elif shape.type_name == "map":
        for key, member in value.items():
            yield from _strangers(shape.value, member, (*path, key))


# --- shapes


def _is_a(shape: Any, value: Any) -> bool:  # noqa: ANN401 - any JSON value comes in; botocore is untyped
    return isinstance(value, bool) == (shape.type_name == "boolean") and isinstance(value, _KINDS[shape.type_name])


def _nodes(shape: Any, value: Any, where: str) -> Iterator[tuple[Any, Any, str]]:  # noqa: ANN401 - as above
    """Each part of a request with its shape and its place, outside before inside."""
    yield shape, value, where
    if not _is_a(shape, value):
        return
    if shape.type_name == "structure":
        for name, member in value.items():
            if name in shape.members and member is not None:
                yield from _nodes(shape.members[name], member, _join(where, name))
    elif shape.type_name == "list":
        for number, member in enumerate(value, 1):
            yield from _nodes(shape.member, member, f"{where}.{number}.member")
    elif shape.type_name == "map":
        for key, member in value.items():
            yield from _nodes(shape.key, key, f"{where}.key")
            yield from _nodes(shape.value, member, f"{where}.{key}.member")


def _faults(shape: Any, value: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - as above
    if not _is_a(shape, value):
        yield f"Value at '{where}' failed to satisfy constraint: Member must be of type {shape.type_name}"
        return
    said = f"Value{_shown(value, where)} at '{where}' failed to satisfy constraint: Member must "
    yield from (f"{said}{limit}" for limit in _limits_broken(shape, value, where))
    if shape.type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value at '{_join(where, name)}' failed to satisfy constraint: Member must not be null"


def _limits_broken(shape: Any, value: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - as above
    limits = shape.metadata
    is_number = isinstance(value, int | float)
    size, measure = (value, "value") if is_number else (len(value), "length")
    if "min" in limits and size < limits["min"]:
        yield f"have {measure} greater than or equal to {limits['min']}"
    if "max" in limits and size > limits["max"]:
        yield f"have {measure} less than or equal to {limits['max']}"
    if limits.get("enum") and value not in limits["enum"]:
        yield f"satisfy enum value set: [{_choices(str(value), limits['enum'])}]"
    is_file = where.endswith(".s3DataSource.s3Uri") and str(value).startswith("file:///")
    if "pattern" in limits and not is_file and not _pattern(limits["pattern"]).fullmatch(value):
        yield f"satisfy regular expression pattern: {limits['pattern']}"


def _shown(value: Any, where: str) -> str:  # noqa: ANN401 - as above
    """A value as a refusal repeats it: not whole maps, and nothing of the environment."""
    if where.startswith("environment") or isinstance(value, dict | list):
        return ""
    text = str(value)
    return f" '{text}'" if len(text) <= _SHOWN_CHARS else f" '{text[:_SHOWN_CHARS]}…'"


def _choices(value: str, allowed: list[str]) -> str:
    """All that may stand there, or of very many those that were probably meant."""
    if len(allowed) <= _MANY_CHOICES:
        return ", ".join(allowed)
    near = get_close_matches(value, allowed, n=3) or allowed[:3]
    return f"{', '.join(near)}, … {len(allowed)} in all"


def _join(where: str, name: str) -> str:
    return f"{where}.{name[0].lower()}{name[1:]}".lstrip(".")


@functools.cache
def _pattern(written: str) -> re.Pattern[str]:
    if r"\p{L}\p{Z}\p{N}" in written:
        return re.compile(_TAG_TEXT)
    return re.compile(written.replace(r"\p{Alnum}", "a-zA-Z0-9"))
