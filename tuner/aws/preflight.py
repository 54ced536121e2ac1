"""Find what would keep a study's jobs from running on AWS, before a job is created.

Each of these mistakes costs a user minutes to hours if SageMaker finds it: a role that it may not assume, a bucket in
another region, a quota of zero. `launch` checks all of them before anything is written, and so does `doctor`.

Rules: each check is one function from an account and a study to findings, each with its remedy, and asks only what
reads. Quotas are asked for once, since a launch also places its first jobs by them. The study was completed, as far as
it could be (`prepare`): what is still open is passed over, since it was said. What cannot be asked, for lack of a right
or of a network, is said as a warning and stops nobody, except that nothing works without credentials.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from tuner.aws.connections import Aws, AwsError, ask
from tuner.core.errors import Finding
from tuner.core.policy.placement import Kind
from tuner.core.prices import PriceUnknown, RateCard
from tuner.spec.study_file import StudySpec
from tuner.spec.workload import request_violations

_QUOTAS_URL = "https://console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas"
_QUOTA_PAGES_MAX = 200  # of 100 quotas: several times what there is
_ECR = re.compile(
    r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^@:]+)(?:@(sha256:[0-9a-f]{64})|:(.+))?"
)
_ROLE_ARN = re.compile(r"arn:[a-z-]+:iam::(\d{12}):role/(?:.*/)?([^/]+)")
# What a region answers that was not enabled for the account, or that is of another partition: it knows no such key.
_UNKNOWN_KEY_CODES = frozenset(("InvalidClientTokenId", "UnrecognizedClientException"))
_TRUSTED = "sagemaker.amazonaws.com"


@dataclass(frozen=True, slots=True)
class Quotas:
    """What Service Quotas says, in instances; None for what it does not tell. `error`: why it may tell too little."""

    instances: Mapping[Kind, int | None]
    error: AwsError | None = None


def examine(aws: Aws, spec: StudySpec, known: Quotas) -> list[Finding]:
    """Every check of `launch`, in the order in which a user would fix the findings. The credentials must work."""
    found = [
        *region(aws),
        *role(aws, spec),
        *buckets(aws, spec),
        *instance_types(aws, spec),
        *quotas(spec, known),
        *image(aws, spec),
        *price(aws, spec),
    ]
    # last, and of a study that lacks nothing: else it repeats what was just said
    return found if any(finding.level == "error" for finding in found) else [*found, *request(spec)]


def identity(aws: Aws) -> Iterator[Finding]:
    """Credentials that work, and a region: without them every other question fails for the same reason."""
    try:
        who, region = aws.identity, aws.region
    except AwsError as error:
        remedy = credentials_remedy(error) + _region_doubt(aws, error)
        yield Finding(level="error", what=f"AWS cannot be asked: {error}", remedy=remedy)
        return
    yield Finding(level="ok", what=f"account {who.account} in {region}, as {who.arn}")


def credentials_remedy(error: AwsError) -> str:
    """The remedy if an account does not answer."""
    if error.is_about_credentials:
        return "log in (aws sso login, aws configure), or name a profile that works: sagemaker.profile or AWS_PROFILE"
    if error.is_about_rights:
        return "grant the right to the user who launches"
    return "see that this machine reaches AWS, and that AWS_REGION and AWS_ENDPOINT_URL say what you mean"


def region(aws: Aws) -> Iterator[Finding]:
    """Check that SageMaker exists in the region, as far as boto3 knows: an old one does not know the newest."""
    known = _regions(aws)
    if aws.region not in known:
        yield Finding(
            level="warn",
            what=f"region {aws.region}: this boto3 knows no SageMaker there",
            remedy=_meant(aws.region, known) or "correct sagemaker.region, or upgrade boto3",
        )


def _region_doubt(aws: Aws, error: AwsError) -> str:
    """The remedy for a wrong region, which looks like a failing network or failing credentials."""
    try:
        name, known = aws.region, _regions(aws)
    except AwsError:
        return ""
    if error.code in _UNKNOWN_KEY_CODES:
        return f"; where they work elsewhere, enable region {name} for the account, or correct sagemaker.region"
    if name not in known:
        return f"; no SageMaker is known in {name}: {_meant(name, known) or 'correct sagemaker.region'}"
    return ""


def _regions(aws: Aws) -> list[str]:
    """The regions of SageMaker in all partitions, without a call. Raises AwsError."""
    session = aws.session
    partitions = session.get_available_partitions()
    return [name for each in partitions for name in session.get_available_regions("sagemaker", partition_name=each)]


def _meant(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else ""


# --- the execution role


def role(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Check that the role exists in this account and that SageMaker may assume it. `prepare` reports a missing role."""
    named = spec.sagemaker.role
    if named is None:
        return
    arn = _ROLE_ARN.fullmatch(named)
    if named.startswith("arn:") and arn is None:
        yield Finding(level="error", what=f"sagemaker.role {named} is not the ARN of a role", remedy="correct it")
        return
    if arn is not None and arn[1] != aws.identity.account:
        yield Finding(
            level="error",
            what=f"role {named} belongs to account {arn[1]}, these credentials to {aws.identity.account}",
            remedy="a job's role is of the account it runs in: name one of it, or use the other account's profile",
        )
        return
    yield from _look_at_role(aws, named if arn is None else arn[2])


def _look_at_role(aws: Aws, name: str) -> Iterator[Finding]:
    try:
        found = ask(aws.client("iam").get_role, RoleName=name)["Role"]
    except AwsError as error:
        if error.code == "NoSuchEntity":
            yield Finding(
                level="error",
                what=f"there is no role {name} in account {aws.identity.account}",
                remedy="correct sagemaker.role, or create the role",
            )
        else:
            yield _unasked(f"role {name}", error)
        return
    match _trusts_sagemaker(found.get("AssumeRolePolicyDocument")):
        case True:
            yield Finding(level="ok", what=f"role {name}: SageMaker may assume it")
        case None:
            yield Finding(
                level="warn",
                what=f"role {name}: its trust policy has conditions, so whether SageMaker may assume it is left open",
                remedy="aws:SourceAccount and aws:SourceArn of this account let jobs in; of others the first job tells",
            )
        case False:
            yield Finding(
                level="error",
                what=f"role {name} does not let {_TRUSTED} assume it",
                remedy=f"allow the service {_TRUSTED} sts:AssumeRole in its trust policy, and deny it nowhere",
            )


def _trusts_sagemaker(document: object) -> bool | None:
    """Whether a trust policy lets SageMaker assume the role, as IAM reads it: one denial outweighs all that allow.

    None where it cannot be told: conditions are not weighed, and a document may be in words that we do not know.
    """
    statements = document.get("Statement") if isinstance(document, dict) else None
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not all(isinstance(each, dict) for each in statements):
        return None
    meant = [each for each in statements if _is_about_assuming(each)]
    allow, deny = ([each for each in meant if each.get("Effect") == effect] for effect in ("Allow", "Deny"))
    if not allow or any(not each.get("Condition") for each in deny):
        return False
    return None if deny or all(each.get("Condition") for each in allow) else True


def _is_about_assuming(statement: Mapping[str, Any]) -> bool:
    """Whether a statement covers SageMaker and sts:AssumeRole, by name, by wildcard or by `Not…`."""
    return _covers(statement, "Action", "sts:AssumeRole") and (
        "*" in _list(statement, "Principal")  # everybody, in either spelling
        or "*" in _list(statement.get("Principal"), "AWS")
        or _covers(statement.get("Principal"), "Service", _TRUSTED)
        or ("NotPrincipal" in statement and _TRUSTED not in _list(statement["NotPrincipal"], "Service"))
    )


def _covers(holder: object, key: str, name: str) -> bool:
    """Whether IAM's patterns match a name, ignoring case; for `Not…`, whether they do not."""
    if isinstance(holder, dict) and f"Not{key}" in holder:
        return not _covers({key: holder[f"Not{key}"]}, key, name)
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in _list(holder, key))


def _list(holder: object, key: str) -> list[str]:
    value = holder.get(key, []) if isinstance(holder, dict) else []
    return [value] if isinstance(value, str) else [str(each) for each in value]


# --- the buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """How a study uses a bucket: the key of the study file that names it, and who must reach it."""

    key: str
    named: bool = True  # by the user, not by us
    role_only: bool = False  # only the jobs' role reads or writes there, not the user who launches


def buckets(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Check that the buckets of checkpoints, outputs and inputs exist, may be used, and are in the jobs' region."""
    for name, use in _uses(aws, spec).items():
        yield _look_at_bucket(aws, name, use)


def _uses(aws: Aws, spec: StudySpec) -> dict[str, _Use]:
    """Each bucket once, by name, with its strictest use."""
    root, outputs = spec.checkpoints.root, spec.sagemaker.outputs
    main = default_bucket(aws) if root is None else _bucket(root)
    found = {main: _Use(key="checkpoints.root", named=root is not None)}
    if outputs is not None:
        found.setdefault(_bucket(outputs), _Use(key="sagemaker.outputs", role_only=True))
    for each in spec.training.inputs:
        found.setdefault(_bucket(each.uri), _Use(key=f"training.inputs.{each.channel}", role_only=True))
    return found


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[0]


def _look_at_bucket(aws: Aws, name: str, use: _Use) -> Finding:
    # anybody can make a bucket whose name can be guessed, and open it to us: jobs would run what its owner puts there
    ours = {"ExpectedBucketOwner": aws.identity.account} if name == default_bucket(aws) else {}
    try:
        reply = ask(aws.client("s3").head_bucket, Bucket=name, **ours)
    except AwsError as error:
        where = _bucket_region(getattr(error.__cause__, "response", None) or {})
        if where and where != aws.region:
            return _far_bucket(aws, name, where, use)
        return _no_bucket(aws, name, error, use)
    where = reply.get("BucketRegion") or _bucket_region(reply) or aws.region
    if where != aws.region:
        return _far_bucket(aws, name, where, use)
    return Finding(level="ok", what=f"bucket {name} in {where}")


def _bucket_region(reply: Mapping[str, Any]) -> str | None:
    """The region of a bucket, as S3 reports it. S3 does so in refusals as well."""
    headers: Mapping[str, str] = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region")


def default_bucket(aws: Aws) -> str:
    """The bucket that SageMaker's tools agree on, for an account and a region. Raises AwsError."""
    return f"sagemaker-{aws.region}-{aws.identity.account}"


def _far_bucket(aws: Aws, name: str, region: str, use: _Use) -> Finding:
    return Finding(
        level="error",
        what=f"bucket {name} lies in {region}, the jobs run in {aws.region}",
        remedy=f"name a bucket of the same region in {use.key}, or run the study there (sagemaker.region)",
    )


def _no_bucket(aws: Aws, name: str, error: AwsError, use: _Use) -> Finding:
    if error.code in ("404", "NoSuchBucket"):
        ways = f"correct {use.key}" if use.named else "write another one: checkpoints: {root: s3://BUCKET/tuner/}"
        if not use.named:  # its name is made of the region
            ways += f"; or correct sagemaker.region, if {aws.region} was not meant"
        return Finding(
            level="error",
            what=f"there is no bucket {name}",
            remedy=f"create it: aws s3 mb s3://{name} {aws.cli_options}; or {ways}",
        )
    if error.code in ("301", "PermanentRedirect"):
        return Finding(
            level="error",
            what=f"bucket {name} lies in another region than {aws.region}",
            remedy=f"name a bucket of the same region in {use.key}",
        )
    if error.is_about_rights:
        return Finding(
            level="warn" if use.role_only else "error",
            what=f"bucket {name} may not be looked at: it is another account's, or s3:ListBucket is missing",
            remedy=f"see that the jobs' role may use it: {use.key}"
            if use.role_only
            else f"grant s3:ListBucket on it, or name another bucket in {use.key}",
        )
    # an answer to HEAD has no body: 400 stands for a wrong region as for credentials that expired meanwhile
    stays = f"see that it lies in {aws.region}, as the jobs do, or correct {use.key}" if error.code == "400" else ""
    return _unasked(f"bucket {name}", error, stays=stays)


# --- instance types and their quotas


def instance_types(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Check that training jobs can use the instance types at all."""
    known = _known_types(aws)
    for each in spec.training.instance_types:
        if each not in known:
            near = get_close_matches(each, known, n=1)
            yield Finding(
                level="error",
                what=f"{each} is not an instance type of training jobs",
                remedy=f"did you mean {near[0]}?" if near else "correct training.instance_types, or upgrade boto3",
            )


def _known_types(aws: Aws) -> Sequence[str]:
    return list(aws.client("sagemaker").meta.service_model.shape_for("TrainingInstanceType").enum)


def known_quotas(aws: Aws, spec: StudySpec) -> Quotas:
    """How many instances of each listed type may run at a time, spot and on demand apart, as far as the study asks."""
    kinds = {quota_name(each, spot=spot): (each, spot) for each in spec.training.instance_types for spot in _asks(spec)}
    found, error = read_quotas(aws, kinds)
    return Quotas({kind: found.get(name) for name, kind in kinds.items()}, error)


def quotas(spec: StudySpec, known: Quotas) -> Iterator[Finding]:
    """Check that the quotas allow at least one type, and how many instances of each."""
    if known.error is not None:
        yield _unasked("quotas", known.error, stays="the service itself says so when a quota is used up")
    count = spec.training.instance_count
    for (kind, spot), value in known.instances.items():
        if value is not None or known.error is None:
            yield _quota_finding(quota_name(kind, spot=spot), value, count, spec.parallel)
    if all(value is not None and value < count for value in known.instances.values()):
        yield Finding(
            level="error",
            what=f"no listed type may run {count} instances: no job of this study can start",
            remedy=f"ask for more: {_QUOTAS_URL}; or name other types",
        )


def quota_name(instance_type: str, *, spot: bool) -> str:
    """The name of the quota in Service Quotas; its unit is instances."""
    return f"{instance_type} for {'spot ' if spot else ''}training job usage"


def read_quotas(aws: Aws, wanted: Collection[str]) -> tuple[dict[str, int], AwsError | None]:
    """The values of these quotas by name, as far as they are told, and what kept more from being told.

    An account lists those that were ever applied to it; for the others what AWS gives to every account counts.
    """
    found = dict[str, int]()
    try:
        client = aws.client("service-quotas", patient=True)
        for ask_page in (client.list_service_quotas, client.list_aws_default_service_quotas):
            missing = set(wanted) - set(found)
            if missing:
                found |= _listed_quotas(ask_page, missing)
    except AwsError as error:
        return found, error
    return found, None


def _listed_quotas(ask_page: Callable[..., Any], wanted: Collection[str]) -> dict[str, int]:
    """Raises AwsError for a list without an end, too: a quota that was not reached would be taken for one left out."""
    found, more = dict[str, int](), dict[str, Any]()
    for _ in range(_QUOTA_PAGES_MAX):
        page = ask(ask_page, ServiceCode="sagemaker", MaxResults=100, **more)
        # one that AWS itself could not look up has a reason in place of its value
        found |= {
            each["QuotaName"]: int(each["Value"])
            for each in page.get("Quotas", ())
            if each.get("QuotaName") in wanted and "Value" in each
        }
        if not page.get("NextToken") or len(found) == len(wanted):
            return found
        more = {"NextToken": page["NextToken"]}
    raise AwsError(f"Service Quotas: more than {_QUOTA_PAGES_MAX} pages of quotas", "TooManyPages")


def _asks(spec: StudySpec) -> tuple[bool, ...]:
    """Whether spot, on demand or both are asked for."""
    match spec.capacity.policy:
        case "spot":
            return (True,) if spec.capacity.on_demand_after_losses is None else (True, False)
        case "on-demand":
            return (False,)
        case _:
            return (True, False)


def _quota_finding(name: str, value: int | None, count: int, parallel: int) -> Finding:
    if value is None:
        return Finding(level="warn", what=f"quota {name}: Service Quotas does not know it", remedy=f"see {_QUOTAS_URL}")
    if value < count:
        return Finding(
            level="warn", what=f"quota {name}: {value}, and a job needs {count}", remedy=f"ask for more: {_QUOTAS_URL}"
        )
    if value < count * parallel:
        return Finding(
            level="warn",
            what=f"quota {name}: {value}, so {value // count} of {parallel} trials at a time",
            remedy=f"ask for {count * parallel} ({_QUOTAS_URL}), or lower parallel",
        )
    return Finding(level="ok", what=f"quota {name}: {value}")


# --- the image and the price


def image(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Check that the image exists, if it is in the account's own registry: others cannot be looked into."""
    uri = spec.training.image_uri
    if uri is None:
        if spec.training.framework is None and spec.training.algorithm is None:
            yield Finding(
                level="error",
                what="no image: neither training.image_uri nor training.framework is set",
                remedy="write training.image_uri, or framework: {name: pytorch, version: '2.5.1', python: py311}",
            )
        return
    private = _ECR.fullmatch(uri)
    if private is None or private[1] != aws.identity.account:
        if spec.training.framework is None:
            yield Finding(level="warn", what=f"image {uri}: of another registry, so it was not looked for")
        return
    yield from _look_at_image(aws, uri, private)


def _look_at_image(aws: Aws, uri: str, parts: re.Match[str]) -> Iterator[Finding]:
    account, region, repository, digest, tag = parts.groups()
    wanted = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    describe = aws.client("ecr", region=region).describe_images
    try:
        ask(describe, registryId=account, repositoryName=repository, imageIds=[wanted])
    except AwsError as error:
        if error.code in ("ImageNotFoundException", "RepositoryNotFoundException"):
            yield Finding(
                level="error",
                what=f"image {uri} is not there ({error.code.removesuffix('Exception')})",
                remedy="push it, or correct training.image_uri",
            )
        else:
            yield _unasked(f"image {uri}", error)
        return
    if region != aws.region:
        yield Finding(
            level="warn",
            what=f"image {uri} lies in {region}, the jobs run in {aws.region}",
            remedy="SageMaker takes images of its own region: push it there",
        )
    else:
        yield Finding(level="ok", what=f"image {uri}")


def request(spec: StudySpec) -> Iterator[Finding]:
    """Check the requests by CreateTrainingJob's own model. The study must be complete."""
    training = spec.training
    if spec.account and spec.checkpoints.root and (training.image_uri or training.algorithm):
        for line in request_violations(spec):
            yield Finding(level="error", what=f"the jobs' requests would be refused: {line}", remedy="correct it")


def price(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Check that every type has a price: without one there is no budget and no spend."""
    card = RateCard(spec.prices)
    for each in spec.training.instance_types:
        try:
            card.rate(each, aws.region)
        except PriceUnknown as error:
            yield Finding(level="error", what=f"no budget can be promised: {error}", remedy="then launch again")


def _unasked(what: str, error: AwsError, *, stays: str = "") -> Finding:
    """A check that could not be made. It stops nobody."""
    return Finding(level="warn", what=f"{what}: could not be looked at: {error}", remedy=stays)
