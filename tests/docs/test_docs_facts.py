"""What README and `docs/` say of the program is what the program does: verbs, options, states, rooms, switches."""

import configparser
import re
import tomllib

import pytest

from tests import factories
from tests.docs import generate
from tests.docs.pages import ROOT, TEXT, TEXTS, code, commands, entries, marked, section, table
from tuner.cli import main, printing
from tuner.core import errors
from tuner.core.events import EventKind
from tuner.core.policy import ending
from tuner.core.records import AttemptEnd, StudyState
from tuner.local.settings import LocalSettings
from tuner.operations import launch
from tuner.reports import events

COMMAND_LINE = TEXTS["docs/reference/command-line.md"]
VERBS = dict(generate.leaves(main.parser()))


@pytest.mark.parametrize(("page", "name"), generate.PARTS)
def test_a_generated_part_is_what_the_code_says(page, name):
    assert marked(name, TEXTS[page]).strip() == generate.PARTS[page, name](), "run: python -m tests.docs --write"


def test_every_generated_part_is_compared():
    named = {(page, name) for page, text in TEXTS.items() for name in re.findall(r"<!-- /([\w-]+) -->", text)}
    assert named - {("docs/explanation/what-aws-leaves-open.md", "open")} == set(generate.PARTS)


def verb_sections() -> dict[str, str]:
    """What the page says of each verb: what stands before its arguments, which are in capitals."""
    found = re.findall(r"^### `tuner (.*?)`\n(.*?)(?=^##|\Z)", COMMAND_LINE, re.MULTILINE | re.DOTALL)
    return {" ".join(word for word in head.split() if word.islower()): body for head, body in found}


def options_of(parser):
    actions = (action for action in parser._actions if action.option_strings)
    return [action.option_strings for action in actions if action.dest not in ("help", "store", "verbose")]


def test_every_verb_stands_in_the_page_and_no_other():
    assert set(verb_sections()) == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_verb_has_help_and_its_section_names_its_options_and_no_others(verb):
    parser, told = VERBS[verb], verb_sections()[verb]
    assert parser.description
    named = {span.split()[0] for line in told.splitlines() for span in code(line.partition(":")[0]) if span[0] == "-"}
    assert named == {string for strings in options_of(parser) for string in strings}
    assert all(action.help for action in parser._actions if action.option_strings)


def test_every_document_is_described():
    told = {
        " ".join(word for word in head.split() if word.islower())
        for head in re.findall(r"^### `tuner (.*?) --json`$", TEXTS["docs/reference/json.md"], re.MULTILINE)
    }
    assert told == {verb for verb, parser in VERBS.items() if "json" in {action.dest for action in parser._actions}}


def test_the_table_of_exit_codes_is_the_contract():
    named = [int(number) for row in table("exit code") for number in row[0].split(",")]
    assert named == [*(int(code) for code in errors.Exit), 130, 143]


def test_what_is_not_built_is_what_is_refused():
    assert set(code(marked("unbuilt"))) == set(generate.unbuilt_names())


def test_every_shown_command_is_understood():
    calls = list(commands())
    assert len(calls) >= 30
    for words in calls:
        main._refuse_unbuilt(words)
        main.parser().parse_args(words)


def test_every_inline_command_is_understood():
    """`tuner VERB …` in running text; capitals and dots stand for values."""
    spans = [span for text in TEXTS.values() for span in code(text) if span.startswith("tuner ")]
    assert len(spans) >= 50
    for span in spans:
        verb = re.match(r"(?:--store URL )?([a-z]+(?: (?:upgrade|current|jobs|serve)\b)?)", span.removeprefix("tuner "))
        if verb is None:
            assert span.removeprefix("tuner ") in ("VERB …", "--version", "--help"), span
            continue
        parser = VERBS.get(verb[1]) or VERBS.get(verb[1].split()[0])
        assert parser or verb[1] in ("db", "local"), span
        known = {string for strings in options_of(parser) for string in strings} if parser else set()
        assert {word for word in span.split() if re.match(r"--?[a-z]", word)} <= known | {"--store", "-v", "-vv"}, span


def test_every_end_of_an_attempt_is_explained():
    named = {span for rule in ending.RULES for span in code(rule.ended)}
    assert {end.value for end in AttemptEnd} <= named


def test_every_kind_of_event_stands_in_its_page():
    assert {code(head)[0] for head in entries("docs/reference/events.md")} == {kind.value for kind in EventKind}


def test_rests_and_ends_of_a_study_are_told_apart():
    rests, ends = re.search(
        r"(`stopped`.*) are rests .*? (`finished`.*) are ends", section("docs/reference/words.md", "Words"), re.DOTALL
    ).groups()
    assert set(code(ends)) == {state for state in StudyState if state.ended}
    assert set(code(rests)) == {state for state in StudyState if not state.ended and not state.active}


def rooms_in_import_order() -> list[set[str]]:
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    lines = contract["importlinter:contract:rooms"]["layers"].split("\n")
    return [{name.strip() for name in line.split("|")} for line in lines if line.strip()]


def test_every_room_stands_in_the_table_in_import_order():
    named = [room for row in table("room") for room in code(row[0])]
    package = ROOT / "tuner"
    there = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted(there - {"__init__"})
    level = {room: number for number, layer in enumerate(rooms_in_import_order()) for room in layer}
    levels = [level[room] for room in named]
    assert levels == sorted(levels)


def test_every_module_of_the_local_service_is_told():
    told = section("docs/reference/local-service.md", "Its modules")
    there = {path.stem for path in (ROOT / "tuner" / "local").rglob("*.py")} - {"__init__"}
    assert set(re.findall(r"^- `(\w+)`:", told, re.MULTILINE)) == there


def test_every_switch_that_is_named_exists():
    heads = re.findall(r"^- (`.*?):", section("docs/reference/local-service.md", "Switches"), re.MULTILINE)
    switches = {span for head in heads for span in code(head)}
    assert switches
    assert switches <= set(LocalSettings.__dataclass_fields__)


def test_paths_that_are_named_are_there():
    named = {span for span in code(TEXT) if re.fullmatch(r"(?:tuner|tests|studies|docs|migrations)/[\w/.-]+", span)}
    assert len(named) >= 10
    for path in named:
        assert (ROOT / path).exists(), path


def test_folders_of_tests_that_are_named_are_there():
    told = re.search(r"The tests stand in a folder per part(.*?)\n\n|\Z", TEXT + "\n\n", re.DOTALL)[1]
    folders = [folder for folder in code(told) if re.fullmatch(r"[a-z]+", folder)]
    assert len(folders) >= 5
    for folder in folders:
        assert (ROOT / "tests" / folder).is_dir(), folder


def test_the_plan_that_is_shown_is_the_one_that_is_printed():
    plan = printing.plan(launch.plan(ROOT / "studies" / "digits" / "study.yaml"))
    lines = "\n".join(line.rstrip() for line in plan.splitlines())
    assert f"$ tuner launch studies/digits/study.yaml\n{lines}\n" in TEXT


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        (EventKind.RUN_RESTARTED_FROM_ZERO, {"trial": 0, "run": 2}),
        (EventKind.RUN_RESUMED, {"trial": 3, "run": 2, "step": 11}),
        (EventKind.RUN_NOTHING_SAVED, {"trial": 7, "run": 2, "lost_s": 2.0}),
    ],
)
def test_a_line_that_is_shown_is_a_sentence_of_its_event(kind, details):
    moment = generate.MOMENT
    event = factories.event(
        kind=kind, happened_at=moment, recorded_at=moment, trial=details["trial"], attempt=1, details=details
    )
    assert events.EVENTS[kind].sentence(event) + "\n" in TEXT


def test_every_extra_is_told():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for row in table("extra") for name in code(row[0])} == set(extras)
