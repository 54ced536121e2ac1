"""The command line: which verbs and options there are, and how a call ends.

This module parses; its siblings print; `operations` does the work. The module of a verb is imported
when the verb is called, so that `tuner --help` loads no library.

Rules: results go to standard output, progress and errors to standard error. A refusal is one line and an exit code of
the contract (`errors.Exit`), never a traceback; a traceback is a bug. A reader that goes away (`tuner trials x | head`)
ends the call in silence. SIGTERM raises an exception as Ctrl-C does, so that each `finally` of a verb runs.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from tuner.cli.arguments import Arguments
from tuner.core.commands import Options, render
from tuner.core.errors import Exit, UserError
from tuner.core.text import safe

if TYPE_CHECKING:
    from tuner.operations.use_cases import UseCases

_Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"  # noqa: SLF001 - argparse has no public name for it

# Planned verbs and options without code yet; the refusal says so.
UNBUILT = (
    *(("plan",), ("export",), ("ui",)),
    ("compare", "--format", "html"),
)

_EPILOG = """\
exit codes: 0 done; 1 a check failed, or every trial failed; 2 usage or study file; 3 not finished by this call
(budget, deadline, stopped, held by another engine); 4 refused (credentials, rights, store unreachable);
130 Ctrl-C, 143 SIGTERM. A signal never cancels jobs."""


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, like any other refusal."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)", Exit.USAGE)


class _ShowVersion(argparse.Action):
    """Reads the version only on request: the metadata of a distribution takes longer to read than all else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - see above

        try:
            found = version("spot-tuner")
        except PackageNotFoundError:
            found = "of a source tree that is not installed"
        print(f"tuner {found}")
        parser.exit(Exit.DONE)


def main(argv: Sequence[str] | None = None, use_cases: "UseCases | None" = None) -> int:
    """Run one verb; returns the exit code. Also the console script's entry point. Tests hand in their `use_cases`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal with few characters must not make us fail
    options: Options = ()  # unknown until the call is parsed
    try:
        _refuse_unbuilt(arguments)
        args = parser().parse_args(arguments, Arguments())
        options = args.options = _options(args.store)
        with _leaving_by_sigterm(), _log(args.verbose):
            code = _run(args, use_cases)
        sys.stdout.flush()
    except UserError as error:
        print(f"tuner: {safe(render(error.message, options))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Python flushes standard output once more at exit: it must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except KeyboardInterrupt:
        print("tuner: interrupted; jobs go on, nothing was cancelled", file=sys.stderr)
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """All verbs with their help."""
    top = _Parser(
        prog="tuner",
        description="Hyperparameter tuning on spot capacity: interrupted trials resume, every dollar is accounted for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--store", metavar="URL", help="database of the studies (TUNER_STORE; sqlite:///tuner.db)")
    top.add_argument("-v", "--verbose", action="count", default=0, help="log each AWS call (-vv: and more; TUNER_LOG)")
    top.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version of the tuner")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    _add_driving_verbs(verbs)
    _add_reading_verbs(verbs)
    _add_changing_verbs(verbs)
    _add_checking_verbs(verbs)
    _add_rehearse(verbs)
    return top


def _options(url: str | None) -> Options:
    """What a printed command repeats of this call. A password is masked; the user knows it."""
    if not url:
        return ()
    from tuner.store.schema import StoreError, masked  # noqa: PLC0415 - SQLAlchemy, as whatever opens this store will

    try:
        return "--store", masked(url)
    except StoreError:  # the verb refuses it
        return ()


def _log(verbosity: int) -> AbstractContextManager[None]:
    file = os.environ.get("TUNER_LOG")
    if not verbosity and not file:
        return nullcontext()
    from tuner.cli.log import logging_to  # noqa: PLC0415 - `logging` takes as long to import as all of this module

    return logging_to(verbosity, file)


def _run(args: Arguments, use_cases: "UseCases | None") -> int:
    from tuner.operations.use_cases import UseCases  # noqa: PLC0415 - `tuner --help` loads no library

    args.use_cases = use_cases or UseCases()
    module, name = args.run
    verb: Callable[[Arguments], int] = getattr(import_module(f"tuner.cli.{module}"), name)
    return int(verb(args))


@contextmanager
def _leaving_by_sigterm() -> Iterator[None]:
    """SIGTERM as SystemExit(143): its default kills the process where it stands, and a job that costs money goes on.

    A verb with a handler of its own replaces this one. Nothing is installed where the caller runs in a thread, ignores
    the signal or has set a handler: that was a decision.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refuse_unbuilt(arguments: Sequence[str]) -> None:
    """Refuse a planned verb or option that has no code yet."""
    before = _Parser(prog="tuner", add_help=False, allow_abbrev=False)
    before.add_argument("--store")
    before.add_argument("-v", "--verbose", action="count")
    _, typed = before.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    for verb, *more in UNBUILT:
        if typed[:1] == [verb] and all(word in typed for word in more):
            raise UserError(f"{' '.join([verb, *more])} is not built yet (see tuner --help for what is)", Exit.USAGE)


def _verb(verbs: _Verbs, name: str, run: tuple[str, str], about: str, *, json: bool = False) -> _Parser:
    added = verbs.add_parser(name, help=about, description=about, allow_abbrev=False)
    added.set_defaults(run=run)
    # SUPPRESS: a default here would overwrite the option given before the verb
    added.add_argument("--store", metavar="URL", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    added.add_argument("-v", "--verbose", action="count", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if json:
        added.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return added


def _add_driving_verbs(verbs: _Verbs) -> None:
    launch = _verb(verbs, "launch", ("run", "launch"), "check a study file, show its plan, and run the study")
    launch.add_argument("file", metavar="FILE", type=Path, help="the study file")
    launch.add_argument("-y", "--yes", action="store_true", help="do not ask before money is spent")
    launch.add_argument("--dry-run", "--dryrun", action="store_true", help="show the plan and do nothing")
    launch.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key, e.g. trials=4")
    resume = _verb(verbs, "resume", ("run", "resume"), "reconcile a study with its jobs and continue it")
    resume.add_argument("study", metavar="STUDY", nargs="?")
    resume.add_argument(
        "--accept-changes",
        action="store_true",
        help="give edited code and settings to new trials",
    )
    resume.add_argument("--retry-failed", action="store_true", help="run failed trials again, as new trials")
    resume.add_argument("--no-wait", action="store_true", help="do not wait for the engine of another host")
    resume.add_argument("--once", action="store_true", help="one cycle, then exit")
    resume.add_argument("--all", action="store_true", help="every unfinished study of the store (needs --once)")
    _force(resume)


def _add_reading_verbs(verbs: _Verbs) -> None:
    status = _verb(
        verbs, "status", ("read", "status"), "show counts, best trial, spend, interruptions and engine", json=True
    )
    status.add_argument("study", metavar="STUDY", nargs="?", help="the study (default: all studies of the store)")
    status.add_argument("-w", "--watch", action="store_true", help="show it again and again until the study rests")
    status.add_argument("--check", action="store_true", help="verify the records and the engine; exit 1 on a problem")
    trials = _verb(verbs, "trials", ("read", "trials"), "show one row a trial", json=True)
    trials.add_argument("study", metavar="STUDY")
    show = _verb(verbs, "show", ("read", "show"), "show the story of a trial: attempts, runs, resumes, cost", json=True)
    show.add_argument("study", metavar="STUDY")
    show.add_argument("trial", metavar="TRIAL", type=_count)
    logs = _verb(verbs, "logs", ("read", "logs"), "show what the script of a trial printed", json=True)
    logs.add_argument("study", metavar="STUDY")
    logs.add_argument("trial", metavar="TRIAL", type=_count)
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more")
    logs.add_argument("--attempt", metavar="N", type=_count, help="only this attempt (default: all of them, in order)")
    logs.add_argument("--tail", metavar="N", type=_count, help="only the last N lines")
    best = _verb(verbs, "best", ("read", "best"), "show the best trials: parameters, value, cost, model", json=True)
    best.add_argument("study", metavar="STUDY")
    best.add_argument("-n", metavar="K", type=_positive, default=1, dest="count", help="how many trials (1)")
    best.add_argument("--download", metavar="DIR", type=Path, help="copy their model and checkpoints there")
    compare = _verb(
        verbs, "compare", ("read", "compare"), "compare what trials cost with what they were worth", json=True
    )
    compare.add_argument("studies", metavar="STUDY", nargs="+")
    compare.add_argument("--format", choices=["table", "csv", "png"], default="table", help="how it is shown (table)")
    compare.add_argument("-o", "--output", metavar="FILE", type=Path, help="write there instead of standard output")


def _add_changing_verbs(verbs: _Verbs) -> None:
    stop = _verb(verbs, "stop", ("run", "stop"), "stop each job of a study at its next checkpoint; resumable")
    stop.add_argument("study", metavar="STUDY")
    how = stop.add_mutually_exclusive_group()
    how.add_argument("--now", action="store_true", help="do not wait for checkpoints")
    how.add_argument("--drain", action="store_true", help="let the running jobs finish")
    _force(stop)
    cancel = _verb(verbs, "cancel", ("run", "cancel"), "end a study: stop its jobs and cancel its unfinished trials")
    cancel.add_argument("study", metavar="STUDY")
    _force(cancel)
    change = _verb(verbs, "set", ("run", "change"), "change trials, parallel, budget or deadline of a study")
    change.add_argument("study", metavar="STUDY")
    change.add_argument("assignments", metavar="KEY=VALUE", nargs="+", help="e.g. trials=40 budget.usd=80")
    _force(change)


def _force(verb: _Parser) -> None:
    verb.add_argument("--force", action="store_true", help="do not ask whether to touch another user's study")


def _add_checking_verbs(verbs: _Verbs) -> None:
    audit = _verb(
        verbs, "audit", ("run", "audit"), "compare the store with the job service; exit 1 if they differ", json=True
    )
    audit.add_argument("study", metavar="STUDY")
    audit.add_argument(
        "--cur",
        metavar="FILE",
        type=Path,
        action="append",
        help="compare the ledger with this Cost and Usage Report; may be repeated",
    )
    audit.add_argument("--stop-orphans", action="store_true", help="stop jobs of this study that nobody asked for")
    _force(audit)
    gc = _verb(verbs, "gc", ("run", "gc"), "delete checkpoints that the study file does not keep", json=True)
    gc.add_argument("study", metavar="STUDY")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted, and its size")
    _force(gc)
    _add_doctor(verbs)
    _verb(verbs, "schema", ("schema", "schema"), "print the JSON schema of the study file, for editors")
    database = verbs.add_parser("db", help="the schema of the store", description="The schema of the store.")
    kinds = database.add_subparsers(metavar="upgrade|current", required=True)
    _verb(kinds, "upgrade", ("read", "db_upgrade"), "bring the store to the schema of this version")
    _verb(kinds, "current", ("read", "db_current"), "show the schema version of the store", json=True)
    local = verbs.add_parser("local", help="the local job service", description="The local job service.")
    kinds = local.add_subparsers(metavar="jobs|serve", required=True)
    jobs = _verb(kinds, "jobs", ("read", "local_jobs"), "show the jobs of the local service", json=True)
    jobs.add_argument(
        "study", metavar="STUDY", nargs="?", help="whose jobs (default: those of TUNER_LOCAL, else .tuner)"
    )
    serve = _verb(kinds, "serve", ("local", "serve"), "serve the local service on a port, for aws and other SDKs")
    serve.add_argument("--port", metavar="N", type=_count, default=0, help="the port (default: a free one)")
    serve.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen (127.0.0.1)")
    serve.add_argument("--dir", metavar="DIR", type=Path, help="the state directory (TUNER_LOCAL, .tuner)")
    serve.add_argument("--region", metavar="NAME", default="us-east-1", help="the region of the service (us-east-1)")
    serve.add_argument(
        "--s3-endpoint", metavar="URL", help="an S3 for s3:// (default: a folder of the state directory)"
    )
    serve.add_argument("--events-endpoint", metavar="URL", help="an EventBridge that gets events of jobs")
    serve.add_argument("--logs-endpoint", metavar="URL", help="a CloudWatch Logs that gets what jobs print")


def _add_doctor(verbs: _Verbs) -> None:
    doctor = _verb(verbs, "doctor", ("doctor", "doctor"), "check that a study can run", json=True)
    doctor.add_argument("file", metavar="FILE", type=Path, nargs="?")
    forms = doctor.add_mutually_exclusive_group()
    forms.add_argument(
        "--first-dollar",
        action="store_true",
        help="run one spot job, below five cents, that finds out what AWS leaves open",
    )
    doctor.add_argument("-y", "--yes", action="store_true", help="with --first-dollar: do not ask before it is spent")
    forms.add_argument("--policy", action="store_true", help="print the least IAM policies, of the caller and the role")
    forms.add_argument(
        "--events",
        metavar="WHAT",
        nargs="?",
        const="print",
        choices=["print", "create", "use", "remove"],
        help="events that tell engines early of changed jobs: print a template, create, use or remove them",
    )


def _add_rehearse(verbs: _Verbs) -> None:
    verb = _verb(
        verbs,
        "rehearse",
        ("rehearse", "run"),
        "interrupt a script here and say whether it is fit for spot",
        json=True,
    )
    verb.add_argument("file", metavar="FILE", type=Path, help="the study file")
    verb.add_argument(
        "--steps", metavar="N", type=_positive, help="train up to this step (as far as --max-duration allows)"
    )
    verb.add_argument(
        "--max-duration",
        "--leash",  # its name in 0.1.0
        metavar="DURATION",
        default="1m",
        help="how long the first run may take (1m)",
    )
    verb.add_argument("--interruptions", metavar="K", type=_positive, default=3, help="how many interruptions (3)")
    verb.add_argument("--seed", metavar="N", type=_count, default=0, help="the seed of the moments of interruption (0)")
    verb.add_argument(
        "--tolerance",
        metavar="R",
        type=_share,
        default=1e-6,
        help="relative difference of metrics to ignore (1e-6)",
    )
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the study file")
    verb.add_argument(
        "--input", action="append", default=[], metavar="CHANNEL=DIR", help="data for a channel that is in S3"
    )
    verb.add_argument("--keep", metavar="DIR", type=Path, help="keep jobs, logs and checkpoints there")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _count(text: str) -> int:
    return _at_least(0, text)


def _positive(text: str) -> int:
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
