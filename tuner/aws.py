"""Connections to AWS: the only maker of boto3 clients that leave this machine.

It exists so that profile, region, retries and time-outs are chosen in one place, and so that everything beside the job
service and S3 (which have error families of their own) answers with one error that tells what its caller must decide.

Rules: boto3 is imported when the first client is made. A client makes one attempt per call: whoever calls has a clock
and a budget of calls, and a hidden retry would spend both. Endpoints are botocore's affair (AWS_ENDPOINT_URL_*), so
that a study can be run against a service on this machine. Nothing of a credential is ever kept or shown.
"""

from collections.abc import Callable
from typing import Any

_TIMEOUT_S = 20
_CREDENTIAL_WORDS = ("Credential", "Token", "SSO", "Login", "Profile")
_CREDENTIAL_CODES = frozenset(
    (
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    )
)


class AwsError(Exception):
    """An AWS service did not do what it was asked. `code` is its own word, or botocore's class; "" is never one."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_about_credentials(self) -> bool:
        """Whether it is of no use to ask anything before the user renews credentials."""
        return self.code in _CREDENTIAL_CODES or any(word in self.code for word in _CREDENTIAL_WORDS)

    @property
    def is_about_rights(self) -> bool:
        return self.code in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


class Aws:
    """One account in one region, as the user's profile and environment name it."""

    def __init__(self, *, region: str | None = None, profile: str | None = None) -> None:
        self._wanted_region = region
        self._profile = profile
        self._opened: Any = None
        self._clients: dict[tuple[str, str], Any] = {}

    @property
    def region(self) -> str:
        """The study file's region, else the profile's. Raises AwsError when neither names one."""
        region = self._wanted_region or self._session.region_name
        if region is None:
            raise AwsError("no region: name it in the study file (sagemaker.region) or set AWS_REGION", "NoRegionError")
        return str(region)

    def client(self, service: str, *, region: str | None = None) -> Any:  # noqa: ANN401 - botocore makes its methods at run time
        """The client of a service, made once. Raises AwsError for a profile or a region that cannot be used."""
        key = (service, region or self.region)
        if key not in self._clients:
            from botocore.config import Config  # noqa: PLC0415 - heavy, and a local study needs none of it

            config = Config(retries={"total_max_attempts": 1}, connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S)
            self._clients[key] = ask(self._session.client, service, region_name=key[1], config=config)
        return self._clients[key]

    @property
    def _session(self) -> Any:  # noqa: ANN401 - as above
        if self._opened is None:
            import boto3.session  # noqa: PLC0415 - as above

            self._opened = ask(boto3.session.Session, profile_name=self._profile)
        return self._opened


def ask(call: Callable[..., Any], *arguments: object, **parameters: object) -> Any:  # noqa: ANN401 - JSON
    """Make one call of a client. Raises AwsError, in one line, for everything that can go wrong on the way."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415 - as above
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    try:
        return call(*arguments, **parameters)
    except ClientError as error:
        refusal = error.response.get("Error", {})
        code = str(refusal.get("Code") or "Unknown")
        raise AwsError(f"{error.operation_name}: {code}: {refusal.get('Message', '')}", code) from error
    except (BotoCoreError, Boto3Error, ResponseParserError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise AwsError(f"{type(error).__name__}: {text}", type(error).__name__) from error
