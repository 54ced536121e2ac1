"""The parts of `docs/` that the code knows: `python -m tests.docs --write` rewrites them.

Rules: a generated part stands between `<!-- name -->` and `<!-- /name -->` in one page. A test compares each of them
with the code, so a change of the code that a page repeats cannot be forgotten.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests import factories
from tests.cli import cli_store
from tests.docs.pages import ROOT
from tuner.cli import main, rehearse
from tuner.core import errors, states
from tuner.core.events import EventKind
from tuner.core.policy import ending, stopping
from tuner.rehearse.records import Advice, Check, Ending, Evidence, Measures, Rehearsal, Result, RunSeen, SavesSeen
from tuner.reports import events
from tuner.reports.records import LocalJobRow
from tuner.spec import keys, sections, study_file

WIDTH = 118
MOMENT = datetime(2026, 1, 31, 12, tzinfo=UTC)
CHANGES = {"never": "fixed", "needs_accept": "accept", "harmless": "free"}
LEVELS = {"info": "normal", "good": "green", "warn": "warning", "error": "error"}
EXITS = {
    errors.Exit.DONE: "done",
    errors.Exit.CHECK_FAILED: "a check failed, or every trial failed",
    errors.Exit.USAGE: "usage or study file",
    errors.Exit.NOT_FINISHED: "not finished by this call: budget, deadline, stopped, driven by another engine",
    errors.Exit.REFUSED: (
        "refused: store unreachable; credentials, rights, a quota of zero; a job that is not what was asked for"
    ),
}


def item(text: str, bullet: str = "- ") -> str:
    """An entry of a list, wrapped; short code stays in one line."""
    glued = re.sub(r"`[^`]{1,60}`", lambda found: found[0].replace(" ", "\0"), text)
    indent = " " * len(bullet)
    wrapped = textwrap.fill(
        glued, WIDTH, initial_indent=bullet, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapped.replace("\0", " ")


# --- the study file


def keys_of(choose: Callable[[str], bool]) -> str:
    """The keys in the order of the file: first those that stand alone, then a heading for each section."""
    alone: list[str] = []
    under: dict[str, list[str]] = {}
    for name, key in keys.flat(sections.STUDY.keys):
        first = name.partition(".")[0].partition("[")[0]
        if choose(first):
            entries = under.setdefault(first, []) if is_section(first) else alone
            entries.append(item(key_text(name, key)))
    parts = [*alone, *(line for first, lines in under.items() for line in (f"\n### `{first}`\n", *lines))]
    return "\n".join(parts).strip()


def is_section(first: str) -> bool:
    return any(key.name == first and key.kind.keys for key in sections.STUDY.keys)


def key_text(name: str, key: keys.Key) -> str:
    return " ".join(part for part in (f"`{name}` ({state_of(key)}):", key.about, values_of(key), marks(key)) if part)


def state_of(key: keys.Key) -> str:
    if key.example:
        return "required"
    if key.unset:
        return key.unset if key.unset.startswith("required") else f"default: {key.unset}"
    return "not set" if key.default in (None, {}, []) else f"default `{shown(key.default)}`"


def shown(default: object) -> str:
    if default == "":
        return '""'
    return yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def values_of(key: keys.Key) -> str:
    values = key.kind.schema.get("enum", [])
    a_duration = "Durations." if key.kind.schema.get("type") == "array" else "A duration."
    unit = {"": "", "seconds": a_duration}.get(key.unit.partition(",")[0], f"In {key.unit}.")
    return f"One of {', '.join(f'`{value}`' for value in values)}." if values else unit


def marks(key: keys.Key) -> str:
    change = "accept, new trials" if key.shapes and key.change == "needs_accept" else CHANGES[key.change]
    return f"*{change}{', set' if key.settable else ''}*"


# --- the command line


def verbs() -> str:
    return "\n\n".join(verb_text(name, parser) for name, parser in leaves(main.parser()))


def leaves(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """`best`, `db upgrade`, …: every call that the parser takes, with its parser."""
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not kinds:
        yield before, parser
    for kind in kinds:
        for name, inner in kind.choices.items():
            yield from leaves(inner, f"{before} {name}".strip())


def verb_text(name: str, parser: argparse.ArgumentParser) -> str:
    told = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    told.sort(key=lambda action: (bool(action.option_strings), action.dest == "json"))
    arguments = " ".join(argument(action) for action in told if not action.option_strings)
    about = (parser.description or "").rstrip(".")
    lines = [f"### `{f'tuner {name} {arguments}'.strip()}`\n", f"{about[:1].upper()}{about[1:]}."]
    entries = [item(f"{action_name(action)}: {action.help}.") for action in told if action.help]
    return "\n".join([*lines, *(["", *entries] if entries else [])])


def argument(action: argparse.Action) -> str:
    name = str(action.metavar)
    return {"?": f"[{name}]", "+": f"{name}…"}.get(str(action.nargs), name)


def action_name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{argument(action)}`"
    takes = action.nargs != 0
    value = str(action.metavar or "|".join(str(choice) for choice in action.choices or ())) if takes else ""
    value = f"[{value}]" if action.nargs == "?" else value
    return ", ".join(f"`{option} {value}`" if value else f"`{option}`" for option in action.option_strings)


def unbuilt() -> str:
    return "\n".join(item(f"`{name}`") for name in unbuilt_names())


def unbuilt_names() -> list[str]:
    return [" ".join(words) for words in main.UNBUILT] + [key for key, _ in study_file._UNBUILT]


def exit_codes() -> str:
    rows = [(str(int(code)), EXITS[code]) for code in errors.Exit]
    rows.append(("130, 143", "left by Ctrl-C, by SIGTERM"))
    return "\n".join(["| exit code | means |", "|---|---|", *(f"| {code} | {means} |" for code, means in rows)])


# --- events and ends


class Dots(dict):
    """Details of which each is shown as three dots."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key, "…")


def event_kinds() -> str:
    return "\n".join(item(f"`{kind}` ({level_of(kind)}): {event_text(kind)}") for kind in EventKind)


def level_of(kind: EventKind) -> str:
    entry = events.EVENTS[kind]
    return "not reported" if isinstance(entry, events.NotReported) else LEVELS[entry.level]


def event_text(kind: EventKind) -> str:
    entry = events.EVENTS[kind]
    if isinstance(entry, events.NotReported):
        return f"{entry.because}."
    if entry.sentence in (events._message, events._message_and_remedy):
        return "the event brings its own message."
    details = Dots(to=None) if kind is EventKind.STOP_WANTED else Dots()
    event = factories.event(kind=kind, happened_at=MOMENT, recorded_at=MOMENT, trial=7, attempt=2, details=details)
    return f"“{entry.sentence(event)}”"


def ends() -> str:
    return "\n".join(
        item(f"{rule.ended} → {rule.means}.", f"{number}. ") for number, rule in enumerate(ending.RULES, 1)
    )


def stops() -> str:
    return "\n".join(item(stop_text(rule), f"{number}. ") for number, rule in enumerate(stopping.RULES, 1))


def stop_text(rule: stopping.StopRule) -> str:
    waits = " If the job trains, the stop waits for a checkpoint, at most `stop_within`." if rule.waits else ""
    return f"**{rule.name}**: {rule.why} Reason `{rule.reason}`.{waits}"


# --- JSON


CALLS = {
    "status STUDY": "status digits",
    "trials STUDY": "trials digits",
    "show STUDY TRIAL": "show digits 0",
    "best STUDY": "best digits",
    "compare STUDY…": "compare digits",
    "logs STUDY TRIAL": "logs digits 0",
    "audit STUDY": "audit digits --force",
    "gc STUDY": "gc digits --dry-run",
    "doctor [FILE]": "doctor",
    "db current": "db current",
}


def documents() -> str:
    made = {verb: called(words) for verb, words in CALLS.items()}
    made["local jobs"] = [dict.fromkeys(field.name for field in fields(LocalJobRow))]
    made["rehearse FILE"] = rehearse.document(rehearsed())
    return "\n\n".join(f"### `tuner {verb} --json`\n\n{item(keys_in(made[verb]) + '.', '')}" for verb in made)


def called(words: str) -> Any:
    """The document that a verb prints of the tests' study."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        Path(".tuner").mkdir()
        cli_store.seed(Path(folder)).close()
        main.main(["--store", "sqlite:///tuner.db", *words.split(), "--json"])
    return json.loads(printed.getvalue())


def rehearsed() -> Rehearsal:
    run = RunSeen(ending=Ending.CUT, started_at=0, points={}, reported_at={})
    saves = SavesSeen(after_steps=())
    return Rehearsal(
        study="",
        params={},
        checks=(Check(name="", result=Result.PASSED, text=""),),
        evidence=Evidence(
            objectives=(), tolerance=0, grace_s=0, isolated=True, reference=run, saves=saves, interrupted=(run,)
        ),
        measures=Measures(steps=1),
        advice=(Advice(**dict.fromkeys(field.name for field in fields(Advice))),),
    )


def keys_in(document: Any) -> str:
    """The keys of a document, and of those in it, as long as they are not names of the user's."""
    if isinstance(document, list):
        entries = [entry for entry in document if isinstance(entry, dict)]
        return f"[{keys_in({name: value for entry in entries for name, value in entry.items()})}]" if entries else ""
    parts = []
    for name, value in document.items():
        inner = "" if name in ("params", "values", "details") or not isinstance(value, dict | list) else keys_in(value)
        inner = f" {{{inner}}}" if inner and isinstance(value, dict) else f" {inner}" if inner else ""
        parts.append(f"`{name}`{inner}")
    return ", ".join(parts)


PARTS: Mapping[tuple[str, str], Callable[[], str]] = {
    ("docs/explanation/lifecycle.md", "states"): lambda: f"```mermaid\n{states.diagram()}\n```",
    ("docs/explanation/lifecycle.md", "ends"): ends,
    ("docs/explanation/lifecycle.md", "stops"): stops,
    ("docs/reference/study-file.md", "keys"): lambda: keys_of(lambda first: first != "training"),
    ("docs/reference/training.md", "keys"): lambda: keys_of(lambda first: first == "training"),
    ("docs/reference/command-line.md", "verbs"): verbs,
    ("docs/reference/command-line.md", "unbuilt"): unbuilt,
    ("docs/reference/json.md", "json"): documents,
    ("docs/reference/exit-codes.md", "exit-codes"): exit_codes,
    ("docs/reference/events.md", "events"): event_kinds,
}


def written(text: str, name: str, part: str) -> str:
    """The page with this part replaced."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    made, count = block.subn(lambda found: f"{found[1]}{part}\n{found[2]}", text)
    assert count == 1, f"{count} blocks are marked {name}"
    return made


def write(parts: Iterable[tuple[tuple[str, str], Callable[[], str]]] = PARTS.items()) -> None:
    for (page, name), make in parts:
        path = ROOT / page
        path.write_text(written(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")
