"""Our request as CreateTrainingJob's parameters, and what DescribeTrainingJob says was asked for as our request.

It exists so that one module knows how SageMaker spells a job, in both directions: what is sent can be compared with
what the service understood.

Rules: pure, except for the values of secrets, which the caller gives and nobody keeps. Empty members are left out:
the service wants one element or no member. Raw members are merged last, and never over ours: that they do not try was
checked when the study was launched, so a clash here is a bug.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from tuner.core.jobs import Channel, JobRequest, MetricDefinition
from tuner.sagemaker.rules import has_local_disk

Parameters: TypeAlias = dict[str, Any]
_Reply: TypeAlias = Mapping[str, Any]


def request_parameters(request: JobRequest, secrets: Mapping[str, str] | None = None) -> Parameters:
    """What CreateTrainingJob is told; `secrets` are values by their names in the job."""
    parameters: Parameters = {
        "TrainingJobName": request.name,
        "HyperParameters": dict(request.hyperparameters),
        "Environment": {**request.environment, **(secrets or {})},
        "AlgorithmSpecification": _algorithm(request),
        "RoleArn": request.role_arn,
        "OutputDataConfig": {"S3OutputPath": request.output_uri} | _given(KmsKeyId=request.kms_key),
        "CheckpointConfig": {"S3Uri": request.checkpoint_uri, "LocalPath": request.checkpoint_path},
        "ResourceConfig": _resources(request),
        "StoppingCondition": _limits(request),
        "EnableManagedSpotTraining": request.spot,
        "Tags": [{"Key": key, "Value": value} for key, value in request.tags.items()],
        **_given(
            InputDataConfig=[_channel(channel) for channel in request.channels],
            EnableNetworkIsolation=request.network_isolation,
        ),
    }
    if request.security_groups:
        parameters["VpcConfig"] = {
            "SecurityGroupIds": list(request.security_groups),
            "Subnets": list(request.subnets),
        }
    _merge(parameters, request.raw)
    return parameters


def _given(**members: object) -> Parameters:
    """The members that have a value."""
    return {name: value for name, value in members.items() if value}


def _algorithm(request: JobRequest) -> Parameters:
    assert bool(request.image_uri) != bool(request.algorithm), f"{request.name}: needs an image or an algorithm"
    metrics = [{"Name": metric.name, "Regex": metric.regex} for metric in request.metrics]
    return _given(
        TrainingImage=request.image_uri,
        AlgorithmName=request.algorithm,
        TrainingInputMode="File",
        ContainerEntrypoint=list(request.entrypoint),
        MetricDefinitions=metrics,
    )


def _resources(request: JobRequest) -> Parameters:
    resources: Parameters = {"InstanceType": request.instance_type, "InstanceCount": request.instance_count}
    if has_local_disk(request.instance_type):
        return resources  # its size is what it is, its key the instance's own
    return resources | {"VolumeSizeInGB": request.volume_gb} | _given(VolumeKmsKeyId=request.kms_key)


def _limits(request: JobRequest) -> dict[str, int]:
    assert (request.max_wait_s is not None) == request.spot, "max_wait is for spot jobs, and they need it"
    limits = {"MaxRuntimeInSeconds": request.max_run_s}
    if request.max_wait_s is not None:
        limits["MaxWaitTimeInSeconds"] = request.max_wait_s
    return limits


def _channel(channel: Channel) -> Parameters:
    source = {
        "S3DataType": channel.data_type,
        "S3Uri": channel.uri,
        "S3DataDistributionType": channel.distribution,
        **_given(AttributeNames=list(channel.attributes)),
    }
    return {
        "ChannelName": channel.name,
        "DataSource": {"S3DataSource": source},
        "InputMode": channel.mode,
        **_given(
            ContentType=channel.content_type,
            CompressionType=channel.compression,
            RecordWrapperType=channel.record_wrapper,
        ),
    }


def _merge(parameters: Parameters, raw: Mapping[str, Any]) -> None:
    for name, value in raw.items():
        if isinstance(value, Mapping):
            _merge(parameters.setdefault(name, {}), value)
        else:
            assert name not in parameters, f"{name} of sagemaker.request is the tuner's own"
            parameters[name] = value


def request_of(reply: _Reply) -> JobRequest:
    """The request that a DescribeTrainingJob answer shows; what it does not show is empty. Tags are never shown.

    Its `raw` is all of the answer but the environment, which holds secrets: any member may have been asked for.
    """
    algorithm, resources = reply.get("AlgorithmSpecification", {}), reply.get("ResourceConfig", {})
    outputs, checkpoints = reply.get("OutputDataConfig", {}), reply.get("CheckpointConfig", {})
    limits, network = reply.get("StoppingCondition", {}), reply.get("VpcConfig", {})
    instance_type = resources.get("InstanceType", "")
    is_encrypted = bool(resources.get("VolumeKmsKeyId")) or has_local_disk(instance_type)
    return JobRequest(
        name=reply.get("TrainingJobName", ""),
        hyperparameters=reply.get("HyperParameters", {}),
        environment={},  # it holds secrets
        entrypoint=tuple(algorithm.get("ContainerEntrypoint", ())),
        image_uri=algorithm.get("TrainingImage", ""),
        channels=tuple(_channel_of(channel) for channel in reply.get("InputDataConfig", ())),
        checkpoint_uri=checkpoints.get("S3Uri", ""),
        checkpoint_path=checkpoints.get("LocalPath", ""),
        output_uri=outputs.get("S3OutputPath", ""),
        instance_type=instance_type,
        instance_count=resources.get("InstanceCount", 0),
        volume_gb=resources.get("VolumeSizeInGB", 0),
        spot=reply.get("EnableManagedSpotTraining", False),
        max_run_s=limits.get("MaxRuntimeInSeconds", 0),
        max_wait_s=limits.get("MaxWaitTimeInSeconds"),
        role_arn=reply.get("RoleArn", ""),
        tags={},
        metrics=tuple(
            MetricDefinition(name=each["Name"], regex=each["Regex"]) for each in algorithm.get("MetricDefinitions", ())
        ),
        algorithm=algorithm.get("AlgorithmName", ""),
        security_groups=tuple(network.get("SecurityGroupIds", ())),
        subnets=tuple(network.get("Subnets", ())),
        kms_key=outputs.get("KmsKeyId", "") if is_encrypted else "",
        network_isolation=reply.get("EnableNetworkIsolation", False),
        raw={name: value for name, value in reply.items() if name not in ("Environment", "ResponseMetadata")},
    )


def _channel_of(channel: _Reply) -> Channel:
    source = channel.get("DataSource", {}).get("S3DataSource", {})
    return Channel(
        name=channel.get("ChannelName", ""),
        uri=source.get("S3Uri", ""),
        mode=channel.get("InputMode", ""),
        data_type=source.get("S3DataType", ""),
        distribution=source.get("S3DataDistributionType", ""),
        content_type=channel.get("ContentType", ""),
        compression=channel.get("CompressionType", ""),
        record_wrapper=channel.get("RecordWrapperType", ""),
        attributes=tuple(source.get("AttributeNames", ())),
    )
