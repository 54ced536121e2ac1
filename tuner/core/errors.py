"""What a user must read and act on: one line, the exit code that goes with it, and the command that goes on.

Rules: nothing heavy is imported, since `tuner --help` passes through this module.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from tuner.core.commands import Command, Message
from tuner.core.records import Intent

_GIST_CHARACTERS = 160


def gist(reason: str) -> str:
    """A failure in one line: the first says what failed, the last of a traceback why."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    text = ": ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
    return text if len(text) <= _GIST_CHARACTERS else text[: _GIST_CHARACTERS - 1] + "…"


def how_to_go_on(name: str, intent: Intent) -> Command:
    """The command that brings about what was last asked of a study."""
    match intent:
        case Intent.RUN:
            return Command("resume", name)
        case Intent.CANCEL:
            return Command("cancel", name)
        case Intent.STOP:
            return Command("stop", name)
        case Intent.STOP_NOW:
            return Command("stop", name, "--now")
        case Intent.DRAIN:
            return Command("stop", name, "--drain")


def left_behind(name: str, intent: Intent) -> Message:
    """What becomes of a study whose engine leaves: its jobs go on, and so does what was asked."""
    command = how_to_go_on(name, intent)
    match intent:
        case Intent.RUN:
            return Message("jobs in flight go on: ", command, ", or end it: ", Command("cancel", name))
        case Intent.CANCEL:
            return Message("jobs in flight go on until the cancellation is done: ", command)
        case _:
            back = Command("resume", name)
            return Message("jobs in flight go on until the stop is done: ", command, "; to take it back: ", back)


class Exit(IntEnum):
    """Exit codes of the command line (a contract)."""

    DONE = 0
    CHECK_FAILED = 1  # a check failed, or every trial failed
    USAGE = 2  # usage or study file
    NOT_FINISHED = 3  # by this call: budget, deadline, stopped, held by another engine
    REFUSED = 4  # credentials, rights, quota of zero, store unreachable


class UserError(Exception):
    """Something the user must read and act on: one line, and the exit code that goes with it."""

    def __init__(self, message: str | Message, exit_code: int = Exit.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = int(exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that `doctor` looked at."""

    level: Literal["ok", "warn", "error"]
    what: str
    remedy: str | Message = ""
