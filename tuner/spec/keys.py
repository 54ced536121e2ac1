"""A key of the study file: everything that the program knows of it, declared once.

From the declarations come reading (`record`), writing, the JSON schema (`schema`), the reference page in `docs/`, the
keys that `tuner set` takes, and what a change of a key means when a study is resumed (`changes`).

Rules: a mapping first refuses unknown keys and names the nearest known one, because a misspelt key would otherwise be
reported as a missing one. A value of null means the same as an absent key. A default is written as in the file.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from tuner.spec.records import Json
from tuner.spec.values import Form, Kind, Schema, SpecError, Where, shown, suggestion

R = TypeVar("R")
T = TypeVar("T")

# What a change means when a study is resumed: nothing, it must be accepted, or it is refused.
ChangeKind: TypeAlias = Literal["harmless", "needs_accept", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a mapping. A key with an `example` is required.

    `field` is its name in the record, if that differs. `unit` is the unit of the stored number. `unset` says in words
    what applies if neither the file nor `default` gives a value. `shapes`: the value influences a trial's result, so
    existing trials keep it. `settable`: `tuner set` takes it.

    A key without `change` has that of the key around it, and `shapes` applies to all keys inside.
    """

    name: str
    kind: Kind[Any]
    about: str
    default: Json = None
    example: str = ""
    field: str = ""
    unit: str = ""
    unset: str = ""
    change: ChangeKind | None = None
    shapes: bool = False
    settable: bool = False

    @property
    def attribute(self) -> str:
        return self.field or self.name


@dataclass(frozen=True, slots=True)
class Section:
    """One mapping of the study file and where it stands."""

    values: Mapping[str, Json]
    where: Where

    @classmethod
    def open(cls, value: Json, where: Where, known: Collection[str]) -> "Section":
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise SpecError(f"{where}: must be a mapping with {', '.join(known)}, not {shown(value)}")
        for key in value:
            if key not in known:
                raise SpecError(f"{where.inside(key)}: unknown key; {suggestion(key, known)}")
        return cls(value, where)

    def at(self, key: str) -> Where:
        return self.where.inside(key)

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def need(self, key: str, kind: Kind[T], example: str) -> T:
        if not self.has(key):
            raise SpecError(f"{self.at(key)}: is missing; write for example {key}: {example}")
        return kind.read(self.values[key], self.at(key))

    def read(self, key: Key) -> Any:  # noqa: ANN401 - as its kind says
        if self.has(key.name) or key.example:
            return self.need(key.name, key.kind, key.example)
        at = self.at(key.name)
        return None if key.default is None else key.kind.read(key.default, Where(at.name, at.base))


def record(
    make: Callable[..., R],
    keys: tuple[Key, ...],
    *,
    check: Callable[[Section], None] = lambda _: None,
    settle: Callable[[Section, dict[str, Any]], None] = lambda _, __: None,
    rules: Schema | None = None,
    nulls: bool = True,
) -> Kind[R]:
    """A mapping of these keys as a record.

    `check` gets the mapping before it is read, `settle` gets the values before the record is made, and both may refuse.
    `rules` are the conditions of the schema on several keys. Without `nulls`, keys that are not set are not written.
    """
    names = tuple(key.name for key in keys)

    def read(value: Json, where: Where) -> R:
        section = Section.open(value, where, names)
        check(section)
        values = {key.attribute: section.read(key) for key in keys}
        settle(section, values)
        return make(**values)

    def write(made: R, form: Form) -> Json:
        written = ((key, getattr(made, key.attribute)) for key in keys)
        document = {key.name: None if value is None else key.kind.write(value, form) for key, value in written}
        return document if nulls else {name: value for name, value in document.items() if value is not None}

    return Kind(read, mapping_schema(keys) | (rules or {}), write, keys)


def wrapped(key: Key) -> Kind[Any]:
    """A mapping with one key; only the value of that key is kept."""

    def read(value: Json, where: Where) -> object:
        return Section.open(value, where, (key.name,)).read(key)

    def write(value: object, form: Form) -> Json:
        return {key.name: key.kind.write(value, form)}

    return Kind(read, mapping_schema((key,)), write, (key,))


def mapping_schema(keys: tuple[Key, ...]) -> Schema:
    required = [key.name for key in keys if key.example]
    schema: Schema = {
        "type": "object",
        "properties": {key.name: key_schema(key) for key in keys},
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {})


def key_schema(key: Key) -> Schema:
    """What an editor shows and checks of a key."""
    schema = key.kind.schema if key.example else nullable(key.kind.schema)
    told = {"description": key.about + (f" Unit: {key.unit}." if key.unit else "")}
    return {**schema, **told, **({} if key.default is None else {"default": key.default})}


def nullable(schema: Schema) -> Schema:
    """The schema or null, which means the same as an absent key in every mapping."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "type" in schema:
        types = schema["type"]
        return {**schema, "type": [*([types] if isinstance(types, str) else types), "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def flat(keys: tuple[Key, ...], before: str = "", around: Key | None = None) -> Iterator[tuple[str, Key]]:
    """Each key with its dotted name, in the order of the file, completed by what it inherits from the key around it.

    In a name, `*` stands for a name that the user chose, and `[]` for a place in a list.
    """
    for key in keys:
        change = key.change or (around and around.change) or "needs_accept"
        whole = replace(key, change=change, shapes=key.shapes or (around is not None and around.shapes))
        yield before + key.name, whole
        many = {"": ".", "*": ".*.", "[]": "[]."}[key.kind.many]
        yield from flat(key.kind.keys, before + key.name + many, whole)
