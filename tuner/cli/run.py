"""The verbs that drive, change or check a study: `launch resume stop cancel set audit gc`.

Rules: the result of a study goes to standard output, everything before it to standard error. The first
Ctrl-C or SIGTERM makes the engine leave in order and prints how to continue and how to end; it never cancels jobs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from tuner.cli import printing
from tuner.cli.arguments import Arguments
from tuner.cli.doctor import bill
from tuner.cli.live import choose
from tuner.cli.read import out, out_json, reading, say
from tuner.core.clock import SystemClock
from tuner.core.commands import Message, Options, render
from tuner.core.errors import Exit, UserError, left_behind
from tuner.core.records import Intent
from tuner.core.text import dollars, safe
from tuner.operations import context, retention
from tuner.operations.change import stop_intent
from tuner.operations.records import LaunchPlan, Signals, StudyOutcome
from tuner.reports import views
from tuner.reports.records import Audit, Display
from tuner.store.store import Store


def launch(args: Arguments) -> int:
    """Check the study, show the plan, ask if money will be spent, and run."""
    plan = args.use_cases.plan(args.file, args.set)
    if args.dry_run:
        out(printing.plan(plan, every_setting=True))
        return Exit.DONE
    with reading(args.store) as store:
        ready = args.use_cases.prepare(plan, store)
        say(printing.plan(ready, sys.stderr))
        _confirm(ready, yes=args.yes)
        say(f"store {safe(store.masked)}")
        return _drive(
            ready.spec.name,
            args.options,
            lambda display, signals: args.use_cases.launch(ready, store, display=display, signals=signals),
        )


def resume(args: Arguments) -> int:
    """Continue one study, or run one cycle of each unfinished study of the store."""
    if args.all:
        return _resume_all(args)
    if args.study is None:
        raise UserError("resume: which STUDY? (or --all --once)", Exit.USAGE)
    with _changing(args, "resume") as store:
        return _drive(
            args.study,
            args.options,
            lambda display, signals: args.use_cases.resume(
                args.study,
                store,
                accept_changes=args.accept_changes,
                retry_failed=args.retry_failed,
                once=args.once,
                no_wait=args.no_wait,
                display=display,
                signals=signals,
            ),
        )


def stop(args: Arguments) -> int:
    with _changing(args, "stop") as store:
        return _drive(
            args.study,
            args.options,
            lambda display, signals: args.use_cases.request_stop(
                args.study, store, now_=args.now, drain=args.drain, display=display, signals=signals
            ),
            stop_intent(now_=args.now, drain=args.drain),
        )


def cancel(args: Arguments) -> int:
    with _changing(args, "cancel") as store:
        return _drive(
            args.study,
            args.options,
            lambda display, signals: args.use_cases.request_cancel(args.study, store, display=display, signals=signals),
            Intent.CANCEL,
        )


def change(args: Arguments) -> int:
    """`tuner set`."""
    with _changing(args, "set") as store:
        for line in args.use_cases.request_set(args.study, store, args.assignments):
            out(safe(render(line, args.options)))
    return Exit.DONE


def audit(args: Arguments) -> int:
    if args.cur:
        return bill(args)
    with _changing(args, "audit") if args.stop_orphans else reading(args.store) as store:
        found = args.use_cases.audit(args.study, store, stop_orphans=args.stop_orphans)
    for orphan in found.stopped:
        say(f"stopping {safe(orphan.job)}")
    if args.json:
        out_json(_audit_document(args.study, found, args.options))
    else:
        out(printing.audit(args.study, found, args.options))
    return Exit.DONE if found.ok else Exit.CHECK_FAILED


def _audit_document(study: str, found: Audit, options: Options) -> dict[str, object]:
    rows = [
        asdict(row) | {"difference": None if row.difference is None else render(row.difference, options)}
        for row in found.rows
    ]
    lines = [render(line, options) for line in found.lines]
    return {"study": study, "ok": found.ok, "differences": lines, "attempts": rows}


def gc(args: Arguments) -> int:
    with reading(args.store) if args.dry_run else _changing(args, "gc") as store:
        found = args.use_cases.gc(args.study, store, dry_run=args.dry_run)
        simulated = views.simulated(store.study(args.study))
    doc = retention.gc_view(found, args.study, simulated=simulated, dry_run=args.dry_run)
    if args.json:
        out_json(doc)
    else:
        out(printing.gc(doc))
    return Exit.DONE


def _drive(
    name: str, options: Options, verb: Callable[[Display, Signals], StudyOutcome], intent: Intent | None = None
) -> int:
    """Run an engine with a display and two-stage signals, then print the result.

    `intent` is the verb's order. None means the study's last order.
    """
    display = choose(SystemClock(), options=options)
    with Signals(options=options) as signals:
        try:
            outcome = verb(display, signals)
        finally:
            display.close()
    out(printing.final_summary(outcome.summary, options))
    if signals.stop_requested:
        asked = intent or Intent(str(outcome.summary["intent"]))
        say(render(Message("left in order; ", left_behind(name, asked)), options))
    if outcome.refused is not None:
        say(f"tuner: {safe(render(outcome.refused, options))}")
    return outcome.exit_code


def _resume_all(args: Arguments) -> int:
    if not args.once or args.study is not None:
        raise UserError("resume: --all goes with --once and without a STUDY: one cycle for each", Exit.USAGE)
    if args.accept_changes or args.retry_failed:
        raise UserError(
            "resume: --accept-changes and --retry-failed are decided study by study, not for --all", Exit.USAGE
        )
    display = choose(SystemClock(), options=args.options)
    last_words = "left at once; jobs in flight go on"
    with reading(args.store) as store, Signals(last_words, args.options) as signals:
        try:
            outcomes = args.use_cases.resume_all_once(store, display=display, signals=signals, others_too=args.force)
        finally:
            display.close()
    for name, outcome in outcomes:
        refused = None if outcome.refused is None else safe(render(outcome.refused, args.options))
        out(f"{safe(name)}: {refused}" if refused else f"{safe(name)} is {outcome.study_state.value}")
    return signals.exit_code or max((outcome.exit_code for _, outcome in outcomes), default=Exit.DONE)


@contextmanager
def _changing(args: Arguments, verb: str) -> Iterator[Store]:
    """Open the store if the study may be changed: ask first if it belongs to another user."""
    with reading(args.store) as store:
        owner = None if args.force else context.owner_to_ask(args.study, store)
        if owner is not None:
            belongs = f"study {safe(args.study)} belongs to {safe(owner)}"
            if not sys.stdin.isatty():
                raise UserError(f"{verb}: {belongs} and there is no terminal to ask on: pass --force", Exit.USAGE)
            if not _yes(f"{belongs}: {verb} it?"):
                raise UserError(f"{verb}: declined, nothing was changed", Exit.USAGE)
        yield store


def _confirm(plan: LaunchPlan, *, yes: bool) -> None:
    """Ask before money is spent. Raises UserError if nobody can answer, or if the answer is no."""
    if yes or plan.spec.backend == "local":
        return
    if not sys.stdin.isatty():
        raise UserError("launch: it costs money and there is no terminal to ask on: pass -y", Exit.USAGE)
    if not _yes(f"launch {safe(plan.spec.name)} for about {dollars(plan.estimated_usd)}?"):
        raise UserError("launch: declined, nothing was started", Exit.USAGE)


def _yes(question: str) -> bool:
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
