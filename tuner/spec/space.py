"""The search space of a study file: parameters with their ranges, or the name of a define-by-run function.

A range that a sampler would quietly bend (a step that misses the upper end, a logarithm of zero) is refused here, with
the range to write instead.
"""

import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path

from tuner.spec.records import CategoricalParam, FloatParam, IntParam, Json, Param, Scalar, Space, SpaceFunction
from tuner.spec.values import (
    Reader,
    Section,
    SpecError,
    distinct,
    each,
    flag,
    inside,
    number,
    one_of,
    positive,
    shown,
    text,
    whole,
)

# Beyond this a whole number is no longer exact in the floating-point numbers that samplers work with.
_MAX_INT = 2**53
_MAX_CHOICES = 10_000
MAX_VALUE_CHARACTERS = 2500
_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")

PARAM_NAME = text(r"[A-Za-z_][A-Za-z0-9_.-]*", "a name of letters, digits, . _ and - (it becomes --name)", most=256)

_KEYS = {
    "float": ("type", "low", "high", "step", "log"),
    "int": ("type", "low", "high", "step", "log"),
    "categorical": ("type", "choices"),
}


def encoded(value: Json) -> str:
    """A hyperparameter as the script receives it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def toolkit_argument(text: str) -> str:
    """A hyperparameter as a script receives it that SageMaker's toolkit starts: read as JSON, and written in Python."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        return ",".join(f"{key}={value[key]}" for key in sorted(value))
    return "" if value is None else str(value)


def check_value(value: Json, where: str) -> None:
    """Refuse what CreateTrainingJob would: its values are texts of one line."""
    text = encoded(value)
    if len(text) > MAX_VALUE_CHARACTERS:
        raise SpecError(f"{where}: has more than {MAX_VALUE_CHARACTERS} characters; put it into a file")
    if _LINE_BREAK.search(text):
        raise SpecError(f"{where}: has a line break, which no job takes; put it into a file")


def parse_space(base: Path) -> Reader[Space]:
    def read(value: Json, where: str) -> Space:
        if isinstance(value, str):
            return _function(value, where, base)
        if value == {}:
            raise SpecError(f"{where}: is empty; it needs at least one parameter")
        if not isinstance(value, dict):
            raise SpecError(f"{where}: must be a mapping of parameters, or file.py:function, not {shown(value)}")
        return tuple(
            _param(PARAM_NAME(name, inside(where, name)), item, inside(where, name)) for name, item in value.items()
        )

    return read


def _function(value: str, where: str, base: Path) -> SpaceFunction:
    path, colon, function = value.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier() or not path.isprintable():
        raise SpecError(f"{where}: must read file.py:function, or be a mapping of parameters, not {shown(value)}")
    return SpaceFunction(os.path.normpath(base / path), function)


def _param(name: str, value: Json, where: str) -> Param:
    example = "{type: float, low: 0.001, high: 0.1}"
    if not isinstance(value, dict):
        raise SpecError(f"{where}: must be a mapping, as in {example}, not {shown(value)}")
    kind = Section(value, where).need("type", one_of("float", "int", "categorical"), "float")
    section = Section.open(value, where, _KEYS[kind])
    match kind:
        case "float":
            return _float(name, section)
        case "int":
            return _int(name, section)
        case _:
            return CategoricalParam(name, section.need("choices", _choices, "[first, second]"))


def _float(name: str, section: Section) -> FloatParam:
    low, high = section.need("low", number, "0.001"), section.need("high", number, "0.1")
    step, log = section.find("step", positive), section.get("log", flag, False)
    _check_range(section, low, high, step, log=log)
    if log and low <= 0:
        raise SpecError(f"{section.at('low')}: must be above 0 with log: true, not {shown(low)}")
    return FloatParam(name, low, high, step, log)


def _int(name: str, section: Section) -> IntParam:
    read = whole(-_MAX_INT, _MAX_INT)
    low, high = section.need("low", read, "1"), section.need("high", read, "10")
    step, log = section.get("step", whole(1, _MAX_INT), 1), section.get("log", flag, False)
    _check_range(section, low, high, step if step > 1 else None, log=log)
    if log and low < 1:
        raise SpecError(f"{section.at('low')}: must be at least 1 with log: true, not {low}")
    return IntParam(name, low, high, step, log)


def _check_range(section: Section, low: float, high: float, step: float | None, *, log: bool) -> None:
    if low > high:
        raise SpecError(f"{section.at('low')}: is above high ({low:g} > {high:g}); swap them")
    if not math.isfinite(high - low):
        raise SpecError(f"{section.at('high')}: the range is too wide for floating-point numbers; narrow it")
    if step is None:
        return
    if log:
        raise SpecError(f"{section.at('step')}: cannot stand beside log: true; remove one of them")
    # by what is written, as the sampler counts: 0.3 is three steps of 0.1
    span, stride = Fraction(repr(high)) - Fraction(repr(low)), Fraction(repr(step))
    if span / stride > _MAX_INT:
        raise SpecError(f"{section.at('step')}: {shown(step)} is too small for this range; write a larger one")
    if rest := span % stride:
        nearest = type(high)(Fraction(repr(high)) - rest)
        raise SpecError(f"{section.at('high')}: is not low plus whole steps; write high: {nearest!r}")


def _choices(value: Json, where: str) -> tuple[Scalar, ...]:
    choices = each(_choice, least=1, most=_MAX_CHOICES)(value, where)
    # as the sampler tells them apart (1 and true are equal), and as the script does (1 and "1" arrive alike)
    distinct(choices, where)
    distinct([encoded(choice) for choice in choices], where)
    return choices


def _choice(value: Json, where: str) -> Scalar:
    if isinstance(value, list | dict):
        raise SpecError(f"{where}: must be a text, a number or a boolean, not {shown(value)}; name it by a text")
    check_value(value, where)
    return value
