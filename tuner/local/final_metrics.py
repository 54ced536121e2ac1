"""The last value of each metric that a job's definitions find in its log, as SageMaker shows them once it has ended.

It exists so that the engine's cross-check of an objective against the service's own reading runs here, too.

Rules: standard library only, in the job's own process: a pattern of the user's may take long. Only the end of the log
is read, since its last values are what is asked for; of a line only so much, as CloudWatch does. As on AWS, which
keeps single precision, values are rounded to it, and what is no number is passed over.
"""

import contextlib
import math
import re
import struct
from collections.abc import Iterator

from tuner.local.jobdir import JobDir

_TAIL_BYTES = 1 << 20
_LINE_CHARS = 4096


def final_metrics(job: JobDir) -> dict[str, float]:
    """By name; empty without definitions."""
    patterns = list(_patterns(job))
    found: dict[str, float] = {}
    for line in _last_lines(job) if patterns else ():
        for name, pattern in patterns:
            with contextlib.suppress(ValueError, IndexError, OverflowError):
                match = pattern.search(line)
                text = match[1] if match else None  # None also where the group took no part
                if text is not None and math.isfinite(value := _single(float(text))):
                    found[name] = value
    return found


def _patterns(job: JobDir) -> Iterator[tuple[str, re.Pattern[str]]]:
    for each in job.request["AlgorithmSpecification"].get("MetricDefinitions", []):
        with contextlib.suppress(re.error):  # the service takes any text for one
            yield each["Name"], re.compile(each["Regex"])


def _last_lines(job: JobDir) -> Iterator[str]:
    left = _TAIL_BYTES
    tails: list[bytes] = []
    for path in reversed(job.log_paths()):  # one file a run
        with path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - left))
            tails.append(log.read())
        left -= len(tails[-1])
        if left <= 0:
            break
    for tail in reversed(tails):
        for line in tail.splitlines():
            yield line[:_LINE_CHARS].decode(errors="replace")


def _single(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
