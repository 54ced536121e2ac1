"""Whether SageMaker would take a request: the shapes of botocore's own service model, and the rules between members.

botocore sends names that are too long, values that match no pattern and instance types that do not exist; the service
refuses them. So do we, in its words, since those words are what users and adapters get to see.

Rules: lengths, ranges, patterns, enums and required members come from the model, never from a list of ours. What this
machine cannot do (several instances, images of their own entrypoint, …) is refused too, saying so, rather than
half done.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
from botocore.model import ServiceModel

from tuner.local.tree import BadAddress, split_uri

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


class Refused(Exception):  # noqa: N818 - a refusal is the service's answer, not a fault of ours
    """An error that the service answers with: its code and its text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    return Refused("ValidationException", message)


@functools.cache
def aws_session() -> botocore.session.Session:
    """The one botocore session of this process, since parsing SageMaker's model takes 50 ms.

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


def check_shape(operation: str, params: Mapping[str, Any]) -> None:
    """Refuse what the model refuses. Raises `Refused`."""
    shape = service_model().operation_model(operation).input_shape
    faults = list(_faults(shape, dict(params), ""))
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected"
        raise invalid(f"{count}: {'; '.join(faults[:10])}")


def check_create(params: Mapping[str, Any]) -> None:
    """The rules between members of CreateTrainingJob. Raises `Refused`."""
    for rule in (_check_stopping, _check_resources, _check_algorithm, _check_data, _check_duplicates):
        rule(params)


def _check_stopping(params: Mapping[str, Any]) -> None:
    condition = params.get("StoppingCondition", {})
    wait_s, run_s = condition.get("MaxWaitTimeInSeconds"), condition.get("MaxRuntimeInSeconds", 86_400)
    if params.get("EnableManagedSpotTraining"):
        if wait_s is None:
            raise invalid("MaxWaitTimeInSeconds must be set when EnableManagedSpotTraining is set to true")
        if wait_s < run_s:
            raise invalid(
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
            )
    elif wait_s is not None:
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true"
        )
    if run_s > 28 * 86_400:
        raise invalid("MaxRuntimeInSeconds cannot exceed 2419200 seconds (28 days)")


def _check_resources(params: Mapping[str, Any]) -> None:
    resources = params.get("ResourceConfig")
    if resources is None:
        raise invalid("ResourceConfig is required to create a training job")
    spot = params.get("EnableManagedSpotTraining")
    if spot and resources.get("InstancePreferences"):
        raise invalid("InstancePreferences cannot be used when EnableManagedSpotTraining is set to true")
    if spot and resources.get("KeepAlivePeriodInSeconds"):
        raise invalid("KeepAlivePeriodInSeconds cannot be set when EnableManagedSpotTraining is set to true")
    for key in ("InstanceGroups", "InstancePreferences"):
        if resources.get(key):
            if resources.get("InstanceType"):
                raise invalid(f"InstanceType and {key} are mutually exclusive")
            raise invalid(f"The local SageMaker does not run {key}; name one InstanceType")
    if "InstanceType" not in resources or "InstanceCount" not in resources:
        raise invalid("InstanceType and InstanceCount are required in ResourceConfig")
    if resources["InstanceCount"] != 1:
        raise invalid(f"The local SageMaker runs one instance a job; InstanceCount is {resources['InstanceCount']}")


def _check_algorithm(params: Mapping[str, Any]) -> None:
    algorithm = params.get("AlgorithmSpecification")
    if algorithm is None:
        raise invalid("AlgorithmSpecification is required to create a training job")
    if ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm):
        raise invalid("Exactly one of TrainingImage and AlgorithmName must be specified")
    if "ContainerEntrypoint" not in algorithm:
        raise invalid("The local SageMaker has no images to run: AlgorithmSpecification needs a ContainerEntrypoint")


def _check_data(params: Mapping[str, Any]) -> None:
    addresses = [params["OutputDataConfig"]["S3OutputPath"]]
    for channel in params.get("InputDataConfig", []):
        source = channel["DataSource"].get("S3DataSource")
        if source is None or source["S3DataType"] != "S3Prefix":
            raise invalid(f"The local SageMaker reads S3Prefix data only; channel {channel['ChannelName']!r} is other")
        addresses.append(source["S3Uri"])
    checkpoints = params.get("CheckpointConfig")
    if checkpoints:
        addresses.append(checkpoints["S3Uri"])
        folder = checkpoints.get("LocalPath", "/opt/ml/checkpoints")
        if not folder.startswith("/opt/ml/") or ".." in folder.split("/"):
            raise invalid(f"The local SageMaker syncs folders below /opt/ml only; LocalPath is {folder!r}")
    try:
        for address in addresses:
            if not address.startswith("file://"):
                split_uri(address)
    except BadAddress as error:
        raise invalid(str(error)) from error


def _check_duplicates(params: Mapping[str, Any]) -> None:
    for member, key in (("Tags", "Key"), ("InputDataConfig", "ChannelName")):
        names = [entry[key] for entry in params.get(member, [])]
        if len(set(names)) < len(names):
            raise invalid(f"{member} has a duplicate {key}")
    if any(name in {".", ".."} for name in (c["ChannelName"] for c in params.get("InputDataConfig", []))):
        raise invalid("ChannelName cannot be '.' or '..'")


def _faults(shape: Any, value: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - any JSON value comes in
    if isinstance(value, bool) != (shape.type_name == "boolean") or not isinstance(value, _KINDS[shape.type_name]):
        yield f"Value at '{where}' failed to satisfy constraint: Member must be of type {shape.type_name}"
        return
    yield from _own_faults(shape, value, where)
    yield from _inner_faults(shape, value, where)


def _own_faults(shape: Any, value: Any, where: str) -> Iterator[str]:  # noqa: ANN401
    said = f"Value '{value}' at '{where}' failed to satisfy constraint: Member must "
    limits = shape.metadata
    is_number = isinstance(value, int | float)
    size, measure = (value, "value") if is_number else (len(value), "length")
    if "min" in limits and size < limits["min"]:
        yield f"{said}have {measure} greater than or equal to {limits['min']}"
    if "max" in limits and size > limits["max"]:
        yield f"{said}have {measure} less than or equal to {limits['max']}"
    if limits.get("enum") and value not in limits["enum"]:
        yield f"{said}satisfy enum value set: [{', '.join(limits['enum'])}]"
    is_file = where.endswith(".s3DataSource.s3Uri") and str(value).startswith("file:///")  # local only, documented
    if "pattern" in limits and not is_file and not _pattern(limits["pattern"]).fullmatch(value):
        yield f"{said}satisfy regular expression pattern: {limits['pattern']}"


def _inner_faults(shape: Any, value: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - botocore is untyped
    if shape.type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                at = _join(where, name)
                yield f"Value at '{at}' failed to satisfy constraint: Member must not be null"
        for name, member in value.items():
            if name in shape.members and member is not None:
                yield from _faults(shape.members[name], member, _join(where, name))
    elif shape.type_name == "list":
        for number, member in enumerate(value, 1):
            yield from _faults(shape.member, member, f"{where}.{number}.member")
    elif shape.type_name == "map":
        for key, member in value.items():
            yield from _faults(shape.key, key, f"{where}.key")
            yield from _faults(shape.value, member, f"{where}.{key}.member")


def _join(where: str, name: str) -> str:
    return f"{where}.{name[0].lower()}{name[1:]}".lstrip(".")


@functools.cache
def _pattern(written: str) -> re.Pattern[str]:
    if r"\p{L}\p{Z}\p{N}" in written:
        return re.compile(_TAG_TEXT)
    return re.compile(written.replace(r"\p{Alnum}", "a-zA-Z0-9"))
