"""The parts of every table of the command line.

Rules: cells are `Text`, made safe, so markup in foreign text means nothing. Colour only on a terminal, and never with
NO_COLOR. Tables are as wide as the terminal; without a terminal they are as wide as they need.
"""

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tuner.core.text import UNKNOWN, safe

STATE_STYLES = {
    "running": "cyan",
    "training": "cyan",
    "draining": "yellow",
    "backing_off": "yellow",
    "interrupted": "yellow",
    "paused": "yellow",
    "stopped": "yellow",
    "out_of_budget": "yellow",
    "past_deadline": "yellow",
    "succeeded": "green",
    "finished": "green",
    "ok": "green",
    "pruned": "magenta",
    "failed": "red",
    "cancelled": "red",
    "error": "red",
    "warn": "yellow",
}
# Wide enough for any row: without a terminal nothing is folded or cut.
_UNBOUNDED = 10_000


def wants_color() -> bool:
    return not os.environ.get("NO_COLOR")


def can_redraw(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def render(shown: RenderableType, stream: TextIO | None = None) -> str:
    """Render a rich object as text for `stream` (standard output by default)."""
    terminal = (stream or sys.stdout).isatty()
    text = io.StringIO()
    Console(
        file=text,
        force_terminal=terminal,
        width=shutil.get_terminal_size().columns if terminal else _UNBOUNDED,
        color_system="auto" if terminal and wants_color() else None,
        markup=False,
        highlight=False,
        emoji=False,
    ).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = (), fold: Iterable[str] = ()
) -> Table:
    """A table of safe cells. `right` names the columns of figures, `fold` those that fold on a narrow terminal."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    aligned, folding = set(right), set(fold)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in aligned else "left"
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=bool(folding) and column not in folding)
    for row in rows:
        shown.add_row(*(cell(value) for value in row))
    return shown


def cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    return Text(UNKNOWN if value is None else safe(value))


def state(name: str | None) -> Text:
    return Text(safe(name or UNKNOWN), style=STATE_STYLES.get(name or "", ""))
