"""Any study file is either read back from the store as it was, or refused by one line."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from spec_files import WHOLE

from tuner.spec.sections import parse
from tuner.spec.study_file import SpecError, describe, from_json, to_json
from tuner.spec.values import Where, duration, duration_text
from tuner.spec.yaml_text import assign, parse_value

BASE = Path("/studies/digits")
DOCUMENT: dict[str, Any] = parse_value(WHOLE)  # type: ignore[assignment]

names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
one_line = st.characters(exclude_characters="\n\r\x85\u2028\u2029", codec="utf-8")
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(one_line, max_size=20)
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
durations = st.floats(0.001, 1e6) | st.integers(1, 10**6).map(float)


@st.composite
def params(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["float", "int", "log", "categorical"]))
    if kind == "categorical":
        choices = draw(st.lists(st.text(one_line, max_size=8) | st.integers(2, 99), min_size=1, unique_by=str))
        return {"type": kind, "choices": choices}
    if kind == "int":
        step, count, low = draw(st.integers(1, 9)), draw(st.integers(0, 99)), draw(st.integers(-999, 999))
        return {"type": kind, "low": low, "high": low + step * count, "step": step}
    low, high = sorted(draw(st.tuples(finite, finite).filter(lambda pair: all(x > 0 for x in pair))))
    return {"type": "float", "low": low, "high": high, "log": kind == "log"}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    whole = {
        **DOCUMENT,
        "space": draw(st.dictionaries(names, params(), min_size=1, max_size=4)),
        "trials": draw(st.integers(1, 99_999)),
        "budget": {
            "usd": draw(st.none() | st.decimals("0.01", 10**6, places=6).map(str)),
            "deadline": draw(st.none() | durations.map(duration_text)),
        },
        "search": {
            "sampler": {"name": "TPESampler", **draw(st.dictionaries(names.filter(lambda n: n != "name"), any_json))}
        },
        "local": {
            "interruptions": draw(
                st.just({"trace": "t.csv", "speed": 2.5})
                | durations.map(lambda gap_s: {"every": duration_text(gap_s), "seed": 3})
                | st.sets(durations, min_size=1).map(lambda at: {"at": [duration_text(at_s) for at_s in sorted(at)]})
            )
        },
        "settings": {"poll": draw(durations.map(duration_text))},
    }
    optional = draw(
        st.sets(st.sampled_from(["search", "budget", "local", "settings", "tags", "sagemaker", "capacity"]))
    )
    return {key: value for key, value in whole.items() if key not in optional}


@given(documents())
@settings(max_examples=30, deadline=None)
def test_storing_loses_nothing(document: dict[str, Any]):
    spec = parse(document, BASE, BASE / "study.yaml")
    assert from_json(to_json(spec)) == spec
    assert to_json(from_json(to_json(spec))) == to_json(spec)
    assert all(key and text for key, text in describe(spec))


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths_of(item, (*path, key)))]


@given(st.sampled_from(paths_of(DOCUMENT)[1:]), any_json | st.just({"a": []}) | st.just("1e5") | st.just("\x1b[31m\n"))
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_place_is_read_or_refused_by_one_line(path: tuple[Any, ...], value: Any):
    document = deepcopy(DOCUMENT)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    refusal = ""
    try:
        spec = parse(document, BASE, None)
        assert from_json(to_json(spec)) == spec
    except SpecError as error:
        refusal = str(error)
    assert not refusal or str(path[0]) in refusal
    assert refusal.isprintable()


@given(st.text(st.sampled_from("ab:{}[]-,&*!'\"#|>%@`? \n\t0.1e\\x"), max_size=60) | st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_as_plain_values_or_refused_by_one_line(text: str):
    refusal = ""
    try:
        value = parse_value(text)
        assert json.loads(json.dumps(value, allow_nan=False)) == value
    except SpecError as error:
        refusal = str(error)
    assert refusal.isprintable()


@given(scalars.filter(lambda value: not isinstance(value, str) or value.isprintable()))
@settings(max_examples=100, deadline=None)
def test_an_assignment_reads_json_unchanged(value: Any):
    document: dict[str, Any] = {}
    assign(document, f"a.b={json.dumps(value, ensure_ascii=False)}")
    assert document == {"a": {"b": value}}


@given(durations)
def test_a_duration_is_written_exactly(seconds: float):
    assert duration.read(duration_text(seconds), Where("here")) == seconds
