"""The JSON schema of the study file, by which editors and other programs check and complete study files.

It is made from the declared keys. The file `study.schema.json` in this folder holds the same text, and the example
studies name it in their first line. After a change of a key, write it again:

    python -m tuner schema > tuner/spec/study.schema.json

Rules: the schema accepts everything that `load` accepts. It cannot refuse everything that `load` refuses: files, prices
and most rules between keys are beyond it.
"""

import json

from tuner.spec.sections import STUDY
from tuner.spec.values import Schema


def study_schema() -> Schema:
    """The schema in draft 7, the newest draft that all common editors read."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Study file of tuner",
        **STUDY.schema,
    }


def schema_text() -> str:
    return json.dumps(study_schema(), indent=2, ensure_ascii=False) + "\n"
