"""The local SageMaker on HTTP: the same handler as in process, for the `aws` command line and other SDKs.

It runs programs for its callers, so it takes nothing on trust: each request is signed with the key pair of the state
directory (`signature.py`), and names this address as its host, so that no web page can reach it by a name of its own.

Rules: awsJson1.1, errors in SageMaker's shape, no header that would let a browser read an answer. What a caller can use
up is bounded: size of a request, seconds until it has arrived, requests at a time. One request per connection. Jobs
have supervisors of their own: that this process ends is nothing to them.
"""

import io
import ipaddress
import json
import secrets
import socket
import socketserver
import sys
import threading
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from tuner.core.clock import Clock, SystemClock
from tuner.local.faults import AnswerLost
from tuner.local.served.signature import KeyPair, check_signature, key_pair
from tuner.local.service import LocalSageMaker
from tuner.local.settings import BadSettings
from tuner.local.validate import Refused

_MAX_BYTES = 1 << 20  # CreateTrainingJob at all its limits has half as much
_ARRIVES_WITHIN_S = 20.0
_AT_A_TIME = 32
_WAITS_S = 5.0
_TARGET = "SageMaker."
_CONTENT_TYPE = "application/x-amz-json-1.1"
_LARGEST = 2**63
_GONE = (ConnectionError, TimeoutError)  # a caller that went away, or does not go on


class LocalServer(ThreadingHTTPServer):
    """Serves a state directory; `serve_forever` until `shutdown`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        service: LocalSageMaker,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
        arrives_within_s: float = _ARRIVES_WITHIN_S,
    ) -> None:
        """Bind. Raises OSError where the address cannot be had, `KeyUnsafe` where the key cannot be trusted."""
        self.service = service
        self.keys: KeyPair = key_pair(service.state_dir)
        self.clock = clock or SystemClock()
        self.arrives_within_s = arrives_within_s
        self._host = host
        self._free = threading.BoundedSemaphore(_AT_A_TIME)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # the one between asks a name server who we are

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_address[1]}"

    def is_named(self, host: str, reached_at: str) -> bool:
        """Whether a Host header means this server, as reached at this address."""
        name, _, port = host.rpartition(":")
        if port != str(self.server_address[1]):
            return False
        name = name.strip("[]").lower()
        return name in {"localhost", self._host.lower(), reached_at} or _is_loopback(name)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as inherited
        if not self._free.acquire(timeout=_WAITS_S):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as inherited
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - as inherited
        if not isinstance(sys.exception(), _GONE):
            traceback.print_exc()


class _Arriving(io.RawIOBase):
    """What a caller sends, as long as its time lasts: one that sends a byte now and then is not waited for."""

    def __init__(self, connection: socket.socket, clock: Clock, within_s: float) -> None:
        self._connection = connection
        self._clock = clock
        self._until = clock.now().timestamp() + within_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as inherited
        left_s = self._until - self._clock.now().timestamp()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Unserved(Exception):  # noqa: N818 - an answer
    """A request that never gets to the service: HTTP status, SageMaker's code, text."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tuner-local"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        server = self._served
        self.rfile = io.BufferedReader(_Arriving(self.connection, server.clock, server.arrives_within_s))

    @property
    def _served(self) -> LocalServer:
        return cast("LocalServer", self.server)

    def do_POST(self) -> None:
        self.close_connection = True
        try:
            status, answer = self._answer()
        except _Unserved as refusal:
            status, answer = refusal.status, _error(refusal.code, str(refusal))
        except Refused as refusal:  # of the signature
            status, answer = HTTPStatus.FORBIDDEN, _error(refusal.code, refusal.message)
        except AnswerLost:
            return
        except RecursionError:
            status, answer = HTTPStatus.BAD_REQUEST, _error("SerializationException", "Nested too deeply")
        except BadSettings as error:
            status, answer = HTTPStatus.INTERNAL_SERVER_ERROR, _error("InternalFailure", str(error))
        except _GONE:
            raise
        except Exception:  # noqa: BLE001 - a fault of ours is the service's, told here and not to the caller
            traceback.print_exc()
            status, answer = HTTPStatus.INTERNAL_SERVER_ERROR, _error("InternalFailure", "")
        self._send(status, answer)

    def _answer(self) -> tuple[int, dict[str, Any]]:
        self._check_host()
        body = self._body()
        server = self._served
        check_signature(server.keys, self.headers, body, region=server.service.region, now=server.clock.now())
        return server.service.handle(self._operation(), _parameters(body))

    def _check_host(self) -> None:
        if not self._served.is_named(self.headers.get("Host", ""), self.connection.getsockname()[0]):
            raise _Unserved(HTTPStatus.FORBIDDEN, "AccessDeniedException", "The Host header does not name this service")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Unserved(HTTPStatus.LENGTH_REQUIRED, "SerializationException", "A Content-Length is needed")
        if len(length) > len(str(_MAX_BYTES)) or int(length) > _MAX_BYTES:
            text = f"Request size exceeded {_MAX_BYTES} bytes"
            raise _Unserved(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestEntityTooLargeException", text)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError
        return body

    def _operation(self) -> str:
        target = self.headers.get("X-Amz-Target", "")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if self.path != "/" or not target.startswith(_TARGET) or kind != _CONTENT_TYPE:
            text = f"Only POST / with X-Amz-Target: {_TARGET}… and Content-Type: {_CONTENT_TYPE} is served"
            raise _Unserved(HTTPStatus.NOT_FOUND, "UnknownOperationException", text)
        return target.removeprefix(_TARGET)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - as inherited
        """What the library answers by itself, to malformed requests and other methods, in SageMaker's shape too."""
        self.close_connection = True
        self._send(code, _error("UnknownOperationException", message or ""))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.connection.settimeout(_ARRIVES_WITHIN_S)
        self.send_response(status)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.send_header("x-amzn-RequestId", secrets.token_hex(16))
        if "__type" in answer:
            self.send_header("x-amzn-ErrorType", answer["__type"])
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        """Nothing: what a caller sends is not for the terminal."""


def _parameters(body: bytes) -> dict[str, Any]:
    """The JSON of a request, without what JSON allows and no service does."""
    try:
        parsed = json.loads(body or b"{}", parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        json.dumps(parsed, ensure_ascii=False).encode()  # no half characters
    except (ValueError, RecursionError) as error:
        raise _Unserved(HTTPStatus.BAD_REQUEST, "SerializationException", "The body is not valid JSON") from error
    if not isinstance(parsed, dict):
        raise _Unserved(HTTPStatus.BAD_REQUEST, "SerializationException", "The body is not a JSON object")
    return parsed


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) >= _LARGEST:
        raise ValueError(text)
    return number


def _finite(text: str) -> float:
    number = float(text)
    if abs(number) >= _LARGEST or number != number:  # noqa: PLR0124 - NaN is the one number that differs from itself
        raise ValueError(text)
    return number


def _error(code: str, message: str) -> dict[str, Any]:
    return {"__type": code, "message": message}


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
