"""The port to whoever counts calls of the job service: how many may be made now.

It exists because AWS counts an account's calls: an engine that spends them all is throttled, and everybody else with
it. The engine asks once a tick and a kind of call, and makes the most important ones first; where nobody counts, all
may be made.
"""

from enum import StrEnum
from typing import Protocol

from tuner.core.jobs import Throttled


class Call(StrEnum):
    """What is counted, each for itself, as AWS does."""

    CREATE = "CreateTrainingJob"
    DESCRIBE = "DescribeTrainingJob"
    LIST = "ListTrainingJobs"
    STOP = "StopTrainingJob"


class OutOfCalls(Throttled):
    """No call is left for now: nothing was sent, nobody refused, and nothing is wrong."""


class Calls(Protocol):
    """How many calls may be made. Whoever asks again gives back what it did not use."""

    def may(self, call: Call, wanted: int, *, idle: int = 0) -> int:
        """Of `wanted` calls and `idle` further ones, which can wait for quieter times, how many may be made now."""
        ...

    def may_list(self) -> bool:
        """Whether it is time to list what has changed."""
        ...


class Unmetered:
    """Nobody counts."""

    def may(self, call: Call, wanted: int, *, idle: int = 0) -> int:  # noqa: ARG002 - any
        """All of them."""
        return wanted + idle

    def may_list(self) -> bool:
        """Always."""
        return True


UNMETERED = Unmetered()
