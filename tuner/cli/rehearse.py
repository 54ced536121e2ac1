"""The verb `rehearse`: progress while it runs, and a verdict that a person can read.

Rules: the verdict goes to standard output, progress to standard error: one line that is redrawn on a terminal, plain
lines elsewhere. Ctrl-C and SIGTERM end the rehearsal and everything that it started; a second one does not disturb
that. No store is made or written. An existing store is read for the interruption rates that it has measured.
"""

import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuner.cli.arguments import Arguments
from tuner.cli.read import out, out_json, reading, say, store_url
from tuner.cli.table import can_redraw, render
from tuner.core import commands
from tuner.core.clock import Clock, SystemClock
from tuner.core.commands import Options
from tuner.core.errors import Exit, UserError
from tuner.core.policy.placement import PoolStats
from tuner.core.records import Json, PoolTotals
from tuner.core.text import dollars, number, percent, safe, seconds, size
from tuner.rehearse.records import Advice, Check, Measures, Rehearsal, RehearsalBroken, RehearsalRefused, Result
from tuner.rehearse.rehearse import rehearse
from tuner.rehearse.runs import RehearsalOptions
from tuner.rehearse.verdict import save_text, short
from tuner.spec.study_file import SpecError
from tuner.spec.values import Where, duration
from tuner.storage.bundle import BundleRefused
from tuner.store.schema import SCHEMA, current
from tuner.store.store import Store, StoreError

_STYLES = {Result.PASSED: "green", Result.WARNING: "yellow", Result.FAILED: "bold red", Result.UNCLEAR: "yellow"}
_DEFAULTS = RehearsalOptions()  # settings without an option; tests use faster ones
_PLAIN_EVERY = timedelta(seconds=10)
_REDRAW_EVERY = timedelta(seconds=0.1)
_LEARNED_FROM_S = 10 * 3600.0  # fewer hours of running say less than the assumption
_LEAST_SHARE = 0.001
_NEAR = 1.25  # an interval this close to the best one is as good


def run(args: Arguments) -> int:
    """Rehearse a study's script and report whether it is fit for spot."""
    clock = SystemClock()
    progress = ProgressLines(clock, sys.stderr)
    try:
        with _ending_signals():
            outcome = rehearse(args.file, _options(args), progress, clock, learned_rates(args.store))
    except (SpecError, BundleRefused, RehearsalRefused) as error:
        raise UserError(f"rehearse: {error}", Exit.USAGE) from error
    except RehearsalBroken as error:
        raise UserError(f"rehearse: {error}", Exit.CHECK_FAILED) from error
    except SystemExit:
        progress.close()
        say("rehearse: ended by a signal; everything that it started is gone")
        raise
    finally:
        progress.close()
    if args.json:
        out_json(document(outcome, args.options))
    else:
        out(render(verdict(outcome, args.options)))
    return Exit.DONE if outcome.fit else Exit.CHECK_FAILED


def _options(args: Arguments) -> RehearsalOptions:
    return replace(
        _DEFAULTS,
        overrides=tuple(args.set),
        inputs=_inputs(args.input),
        steps=args.steps,
        max_duration_s=duration.read(args.max_duration, Where("--max-duration")),
        interruptions=args.interruptions,
        seed=args.seed,
        tolerance=args.tolerance,
        keep=args.keep,
    )


def learned_rates(url: str | None) -> Mapping[str, float]:
    """Interruptions per hour of running on AWS that the user's store has measured, by instance type.

    A store that does not exist or has another schema is not touched. Local studies do not count: their market is
    simulated.
    """
    try:
        if current(store_url(url)) != SCHEMA:
            return {}
    except StoreError:
        return {}
    with reading(url) as store:
        return rates_seen(store)


def rates_seen(store: Store) -> Mapping[str, float]:
    """The same for an open store."""
    met: dict[str, PoolTotals] = {}
    studies = [study.id for study in store.studies() if study.backend == "sagemaker"]
    for pool, totals in store.pool_totals(studies).items():
        if pool.spot:
            met[pool.instance_type] = met.get(pool.instance_type, PoolTotals()) + totals
    known = {kind: totals for kind, totals in met.items() if totals.up_s >= _LEARNED_FROM_S}
    return {kind: PoolStats(totals=totals).interruptions_per_h for kind, totals in known.items()}


def _inputs(given: list[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        channel, _, folder = text.partition("=")
        if not channel or not folder:
            raise UserError(f"rehearse: --input {text}: CHANNEL=DIR is expected", Exit.USAGE)
        found[channel] = Path(folder)
    return found


@contextmanager
def _ending_signals() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the rehearsal; further ones are ignored during the clean-up."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    former = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


class ProgressLines:
    """The progress of a rehearsal, on one line of a terminal or as plain lines."""

    def __init__(self, clock: Clock, stream: TextIO) -> None:
        self._clock = clock
        self._stream = stream
        self._redraws = can_redraw(stream)
        self._text = ""
        self._next: datetime | None = None
        self._last: int | None = None

    def phase(self, text: str) -> None:
        self._text, self._last = text, None
        self._next = None if self._redraws else self._clock.now() + _PLAIN_EVERY
        self._show(text)

    def step(self, step: int | None, of: int | None) -> None:
        now = self._clock.now()
        if step == self._last or (self._next is not None and now < self._next):
            return
        self._last, self._next = step, now + (_REDRAW_EVERY if self._redraws else _PLAIN_EVERY)
        self._show(f"{self._text}: step {step}" + (f" of {of}" if of is not None else ""))

    def close(self) -> None:
        if self._redraws:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _show(self, text: str) -> None:
        line = f"rehearsing {safe(text)}"
        if self._redraws:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[2K{line[:width]}")
        else:
            self._stream.write(f"{self._clock.now():%Y-%m-%dT%H:%M:%SZ} {line}\n")
        self._stream.flush()


# --- the verdict


def verdict(outcome: Rehearsal, options: Options = ()) -> RenderableType:
    """The whole outcome, for a person."""
    params = " ".join(f"{name}={number(value)}" for name, value in outcome.params.items())
    parts: list[RenderableType] = [Text(f"{safe(outcome.study)}: ").append(*_headline(outcome))]
    if params:
        parts.append(Text(f"rehearsed with {safe(params)}", style="dim"))
    parts += [Text(f"note: {safe(note)}", style="dim") for note in outcome.notes]
    parts += [Text(), _checks_grid(outcome.checks, options), Text(), _figures_grid(outcome)]
    return Group(*parts)


def _headline(outcome: Rehearsal) -> tuple[str, str]:
    if outcome.fit:
        return "fit for spot", "bold green"
    if any(check.result is Result.FAILED for check in outcome.checks):
        return "NOT fit for spot", "bold red"
    return "not proven to be fit for spot", "bold yellow"


def _checks_grid(checks: tuple[Check, ...], options: Options) -> Table:
    grid = _grid(labels=2)
    for check in checks:
        remedy = [Text(f"remedy: {safe(commands.render(check.remedy, options))}", style="dim")] if check.remedy else []
        result = Text(check.result.value, style=_STYLES[check.result])
        grid.add_row(Text(check.name), result, Group(Text(safe(check.text)), *remedy))
    return grid


def _figures_grid(outcome: Rehearsal) -> Table:
    grid = _grid(labels=1)
    if outcome.measures.step_s is not None:
        grid.add_row(Text("measured here"), Text(_measured(outcome.measures)))
    for advice in outcome.advice:
        lines = advice_lines(advice, outcome.measures)
        grid.add_row(Text(advice.instance_type), Group(*(Text(safe(line)) for line in lines)))
    return grid


def _grid(*, labels: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(labels):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _measured(measured: Measures) -> str:
    """The measured figures; unknown ones are left out."""
    said = []
    if measured.step_s is not None:
        said.append(f"a step {short(measured.step_s)}")
    if measured.startup_s is not None:
        loading = "" if measured.restart_s is None else f" ({short(measured.restart_s)} with a checkpoint)"
        said.append(f"start-up {short(measured.startup_s)}{loading}")
    if measured.checkpoint_bytes is not None:
        said.append(f"a checkpoint {size(measured.checkpoint_bytes)}")
    if measured.save_s is not None:
        said.append(f"saving it {save_text(measured.save_s)}")
    return ", ".join(said)


def advice_lines(advice: Advice, measured: Measures) -> list[str]:
    """The advice for one instance type, its effect, and its source."""
    steps = "every step" if advice.interval_steps == 1 else f"{advice.interval_steps} steps at this speed"
    cost = "" if advice.usd_per_hour is None else f" = {dollars(advice.overhead * advice.usd_per_hour)} per hour"
    now = ""
    if advice.overhead_now is not None and measured.steps_per_save is not None:
        near = 1 / _NEAR <= measured.steps_per_save / advice.interval_steps <= _NEAR
        now = "; that is what it does" if near else f"; as it saves now {_share(advice.overhead_now)}"
    waste = f"saving, lost work and the script's start-up take {_share(advice.overhead)} of the time{cost}{now}"
    return [
        f"save about every {short(advice.interval_s)} ({steps})",
        f"an interruption then costs {short(advice.lost_s)} of work; {waste}",
        f"with one interruption in {seconds(round(3600 / advice.per_hour))} of running ({advice.basis})",
    ]


def _share(of_one: float) -> str:
    return percent(100 * of_one) if of_one >= _LEAST_SHARE else f"less than {percent(100 * _LEAST_SHARE)}"


def document(outcome: Rehearsal, options: Options = ()) -> dict[str, Json]:
    """The outcome as one JSON document."""
    return {
        "study": outcome.study,
        "fit": outcome.fit,
        "params": dict(outcome.params),
        "notes": list(outcome.notes),
        "checks": [asdict(check) | {"remedy": commands.render(check.remedy, options)} for check in outcome.checks],
        "measured": asdict(outcome.measures),
        "advice": [asdict(advice) for advice in outcome.advice],
        "interrupted": [
            {
                "end": run.ending.value,
                "first_step": run.first_step,
                "last_step": run.last_step,
                "resume_step": run.resume_step,
                "had_checkpoint": run.had_checkpoint,
                "outside": list(run.outside),
            }
            for run in outcome.evidence.interrupted
        ],
    }
