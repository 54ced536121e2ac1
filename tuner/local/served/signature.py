"""Who may call a served local SageMaker: the key pair of its state directory, and SigV4 as proof of holding it.

A served service runs programs for its callers, and a port on the loopback is open to every user and every web page
of the machine. So each request is signed, as on AWS, with a key that only the owner of the state directory can read.

Rules: no cryptography of ours. botocore's own signer computes the signature again from what was received; the two are
compared in constant time. The body is always part of it, whatever hash the request claims; so are host, date, target.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import string
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path

from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tuner.local.jobdir import new_temporary
from tuner.local.validate import Refused

_FILE = "credentials.json"
_OTHERS = 0o077
_MAX_SKEW = timedelta(minutes=5)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^,\s/]+)/(\d{8})/([^,\s/]+)/([^,\s/]+)/aws4_request,\s*"
    r"SignedHeaders=([a-z0-9;-]+),\s*Signature=([0-9a-f]{64})"
)
_ALWAYS_SIGNED = frozenset(("host", "x-amz-date", "x-amz-target"))
_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)


class KeyUnsafe(Exception):  # noqa: N818 - named for what it says to the reader of the message
    """The key file cannot be trusted; the message says what to do."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What callers sign with."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


def key_pair(state_dir: Path) -> KeyPair:
    """The key pair of a state directory, drawn on first use. Raises `KeyUnsafe`."""
    state_dir.chmod(0o700)
    path = state_dir / _FILE
    if not path.exists():
        _draw(state_dir, path)
    if path.stat().st_mode & _OTHERS or path.stat().st_uid != os.geteuid():
        raise KeyUnsafe(f"{path} can be read by others: remove it, and a new key is drawn at the next start")
    try:
        raw = json.loads(path.read_text(encoding="ascii"))
        return KeyPair(str(raw["access_key_id"]), str(raw["secret_access_key"]))
    except (ValueError, KeyError, TypeError) as error:
        raise KeyUnsafe(f"{path} is no key pair: remove it, and a new key is drawn at the next start") from error


def _draw(state_dir: Path, path: Path) -> None:
    letters = string.ascii_uppercase + string.digits
    drawn = {
        # As long as AWS's, and not to be mistaken for one.
        "access_key_id": "LOCAL" + "".join(secrets.choice(letters) for _ in range(15)),
        "secret_access_key": secrets.token_urlsafe(30),
    }
    temporary = new_temporary(state_dir, "key")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        json.dump(drawn, file)
    with suppress(FileExistsError):  # somebody else was first: theirs is the key
        os.link(temporary, path)
    temporary.unlink()


def check_signature(pair: KeyPair, headers: Message, body: bytes, *, region: str, now: datetime) -> None:
    """Whether a `POST /` with these headers was signed with the pair, for this region, just now. Raises `Refused`."""
    if "Authorization" not in headers:
        raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token")
    found = _AUTHORIZATION.fullmatch(headers["Authorization"].strip())
    if found is None:
        raise _incomplete("Authorization header is not of the form AWS4-HMAC-SHA256 Credential=…")
    key_id, day, scope_region, service, names, signature = found.groups()
    signed = names.split(";")
    if missing := sorted(_ALWAYS_SIGNED.difference(signed)):
        raise _incomplete(f"{', '.join(missing)} must be signed")
    if not hmac.compare_digest(key_id, pair.access_key_id):
        raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.")
    if (service, scope_region) != ("sagemaker", region):
        raise _invalid(f"Credential should be scoped to service sagemaker in region {region}, not to {scope_region}.")
    _check_date(headers["X-Amz-Date"], day, now)
    claimed = headers.get("X-Amz-Content-SHA256")
    if claimed is not None and claimed != hashlib.sha256(body).hexdigest():
        raise _invalid(_MISMATCH)
    if not hmac.compare_digest(_signature(pair, headers, signed, body, region), signature):
        raise _invalid(_MISMATCH)


def _signature(pair: KeyPair, headers: Message, signed: list[str], body: bytes, region: str) -> str:
    """What botocore would have signed such a request with."""
    own = {name: value for name, value in headers.items() if name.lower() in signed}
    # http, whatever it came by: only so is the body's hash never left out.
    request = AWSRequest("POST", f"http://{headers['Host']}/", headers=own, data=body)
    request.context["timestamp"] = headers["X-Amz-Date"]
    signer = SigV4Auth(Credentials(pair.access_key_id, pair.secret_access_key), "sagemaker", region)
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


def _check_date(written: str, day: str, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(written, SIGV4_TIMESTAMP).replace(tzinfo=UTC)
    except ValueError as error:
        raise _incomplete("X-Amz-Date is not of the form 20260131T120000Z") from error
    if written[:8] != day:
        raise _invalid(f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date: {written}")
    if abs(now - signed_at) > _MAX_SKEW:
        here = now.strftime(SIGV4_TIMESTAMP)
        raise _invalid(f"Signature expired: {written} is not within 5 minutes of {here}, the time of the service")


def _invalid(message: str) -> Refused:
    return Refused("InvalidSignatureException", message)


def _incomplete(message: str) -> Refused:
    return Refused("IncompleteSignatureException", message)
