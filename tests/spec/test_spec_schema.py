"""The JSON schema accepts what the program accepts, and refuses what a schema can refuse."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from spec_files import BASE_SCHEMA, yaml_text
from test_spec_properties import BASE, DOCUMENT, any_json, documents, paths_of
from test_spec_refusals import BAD

from tuner.cli import main
from tuner.spec import schema
from tuner.spec.keys import flat
from tuner.spec.sections import KEYS, parse
from tuner.spec.values import SpecError
from tuner.spec.yaml_text import parse_value, read_document

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "tuner" / "spec" / "study.schema.json"
EXAMPLES = sorted((ROOT / "studies").glob("*/study.yaml"))
STORED = json.loads((Path(__file__).parent / "fixtures" / "stored_0_1_0.json").read_text())

# Parts of refusals that a schema cannot give: they need files or prices, compare keys of several sections, or count.
BEYOND = {
    # files and prices
    "no readable file", "there is no file 'nowhere.py'", "no directory", "nothing at", "cannot be read",
    "start_s,duration_s,instances_up", "reserves $1.69", "prices: {ml.zz9.large: 1.23}",
    # several sections
    "several objectives", "needs backend: sagemaker", "searched", "99 fixed and 2 searched", "at most 95",
    "remove one", "the tuner's own", "write mode: FastFile", "needs both",
    "need sagemaker.vpc.security_groups",
    # sums and order
    "six decimals", "below ten years", "whole seconds", "at most 28d", "at least max_run", "swap them",
    "write high: 0.9", "write high: 8", "too small", "too wide", "rising order",
    # the inside of texts
    "exactly one group", "not 2", "not a valid regular expression", "not a valid regular", "letters, digits",
}  # fmt: skip
# Blocks whose refusal a schema can give in other places.
BEYOND_HERE = {
    "{usd: '1e-99999999'}",
    "{a: {type: categorical, choices: [1, true]}}",
    "{a: {type: categorical, choices: [1, '1']}}",
    "[{metric: a, direction: minimize}, {metric: a, direction: maximize}]",
    "{entry_point: train.py, metrics: [{name: a, regex: (a)}, {name: a, regex: (b)}]}",
}


def is_valid(document: Any) -> bool:
    return Draft7Validator(BASE_SCHEMA).is_valid(document)


def test_the_shipped_file_is_what_the_keys_give():
    assert SHIPPED.read_text() == schema.schema_text(), "write it again: see tuner/spec/schema.py"
    Draft7Validator.check_schema(json.loads(SHIPPED.read_text()))


def test_the_verb_prints_the_shipped_file(capsys: pytest.CaptureFixture[str]):
    assert main.main(["schema"]) == 0
    assert capsys.readouterr().out == SHIPPED.read_text()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.parent.name)
def test_an_example_names_the_schema_and_is_valid(file: Path):
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text())
    assert named is not None
    assert (file.parent / named[1]).resolve() == SHIPPED
    assert is_valid(read_document(file))


@pytest.mark.parametrize("number", range(len(STORED)))
def test_a_study_file_that_0_1_0_accepted_is_valid(number: int):
    assert is_valid(STORED[number]["document"])


@given(documents())
@settings(max_examples=30, deadline=None)
def test_a_document_that_is_read_is_valid(document: dict[str, Any]):
    parse(document, BASE, None)
    assert is_valid(document)


@given(st.sampled_from(paths_of(DOCUMENT)[1:]), any_json | st.just({"a": []}) | st.just("1e5") | st.just("90s"))
@settings(max_examples=200, deadline=None)
def test_any_other_value_that_is_read_is_valid(path: tuple[Any, ...], value: Any):
    document = deepcopy(DOCUMENT)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    try:
        parse(document, BASE, None)
    except SpecError:
        return
    assert is_valid(document) or has_two_images(document)


def has_two_images(document: dict[str, Any]) -> bool:
    """Only `load` refuses both: a stored study holds the image that was found for its framework."""
    training = document["training"]
    return training.get("image_uri") is not None and training.get("framework") is not None


def is_yaml(blocks: dict[str, str | None]) -> bool:
    try:
        parse_value(yaml_text(**blocks))
    except SpecError:
        return False
    return True


REFUSED = [case for case in BAD if is_yaml(case[0])]


@pytest.mark.parametrize(("blocks", "key", "says"), REFUSED, ids=[f"{i}-{case[1]}" for i, case in enumerate(REFUSED)])
def test_a_bad_file_is_invalid_where_a_schema_can_say_so(blocks: dict[str, str | None], key: str, says: str):
    document = parse_value(yaml_text(**blocks))
    beyond = says in BEYOND or key.startswith("sagemaker.request.") or not BEYOND_HERE.isdisjoint(blocks.values())
    assert is_valid(document) == beyond


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("space", "{a: {type: categorical, choices: [x, x]}}"),
        ("space", "{lr: {type: float, low: 0, high: 1, step: 0}}"),
        ("budget", "{usd: 0}"),
        ("budget", "{deadline: 0s}"),
        ("trails", "3"),
    ],
)
def test_a_plain_mistake_is_invalid(key: str, value: str):
    assert is_valid(parse_value(yaml_text()))
    assert not is_valid(parse_value(yaml_text(**{key: value})))


def test_every_key_is_described_where_it_stands():
    assert all(key.about.endswith(".") for _, key in flat(KEYS))

    def undescribed(node: Any) -> list[Any]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        found = [each for item in inner for each in undescribed(item)]
        if isinstance(node, dict) and "additionalProperties" in node and "properties" in node:
            found += [key for key, each in node["properties"].items() if not each.get("description")]
        return found

    assert undescribed(BASE_SCHEMA) == []
