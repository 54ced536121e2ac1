"""One record for each call of a boto3 client: which call, how it ended, how long it took, and its request id.

It exists because AWS support asks for request ids, and because a slow sweep is mostly waiting for answers.

Rules: only names, codes and ids are recorded. Bodies, headers and addresses may hold secrets, and so may the texts of
errors, which repeat them. A call that the SDK tried several times is one record with the number of its retries. If
logging is off, a call costs one comparison.
"""

import logging
from collections.abc import Mapping
from typing import Any

from tuner.core.clock import SystemClock

_BEGAN_S = "tuner.began_s"
_clock = SystemClock()


def log_calls(events: Any, logger: logging.Logger, level: int) -> None:  # noqa: ANN401 - botocore is untyped
    """Record every call of a client, or of all clients of a session, whose events these are."""

    def begin(context: dict[str, Any], **_: object) -> None:
        if logger.isEnabledFor(level):
            context[_BEGAN_S] = _clock.elapsed_s()

    def end(event_name: str, context: Mapping[str, Any], outcome: str) -> None:
        if _BEGAN_S in context:
            took_s = _clock.elapsed_s() - context[_BEGAN_S]
            _, service, operation = event_name.split(".")
            logger.log(level, "%s %s: %s in %.3f s", service, operation, outcome, took_s)

    def answered(event_name: str, parsed: Mapping[str, Any], context: Mapping[str, Any], **_: object) -> None:
        end(event_name, context, _answer(parsed))

    def unanswered(event_name: str, exception: Exception, context: Mapping[str, Any], **_: object) -> None:
        end(event_name, context, f"no answer ({type(exception).__name__})")

    events.register("before-call", begin)
    events.register("after-call", answered)
    events.register("after-call-error", unanswered)


def _answer(parsed: Mapping[str, Any]) -> str:
    about = parsed.get("ResponseMetadata", {})
    words = [str(about.get("HTTPStatusCode", "no status"))]
    if code := parsed.get("Error", {}).get("Code"):
        words.append(str(code))
    if retries := about.get("RetryAttempts"):
        words.append(f"after {retries} retries")
    return f"{' '.join(words)}, request {about.get('RequestId', 'without id')}"
