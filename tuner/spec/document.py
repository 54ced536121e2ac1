"""A `StudySpec` back to a plain document, in the words of the study file, with every default filled in.

A spec is stored, changed, compared and shown in this form. Reading and writing both follow the keys that `sections`
declares.
"""

import json
from collections.abc import Iterator

from tuner.spec.records import Json, StudySpec
from tuner.spec.sections import STUDY
from tuner.spec.values import Form


def to_document(spec: StudySpec, form: Form = "file") -> dict[str, Json]:
    """The whole study file; what is not set is null."""
    document = STUDY.write(spec, form)
    assert isinstance(document, dict), "a record is a mapping"
    return document


def flatten(value: Json, key: str = "") -> Iterator[tuple[str, Json]]:
    """The settings of a document by dotted key, in the order of the file. A list is one setting."""
    if not isinstance(value, dict) or not value:
        yield key, None if value == {} else value
        return
    for name, inner in value.items():
        yield from flatten(inner, f"{key}.{name}" if key else name)


def setting_text(value: Json) -> str:
    """A setting as the plan shows it."""
    if value is None or value == []:
        return "-"
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(setting_text(item) for item in value)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
