"""What SageMaker's refusals mean: each error of a call as the decision that it asks for, with its text kept whole.

Codes and texts are those that were documented or seen; what nobody has seen is judged by its HTTP status. The texts
are only hints wherever a decision can rest on something else, since AWS may change its words at any time.

Rule: no value of a secret leaves here, although SageMaker repeats the environment in what it refuses.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tuner.core.jobs import (
    CapacityUnavailable,
    CredentialsRefused,
    JobError,
    JobNameTaken,
    JobNotFound,
    RequestRejected,
    RoleNotReady,
    SecretMissing,
    ServiceUnavailable,
    Throttled,
)

_BY_CODE: dict[str, type[JobError]] = {
    "ResourceLimitExceeded": CapacityUnavailable,
    "ResourceInUse": JobNameTaken,
    "ValidationException": RequestRejected,
    "InternalFailure": ServiceUnavailable,
    "RequestTimeout": ServiceUnavailable,
    **dict.fromkeys(
        ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"),
        Throttled,
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccessDeniedException",
            "ExpiredToken",
            "ExpiredTokenException",
            "IncompleteSignature",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "MissingAuthenticationTokenException",
            "OptInRequired",
            "RequestExpired",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        ),
        CredentialsRefused,
    ),
}

_MEANING: dict[type[JobError], str] = {
    JobNameTaken: "a job of this name exists already",
    JobNotFound: "there is no job of this name in this account and region",
    CapacityUnavailable: "a quota of this account is used up; ask for more in Service Quotas, or wait",
    Throttled: "too many calls; it will be tried again",
    RequestRejected: "it will not succeed as it is; correct the study file",
    RoleNotReady: "a role that was made moments ago takes a while; it will be tried again a few times",
    SecretMissing: "nothing was sent; jobs go on running meanwhile",
    CredentialsRefused: (
        "renew the credentials or grant the right; a running engine goes on by itself, else resume; jobs go on"
    ),
    ServiceUnavailable: "whether it took effect is not known; it will be looked up and tried again",
}

# Botocore's own errors that mean "no usable credentials", by name: they differ from one version to the next.
_CREDENTIAL_ERRORS = frozenset(
    (
        "CredentialRetrievalError",
        "LoginError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOError",
        "TokenRetrievalError",
    )
)
# "The account-level service limit 'ml.g5.xlarge for spot training job usage' is 0 Instances, with current utilization
# of 0 Instances and a request delta of 1 Instances." Limits for more than one type say nothing about this one.
_QUOTA = re.compile(r"'ml\.\S+ for [^']*' is ([\d,]+)(?:\.0+)? Instances?, with current utilization of ([\d,]+)")


def job_error(operation: str, subject: str, error: Exception, secrets: Iterable[str] = ()) -> JobError:
    """The decision that a failed call of `operation`, about `subject`, asks for. Values of `secrets` are masked."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        kind, text = _refusal(operation, response)
    else:
        kind, text = _transport_fault(error), f"{type(error).__name__}: {error}"
    message = f"{operation} of {subject}: {masked(text, secrets)} ({_MEANING[kind]})"
    if kind is CapacityUnavailable and (quota := _QUOTA.search(text)):
        limit, used = (int(figure.replace(",", "")) for figure in quota.groups())
        return CapacityUnavailable(message, limit=limit, used=used)
    return kind(message)


def rejected(operation: str, subject: str, faults: Iterable[str], secrets: Iterable[str] = ()) -> RequestRejected:
    """A request that was not sent, since it would be refused for all of these."""
    text = masked("; ".join(faults), secrets)
    return RequestRejected(f"{operation} of {subject}: not sent: {text} ({_MEANING[RequestRejected]})")


def masked(text: str, secrets: Iterable[str]) -> str:
    """A text without these values, also as JSON and Python spell them."""
    spellings = {each for secret in secrets for each in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
    for spelling in sorted(spellings - {""}, key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text


def _refusal(operation: str, response: Mapping[str, Any]) -> tuple[type[JobError], str]:
    """The decision that an error answer calls for, and its text."""
    error = response.get("Error", {})
    code, message = str(error.get("Code", "")), str(error.get("Message", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    kind = _special_case(operation, code, message) or _BY_CODE.get(code) or _by_http_status(status)
    return kind, f"{code}: {message}"


def _special_case(operation: str, code: str, message: str) -> type[JobError] | None:
    """Where the code alone says too little."""
    text = message.lower()
    if code == "ResourceLimitExceeded" and "longest run time" in text:
        return RequestRejected  # a quota that no waiting frees
    if code == "ResourceNotFound" or (code == "ValidationException" and "not found" in text):
        # On create it is an image or a data set that is missing. Stop and Describe say it by ValidationException.
        return RequestRejected if operation == "CreateTrainingJob" else JobNotFound
    if code == "ValidationException" and "assume" in text and "role" in text:
        return RoleNotReady
    return None


def _by_http_status(status: int) -> type[JobError]:
    """For codes that we have never seen."""
    if status >= 500:  # noqa: PLR2004 - HTTP's own number
        return ServiceUnavailable
    return {401: CredentialsRefused, 403: CredentialsRefused, 429: Throttled}.get(status, RequestRejected)


def _transport_fault(error: Exception) -> type[JobError]:
    """The decision for an error that no answer came with."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & _CREDENTIAL_ERRORS:
        return CredentialsRefused
    # The SDK's own check of types and minima, made before anything is sent.
    return RequestRejected if "ParamValidationError" in names else ServiceUnavailable
