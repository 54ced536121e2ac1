"""Whether SageMaker would take a request, and whether this machine can do what it asks.

The rules of SageMaker's stand in `tuner.sagemaker.rules`, and are answered in its words, since those are what users and
adapters get to see. What this machine cannot do (several instances, images of their own entrypoint, …) is refused
too, saying so, rather than half done.
"""

from collections.abc import Mapping
from typing import Any

from tuner.local.tree import BadAddress, split_uri
from tuner.sagemaker import rules


class Refused(Exception):  # noqa: N818 - a refusal is the service's answer, not a fault of ours
    """An error that the service answers with: its code and its text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refused:
    return Refused("ValidationException", message)


def check_shape(operation: str, params: Mapping[str, Any]) -> None:
    """Refuse what the model refuses. Raises `Refused`."""
    faults = rules.shape_faults(operation, params)
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected"
        raise invalid(f"{count}: {'; '.join(faults[:10])}")


def check_create(params: Mapping[str, Any]) -> None:
    """The rules between members of CreateTrainingJob, and this machine's own. Raises `Refused`."""
    for fault in rules.create_faults(params):
        raise invalid(fault)
    _check_machine(params)
    _check_data(params)


def _check_machine(params: Mapping[str, Any]) -> None:
    resources = params["ResourceConfig"]
    for key in ("InstanceGroups", "InstancePreferences"):
        if resources.get(key):
            raise invalid(f"The local SageMaker does not run {key}; name one InstanceType")
    if resources["InstanceCount"] != 1:
        raise invalid(f"The local SageMaker runs one instance a job; InstanceCount is {resources['InstanceCount']}")
    if "ContainerEntrypoint" not in params["AlgorithmSpecification"]:
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
