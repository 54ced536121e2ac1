"""The display of a running study: redrawn on a terminal, plain lines elsewhere.

Rules: everything goes to standard error, because standard output is for results. Drawing happens only in `tick` and
`event`, in the engine's own thread: there is no refresh thread that a signal or a `fork` could interrupt. Dollars of a
local study are always marked as simulated. Plain lines: one for each event, and a summary at most every
ten seconds and only when it changed, so that a log of a night stays readable.
"""

import sys
from datetime import datetime, timedelta
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.cli.printing import simulated_note
from tuner.cli.table import can_redraw, state, table, wants_color
from tuner.core.clock import Clock
from tuner.core.commands import Options, render
from tuner.core.records import TrialState
from tuner.core.text import counted, dollars, lost_work, number, safe
from tuner.reports.records import Display, EngineView, EventLine, LiveRow

_SUMMARY_EVERY = timedelta(seconds=10)
_STYLES = {"info": "", "good": "green", "warn": "yellow", "error": "bold red"}
_WORDS = {"warn": "warning: ", "error": "error: "}
_BAR_WIDTH = 24
# A terminal cannot scroll inside a live display: more trials in flight than this are counted but not listed.
_ROWS_SHOWN = 16


class PlainDisplay:
    """Plain lines, for logs, pipes and screens that cannot redraw."""

    def __init__(self, clock: Clock, stream: TextIO | None = None, options: Options = ()) -> None:
        self._clock = clock
        self._options = options
        self._stream = stream or sys.stderr
        self._next: datetime | None = None
        self._last = ""

    def tick(self, view: EngineView) -> None:
        now, line = self._clock.now(), summary_line(view)
        if line == self._last or (self._next is not None and now < self._next):
            return
        self._next, self._last = now + _SUMMARY_EVERY, line
        self._print(now, line)

    def event(self, line: EventLine) -> None:
        self._print(line.at, level_text(line, self._options))

    def close(self) -> None:
        """Nothing to close."""

    def _print(self, at: datetime, text: str) -> None:
        self._stream.write(f"{at:%Y-%m-%dT%H:%M:%SZ} {safe(text)}\n")
        self._stream.flush()


class LiveDisplay:
    """A table of the trials in flight that is redrawn in place. Events scroll above it."""

    def __init__(self, stream: TextIO | None = None, options: Options = ()) -> None:
        self._options = options
        self._console = Console(
            file=stream or sys.stderr,
            color_system="auto" if wants_color() else None,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._live = Live(console=self._console, auto_refresh=False)

    def tick(self, view: EngineView) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(picture(view), refresh=True)

    def event(self, line: EventLine) -> None:
        at = Text(f"{line.at:%H:%M:%S} ", style="dim")
        self._console.print(at.append(safe(level_text(line, self._options)), style=_STYLES[line.level]))

    def close(self) -> None:
        self._live.stop()


class QuietDisplay:
    """Shows nothing, for programs that read the store themselves."""

    def tick(self, view: EngineView) -> None:
        """Nothing to show."""

    def event(self, line: EventLine) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to close."""


def choose(clock: Clock, stream: TextIO | None = None, options: Options = ()) -> Display:
    """The display that fits the stream (standard error by default); commands in it repeat `options`."""
    return LiveDisplay(stream, options) if can_redraw(stream or sys.stderr) else PlainDisplay(clock, stream, options)


def level_text(line: EventLine, options: Options = ()) -> str:
    """The text of an event. Warnings and errors say so in words, because colour may be missing."""
    return f"{_WORDS.get(line.level, '')}{render(line.text, options)}"


def summary_line(view: EngineView) -> str:
    """A study in one line."""
    best = f"best {number(view.best_value)} (trial {view.best_trial})" if view.best_trial is not None else "no best yet"
    return (
        f"{view.name} {view.state.value}: {_ended(view)} of {view.total} trials ended ({_ends(view)}), "
        f"{view.in_flight} in flight, {best}, spend {spend_text(view)}, {work_text(view)}"
    )


def spend_text(view: EngineView) -> str:
    """Dollars spent, estimated for what runs, reserved, and the budget."""
    more = f" + {dollars(view.estimated_usd)} estimated" if view.estimated_usd else ""
    reserved = f", {dollars(view.reserved_usd)} reserved" if view.reserved_usd else ""
    budget = f" of {dollars(view.budget_usd)}" if view.budget_usd is not None else ""
    return f"{dollars(view.spend_usd)}{more}{reserved}{budget}{simulated_note(view.simulated)}"


def work_text(view: EngineView) -> str:
    """Interruptions, resumed runs and lost work."""
    zero = f", {counted(view.restarted_from_zero, 'run')} RESTARTED FROM ZERO" if view.restarted_from_zero else ""
    known = f"{lost_work(view.lost_work_s, view.lost_work_unknown_runs)} of work lost"
    lost = "work lost not known" if view.lost_work_s is None else known
    return f"{counted(view.interruptions, 'interruption')}, {counted(view.resumed_runs, 'run')} resumed{zero}, {lost}"


def picture(view: EngineView) -> RenderableType:
    """The live display of one moment."""
    head = Text(safe(view.name)).append("  ").append_text(state(view.state.value))
    grid = Table.grid(padding=(0, 2))
    grid.add_row("trials", _bar(_ended(view), view.total), f"{_ended(view)} of {view.total} ({_ends(view)})")
    spent = view.spend_usd + view.estimated_usd
    spend_bar = _bar(spent, view.budget_usd) if view.budget_usd else Text("no budget", style="dim")
    grid.add_row("spend", spend_bar, spend_text(view))
    best = f"{number(view.best_value)} (trial {view.best_trial})" if view.best_trial is not None else "none yet"
    facts = Text(f"best {best}; {work_text(view)}")
    if view.restarted_from_zero:
        facts.stylize("bold red")
    return Group(head, grid, facts, _live_table(view))


def _live_table(view: EngineView) -> RenderableType:
    columns = ["TRIAL", "ATT", "STATE", "STEP", "VALUE", "RESUMED_FROM", "INT", "INSTANCE"]
    rows = [_live_cells(row) for row in view.live[:_ROWS_SHOWN]]
    shown = table(columns, rows, right=["TRIAL", "ATT", "STEP", "VALUE", "RESUMED_FROM", "INT"])
    if len(view.live) <= _ROWS_SHOWN:
        return shown
    return Group(shown, Text(f"and {len(view.live) - _ROWS_SHOWN} more in flight", style="dim"))


def _live_cells(row: LiveRow) -> tuple[object, ...]:
    return (
        row.trial,
        row.attempt,
        state(row.state.value),
        row.step,
        number(row.value),
        row.resumed_from,
        row.interruptions,
        row.instance,
    )


def _bar(done: float, of: float) -> ProgressBar:
    return ProgressBar(total=max(of, 1e-9), completed=min(done, of), width=_BAR_WIDTH)


def _ended(view: EngineView) -> int:
    return sum(count for name, count in view.trials.items() if name.terminal)


def _ends(view: EngineView) -> str:
    said = [f"{view.trials[name]} {name.value}" for name in TrialState if name.terminal and view.trials.get(name)]
    return ", ".join(said) or "none"
