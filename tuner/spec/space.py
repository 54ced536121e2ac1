"""The search space of a study file: parameters with their ranges, or the name of a define-by-run function.

A sampler would quietly bend some ranges (a step that misses the upper end, a logarithm of zero). They are refused
here, and the message says which range to write instead.
"""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from tuner.spec.keys import Key, Section, record
from tuner.spec.records import CategoricalParam, FloatParam, IntParam, Json, Param, Scalar, Space, SpaceFunction
from tuner.spec.values import (
    Form,
    Kind,
    Schema,
    SpecError,
    Where,
    distinct,
    each,
    flag,
    number,
    one_of,
    positive,
    shown,
    text,
    whole,
    without_type,
)

# Beyond this a whole number is no longer exact in the floating-point numbers that samplers work with.
_MAX_INT = 2**53
_MAX_CHOICES = 10_000
MAX_VALUE_CHARACTERS = 2500
_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")

PARAM_NAME = text(r"[A-Za-z_][A-Za-z0-9_.-]*", "a name of letters, digits, . _ and - (it becomes --name)", most=256)


def encoded(value: Json) -> str:
    """A hyperparameter as the script receives it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def toolkit_argument(text: str) -> str:
    """A hyperparameter as SageMaker's toolkit passes it to a script: the toolkit reads JSON and writes Python."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        return ",".join(f"{key}={value[key]}" for key in sorted(value))
    return "" if value is None else str(value)


def check_value(value: Json, where: Where | str) -> None:
    """Refuse what CreateTrainingJob would refuse: its values are texts of one line."""
    text = encoded(value)
    if len(text) > MAX_VALUE_CHARACTERS:
        raise SpecError(f"{where}: has more than {MAX_VALUE_CHARACTERS} characters; put it into a file")
    if _LINE_BREAK.search(text):
        raise SpecError(f"{where}: has a line break, which no job accepts; put it into a file")


def _choice(value: Json, where: Where) -> Scalar:
    if isinstance(value, list | dict):
        raise SpecError(f"{where}: must be a text, a number or a boolean, not {shown(value)}; name it by a text")
    check_value(value, where)
    return value


def _different(choices: tuple[Scalar, ...], where: Where) -> None:
    # the sampler cannot tell 1 and true apart, and the script cannot tell 1 and "1" apart
    distinct(choices, where)
    distinct([encoded(choice) for choice in choices], where)


def _check_float(section: Section, values: dict[str, Any]) -> None:
    low, log = values["low"], values["log"]
    _check_range(section, low, values["high"], values["step"], log=log)
    if log and low <= 0:
        raise SpecError(f"{section.at('low')}: must be above 0 with log: true, not {shown(low)}")


def _check_int(section: Section, values: dict[str, Any]) -> None:
    low, step, log = values["low"], values["step"], values["log"]
    _check_range(section, low, values["high"], step if step > 1 else None, log=log)
    if log and low < 1:
        raise SpecError(f"{section.at('low')}: must be at least 1 with log: true, not {low}")


def _check_choices(section: Section, values: dict[str, Any]) -> None:
    _different(values["choices"], section.at("choices"))


def _check_range(section: Section, low: float, high: float, step: float | None, *, log: bool) -> None:
    if low > high:
        raise SpecError(f"{section.at('low')}: is above high ({low:g} > {high:g}); swap them")
    if not math.isfinite(high - low):
        raise SpecError(f"{section.at('high')}: the range is too wide for floating-point numbers; narrow it")
    if step is None:
        return
    if log:
        raise SpecError(f"{section.at('step')}: cannot stand beside log: true; remove one of them")
    # in exact decimals, as the sampler counts: 0.3 is three steps of 0.1
    span, stride = Fraction(repr(high)) - Fraction(repr(low)), Fraction(repr(step))
    if span / stride > _MAX_INT:
        raise SpecError(f"{section.at('step')}: {shown(step)} is too small for this range; write a larger one")
    if rest := span % stride:
        nearest = type(high)(Fraction(repr(high)) - rest)
        raise SpecError(f"{section.at('high')}: is not low plus whole steps; write high: {nearest!r}")


_TYPES: tuple[Literal["float", "int", "categorical"], ...] = ("float", "int", "categorical")
_TYPE_ABOUT = "Numbers with decimals, whole numbers, or one of several choices."
_INT = whole(-_MAX_INT, _MAX_INT)
_LOW, _HIGH = "The smallest value, itself included.", "The largest value, itself included."
_STEP = "Values are `low` plus a whole number of steps; not together with `log`."
_LOG = "Draw on a logarithmic scale, which needs values above 0."


def _type(*words: Literal["float", "int", "categorical"]) -> Key:
    return Key(name="type", kind=one_of(*words), about=_TYPE_ABOUT, example=words[0], change="never")


def _log(about: str) -> Key:
    return Key(name="log", kind=flag, about=about, default=False, change="never")


_ANY_CHOICE = Kind(_choice, {"type": ["string", "number", "boolean", "null"], "maxLength": MAX_VALUE_CHARACTERS})
_LIST_OF_CHOICES = each(_ANY_CHOICE, least=1, most=_MAX_CHOICES)
_CHOICES = replace(_LIST_OF_CHOICES, schema={**_LIST_OF_CHOICES.schema, "uniqueItems": True})

# What the keys of a parameter are depends on its type.
PARAMS: dict[str, tuple[Key, ...]] = {
    "float": (
        _type("float"),
        Key(name="low", kind=number, about=_LOW, example="0.001"),
        Key(name="high", kind=number, about=_HIGH, example="0.1"),
        Key(name="step", kind=positive, about=_STEP),
        _log(_LOG),
    ),
    "int": (
        _type("int"),
        Key(name="low", kind=_INT, about=_LOW, example="1"),
        Key(name="high", kind=_INT, about=_HIGH, example="10"),
        Key(name="step", kind=whole(1, _MAX_INT), about=_STEP, default=1),
        _log(_LOG),
    ),
    "categorical": (
        _type("categorical"),
        Key(
            name="choices",
            kind=_CHOICES,
            about="The values to choose from: texts, numbers, booleans or null, each once.",
            example="[first, second]",
            change="never",
        ),
    ),
}


def _make(cls: type[Param]) -> Callable[..., Param]:
    def make(**values: Any) -> Param:  # noqa: ANN401 - as the keys say
        del values["type"]
        return cls("", **values)

    return make


def _with_log(low: Schema, step: Schema) -> Schema:
    """What the schema says of a range on a logarithmic scale."""
    return {
        "if": {"properties": {"log": {"const": True}}, "required": ["log"]},
        "then": {"properties": {"low": low, "step": step}},
    }


_RECORDS: dict[str, Kind[Param]] = {
    "float": record(
        _make(FloatParam),
        PARAMS["float"],
        settle=_check_float,
        rules=_with_log({"exclusiveMinimum": 0}, {"type": "null"}),
    ),
    "int": record(_make(IntParam), PARAMS["int"], settle=_check_int, rules=_with_log({"minimum": 1}, {"maximum": 1})),
    "categorical": record(_make(CategoricalParam), PARAMS["categorical"], settle=_check_choices),
}


def _read_param(name: str, value: Json, where: Where) -> Param:
    if not isinstance(value, dict):
        example = "{type: float, low: 0.001, high: 0.1}"
        raise SpecError(f"{where}: must be a mapping, as in {example}, not {shown(value)}")
    kind = Section(value, where).need("type", one_of(*_TYPES), "float")
    return replace(_RECORDS[kind].read(value, where), name=name)


def _write_param(param: Param, form: Form) -> Json:
    kind = {FloatParam: "float", IntParam: "int", CategoricalParam: "categorical"}[type(param)]
    fields = {key.name: key.kind.write(getattr(param, key.name), form) for key in PARAMS[kind] if key.name != "type"}
    return {"type": kind, **fields}


def _function(value: str, where: Where) -> SpaceFunction:
    path, colon, function = value.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier() or not path.isprintable():
        raise SpecError(f"{where}: must read file.py:function, or be a mapping of parameters, not {shown(value)}")
    return SpaceFunction(os.path.normpath(where.base / path), function)


def _read(value: Json, where: Where) -> Space:
    if isinstance(value, str):
        return _function(value, where)
    if value == {}:
        raise SpecError(f"{where}: is empty; it needs at least one parameter")
    if not isinstance(value, dict):
        raise SpecError(f"{where}: must be a mapping of parameters, or file.py:function, not {shown(value)}")
    places = {name: where.inside(name) for name in value}
    return tuple(_read_param(PARAM_NAME.read(name, at), value[name], at) for name, at in places.items())


def _write(space: Space, form: Form) -> Json:
    if isinstance(space, SpaceFunction):
        return f"{space.path}:{space.function}"
    return {param.name: _write_param(param, form) for param in space}


def _all_keys() -> tuple[Key, ...]:
    """The keys of parameters of all types, each once."""
    found = {key.name: key for keys in PARAMS.values() for key in keys}
    kinds, step = one_of(*_TYPES), replace(found["step"], default=None, unset="`1` for `int`; none for `float`")
    return (replace(found.pop("type"), kind=kinds), *({**found, "step": step}).values())


_SCHEMA: Schema = {
    "type": ["object", "string"],
    "minProperties": 1,
    "propertyNames": without_type(PARAM_NAME.schema),
    "pattern": r"\.py:[^:\s]+$",
    "additionalProperties": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": list(_TYPES), "description": _TYPE_ABOUT}},
        "allOf": [
            {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": _RECORDS[name].schema}
            for name in _TYPES
        ],
    },
}
SPACE: Kind[Space] = Kind(_read, _SCHEMA, _write, _all_keys(), "*")
