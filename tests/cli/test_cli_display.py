"""Displays, and how values look as text."""

import io
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import cli_store
import pytest

from tuner.cli import live
from tuner.core import text as cli_text
from tuner.core.clock import VirtualClock
from tuner.core.records import AttemptState, StudyState, TrialState
from tuner.reports.records import EngineView, EventLine, LiveRow

VIEW = EngineView(
    name="digits",
    state=StudyState.RUNNING,
    simulated=True,
    trials={TrialState.SUCCEEDED: 5, TrialState.FAILED: 1, TrialState.RUNNING: 2},
    total=24,
    in_flight=2,
    parallel=4,
    best_value=0.9512345678,
    best_trial=3,
    spend_usd=0.0123,
    estimated_usd=0.004,
    reserved_usd=0.4,
    budget_usd=60.0,
    interruptions=4,
    resumed_runs=4,
    restarted_from_zero=0,
    lost_work_s=3.25,
    lost_work_unknown_runs=0,
    live=(
        LiveRow(
            trial=7,
            attempt=1,
            state=AttemptState.TRAINING,
            step=9,
            value=0.91,
            resumed_from=4,
            instance="ml.g5.xlarge",
            interruptions=1,
        ),
    ),
)
LINE = EventLine(at=cli_store.NOW, level="warn", text="trial 7 \x1b[2Jinterrupted [red]now[/red]\nand more")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "130")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def plain() -> tuple[live.PlainDisplay, VirtualClock, io.StringIO]:
    clock, stream = VirtualClock(cli_store.NOW), io.StringIO()
    return live.PlainDisplay(clock, stream), clock, stream


def test_plain_lines_are_one_line_each() -> None:
    display, _, stream = plain()
    display.tick(VIEW)
    display.event(LINE)
    display.close()
    assert stream.getvalue() == (
        "2026-03-01T12:00:00Z digits running: 6 of 24 trials ended (5 succeeded, 1 failed), 2 in flight, "
        "best 0.951235 (trial 3), spend $0.0123 + $0.004000 estimated, $0.4000 reserved of $60.00 (simulated), "
        "4 interruptions, 4 runs resumed, 3.2s of work lost\n"
        "2026-03-01T12:00:00Z warning: trial 7 \\x1b[2Jinterrupted [red]now[/red]\\nand more\n"
    )


def test_the_summary_comes_at_most_each_ten_seconds_and_only_when_it_changed() -> None:
    display, clock, stream = plain()
    for second in range(35):
        display.tick(replace(VIEW, interruptions=min(second, 21)))
        clock.wait(clock.now() + timedelta(seconds=1))
    shown = re.findall(r":(\d\d)Z .* (\d+) interruptions?,", stream.getvalue())
    assert shown == [("00", "0"), ("10", "10"), ("20", "20"), ("30", "21")]


def test_the_live_display_shows_the_study_and_gives_the_terminal_back(terminal: Terminal) -> None:
    display = live.LiveDisplay(terminal)
    display.tick(VIEW)
    display.event(LINE)
    display.close()
    display.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "6 of 24 (5 succeeded, 1 failed)" in text
    assert "$0.0123 + $0.004000 estimated, $0.4000 reserved of $60.00 (simulated)" in text
    assert re.search(r"7 +1 +training +9 +0.91 +4 +1 +ml.g5.xlarge", text)
    assert "12:00:00 warning: trial 7 \\x1b[2Jinterrupted [red]now[/red]\\nand more" in text
    assert "\x1b[2J" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_no_color(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> list[str]:
        stream = Terminal()
        display = live.LiveDisplay(stream)
        display.tick(VIEW)
        display.event(LINE)
        display.close()
        return re.findall(r"\x1b\[[0-9;]*m", stream.getvalue())

    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert colours() == []


def test_more_trials_than_a_screen_holds_are_counted(terminal: Terminal) -> None:
    display = live.LiveDisplay(terminal)
    display.tick(replace(VIEW, live=VIEW.live * 200))
    display.close()
    assert "and 184 more in flight" in terminal.getvalue()


def test_the_display_fits_the_stream(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock(cli_store.NOW)
    assert isinstance(live.choose(clock, terminal), live.LiveDisplay)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(live.choose(clock, io.StringIO()), live.PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(live.choose(clock, terminal), live.PlainDisplay)


def test_restarts_from_zero_are_loud() -> None:
    unknown = replace(VIEW, lost_work_unknown_runs=1)
    assert live.summary_line(unknown).endswith(", at least 3.2s of work lost")
    assert live.summary_line(replace(unknown, lost_work_s=None)).endswith(", work lost not known")
    assert "1 run RESTARTED FROM ZERO" in live.summary_line(replace(VIEW, restarted_from_zero=1))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain", "plain"),
        ("Zürich 東京", "Zürich 東京"),
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("\x9b2J", r"\x9b2J"),  # the one-byte escape of old terminals
        ("user\u202etxt.exe", r"user\u202etxt.exe"),  # turns the reading direction
        ("two\nlines", r"two\nlines"),
        ("\udcff", r"\udcff"),  # a byte that was no UTF-8
    ],
)
def test_what_does_not_print_is_shown(given: str, shown: str) -> None:
    assert cli_text.safe(given) == shown


@pytest.mark.parametrize(
    ("function", "given", "shown"),
    [
        (cli_text.dollars, None, "-"),
        (cli_text.dollars, 0.0, "$0.00"),
        (cli_text.dollars, 0.000012, "$0.000012"),
        (cli_text.dollars, 1234.5, "$1,234.50"),
        (cli_text.seconds, None, "-"),
        (cli_text.seconds, 59.94, "59.9s"),
        (cli_text.seconds, 245.0, "4m05s"),
        (cli_text.seconds, 11220, "3h07m"),
        (cli_text.seconds, 187200, "2d04h"),
        (cli_text.percent, None, "-"),
        (cli_text.percent, 61.234, "61.2%"),
        (cli_text.number, 0.1 + 0.2, "0.3"),
        (cli_text.number, 12345678, "12345678"),
        (cli_text.number, None, "-"),
        (cli_text.steps_text, [9, 4, 4, 12], "4, 9, 12"),
        (cli_text.steps_text, list(range(20)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"),
    ],
)
def test_values_as_text(function: Any, given: Any, shown: str) -> None:
    assert function(given) == shown
