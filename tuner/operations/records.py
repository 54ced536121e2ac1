"""What the verbs of `study` take and give: the records between the composition root and what prints them.

They stand apart so that the command line can be read, tested and started without the engine, and so that a display
never sees more of a study than it shows.

Rules: records only, frozen and slotted, except `Signals`, which is the two-stage Ctrl-C. Text in them may come from
scripts and services: the code that shows it makes control characters visible. Amounts are in dollars here, since they
are for eyes; the ledger stays in micro-dollars. Nothing heavy is imported: `tuner --help` passes through this module.
"""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from tuner.core.commands import Message, Options, render
from tuner.core.records import Json, StudyState

if TYPE_CHECKING:
    from tuner.core.policy.placement import Kind
    from tuner.spec.study_file import StudySpec

_OUR_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """A study file that was read and checked, and what it would cost; nothing is written yet."""

    spec: "StudySpec"
    headline: tuple[tuple[str, str], ...]  # label, value: what to look at before it runs
    rows: tuple[tuple[str, str], ...]  # dotted key, value: every effective setting
    estimated_usd: float | None
    ceiling_usd: float | None  # the most it can cost: its budget; without one, with one job a trial
    warnings: tuple[str, ...] = ()
    quotas: "Mapping[Kind, int]" = field(default_factory=dict)  # in instances, of an account of AWS


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOutcome:
    """How a verb that drives a study ended."""

    study_state: StudyState
    exit_code: int
    summary: Mapping[str, Json] = field(default_factory=dict)
    refused: str | Message | None = None  # why it does not go on: credentials, a job that is not what was asked for


_Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"


class Signals:
    """Two-stage Ctrl-C and SIGTERM: the first asks the engine to leave in order, the second leaves now.

    Jobs are never cancelled by a signal. As a context manager it installs its handlers and restores the former ones;
    outside of one it only carries `stop_requested`, for tests and callers with handlers of their own.
    """

    def __init__(self, last_words: str | Message = "", options: Options = ()) -> None:
        self.stop_requested = False
        self.received: int | None = None
        self.last_words = last_words  # printed by the second signal: how to go on
        self.options = options  # of this call: commands in texts repeat them
        self._wake: Callable[[], None] = lambda: None
        self._former: dict[int, _Handler] = {}

    @property
    def exit_code(self) -> int | None:
        """130 for Ctrl-C, 143 for SIGTERM, None without a signal."""
        return None if self.received is None else 128 + self.received

    def attach(self, wake: Callable[[], None]) -> None:
        """Call `wake` (a clock's) when the first signal comes, so that nobody waits for a poll to end."""
        self._wake = wake
        if self.stop_requested:
            wake()

    def deliver(self, signum: int, frame: FrameType | None = None) -> None:  # noqa: ARG002 - the handlers' signature
        """What the handlers do. No locks, no buffered output: it runs in the middle of anything."""
        if self.stop_requested:
            os.write(2, f"\n{render(self.last_words, self.options)}\n".encode())
            os._exit(128 + signum)
        self.stop_requested, self.received = True, signum
        self._wake()

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self.deliver) for number in _OUR_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
