"""Connections to AWS: the only maker of boto3 clients that leave this machine.

Profile, region, retries and time-outs are chosen here and nowhere else. All services except SageMaker and S3, which
have error families of their own, answer with one error that tells what its caller must decide.

Rules: boto3 is imported when the first client is made. A client makes one attempt per call, because its caller has a
clock and a budget of calls, and a hidden retry would spend both. A `patient` client retries by itself. It is for
verbs without a retrying caller whose calls may be repeated, such as copying a hundred objects. botocore chooses the
endpoints (AWS_ENDPOINT_URL_*), so that a study can run against a service on this machine. Refused credentials
are read again before the next call, so that a running engine need not restart after they were renewed. Credentials
are never stored or shown.
"""

import logging
import os
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.aws.call_log import log_calls
from tuner.core.log import logger_of

_LOG = logger_of("aws")
_TIMEOUT_S = 20
_LINE_MAX = 300
_PATIENT_ATTEMPTS = 5
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
    """An AWS service did not do what it was asked.

    `code` is the service's error code, or the name of botocore's exception. It is never empty.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_about_credentials(self) -> bool:
        """Whether every call fails until the user renews the credentials."""
        return self.code in _CREDENTIAL_CODES or any(word in self.code for word in _CREDENTIAL_WORDS)

    @property
    def is_about_rights(self) -> bool:
        return self.code in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose credentials these are."""

    account: str
    arn: str

    @property
    def partition(self) -> str:
        """`aws`, or `aws-cn`, `aws-us-gov`: the second part of every ARN there."""
        return self.arn.split(":")[1]


class Aws:
    """One account in one region, as the user's profile and environment name it."""

    def __init__(self, *, region: str | None = None, profile: str | None = None, account: str | None = None) -> None:
        """`account`: the only account that may be called; None means the account of the credentials."""
        self._wanted_region = region
        self._profile = profile
        self._account = account
        self._opened: Any = None
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._refused = False
        self._identity: Identity | None = None
        # boto3's session is not for several threads, nor is what one of them forgets while another makes a client
        self._lock = threading.RLock()

    @property
    def region(self) -> str:
        """The study file's region, else the profile's. Raises AwsError when neither names one."""
        # botocore itself reads AWS_DEFAULT_REGION alone; other SDKs, and Lambda, say AWS_REGION
        region = self._wanted_region or os.environ.get("AWS_REGION") or self.session.region_name
        if region is None:
            raise AwsError("no region: name it in the study file (sagemaker.region) or set AWS_REGION", "NoRegionError")
        return str(region)

    @property
    def identity(self) -> Identity:
        """Who is asking, looked up once. Raises AwsError."""
        with self._lock:
            if self._identity is None:
                reply = ask(self._client("sts").get_caller_identity)
                self._identity = Identity(account=str(reply["Account"]), arn=str(reply["Arn"]))
            return self._identity

    @property
    def cli_options(self) -> str:
        return cli_options(self.region, self._profile)

    def client(self, service: str, *, region: str | None = None, patient: bool = False) -> Any:  # noqa: ANN401 - botocore makes its methods at run time
        """The client of a service, made once. Raises AwsError for a profile, region or account that cannot be used."""
        with self._lock:
            if self._refused:
                self._forget()
            if self._account is not None and self.identity.account != self._account:
                raise AwsError(
                    f"these credentials are of account {self.identity.account}, the study runs in {self._account}: "
                    "use those of that account (AWS_PROFILE, or log in again)",
                    "CredentialsOfAnotherAccount",
                )
            return self._client(service, region=region, patient=patient)

    def _client(self, service: str, *, region: str | None = None, patient: bool = False) -> Any:  # noqa: ANN401 - as above
        key = (service, region or self.region, patient)
        if key not in self._clients:
            from botocore.config import Config  # noqa: PLC0415 - heavy, and a local study needs none of it

            config = Config(
                retries={"total_max_attempts": _PATIENT_ATTEMPTS if patient else 1, "mode": "standard"},
                connect_timeout=_TIMEOUT_S,
                read_timeout=_TIMEOUT_S,
            )
            client = ask(self.session.client, service, region_name=key[1], config=config)
            client.meta.events.register("after-call", self._notice)
            self._clients[key] = client
        return self._clients[key]

    def lasting(self, service: str, *, patient: bool = False) -> Any:  # noqa: ANN401 - as above
        """A client that outlives the credentials it was made with. Its calls raise botocore's errors alone."""
        return _LastingClient(self, service, patient=patient)

    def doubt(self) -> None:
        """The credentials were refused: read them again before the next call."""
        self._refused = True

    @property
    def session(self) -> Any:  # noqa: ANN401 - as above
        """boto3's, opened once. Raises AwsError."""
        if self._opened is None:
            import boto3.session  # noqa: PLC0415 - as above

            self._opened = ask(boto3.session.Session, profile_name=self._profile)
            log_calls(self._opened.events, _LOG, logging.INFO)
        return self._opened

    def _notice(self, parsed: Mapping[str, Any], **_: object) -> None:
        """The event of botocore after each answer."""
        if parsed.get("Error", {}).get("Code") in _CREDENTIAL_CODES:
            self.doubt()

    def _forget(self) -> None:
        """A session reads the user's files once: a new one finds what was renewed."""
        self._opened, self._identity, self._refused = None, None, False
        self._clients.clear()


class _LastingClient:
    """Looks its client up at each call, so that an object that was made long ago uses renewed credentials."""

    def __init__(self, aws: Aws, service: str, *, patient: bool) -> None:
        self._aws = aws
        self._service = service
        self._patient = patient

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: object, **parameters: object) -> Any:  # noqa: ANN401 - the client's
            from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as above

            try:
                client = self._aws.client(self._service, patient=self._patient)
            except AwsError as error:
                self._aws.doubt()
                raise _unusable(str(error)) from error
            try:
                return getattr(client, name)(*arguments, **parameters)
            except BotoCoreError as error:
                if AwsError("", type(error).__name__).is_about_credentials:
                    self._aws.doubt()
                raise

        return call


def _unusable(text: str) -> Exception:
    """The error that botocore raises without credentials, with our message."""
    from botocore.exceptions import NoCredentialsError  # noqa: PLC0415 - as above

    class CredentialsUnusableError(NoCredentialsError):
        fmt = "{text}"

    return CredentialsUnusableError(text=text)


def cli_options(region: str, profile: str | None) -> str:
    """The options that a printed aws command needs: without them it would use the account of the user's shell."""
    return f"--region {region}" + (f" --profile {shlex.quote(profile)}" if profile else "")


def ask(call: Callable[..., Any], *arguments: object, **parameters: object) -> Any:  # noqa: ANN401 - JSON
    """Make one call of a client. Raises AwsError with a one-line message for every failure."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415 - as above
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    try:
        return call(*arguments, **parameters)
    except ClientError as error:
        refusal = error.response.get("Error", {})
        code = str(refusal.get("Code") or "Unknown")
        raise AwsError(f"{error.operation_name}: {code}: {_line(refusal.get('Message', ''))}", code) from error
    except (BotoCoreError, Boto3Error, ResponseParserError, OSError, ValueError) as error:
        raise AwsError(f"{type(error).__name__}: {_line(error)}", type(error).__name__) from error


def _line(said: object) -> str:
    """A foreign message as one line: a proxy may answer with a whole page."""
    text = " ".join(str(said).split())
    return text if len(text) <= _LINE_MAX else f"{text[:_LINE_MAX]} …"
