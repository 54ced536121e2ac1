"""What a launch refuses before a plan is shown and a price agreed to: one line, and nothing was begun."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tuner.cli import main
from tuner.core.errors import UserError
from tuner.operations import launch
from tuner.store.store import Store

DIGITS = Path(__file__).parents[2] / "studies" / "digits" / "study.yaml"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"])
def test_a_store_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["--store", url, "launch", str(DIGITS)]) == 4
    said = capsys.readouterr()
    assert "is in memory and would forget its jobs" in said.err
    assert len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert main.main(["--store", url, "doctor"]) == 1, "what a launch minds, a look finds"
    assert "is in memory and would forget its jobs" in capsys.readouterr().out


def test_a_name_that_is_taken_is_refused_before_the_plan_is_shown() -> None:
    store = cast("Store", SimpleNamespace(studies=lambda: [SimpleNamespace(name="digits")]))
    with pytest.raises(UserError, match="a study named digits exists; go on with it: tuner resume digits"):
        launch.prepare(launch.plan(DIGITS), store)
