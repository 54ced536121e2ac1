"""The channels of a study file, `training.inputs`: each has a name, and is an address or a mapping.

The values are SageMaker's own words. SageMaker decides about keys that are not set.
"""

from dataclasses import replace
from typing import Any

from tuner.spec.keys import Key, Section, record
from tuner.spec.records import Input, Json
from tuner.spec.values import Form, Kind, Schema, SpecError, Where, anything, each, entries, one_of, path, s3_uri, text

_MAX_CHANNELS = 19


def _uri(value: Json, where: Where) -> str:
    uri = _URI.read(value, where)
    if uri.startswith("file://"):
        return f"file://{path.read(uri.removeprefix('file://'), where)}"
    return s3_uri.read(uri, where)


def _check_input(section: Section, values: dict[str, Any]) -> None:
    """Refuse what SageMaker refuses: some formats work with `mode: Pipe` only."""
    is_augmented = values["data_type"] == "AugmentedManifestFile"
    for key, is_piped in (
        ("compression", values["compression"] == "Gzip"),
        ("record_wrapper", values["record_wrapper"] == "RecordIO"),
        ("data_type", is_augmented),
    ):
        if is_piped and values["mode"] != "Pipe":
            raise SpecError(f"{section.at(key)}: {section.values[key]} needs mode: Pipe, as SageMaker reads it")
    if is_augmented != bool(values["attributes"]):
        says = (
            "is missing; name those to read, as [source-ref, label]" if is_augmented else "needs an augmented manifest"
        )
        raise SpecError(f"{section.at('attributes')}: {says}")


_URI = text(what="an s3:// or file:// URI")
_URI_SCHEMA = {"anyOf": [s3_uri.schema, {"type": "string", "pattern": "^file://.+$", "maxLength": 1024}]}
KEYS = (
    Key(
        name="uri",
        kind=Kind(_uri, _URI_SCHEMA),
        about="`s3://…`, locally also `file://…`; of a manifest the file, whose objects the role must be able to read.",
        example="s3://bucket/data/",
    ),
    Key(
        name="mode",
        kind=one_of("File", "FastFile", "Pipe"),
        about="`Pipe` is for algorithms and `entrypoint: image` only, since a script finds a folder.",
        default="File",
    ),
    Key(
        name="content_type",
        kind=text(what="a type such as text/csv", most=256),
        about="What built-in algorithms take the data for, such as `text/csv`.",
    ),
    Key(
        name="distribution",
        kind=one_of("FullyReplicated", "ShardedByS3Key"),
        about="All of the data on each instance, or a share.",
    ),
    Key(name="compression", kind=one_of("None", "Gzip"), about="`Gzip` needs `mode: Pipe`."),
    Key(name="record_wrapper", kind=one_of("None", "RecordIO"), about="`RecordIO` needs `mode: Pipe`."),
    Key(
        name="data_type",
        kind=one_of("S3Prefix", "ManifestFile", "AugmentedManifestFile"),
        about="`AugmentedManifestFile` needs `mode: Pipe`; locally only a prefix (a folder) works.",
    ),
    Key(
        name="attributes",
        kind=each(text(most=256), least=1, most=16),
        about="The names of the attributes to read from each line of an augmented manifest.",
    ),
)


def _make_input(**values: Any) -> Input:  # noqa: ANN401 - as the keys say
    return Input("", **{**values, "attributes": values["attributes"] or ()})


def _needs(key: str, value: str, needed: Schema) -> Schema:
    said = {"properties": {key: {"const": value}}, "required": [key]}
    return {"if": said, "then": {**needed, "required": list(needed["properties"])}}


_PIPE = {"properties": {"mode": {"const": "Pipe"}}}
_INPUT = record(
    _make_input,
    KEYS,
    settle=_check_input,
    rules={
        "allOf": [
            _needs("compression", "Gzip", _PIPE),
            _needs("record_wrapper", "RecordIO", _PIPE),
            {
                **_needs(
                    "data_type",
                    "AugmentedManifestFile",
                    {"properties": {**_PIPE["properties"], "attributes": {"type": "array"}}},
                ),
                "else": {"properties": {"attributes": {"type": "null"}}},
            },
        ]
    },
)
_CHANNEL = text(r"[A-Za-z0-9._-]+", "a channel name of letters, digits, . _ and -", most=64)
_CHANNELS = entries(anything, _CHANNEL, most=_MAX_CHANNELS)


def _read_inputs(value: Json, where: Where) -> tuple[Input, ...]:
    channels = _CHANNELS.read(value, where)
    if "code" in channels:
        raise SpecError(f"{where.inside('code')}: is the channel of the code bundle; give yours another name")
    return tuple(_read_input(name, item, where.inside(name)) for name, item in channels.items())


def _read_input(name: str, value: Json, where: Where) -> Input:
    return replace(_INPUT.read({"uri": value} if isinstance(value, str) else value, where), channel=name)


def _write_inputs(inputs: tuple[Input, ...], form: Form) -> Json:
    return {one.channel: _write_input(one, form) for one in inputs}


def _write_input(channel: Input, form: Form) -> Json:
    document = _INPUT.write(channel, form)
    assert isinstance(document, dict), "a record is a mapping"
    return {name: value for name, value in document.items() if value not in (None, [])}


INPUTS: Kind[tuple[Input, ...]] = Kind(
    _read_inputs,
    {
        "type": "object",
        "propertyNames": {"pattern": "^(?!code$)[A-Za-z0-9._-]+$", "maxLength": 64},
        "maxProperties": _MAX_CHANNELS,
        "additionalProperties": {"anyOf": [*_URI_SCHEMA["anyOf"], _INPUT.schema]},
    },
    _write_inputs,
    KEYS,
    "*",
)
