"""The section `sagemaker` of a study file: the account, the network and the request of each job."""

from dataclasses import replace
from typing import Any

from tuner.spec.keys import Key, Section, record
from tuner.spec.records import DEFAULT_REGION, SageMakerSettings, Vpc
from tuner.spec.values import SpecError, anything, each, entries, flag, s3_folder, text, whole

_REGION = text(r"[a-z]{2}(-[a-z]+)+-\d", f"an AWS region such as {DEFAULT_REGION}", most=32)
_AWS_ID = text(r"[-0-9a-zA-Z]+", "an id such as sg-0123456789abcdef0", most=32)

_VPC = record(
    Vpc,
    (
        Key(name="security_groups", kind=each(_AWS_ID, most=5), about="Security groups of the jobs.", default=[]),
        Key(name="subnets", kind=each(_AWS_ID, most=16), about="Subnets that jobs may run in.", default=[]),
    ),
)


def _check_vpc(section: Section, values: dict[str, Any]) -> None:
    vpc: Vpc = values["vpc"]
    if bool(vpc.security_groups) != bool(vpc.subnets) and not (vpc.security_groups and values["zones"]):
        raise SpecError(f"{section.at('vpc')}: needs both security_groups and subnets (or sagemaker.zones)")


SAGEMAKER = record(
    SageMakerSettings,
    (
        Key(
            name="region",
            kind=_REGION,
            about="The AWS region; a local study looks up its prices there.",
            unset="the region of your profile; locally `us-east-1`",
            change="never",
        ),
        Key(
            name="role",
            kind=text(r"\S+", "the name or ARN of an IAM role", most=2048),
            about="The name or ARN of the role that jobs run as.",
            unset="in a notebook its role (extra `sagemaker`)",
        ),
        Key(name="profile", kind=text(), about="The AWS profile whose credentials are used."),
        Key(
            name="volume_gb",
            kind=whole(1, 65_536),
            about="The size of each instance's volume; not sent for instances whose volume is their own NVMe disk.",
            default=30,
            unit="GB",
        ),
        Key(
            name="kms_key",
            kind=text(r"\S+", "the id or ARN of a KMS key", most=2048),
            about="The key that encrypts volumes and outputs.",
        ),
        Key(name="vpc", kind=_VPC, about="The network of the jobs.", default={}),
        Key(
            name="zones",
            kind=entries(_AWS_ID),
            about="Maps a zone to a subnet: an attempt then runs in the zone that placement chose.",
            default={},
        ),
        Key(
            name="network_isolation",
            kind=flag,
            about=(
                "Jobs have no network, so a packed `requirements.txt` needs a line `--no-index` (what it names is in "
                "the image, or a wheel in the bundle). The local service accepts it and cannot enforce it."
            ),
            default=False,
        ),
        Key(
            name="outputs",
            kind=s3_folder,
            about="Where jobs put their models and other outputs.",
            unset="a folder under `checkpoints.root`",
        ),
        Key(
            name="request",
            kind=replace(entries(anything), many=""),
            about=(
                "Other members of CreateTrainingJob, merged into each request, as in "
                "`{EnableInterContainerTrafficEncryption: true}`. What the tuner sets itself, and what SageMaker does "
                "not know, is refused by name."
            ),
            default={},
        ),
    ),
    settle=_check_vpc,
)
