"""Kinds of values: how a value of the study file is read, written and described.

A `Kind` reads a plain value and returns it checked, or raises. It also writes the value back, and describes it as a
JSON schema. Kinds combine: `each(text())` is a list of texts, `entries(money)` a mapping of names to amounts. `keys`
combines them into sections.

Rules: every error is one line, `key: what is wrong; what to do`. It is safe to print, because text of the user is
escaped and shortened. A schema accepts everything that its kind reads. Its patterns mean the same in Python and in
JavaScript.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from tuner.spec.records import Json

if TYPE_CHECKING:
    from tuner.spec.keys import Key

T = TypeVar("T")
Word = TypeVar("Word", bound=str)
Schema: TypeAlias = dict[str, Any]
# Durations are text in the study file (`1h`) and seconds in the store (3600).
Form: TypeAlias = Literal["file", "stored"]

_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS_S = (86_400, 3_600, 60, 1)
SECONDS = "seconds, written as 90s, 30m, 4h or 2d"
_MAX_SHOWN = 60
# ten years: a longer duration is a mistake, and would lead beyond the last date
_MAX_DURATION_S = 10 * 366 * 86_400
_MAX_USD = 10**9
_MICRO = Decimal("0.000001")


class SpecError(ValueError):
    """The study file, or a setting of it, is refused. The message is one line: where, what is wrong, what to do."""


def inside(where: str, key: str) -> str:
    """The dotted name of a key within a section, safe to print."""
    name = key if key.isprintable() and len(key) <= _MAX_SHOWN else shown(key)
    return f"{where}.{name}" if where else name


@dataclass(frozen=True, slots=True)
class Where:
    """Where a value stands, by dotted key, and how it is read: relative paths start at `base`."""

    name: str
    base: Path = Path("/")
    form: Form = "file"

    def inside(self, key: str) -> "Where":
        return Where(inside(self.name, key), self.base, self.form)

    def item(self, index: int) -> "Where":
        return Where(f"{self.name}[{index}]", self.base, self.form)

    def __str__(self) -> str:
        return self.name


def _unchanged(value: Any, form: Form) -> Any:  # noqa: ANN401, ARG001 - a writer as the others
    return value


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of values. `keys` are those of the mapping that it is, or that its items are."""

    read: Callable[[Json, Where], T]
    schema: Schema
    write: Callable[[T, Form], Json] = _unchanged
    keys: tuple["Key", ...] = ()
    # how a key inside is reached: by a name that the user chose (`*`), or by a place in a list (`[]`)
    many: Literal["", "*", "[]"] = ""


def shown(value: object) -> str:
    """A value from the user, in one printable line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "nothing")
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def suggestion(word: str, known: Collection[str]) -> str:
    """What to say about an unknown word: the nearest known word, otherwise all of them."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def whole_text(pattern: str) -> str:
    """The pattern for a schema, which would otherwise find it anywhere in the text."""
    return f"^(?:{pattern})$"


def text(
    pattern: str = r".+", what: str = "a text in one line", *, most: int = 1024, unicode: bool = False
) -> Kind[str]:
    """`unicode`: the pattern matches letters of all alphabets, which JavaScript writes differently."""
    compiled = re.compile(pattern)

    def read(value: Json, where: Where) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value) or not value.isprintable():
            raise SpecError(f"{where}: must be {what}, not {shown(value)}{_quote_hint(value)}")
        if len(value) > most:
            raise SpecError(f"{where}: has {len(value)} characters; at most {most} are allowed")
        return value

    known = {} if unicode else {"minLength": 1} if pattern == ".+" else {"pattern": whole_text(pattern)}
    return Kind(read, {"type": "string", "maxLength": most, **known})


def _quote_hint(value: Json) -> str:
    return "; put it in quotes" if isinstance(value, int | float) else ""


def _prose(value: Json, where: Where) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{where}: must be a text, not {shown(value)}{_quote_hint(value)}")
    return value


# Text of several lines, for people.
prose = Kind(_prose, {"type": "string"})


def _number(value: Json, where: Where) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SpecError(f"{where}: must be a number, not {shown(value)}")
    return float(value)


def _positive(value: Json, where: Where) -> float:
    checked = _number(value, where)
    if checked <= 0:
        raise SpecError(f"{where}: must be above 0, not {shown(value)}")
    return checked


# Numbers may be texts, because some YAML readers take `1e-4` for a text.
_NUMBER_SCHEMA: Schema = {"type": ["number", "string"], "pattern": whole_text(_NUMBER.pattern)}
number = Kind(_number, _NUMBER_SCHEMA)
positive = Kind(_positive, {**_NUMBER_SCHEMA, "exclusiveMinimum": 0})


def whole(least: int, most: int) -> Kind[int]:
    def read(value: Json, where: Where) -> int:
        # not by way of a float, which would round large numbers
        exact = int(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,30}", value) else value
        if isinstance(exact, float | str):
            exact = _integral(_number(exact, where), value, where)
        if isinstance(exact, bool) or not isinstance(exact, int):
            raise SpecError(f"{where}: must be a whole number, not {shown(value)}")
        if not least <= exact <= most:
            raise SpecError(f"{where}: must be between {least} and {most}, not {shown(value)}")
        return exact

    types = {**_NUMBER_SCHEMA, "type": ["integer", "string"]}
    return Kind(read, {**types, "minimum": least, "maximum": most})


def _integral(parsed: float, value: Json, where: Where) -> int:
    if not parsed.is_integer():
        raise SpecError(f"{where}: must be a whole number, not {shown(value)}")
    return int(parsed)


def _money(value: Json, where: Where) -> Decimal:
    checked = _number(value, where)
    exact = +Decimal(value if isinstance(value, str) else repr(checked))
    if not _MICRO <= exact <= _MAX_USD:
        raise SpecError(f"{where}: must be an amount of dollars above 0, not {shown(value)}")
    if exact % _MICRO:
        raise SpecError(f"{where}: has more than six decimals: {shown(value)}; round it")
    # by way of its text, because normalize() makes 6E+1 of 60
    return Decimal(f"{exact.normalize():f}")


def _write_money(amount: Decimal, form: Form) -> Json:  # noqa: ARG001 - a writer as the others
    # as text: a floating-point number would not be exact
    return f"{amount:f}"


# Dollars, exact to the micro-dollar.
money = Kind(_money, {**_NUMBER_SCHEMA, "minimum": float(_MICRO), "maximum": _MAX_USD}, _write_money)


def _flag(value: Json, where: Where) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{where}: must be true or false, not {shown(value)}")
    return value


flag = Kind(_flag, {"type": "boolean"})


def _duration(value: Json, where: Where) -> float:
    if where.form == "stored" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) and value.strip() else None
    if match is None:
        hint = f", for example {value}s" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise SpecError(f"{where}: must be a duration as 90s, 30m, 4h or 2d{hint}, not {shown(value)}")
    parts = zip(match.groups(), _UNITS_S, strict=True)
    seconds = float(sum(Decimal(count) * unit_s for count, unit_s in parts if count))
    if not 0 < seconds <= _MAX_DURATION_S:
        raise SpecError(f"{where}: must be a duration above 0 and below ten years, not {shown(value)}")
    return seconds


def _write_duration(seconds: float, form: Form) -> Json:
    if form == "file":
        return duration_text(seconds)
    return int(seconds) if float(seconds).is_integer() else seconds


# A duration above 0 has a digit other than 0.
_DURATION_SCHEMA: Schema = {
    "type": "string",
    "pattern": rf"^\s*(?=.*[1-9]){_DURATION.pattern}\s*$",
}
# Seconds, above 0: `90s`, `30m`, `4h`, `2d`, `1h30m`.
duration = Kind(_duration, _DURATION_SCHEMA, _write_duration)


def whole_seconds(most_s: int = _MAX_DURATION_S) -> Kind[int]:
    def read(value: Json, where: Where) -> int:
        seconds = _duration(value, where)
        if not seconds.is_integer():
            raise SpecError(f"{where}: must be whole seconds, not {shown(value)}")
        if seconds > most_s:
            raise SpecError(f"{where}: must be at most {duration_text(most_s)}, not {shown(value)}")
        return int(seconds)

    return Kind(read, _DURATION_SCHEMA, _write_duration)


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


def one_of(*words: Word) -> Kind[Word]:
    def read(value: Json, where: Where) -> Word:
        for word in words:
            if word == value:
                return word
        near = get_close_matches(value, words, n=1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"{where}: must be {' or '.join(words)}, not {shown(value)}{hint}")

    return Kind(read, {"enum": list(words)})


def each(
    item: Kind[T], *, least: int = 0, most: int = 1000, unique: Callable[[T], object] | None = None
) -> Kind[tuple[T, ...]]:
    """A list. No two of its items may be equal in what `unique` returns."""

    def read(value: Json, where: Where) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise SpecError(f"{where}: must be a list, as in [first, second], not {shown(value)}")
        if not least <= len(value) <= most:
            bounds = f"at least {least}" if len(value) < least else f"at most {most}"
            raise SpecError(f"{where}: has {len(value)} items; it needs {bounds}")
        items = tuple(item.read(one, where.item(i)) for i, one in enumerate(value))
        if unique is not None:
            distinct([unique(one) for one in items], where)
        return items

    def write(items: tuple[T, ...], form: Form) -> Json:
        return [item.write(one, form) for one in items]

    bounds: Schema = {"maxItems": most, **({"minItems": least} if least else {})}
    if unique is not None:
        bounds["uniqueItems"] = True
    return Kind(read, {"type": "array", "items": item.schema, **bounds}, write, item.keys, "[]")


def entries(item: Kind[T], name: Kind[str] | None = None, *, most: int = 1000) -> Kind[dict[str, T]]:
    """A mapping whose keys are names that the user chose."""
    named = name or text()

    def read(value: Json, where: Where) -> dict[str, T]:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: must be a mapping of names to values, not {shown(value)}")
        if len(value) > most:
            raise SpecError(f"{where}: has {len(value)} entries; at most {most} are allowed")
        return {named.read(key, at := where.inside(key)): item.read(one, at) for key, one in value.items()}

    def write(values: Mapping[str, T], form: Form) -> Json:
        return {key: item.write(one, form) for key, one in values.items()}

    bounds = {"propertyNames": without_type(named.schema), "maxProperties": most}
    return Kind(read, {"type": "object", "additionalProperties": item.schema, **bounds}, write, item.keys, "*")


def without_type(schema: Schema) -> Schema:
    """The schema of the keys of a mapping, which are always texts."""
    return {word: value for word, value in schema.items() if word != "type"}


anything: Kind[Json] = Kind(lambda value, _: value, {})


def distinct(values: Collection[T], where: Where) -> None:
    """Raise for the first value that stands twice."""
    seen: list[T] = []
    for value in values:
        if value in seen:
            raise SpecError(f"{where}: {shown(value)} stands twice; keep one")
        seen.append(value)


_PATH = text(what="a path")


def _path(value: Json, where: Where) -> Path:
    # normpath, not resolve: a symbolic link is followed when the file is used, not before
    return Path(os.path.normpath(where.base / _PATH.read(value, where)))


def _write_path(path: Path, form: Form) -> Json:  # noqa: ARG001 - a writer as the others
    return str(path)


# An absolute path; a relative one starts at the base.
path = Kind(_path, _PATH.schema, _write_path)

_S3 = text(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", "an S3 URI such as s3://bucket/folder/", most=900)


def _s3_uri(value: Json, where: Where) -> str:
    uri = _S3.read(value, where)
    if ".." in uri.split("/") or "//" in uri.removeprefix("s3://"):
        raise SpecError(f"{where}: must not have empty or .. parts, as in {shown(uri)}")
    return uri


def _s3_folder(value: Json, where: Where) -> str:
    """A prefix that ends in `/`: without it, the prefix of trial 1 would also be a prefix of trial 10."""
    uri = _s3_uri(value, where)
    return uri if uri.endswith("/") else f"{uri}/"


_NO_ODD_PARTS = r"s3://(?!.*(?://|/\.\.(?:/|$)))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?"
s3_uri = Kind(_s3_uri, {**_S3.schema, "pattern": whole_text(_NO_ODD_PARTS)})
s3_folder = replace(s3_uri, read=_s3_folder)

# Names that several sections share.
METRIC_NAME = text(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*", "a metric name without spaces", most=255)
INSTANCE_TYPE = text(r"ml\.[a-z0-9-]+\.[a-z0-9]+", "a SageMaker instance type such as ml.g5.xlarge", most=64)
