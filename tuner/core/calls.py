"""The port to the component that limits calls of the job service: how many may be made now.

AWS counts the calls of an account. An engine that uses them all is throttled, and so is everybody else in the account.
The engine asks once a tick for each kind of call, and makes the most important calls first. Without a limit it may make
all of them.
"""

from enum import StrEnum
from typing import Protocol

from tuner.core.jobs import Throttled


class Call(StrEnum):
    """The operations that AWS counts, each on its own."""

    CREATE = "CreateTrainingJob"
    DESCRIBE = "DescribeTrainingJob"
    LIST = "ListTrainingJobs"
    STOP = "StopTrainingJob"


class OutOfCalls(Throttled):
    """No call is left for now: nothing was sent, and nothing is wrong."""


class Calls(Protocol):
    """How many calls may be made. The next question for the same call gives back what was not used."""

    def may(self, call: Call, wanted: int, *, idle: int = 0) -> int:
        """How many of `wanted` calls, and of `idle` further ones that can wait for quieter times, may be made now."""
        ...

    def may_list(self) -> bool:
        """Whether it is time to list what has changed."""
        ...


class Unmetered:
    """No limit: every call may be made."""

    def may(self, call: Call, wanted: int, *, idle: int = 0) -> int:  # noqa: ARG002 - any
        """All of them."""
        return wanted + idle

    def may_list(self) -> bool:
        """Always."""
        return True


UNMETERED = Unmetered()
