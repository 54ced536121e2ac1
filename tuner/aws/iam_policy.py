"""The least rights that work: an IAM policy for the user of `tuner`, and one for the role that jobs run with.

The alternative would be AmazonSageMakerFullAccess. Each statement of the caller lists the API calls that need it, and
a test demands that these are exactly the calls that the code can make. The role's statements cover what the container
and SageMaker's agents do in its name, according to AWS's documentation.

Rules: pure. An ARN names what the study file names; an unknown part is a word in capitals. A
resource is `*` only where IAM knows no narrower one, or where the call is made before the narrower one is known.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from tuner.aws import events_setup
from tuner.aws.connections import Identity
from tuner.core.records import Json
from tuner.spec.study_file import StudySpec

PROBE_PREFIX = "tuner-first-dollar-"  # of the names of jobs that `doctor --first-dollar` makes
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
# Calls that IAM grants to everybody.
FREE_CALLS = frozenset((("sts", "GetCallerIdentity"),))

_Document: TypeAlias = dict[str, Json]
_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com[^/]*/([^@:]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One statement. `calls` are (service as boto3 names it, operation) that need it."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]  # ARNs to be filled in with a Place
    calls: tuple[tuple[str, str], ...] = ()
    condition: Mapping[str, Json] | None = None
    less_without: str = ""  # what fails without it; empty: nothing works without it


# Stands for the number of an account that nobody could be asked for.
UNKNOWN_ACCOUNT = "ACCOUNT"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScope:
    """The parts of ARNs."""

    partition: str = "aws"
    region: str = "REGION"
    account: str = UNKNOWN_ACCOUNT
    jobs: str = "STUDY"  # how the names of jobs begin
    bucket: str = "BUCKET"
    prefix: str = "PREFIX/"
    outputs: str = "BUCKET/PREFIX/"  # bucket and key, as in an ARN
    role: str = "ROLE"  # its name, with its path
    caller: str = "user/CALLER"
    image: str = "{region}:{account}:repository/REPOSITORY"  # in ECR; stars where it is elsewhere or not known
    key: str | None = None  # as the study file names it
    inputs: tuple[str, ...] = ()  # bucket and key, as in an ARN
    vpc: bool = False


def place(spec: StudySpec | None, identity: Identity | None, region: str | None) -> PolicyScope:
    """As far as the study file and the credentials say."""
    made = PolicyScope() if spec is None else _of_study(spec)
    if region is not None:
        made = replace(made, region=region)
    if identity is not None:
        caller = principal(identity.arn).rpartition(":")[2]
        made = replace(made, account=identity.account, partition=identity.partition, caller=caller)
    return made


def documents(where: PolicyScope) -> _Document:
    """`{"caller": policy, "role": policy}`, each fit for `aws iam put-role-policy`."""
    return {"caller": _policy(caller_rights(where), where), "role": _policy(role_rights(where), where)}


def principal(arn: str) -> str:
    """The user or the role behind an identity: the session of an assumed role is its role's."""
    parts = arn.split(":", 5)
    kind, _, name = parts[-1].partition("/")
    if kind != "assumed-role":
        return arn
    return f"{parts[0]}:{parts[1]}:iam::{parts[4]}:role/{name.partition('/')[0]}"


def caller_rights(where: PolicyScope) -> Iterator[Right]:
    """The rights for the calls of `tuner` itself, from `launch` to `doctor`."""
    yield from _ON_JOBS
    yield from _ON_STORAGE
    yield from _LOOKS
    yield from _ON_EVENTS
    if where.image.split(":")[1] in ("{account}", where.account):
        yield _IMAGE  # others' registries are not looked into
    beside = tuple(dict.fromkeys(each.partition("/")[0] for each in (where.outputs, *where.inputs)))
    if others := tuple(f"arn:{{partition}}:s3:::{each}" for each in beside if each != where.bucket):
        yield Right(
            sid="OtherBuckets",  # HeadBucket, once more
            actions=("s3:ListBucket",),
            resources=others,
            less_without="buckets of inputs and outputs cannot be looked at beforehand",
        )
    if where.key is not None:
        # inferred: downloads of what SageMaker encrypted, uploads to a bucket that encrypts with it, volumes of jobs
        actions = ("kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey")
        yield _key_right(where.key, actions)


def role_rights(where: PolicyScope) -> Iterator[Right]:
    """The rights for the container and for SageMaker in the role's name: data, checkpoints, logs, metrics, image."""
    objects = ("arn:{partition}:s3:::{bucket}/{prefix}*", "arn:{partition}:s3:::{outputs}*")
    # deletions of the script reach S3 through the checkpoint agent
    yield Right(sid="Objects", actions=("s3:DeleteObject", "s3:GetObject", "s3:PutObject"), resources=_unique(objects))
    buckets = ["arn:{partition}:s3:::{bucket}"]
    if where.inputs:
        inputs = tuple(f"arn:{{partition}}:s3:::{each}*" for each in where.inputs)
        yield Right(sid="Inputs", actions=("s3:GetObject",), resources=_unique(inputs))
        buckets += [f"arn:{{partition}}:s3:::{each.partition('/')[0]}" for each in where.inputs]
    yield Right(sid="Buckets", actions=("s3:ListBucket",), resources=_unique(buckets))
    yield Right(
        sid="Logs",
        actions=("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
        resources=_LOG_ARNS,
    )
    no_metrics = "CloudWatch shows no metrics of jobs"
    yield Right(sid="Metrics", actions=("cloudwatch:PutMetricData",), resources=("*",), less_without=no_metrics)
    yield Right(sid="Registry", actions=("ecr:GetAuthorizationToken",), resources=("*",))
    pull = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
    own = "the image is not pulled, unless its own policy lets this role"
    yield Right(sid="Image", actions=pull, resources=_IMAGE.resources, less_without=own)
    if where.key is not None:
        actions = ("kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey")
        yield _key_right(where.key, actions)
    if where.vpc:
        yield Right(sid="Vpc", actions=_VPC_ACTIONS, resources=("*",))


def _key_right(key: str, actions: tuple[str, ...]) -> Right:
    """Of a key as SageMaker takes it: by ARN, by id, by alias or by an alias's ARN."""
    arn = key.split(":", 5) if key.startswith("arn:") else ["arn", "{partition}", "kms", "{region}", "{account}", key]
    alias = arn[-1] if arn[-1].startswith("alias/") else None
    name = "key/*" if alias else f"key/{arn[-1].removeprefix('key/')}"
    # a policy speaks of keys: in its resources, an alias would mean the alias itself
    condition: Mapping[str, Json] | None = (
        {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}} if alias else None
    )
    return Right(sid="Key", actions=actions, resources=(":".join([*arn[:-1], name]),), condition=condition)


_JOBS = (
    "arn:{partition}:sagemaker:{region}:{account}:training-job/{jobs}-*",
    f"arn:{{partition}}:sagemaker:{{region}}:{{account}}:training-job/{PROBE_PREFIX}*",
)
_ROLE = "arn:{partition}:iam::{account}:role/{role}"
_LOG_ARNS = (
    f"arn:{{partition}}:logs:{{region}}:{{account}}:log-group:{LOG_GROUP}",
    f"arn:{{partition}}:logs:{{region}}:{{account}}:log-group:{LOG_GROUP}:*",
)
_VPC_ACTIONS = (
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
)
_ON_JOBS = (
    Right(
        sid="Jobs",
        # AddTags: jobs are created with tags
        actions=(
            "sagemaker:AddTags",
            "sagemaker:CreateTrainingJob",
            "sagemaker:DescribeTrainingJob",
            "sagemaker:StopTrainingJob",
        ),
        resources=_JOBS,
        calls=(
            ("sagemaker", "CreateTrainingJob"),
            ("sagemaker", "DescribeTrainingJob"),
            ("sagemaker", "StopTrainingJob"),
        ),
    ),
    Right(
        sid="ListOfJobs",
        actions=("sagemaker:ListTrainingJobs",),
        resources=("*",),
        calls=(("sagemaker", "ListTrainingJobs"),),
    ),
    Right(
        sid="GiveJobsTheirRole",  # CreateTrainingJob passes it on
        actions=("iam:PassRole",),
        resources=(_ROLE,),
        condition={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
    ),
)
_ON_STORAGE = (
    Right(
        sid="Objects",
        # large files go up in parts, which a failed upload takes back
        actions=("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"),
        resources=("arn:{partition}:s3:::{bucket}/{prefix}*", "arn:{partition}:s3:::{outputs}*"),
        calls=(
            ("s3", "CopyObject"),
            ("s3", "DeleteObjects"),
            ("s3", "GetObject"),
            ("s3", "HeadObject"),
            ("s3", "PutObject"),
        ),
    ),
    Right(
        sid="Bucket",
        actions=("s3:ListBucket",),
        resources=("arn:{partition}:s3:::{bucket}",),
        calls=(("s3", "HeadBucket"), ("s3", "ListObjectsV2")),
    ),
)
_LOOKS = (
    Right(
        sid="Logs",
        actions=("logs:DescribeLogStreams", "logs:GetLogEvents"),
        resources=_LOG_ARNS,
        calls=(("logs", "DescribeLogStreams"), ("logs", "GetLogEvents")),
        less_without="`logs` shows nothing",
    ),
    Right(
        sid="Metrics",
        actions=("cloudwatch:GetMetricData",),
        resources=("*",),
        calls=(("cloudwatch", "GetMetricData"),),
        less_without="metrics of algorithms and of images that start themselves do not arrive",
    ),
    Right(
        sid="RoleAndRights",
        actions=("iam:GetRole", "iam:SimulatePrincipalPolicy"),
        resources=(_ROLE, "arn:{partition}:iam::{account}:{caller}"),
        calls=(("iam", "GetRole"), ("iam", "SimulatePrincipalPolicy")),
        less_without="role and rights cannot be looked at beforehand",
    ),
    Right(
        sid="Quotas",
        actions=("servicequotas:ListAWSDefaultServiceQuotas", "servicequotas:ListServiceQuotas"),
        resources=("*",),
        calls=(("service-quotas", "ListAWSDefaultServiceQuotas"), ("service-quotas", "ListServiceQuotas")),
        less_without="quotas cannot be looked at beforehand",
    ),
    Right(
        sid="Prices",
        actions=("pricing:GetProducts",),
        resources=("*",),
        calls=(("pricing", "GetProducts"),),
        less_without="prices are the shipped table's",
    ),
)
_IMAGE = Right(
    sid="Image",
    actions=("ecr:DescribeImages",),
    resources=("arn:{partition}:ecr:{image}",),
    calls=(("ecr", "DescribeImages"),),
    less_without="an image that is not there is found by the first job",
)
_QUEUE = f"arn:{{partition}}:sqs:{{region}}:{{account}}:{events_setup.NAME}"
_ON_EVENTS = (
    Right(
        sid="Hints",
        actions=("sqs:DeleteMessage", "sqs:ReceiveMessage"),
        resources=(_QUEUE,),
        calls=(("sqs", "DeleteMessageBatch"), ("sqs", "ReceiveMessage")),
        less_without="changes of jobs are seen by polling alone",
    ),
    Right(
        sid="SetUpHints",
        actions=(
            "events:DeleteRule",
            "events:PutRule",
            "events:PutTargets",
            "events:RemoveTargets",
            "sqs:CreateQueue",
            "sqs:DeleteQueue",
            "sqs:GetQueueAttributes",
            "sqs:GetQueueUrl",
            "sqs:SetQueueAttributes",
        ),
        resources=(_QUEUE, f"arn:{{partition}}:events:{{region}}:{{account}}:rule/{events_setup.NAME}"),
        calls=(
            ("events", "DeleteRule"),
            ("events", "PutRule"),
            ("events", "PutTargets"),
            ("events", "RemoveTargets"),
            ("sqs", "CreateQueue"),
            ("sqs", "DeleteQueue"),
            ("sqs", "GetQueueAttributes"),
            ("sqs", "GetQueueUrl"),
            ("sqs", "SetQueueAttributes"),
        ),
        less_without="doctor --events cannot make queue and rule; its template can be deployed by somebody else",
    ),
)


def _of_study(spec: StudySpec) -> PolicyScope:
    role = spec.sagemaker.role or ""
    arn = role.split(":", 5)
    # the default bucket of an account and a region, as `launch` takes it
    root = spec.checkpoints.root or "s3://sagemaker-{region}-{account}/tuner/"
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    outputs = spec.sagemaker.outputs or root
    return PolicyScope(
        partition=arn[1] if role.startswith("arn:") else "aws",
        account=arn[4] if role.startswith("arn:") else UNKNOWN_ACCOUNT,
        jobs=spec.name,
        bucket=bucket,
        prefix=prefix,
        outputs=outputs.removeprefix("s3://"),
        role=arn[-1].removeprefix("role/") or "ROLE",
        image=_image(spec.training.image_uri),
        key=spec.sagemaker.kms_key,
        inputs=tuple(_address(each.uri) for each in spec.training.inputs),
        vpc=bool(spec.sagemaker.vpc.security_groups),  # as requests: subnets may stand in `vpc` or be those of `zones`
    )


def _address(uri: str) -> str:
    """Bucket and key: a bucket alone ends in a slash, else the policy would cover buckets with longer names, too."""
    address = uri.removeprefix("s3://")
    return address if "/" in address else f"{address}/"


def _image(uri: str | None) -> str:
    """The end of the ARN of an image in ECR."""
    found = _ECR.match(uri or "")
    return "*:*:repository/*" if found is None else f"{found[2]}:{found[1]}:repository/{found[3]}"


def _policy(rights: Iterator[Right], where: PolicyScope) -> _Document:
    return {"Version": "2012-10-17", "Statement": [_statement(right, where) for right in rights]}


def resources(right: Right, where: PolicyScope) -> tuple[str, ...]:
    """The ARNs of a statement, filled in."""
    return _unique([_arn(each, where) for each in right.resources])


def _statement(right: Right, where: PolicyScope) -> _Document:
    made: _Document = {
        "Sid": right.sid,
        "Effect": "Allow",
        "Action": list(right.actions),
        "Resource": list(resources(right, where)),
    }
    if right.condition is not None:
        made["Condition"] = dict(right.condition)
    return made


def _arn(template: str, where: PolicyScope) -> str:
    for name in ("image", "jobs", "bucket", "prefix", "outputs", "role", "caller", "partition", "region", "account"):
        template = template.replace(f"{{{name}}}", getattr(where, name))
    return template


def _unique(texts: "tuple[str, ...] | list[str]") -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
