"""Readers of single values: each takes a plain value and the key where it stands, and returns it checked or raises.

They combine: `each(text())` reads a list of texts, `entries(money())` a mapping of names to amounts. A `Section` reads
one mapping: unknown keys are refused first, with the nearest known one, since a misspelt key would otherwise show as a
missing one. A value of null means the same as an absent key.

Every error is one line, `key: what is wrong; what to do`, safe to print: foreign text is escaped and shortened.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias, TypeVar

from tuner.spec.records import Json

T = TypeVar("T")
Word = TypeVar("Word", bound=str)
Reader: TypeAlias = Callable[[Json, str], T]

_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS_S = (86_400, 3_600, 60, 1)
_MAX_SHOWN = 60
# ten years: longer is a mistake, and what is added to it stays a date
_MAX_DURATION_S = 10 * 366 * 86_400
_MAX_USD = 10**9
_MICRO = Decimal("0.000001")


class SpecError(ValueError):
    """The study file, or a setting of it, is refused. The message is one line: where, what is wrong, what to do."""


def inside(where: str, key: str) -> str:
    """The dotted name of a key within a section, safe to print."""
    name = key if key.isprintable() and len(key) <= _MAX_SHOWN else shown(key)
    return f"{where}.{name}" if where else name


def shown(value: object) -> str:
    """A value of the user's, in one printable line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "nothing")
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def suggestion(word: str, known: Collection[str]) -> str:
    """What to say of an unknown word: the nearest known one, otherwise all of them."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


@dataclass(frozen=True, slots=True)
class Section:
    """One mapping of the study file and the key under which it stands."""

    values: Mapping[str, Json]
    where: str

    @classmethod
    def open(cls, value: Json, where: str, known: Collection[str]) -> "Section":
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise SpecError(f"{where}: must be a mapping with {', '.join(known)}, not {shown(value)}")
        for key in value:
            if key not in known:
                raise SpecError(f"{inside(where, key)}: unknown key; {suggestion(key, known)}")
        return cls(value, where)

    def at(self, key: str) -> str:
        return inside(self.where, key)

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, read: Reader[T], default: T) -> T:
        return read(self.values[key], self.at(key)) if self.has(key) else default

    def find(self, key: str, read: Reader[T]) -> T | None:
        return read(self.values[key], self.at(key)) if self.has(key) else None

    def need(self, key: str, read: Reader[T], example: str) -> T:
        if not self.has(key):
            raise SpecError(f"{self.at(key)}: is missing; write for example {key}: {example}")
        return read(self.values[key], self.at(key))


def text(pattern: str = r".+", what: str = "a text in one line", *, most: int = 1024) -> Reader[str]:
    compiled = re.compile(pattern)

    def read(value: Json, where: str) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value) or not value.isprintable():
            raise SpecError(f"{where}: must be {what}, not {shown(value)}{_quote_hint(value)}")
        if len(value) > most:
            raise SpecError(f"{where}: has {len(value)} characters; at most {most} are allowed")
        return value

    return read


def _quote_hint(value: Json) -> str:
    return "; put it in quotes" if isinstance(value, int | float) else ""


def prose(value: Json, where: str) -> str:
    """Text of several lines, for people."""
    if not isinstance(value, str):
        raise SpecError(f"{where}: must be a text, not {shown(value)}{_quote_hint(value)}")
    return value


def number(value: Json, where: str) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SpecError(f"{where}: must be a number, not {shown(value)}")
    return float(value)


def positive(value: Json, where: str) -> float:
    checked = number(value, where)
    if checked <= 0:
        raise SpecError(f"{where}: must be above 0, not {shown(value)}")
    return checked


def whole(least: int, most: int) -> Reader[int]:
    def read(value: Json, where: str) -> int:
        # not through a float, which would round large numbers
        exact = int(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,30}", value) else value
        if isinstance(exact, float | str):
            exact = _integral(number(exact, where), value, where)
        if isinstance(exact, bool) or not isinstance(exact, int):
            raise SpecError(f"{where}: must be a whole number, not {shown(value)}")
        if not least <= exact <= most:
            raise SpecError(f"{where}: must be between {least} and {most}, not {shown(value)}")
        return exact

    return read


def _integral(parsed: float, value: Json, where: str) -> int:
    if not parsed.is_integer():
        raise SpecError(f"{where}: must be a whole number, not {shown(value)}")
    return int(parsed)


def money(value: Json, where: str) -> Decimal:
    """Dollars, exact to the micro-dollar."""
    checked = number(value, where)
    exact = +Decimal(value if isinstance(value, str) else repr(checked))
    if not _MICRO <= exact <= _MAX_USD:
        raise SpecError(f"{where}: must be an amount of dollars above 0, not {shown(value)}")
    if exact % _MICRO:
        raise SpecError(f"{where}: has more than six decimals: {shown(value)}; round it")
    # by way of its text, so that 60 is not kept as 6E+1
    return Decimal(f"{exact.normalize():f}")


def flag(value: Json, where: str) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{where}: must be true or false, not {shown(value)}")
    return value


def duration(value: Json, where: str) -> float:
    """Seconds, above 0: `90s`, `30m`, `4h`, `2d`, `1h30m`."""
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) and value.strip() else None
    if match is None:
        hint = f", for example {value}s" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise SpecError(f"{where}: must be a duration as 90s, 30m, 4h or 2d{hint}, not {shown(value)}")
    parts = zip(match.groups(), _UNITS_S, strict=True)
    seconds = float(sum(Decimal(count) * unit_s for count, unit_s in parts if count))
    if not 0 < seconds <= _MAX_DURATION_S:
        raise SpecError(f"{where}: must be a duration above 0 and below ten years, not {shown(value)}")
    return seconds


def whole_seconds(most_s: int = _MAX_DURATION_S) -> Reader[int]:
    def read(value: Json, where: str) -> int:
        seconds = duration(value, where)
        if not seconds.is_integer():
            raise SpecError(f"{where}: must be whole seconds, not {shown(value)}")
        if seconds > most_s:
            raise SpecError(f"{where}: must be at most {duration_text(most_s)}, not {shown(value)}")
        return int(seconds)

    return read


def duration_text(seconds: float) -> str:
    """The shortest text that `duration` reads back as exactly these seconds."""
    if not float(seconds).is_integer():
        return f"{Decimal(repr(seconds)):f}s"
    left, text_parts = int(seconds), []
    for unit_s, name in zip(_UNITS_S, "dhms", strict=True):
        count, left = divmod(left, unit_s)
        if count:
            text_parts.append(f"{count}{name}")
    return "".join(text_parts) or "0s"


def one_of(*words: Word) -> Reader[Word]:
    def read(value: Json, where: str) -> Word:
        for word in words:
            if word == value:
                return word
        near = get_close_matches(value, words, n=1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"{where}: must be {' or '.join(words)}, not {shown(value)}{hint}")

    return read


def each(read_item: Reader[T], *, least: int = 0, most: int = 1000) -> Reader[tuple[T, ...]]:
    def read(value: Json, where: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise SpecError(f"{where}: must be a list, as in [first, second], not {shown(value)}")
        if not least <= len(value) <= most:
            bounds = f"at least {least}" if len(value) < least else f"at most {most}"
            raise SpecError(f"{where}: has {len(value)} items; it needs {bounds}")
        return tuple(read_item(item, f"{where}[{i}]") for i, item in enumerate(value))

    return read


def entries(read_item: Reader[T], read_key: Reader[str] | None = None, *, most: int = 1000) -> Reader[dict[str, T]]:
    check_key = read_key or text()

    def read(value: Json, where: str) -> dict[str, T]:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: must be a mapping of names to values, not {shown(value)}")
        if len(value) > most:
            raise SpecError(f"{where}: has {len(value)} entries; at most {most} are allowed")
        return {check_key(key, inside(where, key)): read_item(item, inside(where, key)) for key, item in value.items()}

    return read


def anything(value: Json, where: str) -> Json:  # noqa: ARG001 - a reader like the others
    return value


def distinct(values: Collection[T], where: str) -> None:
    """Raise for the first value that stands twice."""
    seen: list[T] = []
    for value in values:
        if value in seen:
            raise SpecError(f"{where}: {shown(value)} stands twice; keep one")
        seen.append(value)


def path_from(base: Path) -> Reader[Path]:
    """An absolute path; a relative one starts at `base`."""

    def read(value: Json, where: str) -> Path:
        # normpath, not resolve: what a symbolic link means is for the moment when it is followed
        return Path(os.path.normpath(base / text(what="a path")(value, where)))

    return read


def s3_uri(value: Json, where: str) -> str:
    pattern = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?"
    uri = text(pattern, "an S3 URI such as s3://bucket/folder/", most=900)(value, where)
    if ".." in uri.split("/") or "//" in uri.removeprefix("s3://"):
        raise SpecError(f"{where}: must not have empty or .. parts, as in {shown(uri)}")
    return uri


# Names that several sections share.
METRIC_NAME = text(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*", "a metric name without spaces", most=255)
INSTANCE_TYPE = text(r"ml\.[a-z0-9-]+\.[a-z0-9]+", "a SageMaker instance type such as ml.g5.xlarge", most=64)
