"""Make a study ready for AWS, once: look up what its file leaves open, and check everything beforehand.

Region, role, bucket, image and prices are looked up when a study is launched, and recorded with it: it goes on with
the same ones, needs no SDK and no price list for it, and keeps its budget in the dollars in which it was promised.

Rules: nothing is written, neither here nor on AWS. A problem that would keep every job from running is refused in one
line with its remedy; a smaller one is a warning. A study file that leaves something open and one that was completed are
the same study: `carried` fills in what was recorded before they are compared.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from tuner.aws import image, preflight
from tuner.aws.connections import Aws, AwsError, ask
from tuner.aws.price_list import PriceCache, listed, pinned
from tuner.core.errors import Exit, Finding, UserError
from tuner.core.policy.placement import Kind
from tuner.core.prices import Rate, RateCard
from tuner.spec.study_file import SpecError, StudySpec, completed


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A complete study, and the findings.

    `rates` are by instance type, with their source; `quotas` in instances, as far as Service Quotas tells them.
    """

    spec: StudySpec
    rates: Mapping[str, Rate]
    warnings: tuple[str, ...]
    quotas: Mapping[Kind, int]


def connection(spec: StudySpec) -> Aws:
    """The account that the study file means, before any is recorded."""
    return Aws(region=spec.sagemaker.region, profile=spec.sagemaker.profile)


def prepare(spec: StudySpec, aws: Aws, prices: PriceCache | None, now: datetime) -> Prepared:
    """Complete a study and look at everything. Raises UserError for what would keep all of its jobs from running."""
    _refuse(preflight.identity(aws))
    known = listed(aws, aws.region, prices, now)
    try:
        whole, refused = complete(spec, aws, known.rates)
    except AwsError as error:
        raise UserError(f"{error}; {preflight.credentials_remedy(error)}", Exit.REFUSED) from error
    if refused:
        raise UserError("; ".join(refused), Exit.USAGE)
    quotas = preflight.known_quotas(aws, whole)
    found = preflight.examine(aws, whole, quotas)
    _refuse(found)
    warned = [_line(finding) for finding in found if finding.level == "warn"]
    notices = [known.notice] if known.notice else []
    return Prepared(
        spec=whole,
        rates=_rates(spec, whole, known.rates),
        warnings=(*whole.warnings, *notices, *warned),
        quotas={kind: value for kind, value in quotas.instances.items() if value is not None},
    )


def complete(spec: StudySpec, aws: Aws, rates: Mapping[str, Rate]) -> tuple[StudySpec, list[str]]:
    """The study with what its file leaves open, and a line for each thing that cannot be found: that stays open.

    `rates` are by instance type, for those to which the file gives no price. Raises AwsError for an account that no
    longer answers.
    """
    priced = pinned(replace(spec, sagemaker=replace(spec.sagemaker, region=aws.region)), rates)
    role, refused = _found(lambda: _role(spec.sagemaker.role, aws))
    image_uri, refused_too = _found(lambda: _image(spec, aws))
    refused += refused_too
    try:
        whole = completed(
            priced,
            region=aws.region,
            role=role,
            root=spec.checkpoints.root or f"s3://{preflight.default_bucket(aws)}/tuner/",
            image_uri=image_uri,
        )
    except SpecError as error:
        return priced, [*refused, str(error)]
    return whole, refused


def _found(find: Callable[[], str | None]) -> tuple[str | None, list[str]]:
    """The answer of the SDK, or the reason why there is no answer."""
    try:
        return find(), []
    except image.SdkRefused as error:
        return None, [str(error)]


def _rates(spec: StudySpec, whole: StudySpec, known: Mapping[str, Rate]) -> dict[str, Rate]:
    """Where each price comes from, which is no longer to be seen once all of them are written into the study."""
    card = RateCard(spec.prices, known)
    return {kind: card.rate(kind, whole.region) for kind in whole.training.instance_types if kind in whole.prices}


def carried(spec: StudySpec, recorded: StudySpec) -> StudySpec:
    """The study file as it is now, where it still leaves open what was looked up: with what was recorded."""
    cloud, training = spec.sagemaker, spec.training
    same_role = cloud.role is None or str(recorded.sagemaker.role).endswith(f"/{cloud.role}")
    # a framework has an image for each kind of machine: what was found serves the types for which it was looked up
    same_types = set(training.instance_types) <= set(recorded.training.instance_types)
    same_framework = training.framework == recorded.training.framework
    same_image = training.image_uri is None and same_framework and (training.framework is None or same_types)
    prices = {kind: usd for kind, usd in recorded.prices.items() if kind in training.instance_types}
    return replace(
        spec,
        sagemaker=replace(
            cloud,
            region=cloud.region or recorded.sagemaker.region,
            role=recorded.sagemaker.role if same_role else cloud.role,
        ),
        checkpoints=replace(spec.checkpoints, root=spec.checkpoints.root or recorded.checkpoints.root),
        training=replace(training, image_uri=recorded.training.image_uri if same_image else training.image_uri),
        prices={**prices, **spec.prices},
    )


def _role(named: str | None, aws: Aws) -> str:
    """The ARN of the role. One whose name cannot be looked up is taken to have no path; `preflight` asks for it."""
    if named is None:
        return image.find_role(aws.session)
    if named.startswith("arn:"):
        return named
    try:
        return str(ask(aws.client("iam").get_role, RoleName=named)["Role"]["Arn"])
    except AwsError:
        return f"arn:{aws.identity.partition}:iam::{aws.identity.account}:role/{named}"


def _image(spec: StudySpec, aws: Aws) -> str | None:
    training = spec.training
    if training.image_uri is None and training.framework is not None:
        return image.find_image(training.framework, region=aws.region, instance_types=training.instance_types)
    return training.image_uri


def _refuse(found: Iterator[Finding] | list[Finding]) -> None:
    """Refuse with all problems in one line, so that the user can fix all of them before the next call to AWS."""
    errors = [_line(finding) for finding in found if finding.level == "error"]
    if errors:
        raise UserError("; ".join(errors), Exit.REFUSED)


def _line(finding: Finding) -> str:
    return f"{finding.what}: {finding.remedy}" if finding.remedy else finding.what
