"""What could keep a study from running on AWS, beyond what `launch` looks at: clocks, rights, storage, prices.

A first launch on an account should work. `launch` checks what would keep every job from running. This module also
checks what would hurt later: a right that only `logs` needs, a role that may not write, a clock that drifts.

Rules: the study is completed as `launch` does it (`prepare`), and the completed study is examined, so that `doctor`
and `launch` agree. As in `preflight`, each check is one function and each finding has its remedy; a question that
cannot be asked is a warning. One small object is written, below the study's own root, read and deleted again; nothing
else is changed.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tuner.aws import iam_policy, preflight
from tuner.aws.connections import Aws, AwsError, ask
from tuner.aws.iam_policy import PolicyScope, Right
from tuner.aws.prepare import complete
from tuner.aws.price_list import listed
from tuner.core.commands import Command, Message
from tuner.core.errors import Finding
from tuner.core.prices import PriceUnknown, RateCard
from tuner.spec.study_file import StudySpec
from tuner.storage.objects import Objects, ObjectsError, S3Objects

# AWS refuses signatures that are five minutes off.
_SKEW_FATAL_S, _SKEW_ODD_S = 300.0, 30.0
_PAGES_MAX = 50  # of results of one statement, of which there are some tens
_LOOKED_UP = "then look again: nothing that depends on it was looked at"


def examine(aws: Aws, spec: StudySpec, now: datetime) -> Iterator[Finding]:
    """Check everything that a study needs of an account, in the order in which a user would fix it."""
    yield from clock_skew(aws, now)
    found = list(preflight.identity(aws))
    yield from found
    if any(finding.level == "error" for finding in found):
        return
    known = listed(aws, aws.region, None, now)
    if known.notice:
        yield Finding(level="warn", what=known.notice, remedy="the plan of a launch shows the date of each price")
    try:
        whole, refused = complete(spec, aws, known.rates)
    except AwsError as error:
        remedy = preflight.credentials_remedy(error)
        yield Finding(level="error", what=f"AWS cannot be asked any more: {error}", remedy=remedy)
        return
    yield from (Finding(level="error", what=line, remedy=_LOOKED_UP) for line in refused)
    yield from (Finding(level="warn", what=line) for line in whole.warnings if line not in spec.warnings)
    yield from preflight.examine(aws, whole, preflight.known_quotas(aws, whole))
    yield from _prices(spec, RateCard(spec.prices, known.rates), aws.region)
    yield from storage(aws, whole)
    yield from rights(aws, whole)


def clock_skew(aws: Aws, now: datetime) -> Iterator[Finding]:
    """Whether this machine's clock agrees with AWS's, by the date of an answer, even of a refusal."""
    try:
        reply: Mapping[str, Any] = ask(aws.client("sts").get_caller_identity)
    except AwsError as error:
        reply = getattr(error.__cause__, "response", None) or {}
    date = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if date is None:
        return
    try:
        skew_s = (now - parsedate_to_datetime(date).astimezone(UTC)).total_seconds()
    except ValueError:
        return
    if abs(skew_s) < _SKEW_ODD_S:
        yield Finding(level="ok", what="this machine's clock agrees with AWS's")
        return
    yield Finding(
        level="error" if abs(skew_s) >= _SKEW_FATAL_S else "warn",
        what=f"this machine's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} AWS's",
        remedy="set it by NTP: AWS refuses signatures that are five minutes off, and times in the ledger are compared",
    )


def storage(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Write, read and delete one small object below the study's root."""
    try:
        root = spec.checkpoints.root or f"s3://{preflight.default_bucket(aws)}/tuner/"
        client = aws.client("s3", patient=True)
    except AwsError as error:
        yield Finding(level="warn", what=f"storage: could not be looked at: {error}")
        return
    yield from try_storage(S3Objects(client), f"{root}doctor/{secrets.token_hex(8)}.txt")


def try_storage(objects: Objects, uri: str) -> Iterator[Finding]:
    """Check that the caller may read, write and delete there, as bundles and checkpoints need."""
    written = uri.encode()
    try:
        try:
            objects.write(uri, written)
            whole = objects.read(uri) == written and any(info.uri == uri for info in objects.list(uri))
        finally:
            with suppress(ObjectsError):  # what went wrong first is said
                objects.delete([uri])
        left = any(info.uri == uri for info in objects.list(uri))
    except ObjectsError as error:
        yield Finding(
            level="error",
            what=f"storage: a small object could not be written, read, listed and deleted: {error}",
            remedy="grant s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket there, or name another"
            " bucket in checkpoints.root",
        )
        return
    if not whole:
        yield Finding(
            level="error", what=f"storage: {uri} was not read as it was written", remedy="name another bucket"
        )
    elif left:
        yield Finding(
            level="warn",
            what=f"storage: {uri} could not be deleted",
            remedy="grant s3:DeleteObject: without it gc frees nothing, and jobs keep every old checkpoint",
        )
    else:
        yield Finding(level="ok", what=f"storage: {uri.rpartition('doctor/')[0]} can be written, read and deleted")


# --- rights


def rights(aws: Aws, spec: StudySpec) -> Iterator[Finding]:
    """Ask IAM's policy simulator about the caller and the role. Bucket and key policies are not part of it."""
    where = iam_policy.place(spec, aws.identity, aws.region)
    policy = Command("doctor", "FILE" if spec.file is None else str(spec.file), "--policy")
    caller = iam_policy.principal(aws.identity.arn)
    if caller != aws.identity.arn:
        caller = _role_arn(aws, caller)
    if caller.endswith(":root"):
        yield Finding(level="warn", what="the caller is the account's root", remedy="use a role or a user of its own")
    else:
        yield from _simulated(aws, caller, iam_policy.caller_rights(where), where, policy)
    if spec.sagemaker.role is not None:
        role = _role_arn(aws, f"arn:{where.partition}:iam::{where.account}:role/{where.role}")
        yield from _simulated(aws, role, iam_policy.role_rights(where), where, policy)


def _role_arn(aws: Aws, arn: str) -> str:
    """The ARN of a role with its path, which neither a session nor a name tells."""
    try:
        return str(ask(aws.client("iam").get_role, RoleName=arn.rpartition("/")[2])["Role"]["Arn"])
    except AwsError:
        return arn


def _simulated(aws: Aws, arn: str, needed: Iterator[Right], where: PolicyScope, policy: Command) -> Iterator[Finding]:
    who = arn.rpartition(":")[2]
    try:
        answers = [(right, _verdicts(aws, arn, right, where)) for right in needed]
    except AwsError as error:
        yield Finding(
            level="warn",
            what=f"rights of {who}: could not be looked at: {error}",
            remedy=Message("grant iam:SimulatePrincipalPolicy, or compare with ", policy),
        )
        return
    for right, verdicts in answers:
        denied = sorted(action for action, allowed in verdicts.items() if allowed is False)
        unknown = sorted(action for action, allowed in verdicts.items() if allowed is None)
        if denied:
            yield Finding(
                level="warn" if right.less_without else "error",
                what=f"{who} lacks {', '.join(denied)}" + (f": {right.less_without}" if right.less_without else ""),
                remedy=Message("grant it: ", policy, " prints the least policies that work"),
            )
        if unknown:
            yield Finding(
                level="warn",
                what=f"{who}: the simulation did not say whether it has {', '.join(unknown)}",
                remedy=Message("compare its policies with ", policy),
            )
    if all(all(verdicts.values()) for _, verdicts in answers):
        yield Finding(level="ok", what=f"{who} has every right that is needed (by simulation)")


def _verdicts(aws: Aws, arn: str, right: Right, where: PolicyScope) -> dict[str, bool | None]:
    """Whether each action of a statement is allowed on all of its resources; None without an answer."""
    context = [
        {
            "ContextKeyName": key,
            "ContextKeyValues": [str(value)],
            "ContextKeyType": "stringList" if operator.startswith("For") else "string",
        }
        for operator, test in (right.condition or {}).items()
        for key, value in (test.items() if isinstance(test, dict) else ())
    ]
    query: dict[str, Any] = {
        "PolicySourceArn": arn,
        "ActionNames": list(right.actions),
        "ResourceArns": [_specimen(each) for each in iam_policy.resources(right, where)],
        **({"ContextEntries": context} if context else {}),
    }
    verdicts: dict[str, bool | None] = dict.fromkeys(right.actions)
    for result in _evaluations(aws.client("iam", patient=True), query):
        action, allowed = result["EvalActionName"], result["EvalDecision"] == "allowed"
        verdicts[action] = allowed and verdicts.get(action) is not False
    return verdicts


def _evaluations(client: Any, query: dict[str, Any]) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - as of `Aws.client`
    """All pages of an answer. Raises AwsError, also for one that does not end: the rest may be denials."""
    for _ in range(_PAGES_MAX):
        page = ask(client.simulate_principal_policy, **query)
        yield from page.get("EvaluationResults", ())
        if not page.get("IsTruncated") or not page.get("Marker"):
            return
        query = {**query, "Marker": page["Marker"]}
    raise AwsError(f"SimulatePrincipalPolicy: more than {_PAGES_MAX} pages", "TooManyPages")


def _specimen(resource: str) -> str:
    """One resource that matches a pattern: the simulator takes resources, not patterns."""
    return resource if resource == "*" else resource.replace("*", "x")


def _prices(spec: StudySpec, card: RateCard, region: str) -> Iterator[Finding]:
    for kind in spec.training.instance_types:
        with suppress(PriceUnknown):  # an error of `preflight`
            rate = card.rate(kind, region)
            source = f"{rate.basis}, {rate.as_of}" if rate.as_of else rate.basis
            yield Finding(level="ok", what=f"price of {kind}: ${rate.usd_per_hour:f}/h ({source})")
