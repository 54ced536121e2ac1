"""What the verbs of `study` take and give: the records between the composition root and whoever prints.

They stand apart so that the command line can be read, tested and started without the engine, and so that a display
never sees more of a study than it shows.

Rules: records only, frozen and slotted, but for `Signals`, which is the two-stage Ctrl-C. Text in them may come from
scripts and services: whoever shows it makes its control characters visible. Amounts are in dollars here, since they
are for eyes; the ledger stays in micro-dollars. Nothing heavy is imported: `tuner --help` passes through this module.
"""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

from tuner.core.records import AttemptState, Intent, Json, StudyState, TrialState

if TYPE_CHECKING:
    from tuner.core.capacity import Kind
    from tuner.spec.study_file import StudySpec

Level: TypeAlias = Literal["info", "good", "warn", "error"]
_OUR_SIGNALS = (signal.SIGINT, signal.SIGTERM)


_GIST_CHARACTERS = 160


def gist(reason: str) -> str:
    """A failure in one line: the first says what failed, the last of a traceback why."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    text = ": ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
    return text if len(text) <= _GIST_CHARACTERS else text[: _GIST_CHARACTERS - 1] + "…"


def how_to_go_on(name: str, intent: Intent) -> str:
    """The command that brings about what was last asked of a study; `name` may carry options."""
    match intent:
        case Intent.RUN:
            return f"tuner resume {name}"
        case Intent.CANCEL:
            return f"tuner cancel {name}"
        case Intent.STOP:
            return f"tuner stop {name}"
        case Intent.STOP_NOW:
            return f"tuner stop {name} --now"
        case Intent.DRAIN:
            return f"tuner stop {name} --drain"


def left_behind(name: str, intent: Intent) -> str:
    """What becomes of a study whose engine leaves: its jobs go on, and so does what was asked; `name` as above."""
    command = how_to_go_on(name, intent)
    match intent:
        case Intent.RUN:
            return f"jobs in flight go on: {command}, or end it: tuner cancel {name}"
        case Intent.CANCEL:
            return f"jobs in flight go on until the cancellation is done: {command}"
        case _:
            return f"jobs in flight go on until the stop is done: {command}; to take it back: tuner resume {name}"


class Exit(IntEnum):
    """Exit codes of the command line (a contract)."""

    DONE = 0
    CHECK_FAILED = 1  # a check failed, or every trial failed
    USAGE = 2  # usage or study file
    NOT_FINISHED = 3  # by this call: budget, deadline, stopped, held by another engine
    REFUSED = 4  # credentials, rights, quota of zero, store unreachable


class UserError(Exception):
    """Something the user must read and act on: one line, and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int = Exit.USAGE) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study file that was read and checked, and what it would cost; nothing is written yet."""

    spec: "StudySpec"
    headline: tuple[tuple[str, str], ...]  # label, value: what to look at before it runs
    rows: tuple[tuple[str, str], ...]  # dotted key, value: every effective setting
    estimated_usd: float | None
    ceiling_usd: float | None  # the most it can cost: its budget; without one, with one job a trial
    warnings: tuple[str, ...] = ()
    quotas: "Mapping[Kind, int]" = field(default_factory=dict)  # in instances, of an account of AWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a verb that drives a study ended."""

    study_state: StudyState
    exit_code: int
    summary: Mapping[str, Json] = field(default_factory=dict)
    refused: str | None = None  # what nothing goes on without: credentials, or a job that is what was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One attempt against its job; a side that is missing is None."""

    job: str
    trial: int | None
    attempt: int | None
    status: str | None  # the job service's
    billed_usd: float | None  # billed seconds x rate
    ledger_usd: float | None  # ours
    difference: str | None  # None: they agree
    note: str = ""  # what is no difference any more, and can be read of nowhere else


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A job that is not over, bears a name of a study's, and that no attempt of it asked for."""

    job: str
    text: str  # why, at what rate, and the command that ends it


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The store against the job service."""

    lines: tuple[str, ...]  # differences, each with its remedy
    rows: tuple[AuditRow, ...]
    stopped: tuple[Orphan, ...] = ()  # orphans that were asked to stop; they may take a moment

    @property
    def ok(self) -> bool:
        return not self.lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that `doctor` looked at."""

    level: Literal["ok", "warn", "error"]
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJobRow:
    """One job of the local service."""

    name: str
    status: str
    secondary: str
    instance_type: str
    created_at: datetime
    interruptions: int
    billable_s: int | None  # None: not known yet


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRow:
    """A trial in flight."""

    trial: int
    attempt: int
    state: AttemptState
    step: int | None
    value: float | None
    resumed_from: int | None  # the step at which its present run took up the work
    instance: str
    interruptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """A study as its engine sees it at the end of a tick."""

    name: str
    state: StudyState
    simulated: bool  # dollars are list prices of a local study
    trials: Mapping[TrialState, int]
    total: int
    in_flight: int
    parallel: int
    best_value: float | None
    best_trial: int | None
    spend_usd: float
    estimated_usd: float
    reserved_usd: float
    budget_usd: float | None
    interruptions: int
    resumed_runs: int
    restarted_from_zero: int
    lost_work_s: float | None
    lost_work_unknown_runs: int
    live: tuple[LiveRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine:
    """Something that happened, for the reader who watches. The text may hold control characters of foreign origin."""

    at: datetime
    level: Level
    text: str


class Display(Protocol):
    """Whatever shows a running study."""

    def tick(self, view: EngineView) -> None:
        """Show the study as it is now; called once a tick."""
        ...

    def event(self, line: EventLine) -> None:
        """Show that something happened."""
        ...

    def close(self) -> None:
        """Give the terminal back. May be repeated."""
        ...


_Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"


class Signals:
    """Two-stage Ctrl-C and SIGTERM: the first asks the engine to leave in order, the second leaves now.

    Jobs are never cancelled by a signal. As a context manager it installs its handlers and restores the former ones;
    outside of one it only carries `stop_requested`, for tests and callers with handlers of their own.
    """

    def __init__(self, last_words: str = "", shown: Callable[[str], str] = str) -> None:
        self.stop_requested = False
        self.received: int | None = None
        self.last_words = last_words  # printed by the second signal: how to go on
        self._shown = shown  # what makes of words what the user is to read
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
            os.write(2, f"\n{self._shown(self.last_words)}\n".encode())
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
