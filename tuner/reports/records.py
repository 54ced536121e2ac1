"""The records that displays show: rows of tables, the state of a running study, lines about events.

They are a module of their own so that the command line can be tested and started without the engine, and so that a
display receives only the part of a study that it shows.

Rules: records only, frozen and slotted. Their text may come from scripts and services; the display makes control
characters visible. Amounts are in dollars here, because people read them; the ledger uses micro-dollars.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from tuner.core.commands import Message
from tuner.core.records import AttemptState, StudyState, TrialState

Level: TypeAlias = Literal["info", "good", "warn", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One attempt compared with its job; the fields of a missing side are None."""

    job: str
    trial: int | None
    attempt: int | None
    status: str | None  # the job service's
    billed_usd: float | None  # billed seconds x rate
    ledger_usd: float | None  # ours
    difference: str | Message | None  # None: they agree
    note: str = ""  # a fact that is no difference, and is shown nowhere else


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A live job with a name of a study that no attempt of the study asked for."""

    job: str
    text: Message  # the reason, its rate, and the command that ends it


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The store compared with the job service."""

    lines: tuple[str | Message, ...]  # differences, each with its remedy
    rows: tuple[AuditRow, ...]
    stopped: tuple[Orphan, ...] = ()  # orphans that were asked to stop; they may take a moment

    @property
    def ok(self) -> bool:
        return not self.lines


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
    resumed_from: int | None  # the step from which its present run resumed
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
    """A line about an event or a notice. The text may hold control characters from scripts and services."""

    at: datetime
    level: Level
    text: str | Message


class Display(Protocol):
    """Shows a running study."""

    def tick(self, view: EngineView) -> None:
        """Show the study as it is now; called once a tick."""
        ...

    def event(self, line: EventLine) -> None:
        """Show the line of an event."""
        ...

    def close(self) -> None:
        """Restore the terminal. May be called again."""
        ...
