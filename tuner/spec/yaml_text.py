"""YAML text to plain values, without the traps of YAML.

The result is text, whole numbers, numbers, booleans and null, in lists and mappings with text keys. Values that YAML
1.1 reads in surprising ways are either read as people mean them (`1e-4` is a number, `2024-01-01` and `1:30` are text)
or refused (`no`, `on`, `010`: the author must say which of the two readings is meant). Duplicate keys, tags, values
that are not finite, aliases that expand without end, huge files and deep files are refused.

Every error is a `SpecError`: one line that names the key, or the line of the file.
"""

import math
import re
from pathlib import Path

import yaml

from tuner.spec.keys import flat
from tuner.spec.records import Json
from tuner.spec.sections import KEYS
from tuner.spec.values import SpecError, inside, shown

_MAX_BYTES = 256_000
_MAX_VALUES = 20_000
_MAX_DEPTH = 24
# Python refuses to read much longer numbers, and no setting needs one.
_MAX_DIGITS = 30

_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = "!ambiguous"
_PLAIN_SCALARS = (
    (_AMBIGUOUS, r"(?i:yes|no|on|off)|[-+]?0[0-9_]+"),
    (_TAG + "null", r"~|null|Null|NULL|"),
    (_TAG + "bool", r"true|True|TRUE|false|False|FALSE"),
    (_TAG + "int", r"[-+]?[0-9]+"),
    (_TAG + "float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes with the tags of `_PLAIN_SCALARS`; `_Reading` makes values from them."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's way


for _tag, _pattern in _PLAIN_SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), None)


def read_document(path: Path) -> dict[str, Json]:
    """The top-level mapping of the YAML file at `path`."""
    document = parse_value(_read_text(path))
    if document is None:
        raise SpecError("the file is empty; it needs at least name, objective, space, trials and training")
    if not isinstance(document, dict):
        raise SpecError(f"must be a mapping of keys to values, not {shown(document)}")
    return document


def parse_value(text: str, where: str = "") -> Json:
    """One YAML document; `where` is the key it stands under."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise SpecError(f"{where or 'the file'} is not valid YAML: {_one_line(error)}") from None
    except yaml.YAMLError:
        raise SpecError(f"{where or 'the file'} holds control characters; save it as plain UTF-8 text") from None
    except RecursionError:
        raise SpecError(f"{where or 'the file'} is nested too deeply") from None
    return None if node is None else _Reading().value(node, where)


def assign(document: dict[str, Json], assignment: str) -> None:
    """Apply one `dotted.key=value` to a document, as `--set` does."""
    key, equals, text = assignment.partition("=")
    if not equals or not text or not all(part.strip() for part in key.split(".")):
        raise SpecError(f"{shown(assignment)}: must read key=value, as in budget.usd=80 (null unsets a key)")
    parts = _parts(key)
    target = document
    for depth, part in enumerate(parts[:-1], start=1):
        inner = target.setdefault(part, {})
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            raise SpecError(f"{key}: cannot be set, since {'.'.join(parts[:depth])} is no mapping: set that as a whole")
        target = inner
    target[parts[-1]] = parse_value(text, key)


# Mappings from names that the user chose, which may hold dots (`prices.ml.g5.xlarge`), to single values.
_FLAT = tuple(f"{name}." for name, key in flat(KEYS) if key.kind.many == "*" and not key.kind.keys)


def _parts(key: str) -> list[str]:
    for prefix in _FLAT:
        if key.startswith(prefix):
            return [*prefix.rstrip(".").split("."), key.removeprefix(prefix)]
    return key.split(".")


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise SpecError("is a directory; name the study file in it")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError("there is no such file") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _MAX_BYTES:
        raise SpecError(f"is larger than {_MAX_BYTES:,} bytes; a study file holds settings, not data")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError("is not a text file in UTF-8") from None


def _one_line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1}: " if mark else ""
    problem = " ".join((error.problem or error.context or "").split())
    hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return f"{line}{problem}{hint}"


class _Reading:
    """One walk over a tree of nodes. It counts what it visits, so that aliases cannot make a small file large."""

    def __init__(self) -> None:
        self._left = _MAX_VALUES

    def value(self, node: yaml.Node, where: str, depth: int = 0) -> Json:
        self._left -= 1
        if depth > _MAX_DEPTH:
            raise SpecError(f"{where[:60]}: is nested deeper than {_MAX_DEPTH} levels")
        if self._left < 0:
            raise SpecError(f"{where[:60]}: more than {_MAX_VALUES:,} values, counting what aliases repeat")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, where, depth)
        raise SpecError(f"{_at(node, where)}: the tag {shown(node.tag)} is not allowed; write plain values")

    def _mapping(self, node: yaml.MappingNode, where: str, depth: int) -> Json:
        values: dict[str, Json] = {}
        for key_node, value_node in node.value:
            key = _key(key_node, where)
            if key in values:
                raise SpecError(f"{inside(where, key)}: stands twice (line {key_node.start_mark.line + 1}); keep one")
            values[key] = self.value(value_node, inside(where, key), depth + 1)
        return values


def _key(node: yaml.Node, where: str) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str" and node.value:
        return str(node.value)
    what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
    raise SpecError(f"{_at(node, where)}: a key must be text, not {what}; put it in quotes if it is meant")


def _at(node: yaml.Node, where: str) -> str:
    line = f"line {node.start_mark.line + 1}"
    return f"{where}: {line}" if where else line


def _scalar(node: yaml.ScalarNode, where: str) -> Json:
    text: str = node.value
    if re.search(r"[\x00\ud800-\udfff]", text):
        raise SpecError(f"{_at(node, where)}: holds a character that no program can be given; remove it")
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= _MAX_DIGITS:
            return int(text)
        case "float" if math.isfinite(number := _float(text)):
            return number
        case "int" | "float":
            raise SpecError(f"{_at(node, where)}: must be a finite number, not {shown(text)}")
        case "!ambiguous":
            remedy = "true, false or a quoted text" if text.isalpha() else "it without the leading 0, or quote it"
            raise SpecError(f"{_at(node, where)}: {shown(text)} is read in different ways; write {remedy}")
        case _:
            raise SpecError(f"{_at(node, where)}: the tag {shown(node.tag)} is not allowed; write plain values")


def _float(text: str) -> float:
    try:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        # an explicit tag in front of any text: !!float x
        return math.nan
