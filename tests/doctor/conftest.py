"""The account that `tests/aws` made, and an IAM that simulates: moto has none."""

from dataclasses import dataclass, field

import boto3
import pytest
from moto import mock_aws
from moto.iam.responses import IamResponse

from tests.aws.aws_account import BUCKET, REGION, Account, manifest, session, wire

_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}
_ELSEWHERE = ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "TUNER_STORE", "TUNER_LOCAL")


@pytest.fixture
def no_aws(tmp_path, monkeypatch):
    """Nothing of this machine's own AWS settings, and no look for an instance's."""
    for name in (*_ELSEWHERE, *_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    return monkeypatch


@dataclass
class Simulator:
    """Answers SimulatePrincipalPolicy; `denied` are actions that are not allowed, `asked` what was asked.

    `silent` are actions about which nothing is said; `page` is how many results one answer holds.
    """

    denied: set = field(default_factory=set)
    silent: set = field(default_factory=set)
    page: int = 100
    asked: list = field(default_factory=list)

    def answer(self, query):
        self.asked.append(query)
        actions = [query[f"ActionNames.member.{n}"][0] for n in range(1, 50) if f"ActionNames.member.{n}" in query]
        actions = [action for action in actions if action not in self.silent]
        start = int(query.get("Marker", ["0"])[0])
        end = start + self.page
        more = f"<IsTruncated>true</IsTruncated><Marker>{end}</Marker>" if end < len(actions) else ""
        members = "".join(
            f"<member><EvalActionName>{action}</EvalActionName><EvalResourceName>*</EvalResourceName>"
            f"<EvalDecision>{'implicitDeny' if action in self.denied else 'allowed'}</EvalDecision></member>"
            for action in actions[start:end]
        )
        return f"""<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">
            <SimulatePrincipalPolicyResult>{more or "<IsTruncated>false</IsTruncated>"}
            <EvaluationResults>{members}</EvaluationResults></SimulatePrincipalPolicyResult>
            </SimulatePrincipalPolicyResponse>"""


@pytest.fixture
def simulator():
    return Simulator()


@pytest.fixture
def account(tmp_path, no_aws, simulator):
    """An account with a bucket, a role, an image and the rights that are needed."""
    for name, value in _ENVIRONMENT.items():
        no_aws.setenv(name, value)
    made = Account(tmp_path / "cloud")
    with mock_aws(config={"core": {"passthrough": {"services": ["sagemaker", "servicequotas", "pricing"]}}}):
        no_aws.setattr(boto3, "DEFAULT_SESSION", session())
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        made.role("jobs")
        registry = boto3.client("ecr")
        registry.create_repository(repositoryName="train")
        registry.put_image(repositoryName="train", imageTag="1", imageManifest=manifest())
        wire(made, no_aws)
        # every handler of botocore's is called, so moto must know an answer, too
        no_aws.setattr(
            IamResponse, "simulate_principal_policy", lambda asked: simulator.answer(asked.querystring), raising=False
        )
        yield made
