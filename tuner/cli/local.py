"""`tuner local serve`: the local SageMaker as a service on a port, until Ctrl-C.

Rules: the lines on standard output can be pasted into a shell. Endpoints are handed to botocore as its own
settings, so that supervisors, which are processes of their own, find them the same way.
"""

import ipaddress
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from tuner.cli.arguments import Arguments
from tuner.cli.read import out, say
from tuner.core.errors import Exit, UserError
from tuner.core.text import safe

_EVENTS_VARIABLE = "AWS_ENDPOINT_URL_EVENTBRIDGE"
_LOGS_VARIABLE = "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"
_REPORT_EVERY = timedelta(seconds=0.3)


def serve(args: Arguments) -> int:
    """Serve a state directory until Ctrl-C. The caller turns that into the exit code."""
    from tuner.local.served.serve import LocalServer  # noqa: PLC0415 - botocore is slow to import
    from tuner.local.served.signature import KeyUnsafe  # noqa: PLC0415
    from tuner.local.service import LocalSageMaker  # noqa: PLC0415
    from tuner.local.settings import BadSettings, read_settings  # noqa: PLC0415
    from tuner.operations.backend import default_local_dir  # noqa: PLC0415

    directory = (args.dir or default_local_dir()).absolute()
    try:
        service = LocalSageMaker(directory, region=args.region, s3_endpoint=args.s3_endpoint)
        read_settings(directory)
        server = LocalServer(service, host=args.host, port=args.port)
    except (OSError, OverflowError, BadSettings, KeyUnsafe) as error:
        raise UserError(f"local serve: {error}", Exit.REFUSED) from error
    _tell(server.url, server.keys.access_key_id, server.keys.secret_access_key, args.region)
    say(f"serving {safe(directory)}; Ctrl-C ends it, jobs go on")
    if not _is_loopback(args.host):
        say("warning: other machines can reach it, unencrypted; anybody who has the key runs programs as you")
    if looks := _reports(directory, args):
        threading.Thread(target=_report, args=(looks,), daemon=True).start()
    with server:
        server.serve_forever()
    return Exit.DONE


def _tell(url: str, key_id: str, secret: str, region: str) -> None:
    values = {
        "AWS_ENDPOINT_URL_SAGEMAKER": url,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,  # for SDKs that do not know the other variable
    }
    out("\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items()))
    sys.stdout.flush()


def _reports(directory: Path, args: Arguments) -> list[Callable[[], None]]:
    """The functions to call regularly, so that other services receive events and logs."""
    from tuner.aws.connections import Aws, AwsError  # noqa: PLC0415 - as above
    from tuner.core.clock import SystemClock  # noqa: PLC0415
    from tuner.local.served.events import EventSender  # noqa: PLC0415
    from tuner.local.served.logs import LogSender  # noqa: PLC0415

    looks = []
    aws = Aws(region=args.region)
    try:
        if args.events_endpoint:
            os.environ[_EVENTS_VARIABLE] = args.events_endpoint
            looks.append(EventSender(directory, aws.client("events").put_events).look)
        if args.logs_endpoint:
            os.environ[_LOGS_VARIABLE] = args.logs_endpoint
            looks.append(LogSender(directory, aws.client("logs"), SystemClock()).look)
    except AwsError as error:
        raise UserError(f"local serve: {error}", Exit.REFUSED) from error
    return looks


def _report(looks: Sequence[Callable[[], None]]) -> None:
    from tuner.core.clock import SystemClock  # noqa: PLC0415 - as above

    clock = SystemClock()
    while True:
        for look in looks:
            look()
        clock.wait(clock.now() + _REPORT_EVERY)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
