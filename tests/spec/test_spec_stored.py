"""Stored specs of all versions are read to what the study file says, and the jobs made from them stay the same.

`fixtures/stored_0_1_0.json` holds study files with the text that version 0.1.0 stored for each of them (durations as
text), and the digest that it gave to a job of such a study. `fixtures/changes_0_1_0.json` says what a change of a
setting meant to that version, and whether it was for new trials alone. None of them is ever written again.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from test_spec_properties import BASE, documents

from tests import factories
from tuner.core.records import BEGUN_WITH, Trial
from tuner.spec import workload
from tuner.spec.changes import SpecChange, declared
from tuner.spec.document import to_document
from tuner.spec.sections import parse
from tuner.spec.study_file import SpecError, StudySpec, as_begun, changes, describe, from_json, to_json

FILE = BASE / "study.yaml"
FIXTURES = Path(__file__).parent / "fixtures"
STORED: list[dict[str, Any]] = json.loads((FIXTURES / "stored_0_1_0.json").read_text())
CHANGES: dict[str, tuple[str, bool]] = json.loads((FIXTURES / "changes_0_1_0.json").read_text())


def in_first_format(spec: StudySpec) -> str:
    """The spec as version 0.1.0 stored it."""
    study = to_document(spec)
    return json.dumps({"format": 1, "file": str(spec.file), "overrides": list(spec.overrides), "study": study})


def trial_of(params: dict[str, Any], attrs: dict[str, Any]) -> Trial:
    return factories.trial(3, params=params, attrs=attrs, prefix="s3://b/p/00003/", bundle_uri="s3://b/bundles/x/")


@pytest.mark.parametrize("number", range(len(STORED)))
def test_a_spec_that_0_1_0_stored_equals_that_of_the_file(number: int):
    entry = STORED[number]
    spec = parse(entry["document"], BASE, FILE)
    assert from_json(entry["stored"]) == spec
    assert changes(from_json(entry["stored"]), spec) == []
    assert in_first_format(spec) == entry["stored"]
    assert from_json(to_json(from_json(entry["stored"]))) == spec


@pytest.mark.parametrize("number", range(len(STORED)))
def test_a_job_of_0_1_0_keeps_its_digest(number: int):
    entry = STORED[number]
    for stored in (entry["stored"], to_json(from_json(entry["stored"]))):
        spec = from_json(stored)
        assert workload.job_digest(spec, trial_of(entry["params"], {})) == entry["digest"]
        if "begun_with" in entry:
            former = STORED[entry["begun_with"]]["stored"]
            for begun in (former, to_json(from_json(former))):
                trial = trial_of(entry["params"], {BEGUN_WITH: begun})
                assert workload.job_digest(spec, trial) == entry["digest_as_begun"]


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_means_what_it_meant_to_0_1_0(key: str):
    kind = declared(key).change
    assert [kind, SpecChange(key, 1, 2, "never").for_new_trials] == CHANGES[key]


@given(documents())
@settings(max_examples=30, deadline=None)
def test_both_stored_forms_are_read_to_the_same_spec(document: dict[str, Any]):
    spec = parse(document, BASE, FILE)
    first, second = from_json(in_first_format(spec)), from_json(to_json(spec))
    assert first == second == spec
    assert describe(first) == describe(spec)
    assert changes(first, spec) == changes(second, spec) == []
    assert as_begun(spec, in_first_format(spec)) == as_begun(spec, to_json(spec)) == spec


def test_durations_are_stored_as_seconds():
    document = {**STORED[0]["document"], "settings": {"poll": "0.25s", "stop_within": "1h"}}
    document["training"] = {"entry_point": "train.py", "max_run": "90m"}
    document["local"] = {"interruptions": {"at": ["15s", "1m"]}}
    study = json.loads(to_json(parse(document, BASE, FILE)))["study"]
    assert (study["settings"]["poll"], study["settings"]["stop_within"]) == (0.25, 3600)
    assert (study["training"]["max_run"], study["training"]["max_wait"]) == (5400, 21_600)
    assert study["training"]["stall_after"] is None
    assert study["local"]["interruptions"] == {"at": [15, 60], "down": 3}


def test_a_stored_text_is_parsed_once():
    stored = STORED[1]["stored"]
    assert from_json(stored) is from_json(stored)


def test_a_form_of_a_later_version_is_refused():
    stored = json.loads(STORED[0]["stored"]) | {"format": 3}
    with pytest.raises(SpecError, match="stored in format 3; upgrade this program"):
        from_json(json.dumps(stored))


def test_a_file_may_not_give_a_duration_as_a_number():
    document = {**STORED[0]["document"], "budget": {"deadline": 3600}}
    with pytest.raises(SpecError, match=r"budget\.deadline: must be a duration .* for example 3600s"):
        parse(document, BASE, FILE)
