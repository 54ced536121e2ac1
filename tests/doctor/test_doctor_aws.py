"""What `doctor` finds in an account, on moto and the local SageMaker: each mistake with its remedy, no traceback."""

import json
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import boto3
import pytest

from tests.aws.aws_account import ACCOUNT, BUCKET, IMAGE, REGION, ROLE, study_file
from tests.prices.test_price_list import product
from tuner.aws import doctor, preflight
from tuner.aws.connections import Aws
from tuner.cli import main
from tuner.spec.study_file import load
from tuner.storage.objects import DirectoryObjects, ObjectNotFound, StorageRefused

pytestmark = pytest.mark.slow

QUOTA = "ml.m5.large for spot training job usage"
NOW = datetime.now(UTC)
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}


def found(account, folder, *changes):
    account.quotas.setdefault(QUOTA, 4)
    return list(doctor.examine(account.aws(), load(study_file(folder, *changes)), datetime.now(UTC)))


def lines(findings, level):
    return [f"{each.what}: {each.remedy}" for each in findings if each.level == level]


def test_an_account_that_lacks_nothing(account, tmp_path):
    findings = found(account, tmp_path)
    assert lines(findings, "error") == []
    # the Price List API is empty here: the shipped table serves, and it is said
    assert [line.split(":")[0] for line in lines(findings, "warn")] == ["prices are the shipped table's"]
    told = "\n".join(lines(findings, "ok"))
    for part in (
        *(f"account {ACCOUNT} in {REGION}", "role jobs: SageMaker may assume it", f"bucket {BUCKET}", f"{QUOTA}: 4"),
        *(f"image {IMAGE}", "price of ml.m5.large: $0.1152/h (derived, ", f"storage: s3://{BUCKET}/tuner/ can be"),
        *("user/moto has every right", "role/jobs has every right"),
    ):
        assert part in told


def test_nothing_is_left_and_nothing_is_touched_outside_the_root(account, tmp_path):
    boto3.client("s3").put_object(Bucket=BUCKET, Key="mine", Body=b"1")
    found(account, tmp_path)
    kept = boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    assert [each["Key"] for each in kept] == ["mine"]
    assert set(account.calls) <= {
        *("GetCallerIdentity", "GetRole", "SimulatePrincipalPolicy", "ListServiceQuotas", "GetProducts"),
        *("DescribeImages", "HeadBucket", "PutObject", "GetObject", "ListObjectsV2", "DeleteObjects"),
    }


def test_missing_rights_are_found(account, simulator, tmp_path):
    """One look, many denials: who lacks what, whether it hurts, and where to read what to grant."""
    simulator.denied = {
        *("sagemaker:CreateTrainingJob", "iam:PassRole", "logs:GetLogEvents"),
        *("logs:PutLogEvents", "cloudwatch:PutMetricData"),
    }
    findings = found(account, tmp_path)
    errors, warnings = lines(findings, "error"), lines(findings, "warn")
    assert [line.split(":")[0] for line in errors] == [
        "user/moto lacks sagemaker",
        "user/moto lacks iam",
        "role/jobs lacks logs",
    ]
    assert "user/moto lacks logs:GetLogEvents: `logs` shows nothing" in "\n".join(warnings)
    assert "role/jobs lacks cloudwatch:PutMetricData" in "\n".join(warnings)
    assert all(f"tuner doctor {tmp_path}/study.yaml --policy" in line for line in errors)


def test_a_denial_on_a_later_page_is_found(account, simulator, tmp_path):
    """IAM may cut an answer short anywhere, whatever was asked for."""
    simulator.page = 1
    assert lines(found(account, tmp_path), "error") == []
    simulator.denied = {"sagemaker:StopTrainingJob"}  # the last of its statement
    [line] = lines(found(account, tmp_path), "error")
    assert line.startswith("user/moto lacks sagemaker:StopTrainingJob")


def test_an_action_without_an_answer_is_unknown_and_not_allowed(account, simulator, tmp_path):
    simulator.silent = {"sagemaker:StopTrainingJob", "logs:PutLogEvents"}
    findings = found(account, tmp_path)
    assert lines(findings, "error") == []
    told = [line for line in lines(findings, "warn") if "did not say" in line]
    assert [line.split(":")[0] for line in told] == ["user/moto", "role/jobs"]
    assert "sagemaker:StopTrainingJob" in told[0]
    assert "has every right" not in "\n".join(lines(findings, "ok"))


def test_an_answer_that_does_not_end_is_no_answer(account, simulator, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_PAGES_MAX", 2)
    simulator.page = 1
    told = [line for line in lines(found(account, tmp_path), "warn") if "rights of" in line]
    assert len(told) == 2
    assert all("more than 2 pages" in line for line in told)


def test_the_simulation_asks_about_things_not_patterns(account, simulator, tmp_path):
    found(account, tmp_path)
    asked = [value[0] for query in simulator.asked for key, value in query.items() if key.startswith("ResourceArns")]
    assert f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/cloud-x" in asked
    assert all("*" not in arn or arn == "*" for arn in asked)
    [passing] = [query for query in simulator.asked if query["ActionNames.member.1"] == ["iam:PassRole"]]
    assert passing["ContextEntries.member.1.ContextKeyName"] == ["iam:PassedToService"]
    assert passing["ContextEntries.member.1.ContextKeyValues.member.1"] == ["sagemaker.amazonaws.com"]
    assert {query["PolicySourceArn"][0] for query in simulator.asked} == {f"arn:aws:iam::{ACCOUNT}:user/moto", ROLE}


def test_the_simulation_asks_about_the_key_behind_an_alias(account, simulator, tmp_path):
    found(account, tmp_path, (f"role: {ROLE}", f"role: {ROLE}, kms_key: alias/mine"))
    asked = [query for query in simulator.asked if query["ActionNames.member.1"] == ["kms:CreateGrant"]]
    assert len(asked) == 2
    for query in asked:
        assert query["ResourceArns.member.1"] == [f"arn:aws:kms:{REGION}:{ACCOUNT}:key/x"]
        assert query["ContextEntries.member.1.ContextKeyName"] == ["kms:ResourceAliases"]
        assert query["ContextEntries.member.1.ContextKeyValues.member.1"] == ["alias/mine"]
        assert query["ContextEntries.member.1.ContextKeyType"] == ["stringList"]


def test_rights_that_may_not_be_looked_at_are_said_and_stop_nobody(account, tmp_path):
    account.refuse["SimulatePrincipalPolicy"] = ("AccessDenied", "not you")
    findings = found(account, tmp_path)
    assert lines(findings, "error") == []
    told = [line for line in lines(findings, "warn") if "rights of" in line]
    assert len(told) == 2
    assert all("could not be looked at" in line and "iam:SimulatePrincipalPolicy" in line for line in told)


def test_what_launch_refuses_doctor_finds(account, tmp_path):
    """All mistakes in one look."""
    mistakes = [
        (ROLE, "nobody", "there is no role nobody"),
        (f"s3://{BUCKET}/", "s3://nobodys-bucket/", "there is no bucket nobodys-bucket"),
        ("ml.m5.large", "ml.m5.lrge", "did you mean ml.m5.large?"),
        (IMAGE, IMAGE.replace(":1", ":2"), "is not there (ImageNotFound)"),
    ]
    told = lines(found(account, tmp_path, *((old, new) for old, new, _ in mistakes)), "error")
    for *_, said in mistakes:
        assert any(said in line for line in told), said
    assert all(line.rpartition(": ")[2] for line in told), "each with its remedy"


FRAMEWORK = (f"image_uri: {IMAGE}", "framework: {name: pytorch, version: 99.9.9, python: py311}")
NO_ROLE = (f", role: {ROLE}", "")


def give_sdk(monkeypatch, *, knows):
    """A SageMaker SDK in a notebook: it has a role, and images of some versions."""

    def retrieve(name, *, version, **_):
        if version not in knows:
            raise ValueError(f"Unsupported {name} version: {version}")
        return f"763104351884.dkr.ecr.{REGION}.amazonaws.com/{name}-training:{version}"

    modules = {
        "sagemaker.core.image_uris": SimpleNamespace(retrieve=retrieve),
        "sagemaker.core.helper.session_helper": SimpleNamespace(
            Session=lambda boto_session: boto_session, get_execution_role=lambda _session: ROLE
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_an_image_that_launch_would_not_find_is_an_error(account, tmp_path, monkeypatch):
    give_sdk(monkeypatch, knows=["2.5.1"])
    [line] = lines(found(account, tmp_path, FRAMEWORK), "error")
    assert "training.framework: no image for ml.m5.large: Unsupported pytorch version: 99.9.9" in line
    assert lines(found(account, tmp_path, FRAMEWORK, ("99.9.9", "2.5.1")), "error") == []


def test_an_absent_sdk_is_an_error_for_each_thing_that_needs_it(account, tmp_path, monkeypatch):
    """And the rest is looked at all the same, once."""
    for module in ("sagemaker", "sagemaker.core.image_uris", "sagemaker.core.helper.session_helper"):
        monkeypatch.setitem(sys.modules, module, None)
    findings = found(account, tmp_path, FRAMEWORK, NO_ROLE)
    role, framework = lines(findings, "error")
    assert role.startswith("a study without sagemaker.role needs the SageMaker SDK")
    assert framework.startswith("training.framework needs the SageMaker SDK")
    assert all("pip install 'spot-tuner[sagemaker]'" in line for line in (role, framework))
    assert "user/moto has every right" in "\n".join(lines(findings, "ok"))


def test_a_notebook_needs_no_role_in_its_study(account, tmp_path, monkeypatch):
    give_sdk(monkeypatch, knows=[])
    findings = found(account, tmp_path, NO_ROLE)
    assert lines(findings, "error") == []
    told = "\n".join(lines(findings, "ok"))
    assert "role jobs: SageMaker may assume it" in told
    assert "role/jobs has every right" in told


def test_a_budget_that_no_trial_fits_at_the_prices_of_the_account_is_an_error(account, tmp_path):
    """The file alone is checked by the shipped prices; the rest is looked at all the same."""
    account.price_list = [product("ml.m5.large-Training", "50.0", region=REGION)]
    findings = found(account, tmp_path, ("backend:", "budget: {usd: 1}\nbackend:"))
    [line] = lines(findings, "error")
    assert line.startswith("budget.usd: ")
    assert "role jobs: SageMaker may assume it" in "\n".join(lines(findings, "ok"))


def test_limits_of_a_request_are_those_that_launch_minds(account, tmp_path, capsys, monkeypatch):
    """A role by its name has no account, until it is looked up: without one no request can be made up."""
    monkeypatch.chdir(tmp_path)
    account.quotas = {QUOTA: 4}
    raw = f"request: {{ExperimentConfig: {{ExperimentName: {'x' * 121}}}}}"
    changes = ((f"role: {ROLE}", f"role: jobs, {raw}"),)
    told = lines(found(account, tmp_path, *changes), "error")
    assert told
    assert all(line.startswith("the jobs' requests would be refused: ") for line in told)
    assert main.main(["launch", str(tmp_path / "study.yaml"), "-y"], account.use_cases) == 4
    assert "; ".join(told) in capsys.readouterr().err


def test_a_quota_of_zero_is_found(account, tmp_path):
    account.quotas = {QUOTA: 0}
    assert any("no job of this study can start" in line for line in lines(found(account, tmp_path), "error"))


def test_credentials_that_expired_are_one_line_and_nothing_else_is_asked(account, tmp_path):
    account.refuse["GetCallerIdentity"] = ("ExpiredToken", "The security token included in the request is expired")
    findings = found(account, tmp_path)
    [line] = lines(findings, "error")
    assert "AWS cannot be asked: GetCallerIdentity: ExpiredToken" in line
    assert "log in" in line
    assert set(account.calls) == {"GetCallerIdentity"}


# --- storage


class Refusing(DirectoryObjects):
    """A bucket where one thing is not allowed."""

    def __init__(self, root, *, refuse):
        super().__init__(root)
        self.refused = refuse

    def write(self, uri, data):
        if "write" in self.refused:
            raise StorageRefused(f"{uri}: AccessDenied: no")
        super().write(uri, data)

    def read(self, uri, start=0, limit=None):
        if "read" in self.refused:
            raise StorageRefused(f"{uri}: AccessDenied: no")
        return super().read(uri, start, limit)

    def delete(self, uris):
        if "delete" in self.refused:
            raise StorageRefused("AccessDenied: no")
        super().delete(uris)


@pytest.mark.parametrize(
    ("refuse", "level", "said"),
    [
        ("", "ok", "can be written, read and deleted"),
        ("write", "error", "s3:PutObject"),
        ("read", "error", "s3:GetObject"),
        ("delete", "warn", "could not be deleted"),
    ],
)
def test_the_probe_of_the_storage(tmp_path, refuse, level, said):
    objects = Refusing(tmp_path / "s3", refuse=refuse.split())
    uri = "s3://a-bucket/root/doctor/x.txt"
    [finding] = doctor.try_storage(objects, uri)
    assert finding.level == level
    assert said in f"{finding.what} {finding.remedy}"
    if refuse != "delete":
        with pytest.raises(ObjectNotFound):
            DirectoryObjects(tmp_path / "s3").read(uri)


# --- clocks


def skew(account, seconds):
    """What is found when AWS's clock is a number of seconds behind ours."""
    date = format_datetime(NOW - timedelta(seconds=seconds), usegmt=True)
    aws = account.aws()

    def dated(response_dict, **_):
        response_dict["headers"]["date"] = date

    aws.client("sts").meta.events.register("before-parse.sts.GetCallerIdentity", dated)
    return list(doctor.clock_skew(aws, NOW.replace(microsecond=0)))


@pytest.mark.parametrize(
    ("seconds", "level", "said"),
    [
        (0, "ok", "agrees"),
        (-20, "ok", "agrees"),
        (60, "warn", "60 s ahead of AWS's"),
        (-60, "warn", "60 s behind AWS's"),
        (400, "error", "400 s ahead of AWS's"),
        (-4000, "error", "4000 s behind AWS's"),
    ],
)
def test_a_clock_that_is_off_is_found(account, seconds, level, said):
    [finding] = skew(account, seconds)
    assert finding.level == level
    assert said in finding.what


def test_a_refusal_has_a_date_too(account):
    """A clock that is off makes credentials look wrong: what is wrong is said before that."""
    account.refuse["GetCallerIdentity"] = ("SignatureDoesNotMatch", "Signature expired")
    [finding] = skew(account, 1200)
    assert (finding.level, "1200 s ahead" in finding.what) == ("error", True)


# --- the command


def call(capsys, *words):
    code = main.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_command_on_an_account(account, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    account.quotas = {QUOTA: 4}
    code, out, err = call(capsys, "doctor", study_file(tmp_path))
    assert (code, err) == (0, "")
    assert "role/jobs has every right" in out
    assert "/opt/ml" not in out, "what only local jobs need is not looked at"
    code, out, err = call(capsys, "doctor", study_file(tmp_path, (IMAGE, f"{IMAGE}2")), "--json")
    doc = json.loads(out)
    assert (code, doc["ok"], err) == (1, False, "")
    assert all(each["remedy"] for each in doc["findings"] if each["level"] == "error")
    assert not (tmp_path / "tuner.db").exists(), "a look creates no store"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "NoCredentialsError"),
        ({"AWS_PROFILE": "nobody"}, "ProfileNotFound"),
        ({**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "EndpointConnectionError"),
    ],
)
def test_without_credentials_or_network_it_is_one_line(no_aws, tmp_path, capsys, environment, said):
    no_aws.chdir(tmp_path)
    for name, value in environment.items():
        no_aws.setenv(name, value)
    code, out, err = call(capsys, "doctor", study_file(tmp_path), "--json")
    assert (code, err) == (1, "")
    [error] = [each for each in json.loads(out)["findings"] if each["level"] == "error"]
    assert said in error["what"]
    assert error["remedy"]
    assert "\n" not in error["what"]


def test_a_mistyped_region_is_not_told_as_a_network_that_fails(no_aws, tmp_path):
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        no_aws.setenv(name, value)
    [finding] = preflight.identity(Aws(region="us-esat-1"))
    assert "EndpointConnectionError" in finding.what
    assert "no SageMaker is known in us-esat-1: did you mean" in finding.remedy
    assert "us-east-1" in finding.remedy
    [finding] = preflight.identity(Aws(region="us-east-1"))
    assert "SageMaker" not in finding.remedy


def test_a_region_may_be_named_by_either_variable(no_aws):
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert Aws().region == "eu-west-1"
    no_aws.setenv("AWS_REGION", "eu-central-1")
    assert Aws().region == "eu-central-1"
    assert Aws(region="us-west-2").region == "us-west-2"


def test_the_policies_of_a_study(account, tmp_path, capsys):
    code, out, err = call(capsys, "doctor", study_file(tmp_path), "--policy")
    assert (code, err) == (0, "")
    doc = json.loads(out)
    assert set(doc) == {"caller", "role"}
    assert f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/cloud-*" in out


def test_policies_need_no_credentials(no_aws, tmp_path, capsys):
    code, out, _ = call(capsys, "doctor", "--policy")
    assert code == 0
    assert "arn:aws:sagemaker:REGION:ACCOUNT:training-job/STUDY-*" in out
    code, out, _ = call(capsys, "doctor", study_file(tmp_path), "--policy")
    assert code == 0
    assert f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/cloud-*" in out
    local = study_file(tmp_path / "local", ("backend: sagemaker", "backend: local"), (f", role: {ROLE}", ""))
    code, out, err = call(capsys, "doctor", local, "--policy")
    assert (code, out) == (2, "")
    assert "runs on this machine and needs no rights" in err
