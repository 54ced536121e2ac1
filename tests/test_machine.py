"""Nothing of the machine reaches a test, and nothing of the worker that runs it decides what it draws."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import machine


def test_what_a_machine_has_set_is_forgotten() -> None:
    environ = {
        "AWS_PROFILE": "work",
        "AWS_CONFIG_FILE": "/home/ann/.aws/config",
        "TUNER_STORE": "postgresql://team",
        "COLUMNS": "40",
        "FORCE_COLOR": "1",
        "PATH": "/bin",
        "TUNER_TEST_SEED": "7",
        "http_proxy": "http://proxy:3128",
        "no_proxy": "intranet",
    }
    machine.forget(environ)
    here = "127.0.0.1,localhost"
    assert environ == {
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": "/bin",
        "TUNER_TEST_SEED": "7",
        "http_proxy": "http://proxy:3128",
        "NO_PROXY": here,
        "no_proxy": f"{here},intranet",
    }


def test_a_run_that_is_to_reach_aws_keeps_its_account() -> None:
    environ = {"TUNER_TEST_AWS": "1", "AWS_PROFILE": "work", "TUNER_STORE": "postgresql://team"}
    machine.forget(environ)
    assert environ.keys() == {"TUNER_TEST_AWS", "AWS_PROFILE", "NO_PROXY", "no_proxy"}


def test_the_same_is_drawn_whatever_else_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a test that this suite has passed a thousand times meets an example that it never met."""
    drawn: list[tuple[int, str, float]] = []

    @given(st.integers(0, 10**8), st.text(max_size=10), st.floats(allow_nan=False))
    def draw(number: int, text: str, real: float) -> None:
        drawn.append((number, text, real))

    draw()
    before, drawn = drawn, []
    numbers = ", ".join(str(number) for number in range(1_000, 100_000, 777))
    (tmp_path / "came_meanwhile.py").write_text(f"NUMBERS = [{numbers}]\nTEXTS = ['one of ours', 'and another']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "came_meanwhile", None)  # so that it is taken out again
    monkeypatch.delitem(sys.modules, "came_meanwhile")
    __import__("came_meanwhile")
    draw()
    assert drawn == before
