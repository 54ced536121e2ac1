"""Which names are those of a study's jobs: what is stopped, hinted at and billed is told by it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store import store_records as records
from tuner.core.jobs import job_name, trial_and_attempt
from tuner.operations import backend

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
KEYS = st.builds("{}-{}".format, NAMES, st.from_regex(r"[a-z]{6}", fullmatch=True))


@given(KEYS, st.integers(0, 10**6), st.integers(1, 10**4))
def test_a_job_name_gives_back_what_it_was_made_of(key: str, trial: int, attempt: int) -> None:
    assert trial_and_attempt(job_name(key, trial, attempt), key) == (trial, attempt)


@given(KEYS, st.from_regex(r"[a-z]{6}", fullmatch=True), st.integers(0, 10**6), st.integers(1, 10**4))
def test_jobs_of_a_study_that_is_named_as_a_key_are_none_of_that_keys(
    key: str, drawn: str, trial: int, attempt: int
) -> None:
    assert trial_and_attempt(job_name(f"{key}-{drawn}", trial, attempt), key) is None


@pytest.mark.parametrize(
    "name",
    [
        "sweep-bcdfgh",
        "sweep-bcdfgh-00001",
        "sweep-bcdfgh-1-1",
        "sweep-bcdfgh-000001-001",  # not as we write it
        "sweep-bcdfgh-00001-0001",
        "sweep-bcdfgh-00001-001-x",
        "sweep-bcdfgh-00001-001\n",
        "sweep-bcdfgh-\u0661\u0661\u0661\u0661\u0661-001",
        "sweep-bcdfghx-00001-001",
        "other-bcdfgh-00001-001",
        "x-sweep-bcdfgh-00001-001",
    ],
)
def test_other_names(name: str) -> None:
    assert trial_and_attempt(name, "sweep-bcdfgh") is None


def test_a_state_directory_is_found_by_jobs_of_the_study_alone(tmp_path, monkeypatch) -> None:
    study = replace(records.study(), local_dir=str(tmp_path / "gone"))
    monkeypatch.setenv("TUNER_LOCAL", str(tmp_path / "here"))
    (tmp_path / "here" / "jobs" / job_name(f"{study.key}-bcdfgh", 0, 1)).mkdir(parents=True)
    assert backend.moved_to(study) is None
    (tmp_path / "here" / "jobs" / job_name(study.key, 0, 1)).mkdir()
    assert backend.moved_to(study) == tmp_path / "here"
