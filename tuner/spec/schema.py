"""The JSON schema of the study file: what editors and other programs check and complete a study file by.

It comes from the declared keys. `study.schema.json` beside this module is the same text as a file, which the example
studies name in their first line; after a change of a key it is written again:

    python -m tuner schema > tuner/spec/study.schema.json

Rules: what `load` accepts, the schema accepts. It cannot say everything: files, prices and most rules between keys are
for `load` alone.
"""

import json

from tuner.spec.sections import STUDY
from tuner.spec.values import Schema


def study_schema() -> Schema:
    """In draft 7, the newest that all editors read."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Study file of tuner",
        **STUDY.schema,
    }


def schema_text() -> str:
    return json.dumps(study_schema(), indent=2, ensure_ascii=False) + "\n"
