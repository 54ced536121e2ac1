"""What the bootstrap reads from the script's output: its metrics, and its last lines.

Metrics are printed by `tuner.training.report`, or found by the regexes of the study. They go to a file under the
checkpoint directory, and so to the object store.

Rules: this module travels into containers: standard library only, Python 3.8. Output passes through as it comes, in
bounded memory, whatever a script prints.
"""

import collections
import contextlib
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, Deque, Dict, Iterator, List, NamedTuple, Optional

from tuner._job_checkpoints import make_folder

MAX_LINE_BYTES = 1 << 16  # of a longer line only the beginning is looked at
MAX_SEARCHED_CHARS = 4096  # regexes of users may be slow on long lines
TAIL_LINES, FAILURE_CHARS = 20, 1000  # SageMaker keeps 1024 characters, its own first word among them
MAX_STEP = 10**18 - 1

_REPORT = re.compile(r"\[tuner ([0-9]{1,12}\.[0-9]{1,9})\] step=(none|[0-9]{1,18}) (\S+=.*)")
_NEVER = "(?!)"  # matches nowhere


class Pattern(NamedTuple):
    """One metric that the study finds in the log. Without a step of its own a line has the last step that was seen."""

    name: str
    value: "re.Pattern[str]"
    step: "re.Pattern[str]"


class Listener:
    """Passes the script's output on, keeps its last lines, and writes the metrics that it holds."""

    def __init__(self, path: Path, metrics: List[Dict[str, Any]], output: int) -> None:
        self.tail: Deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._patterns = [
            Pattern(each["name"], re.compile(each["regex"]), re.compile(each.get("step_regex") or _NEVER))
            for each in metrics
        ]
        self._steps: Dict[str, int] = {}
        self._path = path
        self._output = output
        self._held = b""

    def hear(self, chunk: bytes) -> None:
        with contextlib.suppress(OSError):  # a log that is full or gone must not end the training
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._output, rest) :]
        for line in self._lines(chunk):
            self._note(line)

    def end(self) -> None:
        """The last line may have no end."""
        self._note(self._held)
        self._held = b""

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Whole lines. A carriage return ends one too, so that progress bars are short lines."""
        *whole, rest = chunk.replace(b"\r", b"\n").split(b"\n")
        for piece in whole:
            yield (self._held + piece)[:MAX_LINE_BYTES]
            self._held = b""
        self._held = (self._held + rest)[:MAX_LINE_BYTES]

    def _note(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()
        if not line:
            return
        self.tail.append(line[:FAILURE_CHARS])
        # Another process may have left a line unfinished before it, so it need not stand at the beginning.
        reported = _REPORT.search(line)
        if reported:
            at, step, values = reported.groups()
            self._append(None if step == "none" else int(step), float(at), _values(values))
        elif self._patterns:
            self._search(line[:MAX_SEARCHED_CHARS])

    def _search(self, line: str) -> None:
        found: Dict[Optional[int], Dict[str, float]] = {}
        for pattern in self._patterns:
            step = _number(pattern.step, line)
            if step is not None and step.is_integer() and 0 <= step <= MAX_STEP:
                self._steps[pattern.name] = int(step)
            value = _number(pattern.value, line)
            if value is not None:
                found.setdefault(self._steps.get(pattern.name), {})[pattern.name] = value
        for known_step, values in found.items():
            self._append(known_step, round(time.time(), 6), values)

    def _append(self, step: Optional[int], at: float, values: Dict[str, float]) -> None:
        """One line per write, unbuffered: what was heard is in the file before anything else is read.

        The file is opened for each: a script that clears its checkpoint folder takes our files with it.
        """
        metrics = {name: value if math.isfinite(value) else repr(value) for name, value in values.items()}
        line = json.dumps({"step": step, "at": at, "metrics": metrics}, allow_nan=False).encode() + b"\n"
        try:
            self._write(line)
        except (FileNotFoundError, NotADirectoryError):
            make_folder(self._path.parent)
            self._write(line)

    def _write(self, line: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(line)


def _values(text: str) -> Dict[str, float]:
    pairs = (part.partition("=") for part in text.split(" "))
    numbers = {name: _float(value) for name, _, value in pairs}
    return {name: value for name, value in numbers.items() if value is not None}


def _number(pattern: "re.Pattern[str]", line: str) -> Optional[float]:
    match = pattern.search(line)
    return _float(match.group(1 if pattern.groups else 0)) if match else None


def _float(text: Optional[str]) -> Optional[float]:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
