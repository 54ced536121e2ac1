"""What the real SageMaker SDK answers, where it is installed (extra `sagemaker`): skipped elsewhere."""

from importlib.util import find_spec

import boto3
import pytest
from aws_account import REGION, Account

from tuner.aws.image import SdkRefused, find_image, find_role
from tuner.spec.records import Framework


def installed() -> bool:
    try:
        return find_spec("sagemaker.core") is not None
    except ModuleNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(not installed(), reason="the SageMaker SDK is not installed"),
    pytest.mark.filterwarnings("ignore"),  # the SDK's own
]
PYTORCH = Framework("pytorch", "2.5.1", "py311")


def test_a_framework_is_an_image_of_its_region() -> None:
    uri = find_image(PYTORCH, region="eu-west-1", instance_types=["ml.g5.xlarge", "ml.g4dn.xlarge"])
    assert uri.endswith(".dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.5.1-gpu-py311")
    assert "-cpu-" in find_image(PYTORCH, region=REGION, instance_types=["ml.m5.large"])


@pytest.mark.parametrize(
    ("framework", "said"),
    [
        (Framework("pytorch", "99.1", "py311"), "Unsupported pytorch version: 99.1"),
        (Framework("pytorch", "2.5.1", "py27"), "Unsupported Python version: py27"),
        (Framework("no-such-framework", "1", "py311"), "knows no no-such-framework"),
    ],
)
def test_what_there_is_no_image_of_is_refused_in_one_line(framework: Framework, said: str) -> None:
    with pytest.raises(SdkRefused, match=said) as refused:
        find_image(framework, region=REGION, instance_types=["ml.g5.xlarge"])
    assert "\n" not in str(refused.value)


def test_a_role_is_found_where_the_caller_has_one(account: Account) -> None:
    assumed = boto3.client("sts").assume_role(RoleArn=account.role("notebook"), RoleSessionName="me")["Credentials"]
    session = boto3.session.Session(
        aws_access_key_id=assumed["AccessKeyId"],
        aws_secret_access_key=assumed["SecretAccessKey"],
        aws_session_token=assumed["SessionToken"],
        region_name=REGION,
    )
    assert find_role(session).endswith(":role/notebook")


def test_a_user_has_no_role(account: Account) -> None:
    with pytest.raises(SdkRefused, match=r"sagemaker: \{role: NAME or ARN\}"):
        find_role(boto3.session.Session(region_name=REGION))
