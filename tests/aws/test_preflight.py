"""What keeps jobs from running on AWS is found before any is created, with its remedy."""

import json
from pathlib import Path

import boto3
import pytest
from aws_account import ACCOUNT, BUCKET, IMAGE, ROLE, Account, study_file

from tuner.aws import preflight
from tuner.aws.connections import Aws
from tuner.core.errors import Finding
from tuner.spec.study_file import load

QUOTA = "ml.m5.large for spot training job usage"


def found(account: Account, folder: Path, *changes: tuple[str, str]) -> list[Finding]:
    aws, spec = account.aws(), load(study_file(folder, *changes))
    who = list(preflight.identity(aws))
    if any(each.level == "error" for each in who):
        return who
    return [*who, *preflight.examine(aws, spec, preflight.known_quotas(aws, spec))]


def errors(findings: list[Finding]) -> list[str]:
    return [f"{each.what}: {each.remedy}" for each in findings if each.level == "error"]


def warnings(findings: list[Finding]) -> list[str]:
    return [each.what for each in findings if each.level == "warn"]


def test_an_account_that_lacks_nothing_is_said_to(account: Account, tmp_path: Path) -> None:
    account.quotas = {QUOTA: 4}
    findings = found(account, tmp_path)
    assert {each.level for each in findings} == {"ok"}
    text = "\n".join(each.what for each in findings)
    for part in (f"account {ACCOUNT}", "role jobs", f"bucket {BUCKET}", f"{QUOTA}: 4", f"image {IMAGE}"):
        assert part in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (ROLE, "nobody", f"there is no role nobody in account {ACCOUNT}"),
        (ROLE, "arn:aws:iam::999999999999:role/jobs", "belongs to account 999999999999"),
        (ROLE, "arn:aws:s3:::jobs", "is not the ARN of a role"),
        (f"s3://{BUCKET}/", "s3://nobodys-bucket/", "there is no bucket nobodys-bucket"),
        ("ml.m5.large", "ml.m5.lrge", "ml.m5.lrge is not an instance type of training jobs: did you mean ml.m5.large?"),
        (IMAGE, IMAGE.replace(":1", ":2"), "is not there (ImageNotFound)"),
        (IMAGE, IMAGE.replace("/train:", "/nothing:"), "is not there (RepositoryNotFound)"),
        (f"  image_uri: {IMAGE}\n", "", "no image"),
    ],
)
def test_what_keeps_every_job_from_running_is_an_error(
    account: Account, tmp_path: Path, old: str, new: str, said: str
) -> None:
    told = errors(found(account, tmp_path, (old, new)))
    assert any(said in line for line in told), told
    assert all(line.rpartition(": ")[2] for line in told), "each with its remedy"


def trust(**changed: object) -> dict[str, object]:
    """A statement that lets SageMaker assume the role, with other members."""
    service = {"Service": "sagemaker.amazonaws.com"}
    made = {"Effect": "Allow", "Principal": service, "Action": "sts:AssumeRole", **changed}
    return {name: value for name, value in made.items() if value is not None}


OF_ACCOUNT = {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
EVERYBODY = trust(Principal="*")
LAMBDA = {"Service": "lambda.amazonaws.com"}


@pytest.mark.parametrize(
    "statements",
    [
        [trust()],
        [trust(Action="sts:assumerole")],
        [trust(Action=["sts:TagSession", "sts:Assume*"])],
        [trust(Action="STS:*")],
        [trust(Action="*")],
        [EVERYBODY],
        [trust(Principal={"AWS": "*"})],
        [trust(Principal={"Service": ["ec2.amazonaws.com", "SageMaker.amazonaws.com"]})],
        [trust(Action=None, NotAction="sts:TagSession")],
        [trust(Condition=OF_ACCOUNT), trust()],
        [trust(), trust(Effect="Deny", Principal=LAMBDA)],
        [trust(), trust(Effect="Deny", Action="sts:TagSession")],
    ],
)
def test_a_role_that_sagemaker_may_assume_is_said_to(statements: list[dict[str, object]]) -> None:
    """IAM's action names are read without regard to case, and by their wildcards."""
    assert preflight._trusts_sagemaker({"Statement": statements}) is True


@pytest.mark.parametrize(
    "statements",
    [
        [],
        [trust(Principal=LAMBDA)],
        [trust(Principal={"AWS": f"arn:aws:iam::{ACCOUNT}:root"})],
        [trust(Action="sts:TagSession")],
        [trust(Action=None, NotAction="sts:*")],
        [trust(), trust(Effect="Deny")],
        [trust(Effect="Deny", Principal="*", Action="STS:ASSUME*"), EVERYBODY],
        [trust(), trust(Effect="Deny", Principal=None, NotPrincipal=LAMBDA)],
    ],
)
def test_a_role_that_sagemaker_surely_may_not_assume_is_said_to(statements: list[dict[str, object]]) -> None:
    assert preflight._trusts_sagemaker({"Statement": statements}) is False


@pytest.mark.parametrize(
    "document",
    [
        {"Statement": trust(Condition=OF_ACCOUNT)},
        {"Statement": [trust(), trust(Effect="Deny", Condition=OF_ACCOUNT)]},
        {"Statement": ["Allow"]},
        {},
        None,
    ],
)
def test_what_a_trust_policy_leaves_open_is_not_decided(document: object) -> None:
    assert preflight._trusts_sagemaker(document) is None


def test_only_a_role_that_surely_does_not_trust_is_an_error(account: Account, tmp_path: Path) -> None:
    untrusting = account.role("untrusting", trust(Principal=LAMBDA), trust(Effect="Deny"))
    [told] = errors(found(account, tmp_path, (ROLE, untrusting)))
    assert "does not let sagemaker.amazonaws.com assume it" in told
    conditional = account.role("conditional", trust(Condition=OF_ACCOUNT))
    findings = found(account, tmp_path, (ROLE, conditional))
    assert errors(findings) == []
    assert any(line.startswith("role conditional: its trust policy has conditions") for line in warnings(findings))


def test_a_role_with_a_path_is_looked_up_by_its_name(account: Account, tmp_path: Path) -> None:
    boto3.client("iam").create_role(
        RoleName="deep",
        Path="/service-role/",
        AssumeRolePolicyDocument=json.dumps(
            {
                "Statement": {
                    "Effect": "Allow",
                    "Principal": {"Service": ["ec2.amazonaws.com", "sagemaker.amazonaws.com"]},
                    "Action": ["sts:AssumeRole"],
                }
            }
        ),
    )
    arn = f"arn:aws:iam::{ACCOUNT}:role/service-role/deep"
    assert errors(found(account, tmp_path, (ROLE, arn))) == []


def test_a_bucket_in_another_region_is_an_error(account: Account, tmp_path: Path) -> None:
    boto3.client("s3", region_name="eu-west-1").create_bucket(
        Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    [told] = errors(found(account, tmp_path, (f"s3://{BUCKET}/", "s3://far-away/")))
    assert "bucket far-away lies in eu-west-1, the jobs run in us-east-1" in told


def make_bucket(name: str, region: str = "us-east-1") -> None:
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    boto3.client("s3", region_name=region).create_bucket(Bucket=name, **place)


OUTPUTS = (f"role: {ROLE}", f"role: {ROLE}, outputs: 's3://the-outputs/here/'")
INPUTS = ("  max_run: 10m\n", "  max_run: 10m\n  inputs: {train: 's3://the-data/x/', test: 's3://the-data/y/'}\n")


@pytest.mark.parametrize(
    ("change", "name", "key"),
    [(OUTPUTS, "the-outputs", "sagemaker.outputs"), (INPUTS, "the-data", "training.inputs.train")],
)
def test_buckets_of_outputs_and_inputs_are_looked_for_too(
    account: Account, tmp_path: Path, change: tuple[str, str], name: str, key: str
) -> None:
    """A job whose inputs are not there is paid for until it fails; one without a place for its outputs, whole."""
    [told] = errors(found(account, tmp_path, change))
    assert told.startswith(f"there is no bucket {name}: create it: aws s3 mb s3://{name} --region us-east-1")
    assert told.endswith(f"correct {key}")

    make_bucket(name, "eu-west-1")
    [told] = errors(found(account, tmp_path, change))
    assert told.startswith(f"bucket {name} lies in eu-west-1, the jobs run in us-east-1: name a bucket")
    assert key in told


def test_each_bucket_is_asked_for_once(account: Account, tmp_path: Path) -> None:
    make_bucket("the-outputs")
    make_bucket("the-data")
    account.calls.clear()
    told = "\n".join(each.what for each in found(account, tmp_path, OUTPUTS, INPUTS) if each.level == "ok")
    assert all(f"bucket {name} in us-east-1" in told for name in (BUCKET, "the-outputs", "the-data"))
    assert account.calls.count("HeadBucket") == 3


def test_a_bucket_that_only_the_role_may_read_is_a_warning(account: Account, tmp_path: Path) -> None:
    """The root is the caller's own place, too: it writes the code there."""
    account.heads = {name: [(403, "")] for name in (BUCKET, "the-outputs", "the-data")}
    findings = found(account, tmp_path, OUTPUTS, INPUTS)
    [told] = errors(findings)
    assert told.startswith(f"bucket {BUCKET} may not be looked at")
    of_role = [each for each in findings if each.level == "warn" and "may not be looked at" in each.what]
    assert [each.remedy for each in of_role] == [
        "see that the jobs' role may use it: sagemaker.outputs",
        "see that the jobs' role may use it: training.inputs.train",
    ]


@pytest.mark.parametrize(
    ("answers", "level", "said"),
    [
        ([(301, "eu-west-1"), (200, "eu-west-1")], "error", "lies in eu-west-1, the jobs run in us-east-1"),
        ([(301, "eu-west-1"), (403, "eu-west-1")], "error", "lies in eu-west-1, the jobs run in us-east-1"),
        ([(400, "eu-west-1"), (403, "eu-west-1")], "error", "lies in eu-west-1, the jobs run in us-east-1"),
        ([(403, "eu-west-1")], "error", "lies in eu-west-1, the jobs run in us-east-1"),
        ([(403, "us-east-1")], "warn", "may not be looked at"),
        ([(400, "")], "warn", "could not be looked at: HeadBucket: 400"),
        ([(404, "")], "error", "there is no bucket the-data"),
    ],
)
def test_a_bucket_elsewhere_is_told_from_one_that_is_missing_or_closed(
    account: Account, tmp_path: Path, answers: list[tuple[int, str]], level: str, said: str
) -> None:
    """S3 names the region in its refusals, too."""
    account.heads["the-data"] = answers
    [told] = [each for each in found(account, tmp_path, INPUTS) if "the-data" in each.what]
    assert told.level == level
    assert said in told.what
    assert "training.inputs.train" in told.remedy


def test_a_region_that_looks_like_something_else_is_doubted(account: Account, tmp_path: Path) -> None:
    """One that is not enabled for the account does not know its keys; a default bucket is named after its region."""
    account.refuse["GetCallerIdentity"] = (
        "InvalidClientTokenId",
        "The security token included in the request is invalid",
    )
    [told] = errors(found(account, tmp_path))
    assert "enable region us-east-1 for the account, or correct sagemaker.region" in told

    account.refuse.clear()
    [told] = errors(found(account, tmp_path, (f"checkpoints: {{root: s3://{BUCKET}/tuner/}}\n", "")))
    assert "or correct sagemaker.region, if us-east-1 was not meant" in told


def test_a_bucket_is_to_be_made_in_the_account_that_the_study_means(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted as it was, the command made it with whatever credentials the shell had, and its name was gone."""
    (tmp_path / "config").write_text("[profile lab]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    nameless = (f"checkpoints: {{root: s3://{BUCKET}/tuner/}}\n", "")
    aws = Aws(region="us-east-1", profile="lab")
    told = preflight.examine(aws, load(study_file(tmp_path, nameless)), preflight.Quotas({}))
    [remedy] = [each.remedy for each in told if each.what.startswith("there is no bucket")]
    assert f"aws s3 mb s3://sagemaker-us-east-1-{ACCOUNT} --region us-east-1 --profile lab;" in remedy


def test_a_region_without_sagemaker_is_doubted(account: Account) -> None:
    assert list(preflight.region(Aws(region="eu-west-1"))) == []
    assert list(preflight.region(Aws(region="cn-north-1"))) == []
    [told] = preflight.region(Aws(region="eu-wset-1"))
    assert told.level == "warn"
    assert told.remedy.startswith("did you mean eu-west-1")


def test_without_a_root_the_default_bucket_has_to_be_there(account: Account, tmp_path: Path) -> None:
    nameless = (f"checkpoints: {{root: s3://{BUCKET}/tuner/}}\n", "")
    [told] = errors(found(account, tmp_path, nameless))
    assert f"aws s3 mb s3://sagemaker-us-east-1-{ACCOUNT} --region us-east-1" in told
    boto3.client("s3").create_bucket(Bucket=f"sagemaker-us-east-1-{ACCOUNT}")
    assert errors(found(account, tmp_path, nameless)) == []


def test_a_default_bucket_has_to_be_the_accounts_own(account: Account, tmp_path: Path) -> None:
    """Its name can be guessed: a stranger who made it first, and opened it, would give jobs their code."""
    default = f"sagemaker-us-east-1-{ACCOUNT}"
    boto3.client("s3").create_bucket(Bucket=default)
    for root in (f"checkpoints: {{root: s3://{default}/tuner/}}\n", "", None):
        changed = [] if root is None else [(f"checkpoints: {{root: s3://{BUCKET}/tuner/}}\n", root)]
        assert errors(found(account, tmp_path, *changed)) == []
    ours = (default, ACCOUNT)
    assert account.bucket_owners == [ours, ours, (BUCKET, None)], "the user may name another account's"


def test_a_quota_of_zero_for_every_listed_type_is_an_error(account: Account, tmp_path: Path) -> None:
    account.quotas = {QUOTA: 0, "ml.m5.large for training job usage": 20}
    [told] = errors(found(account, tmp_path))
    assert "no listed type may run 1 instances" in told
    assert "servicequotas" in told

    other = "ml.c5.xlarge for spot training job usage"
    account.quotas[other] = 1
    findings = found(account, tmp_path, ("[ml.m5.large]", "[ml.m5.large, ml.c5.xlarge]"))
    assert errors(findings) == []
    assert [line for line in warnings(findings) if "quota" in line] == [
        f"quota {QUOTA}: 0, and a job needs 1",
        f"quota {other}: 1, so 1 of 2 trials at a time",
    ]


GPU = "ml.g5.xlarge for spot training job usage"
ON_GPU = ("ml.m5.large", "ml.g5.xlarge")


def test_a_quota_that_the_account_was_never_given_is_the_default(account: Account, tmp_path: Path) -> None:
    """AWS lists applied values alone: a new account's zero for GPUs on spot stands in no list of its own."""
    account.quotas, account.default_quotas = {QUOTA: 4}, {GPU: 0, QUOTA: 0}
    [told] = errors(found(account, tmp_path, ON_GPU))
    assert "no listed type may run 1 instances" in told
    both = found(account, tmp_path, ("[ml.m5.large]", "[ml.m5.large, ml.g5.xlarge]"))
    assert errors(both) == []
    assert f"quota {QUOTA}: 4" in [each.what for each in both], "what was applied counts before a default"

    account.quotas[GPU] = 4
    account.calls.clear()
    assert errors(found(account, tmp_path, ON_GPU)) == []
    assert "ListAWSDefaultServiceQuotas" not in account.calls, "nothing was left to ask"


def test_without_the_right_to_defaults_what_was_applied_is_known(account: Account, tmp_path: Path) -> None:
    account.quotas = {QUOTA: 0}
    account.refuse["ListAWSDefaultServiceQuotas"] = ("AccessDeniedException", "no right to")
    findings = found(account, tmp_path, ("[ml.m5.large]", "[ml.m5.large, ml.g5.xlarge]"))
    assert errors(findings) == []
    told = [line for line in warnings(findings) if "quota" in line]
    assert told[0].startswith("quotas: could not be looked at: ListAWSDefaultServiceQuotas: AccessDenied")
    assert told[1:] == [f"quota {QUOTA}: 0, and a job needs 1"]


def test_a_quota_that_nobody_knows_is_a_warning(account: Account, tmp_path: Path) -> None:
    findings = found(account, tmp_path)
    assert errors(findings) == []
    assert f"quota {QUOTA}: Service Quotas does not know it" in warnings(findings)


def test_a_list_of_quotas_that_does_not_end_decides_nothing(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last pages may hold what was applied: a default of zero must not be believed instead."""
    pages: list[object] = []

    def endless(**_: object) -> dict[str, object]:
        pages.append(_)
        return {"Quotas": [{"QuotaName": QUOTA, "ErrorReason": {"ErrorCode": "x"}}], "NextToken": "more"}

    account.default_quotas = {QUOTA: 0}
    aws, spec = account.aws(), load(study_file(tmp_path))
    monkeypatch.setattr(aws.client("service-quotas", patient=True), "list_service_quotas", endless)
    known = preflight.known_quotas(aws, spec)
    assert list(known.instances.values()) == [None]
    assert "more than 200 pages" in str(known.error)
    assert len(pages) == 200


@pytest.mark.parametrize(
    ("operation", "what"),
    [("ListServiceQuotas", "quotas"), ("GetRole", "role jobs"), ("DescribeImages", f"image {IMAGE}")],
)
def test_what_may_not_be_asked_stops_nobody(account: Account, tmp_path: Path, operation: str, what: str) -> None:
    account.refuse[operation] = ("AccessDeniedException", "no right to")
    findings = found(account, tmp_path)
    assert errors(findings) == []
    assert any(line.startswith(f"{what}: could not be looked at") for line in warnings(findings))


def test_without_credentials_there_is_one_error_and_no_other_call(account: Account, tmp_path: Path) -> None:
    account.refuse["GetCallerIdentity"] = ("ExpiredToken", "The security token included in the request is expired")
    findings = found(account, tmp_path)
    assert len(findings) == 1
    assert "aws sso login" in findings[0].remedy
    assert set(account.calls) == {"GetCallerIdentity"}


def test_an_image_of_another_registry_is_said_to_be_unknown(account: Account, tmp_path: Path) -> None:
    findings = found(account, tmp_path, (IMAGE, "docker.io/library/python:3.11"))
    assert errors(findings) == []
    assert any("was not looked for" in line for line in warnings(findings))


def test_an_unknown_price_promises_no_budget(account: Account, tmp_path: Path) -> None:
    [told] = errors(found(account, tmp_path, ("ml.m5.large", "ml.trn2.48xlarge")))
    assert "no budget can be promised" in told
    assert "prices: {ml.trn2.48xlarge:" in told
