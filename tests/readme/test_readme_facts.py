"""What the README says of the program is what the program does: verbs, options, exit codes, states, modules, links."""

import argparse
import configparser
import re

import pytest
from readme_text import ROOT, TEXT, code, commands, marked, section, table

from tuner.cli import main
from tuner.core import errors, states
from tuner.core.policy import ending
from tuner.core.records import AttemptEnd, StudyState
from tuner.local.settings import LocalSettings
from tuner.spec import study_file


def built_verbs() -> dict[str, argparse.ArgumentParser]:
    """`best`, `db upgrade`, …: every call that the parser takes, with its parser."""
    return dict(_leaves(main.parser(), ""))


def _leaves(parser, before):
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not kinds:
        yield before, parser
    for kind in kinds:
        for name, inner in kind.choices.items():
            yield from _leaves(inner, f"{before} {name}".strip())


def verb_rows() -> dict[str, list[str]]:
    """The rows of the table of verbs, by verb: what stands before its arguments, which are in capitals."""
    rows = {}
    for row in table("verb"):
        words = code(row[0])[0].split()
        rows[" ".join(word for word in words if word.islower())] = row
    return rows


def options_of(parser):
    """Without those that every verb takes."""
    actions = (action for action in parser._actions if action.option_strings)
    return [action.option_strings for action in actions if action.dest not in ("help", "store", "verbose", "json")]


def test_the_state_diagram_is_the_one_that_the_tables_give():
    assert marked("states").strip() == f"```mermaid\n{states.diagram()}\n```"


def test_the_table_of_ends_is_the_one_that_the_rules_give():
    assert marked("ends").strip() == ending.table().strip()


def test_every_verb_stands_in_the_table_and_no_other():
    assert set(verb_rows()) == set(built_verbs())


@pytest.mark.parametrize("verb", sorted(built_verbs()))
def test_the_row_of_a_verb_names_its_options_and_no_others(verb):
    row, parser = verb_rows()[verb], built_verbs()[verb]
    named = {word for span in code(row[1] + row[2]) for word in span.split() if word.startswith("-")}
    for strings in options_of(parser):
        assert named & set(strings), f"{verb}: the README does not name {strings}"
    assert named - {"--json"} <= {string for strings in options_of(parser) for string in strings}
    assert (row[3] == "yes") == ("json" in {action.dest for action in parser._actions})


def test_the_table_of_exit_codes_is_the_contract():
    named = [int(number) for row in table("exit code") for number in row[0].split(",")]
    assert named == [*(int(code) for code in errors.Exit), 130, 143]


def test_what_is_not_built_is_what_is_refused():
    verbs_of_later = {" ".join(words) for words in main.UNBUILT}
    settings_of_later = {key for key, _ in study_file._UNBUILT}
    assert set(code(marked("unbuilt"))) == verbs_of_later | settings_of_later


def test_every_command_of_the_readme_is_understood():
    calls = list(commands())
    assert len(calls) >= 3
    for words in calls:
        main._refuse_unbuilt(words)
        main.parser().parse_args(words)


def test_every_end_of_an_attempt_stands_in_the_table_of_ends():
    named = {span for row in table("attempt ended with") for span in code(row[0])}
    assert {end.value for end in AttemptEnd} <= named


def test_rests_and_ends_of_a_study_are_told_apart():
    rests, ends = re.search(
        r"(`stopped`.*) are rests .*? (`finished`.*) are ends", section("Words"), re.DOTALL
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
    told = re.search(r"^Inside `tuner\.local`: (.*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)[1]
    there = {path.stem for path in (ROOT / "tuner" / "local").glob("*.py")} - {"__init__"}
    assert set(re.findall(r"`(\w+)`\s\(", told)) == there


def test_the_switches_of_what_aws_leaves_open_exist():
    switches = {span for row in table("not known of AWS") for span in code(row[2])}
    assert switches <= set(LocalSettings.__dataclass_fields__)


def anchors() -> set[str]:
    """What a link within the page may point to: headings, as they are rendered."""
    headings = re.findall(r"^#+ (.*)$", TEXT.lower(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(target):
    assert target in anchors() or (ROOT / target).is_file()


def test_folders_of_tests_that_are_named_are_there():
    told = re.search(r"Tests stand in a folder per part, among them (.*?)\nRules of the house", TEXT, re.DOTALL)[1]
    for folder in code(told):
        if re.fullmatch(r"[a-z]+", folder):
            assert (ROOT / "tests" / folder).is_dir(), folder
