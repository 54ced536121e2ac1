"""The IAM policies against the calls that the code makes, and how their ARNs are filled in."""

import json
import re
from dataclasses import replace

import aws_calls
import pytest

from tests.spec.spec_files import spec_of
from tuner.aws import iam_policy, logs
from tuner.aws.connections import Identity
from tuner.aws.iam_policy import FREE_CALLS, PolicyScope, documents, place, principal
from tuner.sagemaker.request import request_parameters
from tuner.spec.records import Vpc
from tuner.spec.workload import specimen

ACCOUNT = "123456789012"
ME = Identity(account=ACCOUNT, arn=f"arn:aws:iam::{ACCOUNT}:user/team/ann")
# IAM's names of services, where they differ from boto3's.
SERVICE_IN_IAM = {"service-quotas": "servicequotas"}
# Operations whose right has another name.
ACTIONS = {
    ("s3", "ListObjectsV2"): {"s3:ListBucket"},
    ("s3", "HeadBucket"): {"s3:ListBucket"},
    ("s3", "HeadObject"): {"s3:GetObject"},
    ("s3", "CopyObject"): {"s3:GetObject", "s3:PutObject"},
    ("s3", "DeleteObjects"): {"s3:DeleteObject"},
    ("sqs", "DeleteMessageBatch"): {"sqs:DeleteMessage"},
}
# What no call is named after.
BESIDE = {
    "sagemaker:AddTags": "CreateTrainingJob with tags",
    "iam:PassRole": "CreateTrainingJob with a role",
    "s3:AbortMultipartUpload": "an upload in parts that failed",
}
WITH_EVERYTHING = PolicyScope(key="arn:aws:kms:eu-west-1:123456789012:key/k", vpc=True, inputs=("data/train/",))


def actions_of(call):
    service, operation = call
    return ACTIONS.get(call, {f"{SERVICE_IN_IAM.get(service, service)}:{operation}"})


def statements(policy):
    return {statement["Sid"]: statement for statement in policy["Statement"]}


def actions(policy):
    return [action for statement in policy["Statement"] for action in statement["Action"]]


def test_the_rights_name_exactly_the_calls_that_the_code_can_make():
    named = [call for right in iam_policy.caller_rights(PolicyScope()) for call in right.calls]
    assert len(named) == len(set(named))
    made = aws_calls.calls()
    assert {call: made.get(call) for call in set(named) ^ (set(made) - FREE_CALLS)} == {}


def test_a_bucket_of_inputs_does_not_stand_for_others_whose_names_begin_alike(tmp_path):
    inputs = "{train: 's3://data', test: 's3://data/test'}"
    training = f"{{entry_point: train.py, instance_types: [ml.g5.xlarge], image_uri: an/image, inputs: {inputs}}}"
    spec = spec_of(tmp_path, backend="sagemaker", sagemaker="{region: eu-west-1}", training=training)
    role = statements(documents(place(spec, None, None))["role"])
    assert role["Inputs"]["Resource"] == ["arn:aws:s3:::data/*", "arn:aws:s3:::data/test*"]
    assert "arn:aws:s3:::data" in role["Buckets"]["Resource"]


def test_the_policy_allows_what_these_calls_need_and_nothing_else():
    needed = {action for call in set(aws_calls.calls()) - FREE_CALLS for action in actions_of(call)}
    allowed = actions(documents(PolicyScope())["caller"])
    assert sorted(allowed) == sorted({*needed, *BESIDE})


def test_each_statement_allows_what_its_own_calls_need():
    for right in iam_policy.caller_rights(PolicyScope()):
        needed = {action for call in right.calls for action in actions_of(call)}
        assert needed == set(right.actions) - set(BESIDE)


def test_the_reader_of_the_code_is_not_fooled():
    """It knows calls by the ways in which this code makes them: there are no others."""
    with_clients = [
        name for name in set(aws_calls.computed_names()) if re.search(r"\.(client|lasting)\(", aws_calls.source(name))
    ]
    assert with_clients == ["aws/connections.py"]  # LastingClient: it hands names on that its users write
    methods = [set(aws_calls.operations(service)) for service in sorted(aws_calls.services())]
    used = set(aws_calls.used_names())
    shared = {name for name in used if sum(name in each for each in methods) > 1}
    assert shared == set(), "a name that two services have cannot be told apart"
    assert len(aws_calls.calls()) > 20


def test_the_role_may_do_what_a_container_and_the_agents_do():
    role = documents(WITH_EVERYTHING)["role"]
    assert {
        *("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"),
        *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
        *("cloudwatch:PutMetricData", "ecr:GetAuthorizationToken", "ecr:BatchGetImage"),
        *("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "kms:Decrypt", "kms:GenerateDataKey"),
    } <= set(actions(role))
    assert not any(action.startswith(("sagemaker:", "iam:", "sts:")) for action in actions(role))


def test_logs_are_granted_where_they_are_read():
    assert iam_policy.LOG_GROUP == logs.GROUP


def test_stars_stand_only_where_iam_knows_nothing_narrower():
    unbound = {
        (who, statement["Sid"])
        for who, policy in documents(WITH_EVERYTHING).items()
        for statement in policy["Statement"]
        if "*" in statement["Resource"]
    }
    assert unbound == {
        *(("caller", sid) for sid in ("ListOfJobs", "Metrics", "Quotas", "Prices")),
        *(("role", sid) for sid in ("Metrics", "Registry", "Vpc")),
    }
    for policy in documents(WITH_EVERYTHING).values():
        assert not any("*" in action for action in actions(policy))
        assert len(statements(policy)) == len(policy["Statement"])
        assert all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in statements(policy))


def test_without_a_study_words_in_capitals_say_what_to_fill_in():
    text = json.dumps(documents(place(None, None, None)))
    assert "{" not in "".join(re.findall(r'"arn:[^"]*"', text))
    assert {"ACCOUNT", "REGION", "STUDY", "BUCKET", "PREFIX", "ROLE", "REPOSITORY"} <= set(
        re.findall("[A-Z]{4,}", text)
    )


@pytest.fixture
def study(tmp_path):
    return spec_of(
        tmp_path,
        backend="sagemaker",
        training="""{entry_point: train.py, instance_types: [ml.g5.xlarge], inputs: {train: 's3://data/digits/'},
            image_uri: '111122223333.dkr.ecr.eu-west-1.amazonaws.com/team/image:1.2'}""",
        sagemaker="{region: eu-west-1, role: 'arn:aws:iam::123456789012:role/ml/tuner', outputs: 's3://out/here/'}",
        checkpoints="{root: 's3://bucket/tuner/'}",
    )


def test_with_a_study_every_arn_is_concrete(study):
    made = documents(place(study, ME, "eu-west-1"))
    text = json.dumps(made)
    assert not re.search("ACCOUNT|REGION|STUDY|BUCKET|PREFIX|ROLE|REPOSITORY|CALLER", text)
    caller, role = statements(made["caller"]), statements(made["role"])
    assert caller["Jobs"]["Resource"] == [
        f"arn:aws:sagemaker:eu-west-1:{ACCOUNT}:training-job/digits-*",
        f"arn:aws:sagemaker:eu-west-1:{ACCOUNT}:training-job/tuner-first-dollar-*",
    ]
    assert caller["GiveJobsTheirRole"]["Resource"] == [f"arn:aws:iam::{ACCOUNT}:role/ml/tuner"]
    assert caller["GiveJobsTheirRole"]["Condition"] == {
        "StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}
    }
    assert caller["RoleAndRights"]["Resource"][1] == ME.arn
    objects = ["arn:aws:s3:::bucket/tuner/*", "arn:aws:s3:::out/here/*"]
    assert caller["Objects"]["Resource"] == role["Objects"]["Resource"] == objects
    assert caller["Bucket"]["Resource"] == ["arn:aws:s3:::bucket"]
    assert caller["OtherBuckets"]["Action"] == ["s3:ListBucket"]
    assert caller["OtherBuckets"]["Resource"] == ["arn:aws:s3:::out", "arn:aws:s3:::data"]
    assert role["Inputs"]["Resource"] == ["arn:aws:s3:::data/digits/*"]
    assert role["Buckets"]["Resource"] == ["arn:aws:s3:::bucket", "arn:aws:s3:::data"]
    assert role["Image"]["Resource"] == ["arn:aws:ecr:eu-west-1:111122223333:repository/team/image"]
    assert "Image" not in caller, "another account's registry is not looked into"
    assert "Key" not in caller
    assert "Vpc" not in role


def test_the_account_is_the_role_s_where_there_are_no_credentials(study):
    arns = statements(documents(place(study, None, None))["caller"])
    assert arns["Jobs"]["Resource"][0] == f"arn:aws:sagemaker:REGION:{ACCOUNT}:training-job/digits-*"


def test_the_default_bucket_is_filled_in(study):
    study = replace(study, checkpoints=replace(study.checkpoints, root=None))
    study = replace(study, sagemaker=replace(study.sagemaker, outputs=None))
    study = replace(study, training=replace(study.training, inputs=()))
    made = statements(documents(place(study, ME, "eu-west-1"))["caller"])
    assert "OtherBuckets" not in made
    assert made["Bucket"]["Resource"] == [f"arn:aws:s3:::sagemaker-eu-west-1-{ACCOUNT}"]
    assert made["Objects"]["Resource"] == [f"arn:aws:s3:::sagemaker-eu-west-1-{ACCOUNT}/tuner/*"]


def test_an_own_image_may_be_looked_at_and_an_unknown_registry_is_open(study):
    own = replace(study.training, image_uri=f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/mine@sha256:{'0' * 64}")
    made = documents(place(replace(study, training=own), ME, "eu-west-1"))
    image = [f"arn:aws:ecr:eu-west-1:{ACCOUNT}:repository/mine"]
    assert statements(made["caller"])["Image"]["Resource"] == statements(made["role"])["Image"]["Resource"] == image
    unknown = replace(study.training, image_uri=None)
    made = documents(place(replace(study, training=unknown), ME, "eu-west-1"))
    assert statements(made["role"])["Image"]["Resource"] == ["arn:aws:ecr:*:*:repository/*"]


def test_key_and_network_add_their_statements(study):
    key = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/k"
    cloud = replace(study.sagemaker, kms_key=key, vpc=Vpc(("sg-1",), ("subnet-1",)))
    made = documents(place(replace(study, sagemaker=cloud), ME, "eu-west-1"))
    assert statements(made["caller"])["Key"]["Resource"] == statements(made["role"])["Key"]["Resource"] == [key]
    assert "ec2:CreateNetworkInterface" in statements(made["role"])["Vpc"]["Action"]


KEYS = f"arn:aws-cn:kms:eu-west-1:{ACCOUNT}:key"
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    ("written", "resource", "alias"),
    [
        (KEY_ID, f"{KEYS}/{KEY_ID}", None),
        (f"mrk-{KEY_ID}", f"{KEYS}/mrk-{KEY_ID}", None),
        (f"{KEYS}/{KEY_ID}", f"{KEYS}/{KEY_ID}", None),
        ("arn:aws:kms:us-east-1:999999999999:key/k", "arn:aws:kms:us-east-1:999999999999:key/k", None),
        ("alias/team/mine", f"{KEYS}/*", "alias/team/mine"),
        ("arn:aws:kms:us-east-1:999999999999:alias/a", "arn:aws:kms:us-east-1:999999999999:key/*", "alias/a"),
    ],
)
def test_a_key_is_an_arn_however_it_is_written(study, written, resource, alias):
    """IAM refuses a policy with a resource that is no ARN; an alias in an ARN would not mean the key behind it."""
    spec = replace(study, sagemaker=replace(study.sagemaker, kms_key=written))
    me = Identity(account=ACCOUNT, arn=f"arn:aws-cn:iam::{ACCOUNT}:user/ann")
    for policy in documents(place(spec, me, "eu-west-1")).values():
        key = statements(policy)["Key"]
        assert key["Resource"] == [resource]
        asked = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}} if alias else None
        assert key.get("Condition") == asked
        assert all(arn == "*" or arn.startswith("arn:") for each in policy["Statement"] for arn in each["Resource"])


@pytest.mark.parametrize(
    ("network", "in_vpc"),
    [
        ("vpc: {security_groups: [sg-1], subnets: [subnet-1]}", True),
        ("vpc: {security_groups: [sg-1]}, zones: {use1-az1: subnet-1}", True),
        ("network_isolation: true", False),
    ],
)
def test_the_role_has_the_rights_of_a_network_where_jobs_are_given_one(tmp_path, network, in_vpc):
    """Zones are subnets: without these rights every job of such a study fails."""
    spec = spec_of(
        tmp_path,
        backend="sagemaker",
        sagemaker=f"{{region: us-east-1, role: 'arn:aws:iam::{ACCOUNT}:role/x', {network}}}",
        checkpoints="{root: 's3://bucket/tuner/'}",
        training="{entry_point: train.py, instance_types: [ml.g5.xlarge], image_uri: an/image}",
    )
    asked = request_parameters(specimen(spec, "ml.g5.xlarge"))
    assert ("VpcConfig" in asked) == in_vpc
    assert ("Vpc" in statements(documents(place(spec, ME, "us-east-1"))["role"])) == in_vpc


@pytest.mark.parametrize(
    ("arn", "behind"),
    [
        (ME.arn, ME.arn),
        (f"arn:aws:sts::{ACCOUNT}:assumed-role/Admin/ann@example.org", f"arn:aws:iam::{ACCOUNT}:role/Admin"),
        (f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/A/b", f"arn:aws-cn:iam::{ACCOUNT}:role/A"),
        (f"arn:aws:iam::{ACCOUNT}:root", f"arn:aws:iam::{ACCOUNT}:root"),
        (f"arn:aws:sts::{ACCOUNT}:federated-user/ann", f"arn:aws:sts::{ACCOUNT}:federated-user/ann"),
    ],
)
def test_a_session_is_its_role(arn, behind):
    assert principal(arn) == behind
