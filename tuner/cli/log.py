"""Where the log goes: to standard error by `-v` and `-vv`, to a file by TUNER_LOG.

Rules: the log is for the length of one call of the command line. A log that cannot be written (a full disk, a terminal
that is gone) never ends a study. The file is made for its owner alone and takes everything; times are in UTC.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tuner.core.errors import Exit, UserError
from tuner.core.log import ROOT
from tuner.core.text import safe


@contextmanager
def logging_to(verbosity: int, file: str | None) -> Iterator[None]:
    """Log for the length of a block. Raises UserError for a file that cannot be opened."""
    was, handlers = ROOT.level, _handlers(verbosity, file)
    ROOT.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        ROOT.addHandler(handler)
    try:
        yield
    finally:
        ROOT.setLevel(was)
        for handler in handlers:
            ROOT.removeHandler(handler)
            handler.close()


def _handlers(verbosity: int, file: str | None) -> list[logging.Handler]:
    made: list[logging.Handler] = []
    if file:
        made.append(_file_handler(file))
    if verbosity:
        made.append(_StandardError(logging.INFO if verbosity == 1 else logging.DEBUG))
    for handler in made:
        handler.setFormatter(_LogLine())
    return made


def _file_handler(file: str) -> logging.Handler:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"TUNER_LOG: the log {file!r} cannot be written: {reason}", Exit.USAGE) from error
    handler = _LogStream(stream)
    handler.setLevel(logging.DEBUG)
    return handler


class _LogLine(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("{asctime}.{msecs:03.0f}Z {levelname} {name}: {message}", "%Y-%m-%dT%H:%M:%S", style="{")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))


class _LogStream(logging.StreamHandler[TextIO]):
    """A handler that closes its file and drops records that it cannot write."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Dropped."""

    def close(self) -> None:
        with suppress(OSError):  # the rest could not be written
            self.stream.close()
        super().close()


class _StandardError(logging.Handler):
    """Standard error as it is at each record: a live display replaces it, and shows what is written above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Dropped."""
