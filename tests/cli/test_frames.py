"""The Python API on a store whose every figure is known."""

from pathlib import Path
from typing import Any

import cli_store
import pandas as pd
import pytest
from cli_calls import Faked

import tuner
from tuner.cli import live
from tuner.core.errors import UserError


@pytest.fixture
def loaded(folder: Path) -> tuner.Study:
    return tuner.load("digits")


def test_trials(loaded: tuner.Study) -> None:
    frame = loaded.trials()
    assert list(frame.index) == [0, 1, 2, 3, 4, 5]
    assert frame.loc[1, "value"] == 0.95
    assert pd.isna(frame.loc[4, "spend_usd"])
    assert frame.loc[0, "params.lr"] == 0.01
    assert str(frame["finished_at"].dt.tz) == "UTC"


def test_attempts(loaded: tuner.Study) -> None:
    frame = loaded.attempts()
    assert list(frame["trial"]) == [0, 1, 2, 3, 4]
    assert frame.loc[0, ["billable_s", "lost_work_s", "end"]].tolist() == [600, 12.5, "completed"]


def test_interruptions(loaded: tuner.Study) -> None:
    (row,) = loaded.interruptions().to_dict("records")
    assert (row["trial"], row["last_step"], row["resumed_from_step"], row["lost_work_s"]) == (0, 6, 4, 12.5)


def test_spend_and_frontier(loaded: tuner.Study) -> None:
    spend = loaded.spend()
    assert list(spend["best_value"]) == [0.91, 0.95, 0.95, 0.95]
    assert spend["spend_usd"].iloc[-1] == pytest.approx(0.410665)
    assert list(loaded.frontier().index) == [1]


def test_best(loaded: tuner.Study) -> None:
    assert loaded.best is not None
    assert loaded.best["number"] == 1


def test_frames_of_a_study_without_trials_have_their_columns(tmp_path: Path) -> None:
    store = cli_store.Store.open(f"sqlite:///{tmp_path}/e.db")
    store.create_study(cli_store.study(tmp_path))
    store.close()
    empty = tuner.load("digits", store=f"sqlite:///{tmp_path}/e.db")
    assert list(empty.interruptions().columns)[:2] == ["at", "trial"]
    assert list(empty.spend().columns) == ["at", "trial", "spend_usd", "best_value"]
    assert list(empty.frontier().columns) == ["value", "spend_usd"]
    assert (len(empty.trials()), len(empty.attempts()), empty.best) == (0, 0, None)


def test_html_marks_simulated_dollars(loaded: tuner.Study) -> None:
    text = loaded._repr_html_()
    assert "<td>0.95 (trial 1)</td>" in text
    assert "(simulated)" in text
    assert repr(loaded) == "<tuner.Study digits: running>"


def test_an_unknown_study_is_said_at_once(folder: Path) -> None:
    with pytest.raises(UserError, match="no study 'digit'"):
        tuner.load("digit")


@pytest.mark.parametrize(("options", "display"), [({"quiet": True}, live.QuietDisplay), ({}, live.PlainDisplay)])
def test_launch_and_resume(folder: Path, options: dict[str, bool], display: type) -> None:
    told: list[Any] = []
    file = cli_store.spec_file(folder)
    use_cases = Faked(
        prepare=lambda plan, store: plan,  # the name is taken here
        launch=lambda plan, store, **given: told.append((plan.spec.trials, given["display"])),
        resume=lambda name, store, **given: told.append((name, given["display"])),
    )
    assert tuner.launch(file, overrides=["trials=3"], use_cases=use_cases, **options).name == "digits"
    assert tuner.resume("digits", use_cases=use_cases, **options).name == "digits"
    assert [what for what, _ in told] == [3, "digits"]
    assert all(isinstance(shown, display) for _, shown in told)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="lunch"):
        tuner.lunch  # noqa: B018 - the look-up is the test
