"""Two-stage Ctrl-C, in a real process."""

import signal
import subprocess
import sys

import pytest

from tuner.verbs import Signals

_PROGRAM = """
import os, signal, sys
from tuner.verbs import Signals
woken = []
with Signals(last_words="resume with: tuner resume digits") as signals:
    signals.attach(lambda: woken.append(1))
    for _ in range({times}):
        os.kill(os.getpid(), signal.{name})
print(signals.stop_requested, signals.exit_code, woken)
"""


def _run(name: str, times: int) -> subprocess.CompletedProcess[str]:
    program = _PROGRAM.format(name=name, times=times)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_first_signal_asks_and_wakes(name: str, code: int) -> None:
    done = _run(name, 1)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"True {code} [1]", "")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_second_leaves_now_and_says_how_to_go_on(name: str, code: int) -> None:
    done = _run(name, 2)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "\nresume with: tuner resume digits\n"


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_a_clock_attached_after_the_signal_is_woken_at_once() -> None:
    signals = Signals()
    woken: list[int] = []
    signals.deliver(signal.SIGINT)
    signals.attach(lambda: woken.append(1))
    assert woken == [1]
