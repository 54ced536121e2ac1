"""What the adapter sends, what it does not send, and whether the service understood it."""

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import botocore.parsers
import botocore.session
import pytest
from adapter import ALGORITHM, ARN, BARE, MODEL, NOON, ON_DEMAND, SPOT, WHOLE, answering, described
from botocore.stub import Stubber

from tuner.core.jobs import (
    Channel,
    JobRequest,
    MetricDefinition,
    RequestRejected,
    SecretMissing,
    differences,
)
from tuner.sagemaker.request import request_of, request_parameters
from tuner.sagemaker.rules import violations
from tuner.sagemaker.service import SageMakerJobs

INVALID = "ValidationException"

# ---- requests


@pytest.mark.parametrize("request_", [SPOT, BARE, ON_DEMAND, WHOLE, ALGORITHM])
def test_every_request_passes_botocore_s_validation_and_gives_the_arn(stub: Stubber, request_: JobRequest) -> None:
    stub.add_response("create_training_job", {"TrainingJobArn": ARN}, request_parameters(request_))
    jobs = SageMakerJobs(stub.client)
    assert jobs.create(request_) == ARN
    assert jobs.calls == {"CreateTrainingJob": 1}


def test_a_spot_request_says_all_that_it_was_given() -> None:
    assert request_parameters(SPOT) == {
        "TrainingJobName": "digits-00001-001",
        "HyperParameters": {"lr": "0.1", "hidden": "64"},
        "Environment": {"TUNER_DIGEST": "d1", "TUNER_TRIAL": "1", "WANDB_API_KEY": "hunter2hunter2"},
        "AlgorithmSpecification": {
            "TrainingImage": SPOT.image_uri,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/tuner/bootstrap.py"],
            "MetricDefinitions": [{"Name": "acc", "Regex": "acc=([0-9.]+)"}],
        },
        "InputDataConfig": [
            {
                "ChannelName": name,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": uri,
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
                "InputMode": mode,
            }
            for name, uri, mode in (("code", "s3://b/code/", "File"), ("train", "s3://b/data/", "FastFile"))
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://b/outputs/"},
        "CheckpointConfig": {"S3Uri": "s3://b/digits/00001/", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2},  # its disk is its own
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 14400},
        "EnableManagedSpotTraining": True,
        "RoleArn": SPOT.role_arn,
        "Tags": [{"Key": "tuner:study", "Value": "digits"}],
    }


def test_on_demand_has_no_max_wait_and_empty_lists_are_left_out() -> None:
    assert request_parameters(ON_DEMAND)["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request_parameters(ON_DEMAND)["EnableManagedSpotTraining"] is False
    assert "InputDataConfig" not in request_parameters(BARE)
    assert request_parameters(BARE)["AlgorithmSpecification"].keys() == {"TrainingImage", "TrainingInputMode"}


def test_the_whole_request() -> None:
    plain, whole = request_parameters(replace(SPOT, instance_type="ml.m5.xlarge")), request_parameters(WHOLE)
    changed = {name: value for name, value in whole.items() if value != plain.get(name)}
    assert changed == {
        "ResourceConfig": {
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": 2,
            "VolumeSizeInGB": 30,
            "VolumeKmsKeyId": WHOLE.kms_key,
        },
        "OutputDataConfig": {"S3OutputPath": WHOLE.output_uri, "KmsKeyId": WHOLE.kms_key, "CompressionType": "NONE"},
        "VpcConfig": {"SecurityGroupIds": ["sg-1", "sg-2"], "Subnets": ["subnet-1"]},
        "EnableNetworkIsolation": True,
        "EnableInterContainerTrafficEncryption": True,
        "ExperimentConfig": {"ExperimentName": "digits"},
    }


def test_an_instance_with_its_own_disk_is_given_no_volume_and_no_key_for_it() -> None:
    assert request_parameters(replace(WHOLE, instance_type="ml.p4d.24xlarge"))["ResourceConfig"] == {
        "InstanceType": "ml.p4d.24xlarge",
        "InstanceCount": 2,
    }


def test_an_algorithm_is_named_and_has_no_image() -> None:
    assert request_parameters(ALGORITHM)["AlgorithmSpecification"] == {
        "AlgorithmName": ALGORITHM.algorithm,
        "TrainingInputMode": "File",
    }
    for both in (replace(SPOT, algorithm="a"), replace(SPOT, image_uri="")):
        with pytest.raises(AssertionError, match="an image or an algorithm"):
            request_parameters(both)


@pytest.mark.parametrize("raw", [{"RoleArn": "x"}, {"ResourceConfig": {"InstanceCount": 9}}])
def test_raw_members_never_replace_ours(raw: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="the tuner's own"):
        request_parameters(replace(SPOT, raw=raw))
    assert WHOLE.raw["OutputDataConfig"] == {"CompressionType": "NONE"}  # merging changes no record


# ---- secrets

VALUE = 'hunter2-"quoted"-and\\more'
WITH_SECRET = replace(SPOT, environment={"TUNER_TRIAL": "1"}, secrets={"WANDB_API_KEY": "MY_KEY"})


def secret_jobs(create: Callable[..., Any], value: str = VALUE) -> SageMakerJobs:
    client = SimpleNamespace(create_training_job=create)
    return SageMakerJobs(client, secret={"MY_KEY": value}.__getitem__)  # type: ignore[arg-type]


def test_a_secret_is_looked_up_as_the_request_is_sent() -> None:
    sent: dict[str, Any] = {}

    def create(**parameters: object) -> Mapping[str, object]:
        sent.update(parameters)
        return {"TrainingJobArn": ARN}

    jobs = secret_jobs(create)
    assert jobs.create(WITH_SECRET) == ARN
    assert sent["Environment"] == {"TUNER_TRIAL": "1", "WANDB_API_KEY": VALUE}
    assert VALUE not in repr(WITH_SECRET) + repr(jobs) + repr(vars(jobs))


def test_a_secret_that_is_not_there_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = answering(create_training_job=lambda **_: pytest.fail("it was sent"))
    for unset in (lambda: monkeypatch.delenv("MY_KEY", raising=False), lambda: monkeypatch.setenv("MY_KEY", "")):
        unset()
        with pytest.raises(SecretMissing, match=r"MY_KEY is not set.*export MY_KEY"):
            jobs.create(WITH_SECRET)
    assert jobs.calls == {}


@pytest.mark.parametrize("value", [VALUE, "abc", "x" * 513, "line\nline" * 60])
def test_no_refusal_repeats_a_secret(client: Any, value: str) -> None:
    """Neither our own check of limits, nor the SDK's, nor what the service says, plain or as JSON."""

    def create(**parameters: Any) -> None:
        echo = f"Value '{parameters['Environment']}' at 'environment': {json.dumps(parameters['Environment'])}"
        if value == "abc":
            raise botocore.exceptions.ParamValidationError(report=echo)
        raise botocore.exceptions.ClientError({"Error": {"Code": INVALID, "Message": echo}}, "CreateTrainingJob")

    for environment in ({"TUNER_TRIAL": "1"}, {f"E{i}": "1" for i in range(100)}):
        with pytest.raises(RequestRejected) as caught:
            secret_jobs(create, value).create(replace(WITH_SECRET, environment=environment))
        told = "".join(traceback.format_exception(caught.value))
        assert value not in told
        assert json.dumps(value)[1:-1] not in told
        assert repr(value)[1:-1] not in told


# ---- what was asked for, and what is


def reply_to(request: JobRequest, **changes: Any) -> Mapping[str, Any]:
    """A Describe that answers with the request's own members, some of them changed or (None) dropped."""
    members = {**request_parameters(request), **changes}
    del members["Tags"]
    return {name: value for name, value in members.items() if value is not None}


@pytest.mark.parametrize("request_", [SPOT, BARE, ON_DEMAND, WHOLE, ALGORITHM])
def test_a_job_that_is_what_was_asked_for_does_not_differ(request_: JobRequest) -> None:
    assert differences(request_, request_of(reply_to(request_))) == ()


def test_spelling_is_no_difference() -> None:
    checkpoints = {"S3Uri": SPOT.checkpoint_uri.rstrip("/"), "LocalPath": "/opt/ml/checkpoints/"}
    seen = request_of(reply_to(SPOT, CheckpointConfig=checkpoints, HyperParameters={**SPOT.hyperparameters, "x": "1"}))
    assert differences(SPOT, seen) == ()
    network = {"SecurityGroupIds": ["sg-2", "sg-1"], "Subnets": ["subnet-1"]}
    assert differences(WHOLE, request_of(reply_to(WHOLE, VpcConfig=network))) == ()
    named = replace(ALGORITHM, algorithm="mine")
    assert differences(named, request_of(reply_to(ALGORITHM))) == ()


def test_a_command_that_raw_members_name_is_no_difference() -> None:
    """`entrypoint: image` with a command of the user's own: the tuner itself asks for none."""
    own = replace(SPOT, entrypoint=(), raw={"AlgorithmSpecification": {"ContainerEntrypoint": ["python3", "own.py"]}})
    assert differences(own, request_of(reply_to(own))) == ()


DROPPED: list[tuple[str, JobRequest, dict[str, Any], str]] = [
    ("spot flag", SPOT, {"EnableManagedSpotTraining": None}, "spot: asked for True, the job has False"),
    ("checkpoints", SPOT, {"CheckpointConfig": None}, "checkpoint_uri: asked for 's3://b/digits/00001'"),
    ("prefix", SPOT, {"CheckpointConfig": {"S3Uri": "s3://b/digits/0000/"}}, "checkpoint_uri"),
    ("folder", SPOT, {"CheckpointConfig": {"S3Uri": SPOT.checkpoint_uri, "LocalPath": "/tmp"}}, "checkpoint_path"),
    ("limits", SPOT, {"StoppingCondition": {"MaxRuntimeInSeconds": 86_400}}, "max_run_s: asked for 3600"),
    ("wait", SPOT, {"StoppingCondition": {"MaxRuntimeInSeconds": 3600}}, "max_wait_s: asked for 14400"),
    ("count", SPOT, {"ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}}, "instance_count"),
    ("type", SPOT, {"ResourceConfig": {"InstanceType": "ml.p3.2xlarge", "InstanceCount": 2}}, "instance_type"),
    ("image", SPOT, {"AlgorithmSpecification": {"TrainingImage": "other"}}, "image_uri"),
    ("entrypoint", SPOT, {"AlgorithmSpecification": {"TrainingImage": SPOT.image_uri}}, "entrypoint"),
    ("role", SPOT, {"RoleArn": "arn:aws:iam::000000000000:role/admin"}, "role_arn"),
    ("hyperparameter", SPOT, {"HyperParameters": {"lr": "0.2", "hidden": "64"}}, "hyperparameter lr: asked for '0.1'"),
    ("all hyperparameters", SPOT, {"HyperParameters": None}, "hyperparameter hidden: asked for '64', the job has None"),
    ("outputs", SPOT, {"OutputDataConfig": None}, "output_uri"),
    ("network", WHOLE, {"VpcConfig": None}, "subnets: asked for ['subnet-1'], the job has []"),
    ("isolation", WHOLE, {"EnableNetworkIsolation": None}, "network_isolation"),
    ("encryption", WHOLE, {"OutputDataConfig": {"S3OutputPath": WHOLE.output_uri}}, "encryption"),
    ("volume's key", WHOLE,
     {"ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30}}, "encryption"),
    ("algorithm", ALGORITHM, {"AlgorithmSpecification": {"AlgorithmName": "other"}}, "algorithm: asked for 'mine'"),
    ("channels", SPOT, {"InputDataConfig": None}, f"channel {SPOT.channels[0].name}: asked for"),
    ("key", WHOLE, {"OutputDataConfig": {"S3OutputPath": WHOLE.output_uri, "KmsKeyId": "other"}}, "kms_key: asked for"),
    ("disk", WHOLE,
     {"ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1,
                         "VolumeKmsKeyId": WHOLE.kms_key}}, "volume_gb: asked for 30, the job has 1"),
    ("raw member", replace(SPOT, raw={"EnableInterContainerTrafficEncryption": True}),
     {"EnableInterContainerTrafficEncryption": False}, "EnableInterContainerTrafficEncryption: asked for True"),
    ("raw member within", replace(SPOT, raw={"AlgorithmSpecification": {"EnableSageMakerMetricsTimeSeries": True}}),
     {"AlgorithmSpecification": {"EnableSageMakerMetricsTimeSeries": False}},
     "AlgorithmSpecification.EnableSageMakerMetricsTimeSeries: asked for True"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "changes", "says"), [row[1:] for row in DROPPED], ids=[row[0] for row in DROPPED])
def test_what_was_dropped_on_the_way_is_noticed(request_: JobRequest, changes: dict[str, Any], says: str) -> None:
    lines = differences(request_, request_of(reply_to(request_, **changes)))
    assert any(says in line for line in lines), lines


def test_an_observation_says_what_was_asked_for_but_not_the_environment(stub: Stubber) -> None:
    reply = {**described(ModelArtifacts=MODEL), **reply_to(replace(SPOT, environment={"WANDB_API_KEY": VALUE}))}
    stub.add_response("describe_training_job", reply, {"TrainingJobName": SPOT.name})
    seen = SageMakerJobs(stub.client).describe(SPOT.name)
    assert seen.asked is not None
    assert differences(SPOT, seen.asked) == ()
    assert VALUE not in repr(seen)


def test_final_metrics_are_read(stub: Stubber) -> None:
    final = [{"MetricName": "acc", "Value": 0.75, "Timestamp": NOON}, {"MetricName": "loss", "Value": 0.5}]
    stub.add_response(
        "describe_training_job",
        described(ModelArtifacts=MODEL, FinalMetricDataList=final),
        {"TrainingJobName": SPOT.name},
    )
    assert SageMakerJobs(stub.client).describe(SPOT.name).final_metrics == {"acc": 0.75, "loss": 0.5}


def test_a_spot_request_without_max_wait_is_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError):
        request_parameters(replace(SPOT, max_wait_s=None))


# ---- what is refused before it is sent

WRONG: list[tuple[str, dict[str, Any], list[str]]] = [
    ("name", {"name": "bad_name!"}, ["trainingJobName"]),
    ("type", {"instance_type": "ml.g5.xlrage"}, ["ml.g5.xlarge"]),
    ("role", {"role_arn": "short"}, ["roleArn", "length"]),
    ("wait", {"max_wait_s": 60}, ["MaxWaitTimeInSeconds"]),
    ("run", {"max_run_s": 30 * 86_400, "max_wait_s": 30 * 86_400}, ["28 days"]),
    ("hyperparameters", {"hyperparameters": {f"h{i}": "1" for i in range(101)}}, ["hyperParameters", "100"]),
    ("value", {"hyperparameters": {"h": "x" * 2501}}, ["hyperParameters.h", "2500"]),
    ("tags", {"tags": {f"t{i}": "1" for i in range(51)}}, ["tags", "50"]),
    ("tag", {"tags": {"a": "<b>"}}, ["tags.1.member.value"]),
    ("metrics", {"metrics": (MetricDefinition(name="a", regex="x" * 501),)}, ["metricDefinitions", "500"]),
    ("channels", {"channels": (Channel(name="a", uri="s3://b/a/"),) * 2}, ["duplicate ChannelName"]),
    ("channel", {"channels": (Channel(name="a", uri="s3://b/a/", mode="Slow"),)}, ["inputMode", "FastFile"]),
    ("subnets", {"security_groups": ("sg-1",), "subnets": ("subnet-1",) * 17}, ["vpcConfig.subnets", "16"]),
    ("key", {"kms_key": "a key"}, ["kmsKeyId"]),
    ("all at once", {"name": "bad_name!", "max_wait_s": 60, "instance_type": "x"},
     ["trainingJobName", "MaxWaitTimeInSeconds", "instanceType"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_sagemaker_would_refuse_is_not_sent(changes: dict[str, Any], says: list[str]) -> None:
    jobs = answering(create_training_job=lambda **_: pytest.fail("it was sent"))
    request = replace(SPOT, **changes)
    with pytest.raises(RequestRejected, match="not sent") as caught:
        jobs.create(request)
    assert jobs.calls == {}
    lines = violations(request_parameters(request))
    for word in says:
        assert word in str(caught.value)
        assert any(word in line for line in lines)


def test_each_violation_is_a_line_of_its_own() -> None:
    lines = violations(request_parameters(replace(SPOT, name="bad_name!", max_wait_s=60, role_arn="short")))
    assert len(lines) == 4  # the role is too short, and matches no pattern
    assert all(len(line) < 300 and line.isprintable() for line in lines)


def test_a_request_of_every_kind_is_taken() -> None:
    for request in (SPOT, BARE, ON_DEMAND, WHOLE, ALGORITHM):
        assert violations(request_parameters(request)) == ()
