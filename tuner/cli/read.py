"""The verbs that read and change nothing: `status trials show logs best compare db local`.

Rules: with `--json` standard output holds one document and nothing else. A refusal of the store is one line with the
exit code of the contract. No engine, no Optuna, no botocore and no pandas is loaded to read.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tuner.cli import printing
from tuner.cli.arguments import Arguments
from tuner.cli.show import story
from tuner.cli.table import can_redraw, wants_color
from tuner.core.clock import Clock, SystemClock
from tuner.core.commands import Options, render
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import trial_and_attempt
from tuner.core.records import Json
from tuner.core.text import safe, safe_log
from tuner.operations import backend, context, lease_holder
from tuner.reports import local_jobs as local_view
from tuner.reports import views
from tuner.reports.compare import compare as compare_studies
from tuner.reports.compare import document, to_csv, write_png
from tuner.reports.download import download
from tuner.store.schema import SCHEMA, current, masked, upgrade
from tuner.store.store import Store, StoreError, StoreInUse, StudyNotFound

_WATCH_S = 2.0


def status(args: Arguments) -> int:
    """The status of one study, or of all studies in the store."""
    if args.watch:
        if args.json:
            raise UserError("status: --watch shows text and --json is one document: choose one", Exit.USAGE)
        return watch(args, SystemClock())
    with reading(args.store) as store:
        docs = _status_docs(store, args.study, SystemClock().now(), args.options)
        if args.check:
            for doc in docs:
                found = args.use_cases.check(str(doc["study"]), store)
                doc["problems"] = list[Json](render(line, args.options) for line in found)
        if args.json:
            out_json(docs[0] if args.study else docs)
        else:
            out(_status_text(docs, args, store, SystemClock().now()))
    return Exit.CHECK_FAILED if any(doc.get("problems") for doc in docs) else Exit.DONE


def watch(args: Arguments, clock: Clock) -> int:
    """Show the status until no engine should be at work: redrawn on a terminal, elsewhere printed at each change."""
    shown: list[views.View] = []
    with reading(args.store) as store, _screen() as screen:
        while True:
            now = clock.now()
            docs = _status_docs(store, args.study, now, args.options)
            # the engine's last sign of life changes each second; that alone is not worth a line
            facts = [{key: value for key, value in doc.items() if key != "engine"} for doc in docs]
            if screen is not None:
                screen.update(Text.from_ansi(_status_text(docs, args, store, now)), refresh=True)
            elif facts != shown:
                out(_status_text(docs, args, store, now))
            shown = facts
            if not any(doc["state"] in ("running", "draining") for doc in docs):
                return Exit.DONE
            sys.stdout.flush()
            clock.wait(now + timedelta(seconds=_WATCH_S))


def trials(args: Arguments) -> int:
    with reading(args.store) as store:
        found = store.study(args.study)
        docs = views.trials_view(store, found)
    if args.json:
        out_json(docs)
    else:
        out(printing.trials(docs, simulated=views.simulated(found)))
    return Exit.DONE


def show(args: Arguments) -> int:
    with reading(args.store) as store:
        doc = views.show_view(store, store.study(args.study), args.trial, options=args.options)
    if args.json:
        out_json(doc)
    else:
        out(story(doc))
    return Exit.DONE


def logs(args: Arguments) -> int:
    """The output of the script. Control characters are made visible; line ends are kept."""
    if args.follow and args.json:
        raise UserError("logs: --follow never ends and --json is one document: choose one", Exit.USAGE)
    with reading(args.store) as store:
        chunks = args.use_cases.log_chunks(
            args.study, store, args.trial, attempt=args.attempt, tail=args.tail, follow=args.follow
        )
        if args.json:
            out_json({"study": args.study, "trial": args.trial, "attempt": args.attempt, "text": "".join(chunks)})
            return Exit.DONE
        for chunk in chunks:
            sys.stdout.write(safe_log(chunk))
            sys.stdout.flush()
    return Exit.DONE


def best(args: Arguments) -> int:
    with reading(args.store) as store:
        found = store.study(args.study)
        docs = views.best_view(store, found, args.count)
    if args.download is not None:
        objects = args.use_cases.backends.of(found).objects()
        for doc in docs:
            say(f"trial {doc['number']}: {len(download(doc, objects, args.download))} files to {safe(args.download)}")
    if args.json:
        out_json(docs)
    else:
        out(printing.best(found.name, docs, simulated=views.simulated(found)))
    return Exit.DONE


def compare(args: Arguments) -> int:
    """Cost against quality, as a table, csv, a figure or a JSON document."""
    if args.json and args.format != "table":
        raise UserError(f"compare: --json and --format {args.format} exclude each other", Exit.USAGE)
    if args.format == "png" and args.output is None:
        raise UserError("compare: a figure needs a file: -o FILE", Exit.USAGE)
    with reading(args.store) as store:
        # a study named twice would be counted twice
        result = compare_studies(store, [store.study(name) for name in dict.fromkeys(args.studies)])
    if args.format == "png":
        write_png(result, args.output)
        return Exit.DONE
    doc = document(result)
    text = to_csv(result) if args.format == "csv" else as_json(doc) if args.json else printing.comparison(doc)
    if args.output is None:
        _to_stdout(text.removesuffix("\n"))
    else:
        _write(args.output, text.removesuffix("\n") + "\n")
    return Exit.DONE


def db_upgrade(args: Arguments) -> int:
    with store_errors():
        out(f"schema {upgrade(store_url(args.store), lease_holder.gone)} at {safe(masked(store_url(args.store)))}")
    return Exit.DONE


def db_current(args: Arguments) -> int:
    with store_errors():
        shown, revision = masked(store_url(args.store)), current(store_url(args.store))
    if args.json:
        out_json({"store": shown, "schema": revision, "newest": SCHEMA})
    else:
        out(f"schema {revision or 'none yet'} at {safe(shown)} (this version writes {SCHEMA})")
    return Exit.DONE


def local_jobs(args: Arguments) -> int:
    directory, study_key = _local_directory(args)
    rows = local_view.local_jobs(directory)
    if study_key is not None:
        rows = [row for row in rows if trial_and_attempt(row.name, study_key) is not None]
    if args.json:
        out_json([asdict(row) | {"created_at": views.iso(row.created_at)} for row in rows])
    else:
        out(printing.local_jobs(rows, SystemClock().now()))
    return Exit.DONE


@contextmanager
def reading(url: str | None) -> Iterator[Store]:
    """Open the store and close it at the end. Its errors become UserError."""
    store = context.open_store(url)
    try:
        with store_errors():
            yield store
    finally:
        store.close()


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the store into a UserError that the user can act on."""
    try:
        yield
    except StudyNotFound as error:
        raise UserError(str(error), Exit.USAGE) from error
    except StoreInUse as error:
        raise UserError(str(error), Exit.NOT_FINISHED) from error
    except StoreError as error:
        raise UserError(str(error), Exit.REFUSED) from error


def store_url(url: str | None) -> str:
    """The URL of the store, for callers that must not open it."""
    return url or os.environ.get(context.STORE_VARIABLE) or context.DEFAULT_STORE


def out(text: str) -> None:
    """Print results as text. Documents and data go out unchanged."""
    _to_stdout(text)


def say(text: str) -> None:
    """A line for the person who watches, on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def out_json(doc: object) -> None:
    _to_stdout(as_json(doc))


def _to_stdout(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def as_json(doc: object) -> str:
    """One document. ASCII, so that no control character of a foreign text reaches a terminal."""
    return json.dumps(doc, indent=2, allow_nan=False)


def _status_docs(store: Store, name: str | None, now: datetime, options: Options) -> list[views.View]:
    found = [store.study(name)] if name else store.studies()
    return [views.status_view(store, each, now, gone=lease_holder.gone, options=options) for each in found]


def _status_text(docs: list[views.View], args: Arguments, store: Store, now: datetime) -> str:
    options: Options = args.options
    lines = [printing.status(docs[0], now, options) if args.study else printing.studies(docs, now, options)]
    for doc in docs:
        if "problems" in doc:
            lines.extend(printing.problems(doc))
    return "\n".join([*lines, f"store {safe(store.masked)}"])


@contextmanager
def _screen() -> Iterator[Live | None]:
    if not can_redraw(sys.stdout):
        yield None
        return
    console = Console(color_system="auto" if wants_color() else None)
    with Live(console=console, auto_refresh=False) as live:
        yield live


def _local_directory(args: Arguments) -> tuple[Path, str | None]:
    """Where the local service keeps its jobs, and the key of the study whose jobs are asked for.

    As recorded with the study; without one, all of them where a launch here would put them.
    """
    if args.study is None:
        return backend.default_local_dir(), None
    with reading(args.store) as store:
        found = store.study(args.study)
    if found.local_dir is None:
        raise UserError(f"study {found.name} does not run on the local service but on {found.backend}", Exit.USAGE)
    return Path(found.local_dir), found.key


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}", Exit.USAGE) from error
