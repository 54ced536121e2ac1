"""What SageMaker would refuse is refused, with its code and in its words; what it takes is taken."""

import copy

import pytest
from botocore.exceptions import ClientError
from local_world import channel, request

from tuner.local.validate import Refused, check_create, check_shape


def check(params):
    check_shape("CreateTrainingJob", params)
    check_create(params)


def refusal(**changes):
    with pytest.raises(Refused) as caught:
        check(request(**changes))
    assert caught.value.code == "ValidationException"
    return caught.value.message


def accepted(**changes):
    params = request(**changes)
    before = copy.deepcopy(params)
    check(params)
    assert params == before


def resources(**changes):
    return {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1} | changes


def algorithm(**changes):
    full = {"TrainingImage": "none", "TrainingInputMode": "File", "ContainerEntrypoint": ["python3"]} | changes
    return {key: value for key, value in full.items() if value is not None}


def test_a_plain_request_is_accepted_with_all_that_is_allowed():
    accepted()
    accepted(spot=False)
    accepted(name="a" * 63, Tags=[{"Key": "größe:α/1", "Value": "a b+c=d@e"}])  # noqa: RUF001 - any letter may be in a tag
    accepted(HyperParameters={"k" * 256: "v" * 2500}, Environment={"A": "line\nline"})
    accepted(CheckpointConfig=None, InputDataConfig=None)
    accepted(InputDataConfig=[channel("train", "file:///home/somebody/data")])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"name": "bad_name!"},
            "Value 'bad_name!' at 'trainingJobName' failed to satisfy constraint: Member must satisfy",
        ),
        ({"name": "a" * 64}, "Member must have length less than or equal to 63"),
        ({"name": "ends-"}, "regular expression pattern"),
        ({"RoleArn": "arn:aws:iam::1:role/x-and-more"}, "at 'roleArn'"),
        ({"RoleArn": None}, "Value at 'roleArn' failed to satisfy constraint: Member must not be null"),
        ({"ResourceConfig": resources(InstanceType="ml.zzz.large")}, "Member must satisfy enum value set"),
        ({"HyperParameters": {str(n): "1" for n in range(101)}}, "less than or equal to 100"),
        ({"HyperParameters": {"k": "v" * 2501}}, "at 'hyperParameters.k.member'"),
        ({"HyperParameters": {"k": "two\nlines"}}, "regular expression pattern: .*"),
        ({"HyperParameters": {"k": 1}}, "must be of type string"),
        ({"Environment": {"1A": "x"}}, "at 'environment.key'"),
        ({"Environment": {"A": "v" * 513}}, "less than or equal to 512"),
        ({"Tags": [{"Key": str(n), "Value": ""} for n in range(51)]}, "less than or equal to 50"),
        ({"Tags": [{"Key": "a!", "Value": ""}]}, "at 'tags.1.member.key'"),
        ({"Tags": [{"Key": "a", "Value": ""}] * 2}, "duplicate"),
        ({"InputDataConfig": [channel("a", "s3://bucket/x")] * 2}, "duplicate"),
        ({"InputDataConfig": [channel(f"c{n}", "s3://bucket/x") for n in range(21)]}, "less than or equal to 20"),
        ({"InputDataConfig": [channel("..", "s3://bucket/x")]}, "ChannelName"),
        ({"InputDataConfig": [channel("a/b", "s3://bucket/x")]}, "channelName"),
        ({"InputDataConfig": [channel("a", "s3://bucket/../x")]}, "'..' segment"),
        ({"InputDataConfig": [channel("a", "ftp://bucket/x")]}, "s3Uri"),
        ({"OutputDataConfig": {"S3OutputPath": "file:///etc"}}, "s3OutputPath"),
        ({"CheckpointConfig": {"S3Uri": "s3://bucket/../../etc/"}}, "'..' segment"),
        ({"CheckpointConfig": {"S3Uri": "s3://bucket/x/", "LocalPath": "/etc"}}, "LocalPath"),
        ({"CheckpointConfig": {"S3Uri": "s3://bucket/x/", "LocalPath": "/opt/ml/../../etc"}}, "LocalPath"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 10}}, "MaxWaitTimeInSeconds must be set"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 10, "MaxWaitTimeInSeconds": 9}}, "Invalid MaxWaitTimeInSeconds"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0, "MaxWaitTimeInSeconds": 9}}, "greater than or equal to 1"),
        (
            {"StoppingCondition": {"MaxWaitTimeInSeconds": 9}, "spot": False},
            "only supported when EnableManagedSpotTraining",
        ),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 2419201}, "spot": False}, "28 days"),
        ({"ResourceConfig": resources(KeepAlivePeriodInSeconds=60)}, "KeepAlivePeriodInSeconds"),
        ({"ResourceConfig": None}, "ResourceConfig"),
        ({"ResourceConfig": {"VolumeSizeInGB": 1}}, "InstanceType"),
        ({"ResourceConfig": resources(InstanceCount=2)}, "one instance"),
        ({"AlgorithmSpecification": None}, "AlgorithmSpecification"),
        ({"AlgorithmSpecification": algorithm(AlgorithmName="x")}, "Exactly one of"),
        ({"AlgorithmSpecification": algorithm(TrainingImage=None)}, "Exactly one of"),
        ({"AlgorithmSpecification": algorithm(ContainerEntrypoint=None)}, "ContainerEntrypoint"),
        ({"AlgorithmSpecification": algorithm(TrainingInputMode=None)}, "trainingInputMode"),
        ({"AlgorithmSpecification": algorithm(TrainingInputMode="Fast")}, "enum value set"),
        ({"RetryStrategy": {"MaximumRetryAttempts": 31}}, "less than or equal to 30"),
        ({"EnableManagedSpotTraining": 1}, "must be of type boolean"),
    ],
)
def test_a_bad_request_is_refused_in_the_words_of_the_service(changes, text):
    assert text in refusal(**changes)


def test_several_faults_are_told_together():
    assert refusal(name="a_b", RoleArn=None).startswith("2 validation errors detected: ")


def test_the_refusal_reaches_a_boto3_caller_as_a_client_error(world):
    with pytest.raises(ClientError) as caught:
        world.create(ResourceConfig=resources(InstanceType="ml.zzz.large"))
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert not (world.state_dir / "jobs").exists()
