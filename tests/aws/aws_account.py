"""An AWS account on this machine: moto where it is right, the local SageMaker for jobs, canned answers for the rest."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import botocore.session
import pytest
from botocore.awsrequest import AWSResponse

from tuner.aws.connections import Aws
from tuner.local.service import LocalSageMaker
from tuner.local.transport import attach
from tuner.operations.backend import AwsBackend, Backends
from tuner.operations.use_cases import UseCases
from tuner.spec.study_file import StudySpec
from tuner.storage.objects import DirectoryObjects

ACCOUNT = "123456789012"  # moto's
REGION = "us-east-1"
BUCKET = "team-bucket"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/train:1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/jobs"
_TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}


_LOADER = botocore.loaders.create_loader()


@dataclass
class Account:
    """What the tests change about it, and what was asked of it."""

    state_dir: Path
    quotas: dict[str, float] = field(default_factory=dict)
    default_quotas: dict[str, float] = field(default_factory=dict)  # AWS's, for those that it was never given itself
    calls: list[str] = field(default_factory=list)
    caller: str = ACCOUNT  # whose the credentials are
    refuse: dict[str, tuple[str, str]] = field(default_factory=dict)  # by operation: code and text of its refusal
    # by bucket: status and region, as S3 answers HeadBucket, which has no body; the last answer stays
    heads: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    image_starts: list[str] = field(default_factory=list)  # the command of an image that starts itself
    price_list: list[str] = field(default_factory=list)  # products, as the Price List API gives them
    bucket_owners: list[tuple[str, str | None]] = field(default_factory=list)  # bucket looked at, and expected owner
    in_log: dict[str, float] = field(default_factory=dict)  # metrics that SageMaker finds in the logs of jobs

    def role(self, name: str, *statements: Any) -> str:
        """Make a role; SageMaker may assume it unless other statements are given."""
        document = {"Version": "2012-10-17", "Statement": list(statements or [_TRUST])}
        made = boto3.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))
        return str(made["Role"]["Arn"])

    def aws(self) -> Aws:
        return Aws(region=REGION)

    @property
    def backends(self) -> Backends:
        """Objects of its studies lie where the local jobs see them."""
        return _Backends(self.state_dir)

    @property
    def use_cases(self) -> UseCases:
        return UseCases(self.backends)


def manifest() -> str:
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1, "digest": f"sha256:{'0' * 64}"}
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    return json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []})


@dataclass(frozen=True)
class _Backend(AwsBackend):
    """Its objects lie where the local jobs see them."""

    state_dir: Path

    def objects(self, *, patient: bool = True) -> DirectoryObjects:
        return DirectoryObjects(self.state_dir / "s3")


@dataclass
class _Backends(Backends):
    state_dir: Path

    def on_aws(self, spec: StudySpec) -> AwsBackend:
        made = super().on_aws(spec)
        return _Backend(made.account, made.aws, self.state_dir)


def wire(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every client of a session that is opened from now on what moto lacks."""

    class Session(boto3.session.Session):
        def __init__(self, *, profile_name: str | None = None, **given: Any) -> None:
            del profile_name  # this machine has none
            super().__init__(botocore_session=_quick_session(), **given)

        def client(self, service: str, **given: Any) -> Any:
            made = super().client(service, **given)
            if service == "sagemaker":
                attach(made, _Jobs(account))
            else:
                made.meta.events.register_first("before-send", lambda **sent: _answer(account, sent))
            return made

    monkeypatch.setattr(boto3.session, "Session", Session)


def session() -> boto3.session.Session:
    """One that reads the models of the services once for all tests."""
    return boto3.session.Session(botocore_session=_quick_session())


def _quick_session() -> botocore.session.Session:
    inner = botocore.session.get_session()
    inner.register_component("data_loader", _LOADER)
    return inner


class _Jobs(LocalSageMaker):
    """The local service, except for the calls that a test refuses."""

    def __init__(self, account: Account) -> None:
        super().__init__(account.state_dir, region=REGION)
        self._account = account

    def handle(self, operation: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self._account.calls.append(operation)
        if operation in self._account.refuse:
            code, text = self._account.refuse[operation]
            return 400, {"__type": code, "message": text}
        if operation == "CreateTrainingJob" and self._account.image_starts:
            assert "ContainerEntrypoint" not in parameters["AlgorithmSpecification"]
            assert {each["Name"] for each in parameters["AlgorithmSpecification"]["MetricDefinitions"]} == {"score"}
            parameters["AlgorithmSpecification"]["ContainerEntrypoint"] = self._account.image_starts
        status, reply = super().handle(operation, parameters)
        in_log, ended = self._account.in_log, reply.get("TrainingJobStatus") == "Completed"
        if operation == "DescribeTrainingJob" and in_log and ended:
            found = [
                {"MetricName": name, "Value": value, "Timestamp": 0} for name, value in self._account.in_log.items()
            ]
            reply = {**reply, "FinalMetricDataList": found}
        return status, reply


def _answer(account: Account, sent: dict[str, Any]) -> AWSResponse | None:
    """Answer instead of moto: what a test refuses, quotas, no prices. None: moto or the local service answers."""
    operation = sent["event_name"].rpartition(".")[2]
    account.calls.append(operation)
    if operation == "HeadBucket":
        owner = sent["request"].headers.get("x-amz-expected-bucket-owner")
        account.bucket_owners.append((_bucket(sent["request"].url), owner.decode() if owner else None))
    if operation == "HeadBucket" and (answers := _heads(account, sent["request"].url)):
        status, region = answers.pop(0) if len(answers) > 1 else answers[0]
        return _response(sent["request"].url, status, "", {"x-amz-bucket-region": region} if region else {})
    if operation in account.refuse:
        code, text = account.refuse[operation]
        if "Action=" in str(sent["request"].body):  # the older services speak XML
            return _response(
                sent["request"].url, 400, f"<R><Error><Code>{code}</Code><Message>{text}</Message></Error></R>"
            )
        return _response(sent["request"].url, 400, {"__type": code, "message": text})
    if operation == "GetCallerIdentity" and not _assumes_a_role(sent["request"].headers):
        arn = f"arn:aws:iam::{account.caller}:user/moto"
        result = (
            f"<GetCallerIdentityResult><Arn>{arn}</Arn><Account>{account.caller}</Account></GetCallerIdentityResult>"
        )
        return _response(sent["request"].url, 200, f"<R>{result}</R>")
    if operation in ("ListServiceQuotas", "ListAWSDefaultServiceQuotas"):
        listed = account.quotas if operation == "ListServiceQuotas" else account.default_quotas
        quotas = [{"QuotaName": name, "Value": value} for name, value in listed.items()]
        return _response(sent["request"].url, 200, {"Quotas": quotas})
    if operation == "GetProducts":
        return _response(sent["request"].url, 200, {"PriceList": account.price_list})
    return None


def _assumes_a_role(headers: Mapping[str, bytes | str]) -> bool:
    """Whether a call is signed with the keys of a role, which moto draws: they begin with ASIA."""
    return "Credential=ASIA" in str(headers.get("Authorization"))


def _heads(account: Account, url: str) -> list[tuple[int, str]]:
    """What a test says of the bucket that this address names."""
    return account.heads.get(_bucket(url), [])


def _bucket(url: str) -> str:
    """The bucket that an address names, in its host or in its path."""
    host, _, path = url.removeprefix("https://").partition("/")
    return path.partition("/")[0] or host.partition(".")[0]


def _response(url: str, status: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None) -> AWSResponse:
    class Raw:
        def stream(self, **_: object) -> Iterator[bytes]:
            yield (body if isinstance(body, str) else json.dumps(body)).encode()

    return AWSResponse(url, status, {"content-type": "application/x-amz-json-1.1", **(headers or {})}, Raw())


STUDY = f"""\
name: cloud
objective: {{metric: score, direction: maximize}}
space: {{lr: {{type: float, low: 0.0, high: 1.0}}}}
search: {{sampler: {{name: RandomSampler, seed: 1}}}}
trials: 2
parallel: 2
training:
  entry_point: train.py
  instance_types: [ml.m5.large]
  image_uri: {IMAGE}
  max_run: 10m
checkpoints: {{root: s3://{BUCKET}/tuner/}}
sagemaker: {{region: {REGION}, role: {ROLE}}}
settings: {{poll: 0.2s}}
backend: sagemaker
"""
SCRIPT = """\
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
from tuner.training import report

report(1, score=parser.parse_args().lr)
print("trained")
"""


def study_file(folder: Path, *changes: tuple[str, str]) -> Path:
    """A study on AWS that lacks nothing, with parts of its text replaced."""
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    file = folder / "study.yaml"
    file.write_text(text)
    return file
