"""Two-stage Ctrl-C, in a real process."""

import signal
import subprocess
import sys
import threading

import pytest
from cli_calls import Faked

from tuner.cli import main
from tuner.operations.records import Signals

pytestmark = pytest.mark.slow

_PROGRAM = """
import os, signal, sys
from tuner.cli import main as cli
from tuner.operations.records import Signals
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


_VERB = """
import os, signal, sys
from tuner.cli import main as cli
from tuner.operations.use_cases import UseCases
def verb(file):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        sys.stdin.read()
    finally:
        print("undone what was begun")
use_cases = UseCases()
use_cases.policies = verb
sys.exit(cli.main(["doctor", "--policy"], use_cases))
"""


def test_sigterm_lets_every_verb_undo_what_it_began() -> None:
    """The signal's default kills where it stands: the one job of `doctor --first-dollar` would go on, and cost."""
    done = subprocess.run([sys.executable, "-c", _VERB], capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (143, "undone what was begun\n", "")


def test_a_process_that_was_made_deaf_to_sigterm_stays_so() -> None:
    program = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{_VERB}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=240,
    )
    assert (done.returncode, done.stdout) == (0, "undone what was begun\nnull\n")


def test_a_verb_leaves_sigterm_as_it_found_it() -> None:
    during: list[object] = []

    def verb(_file: object) -> dict[str, object]:
        during.append(signal.getsignal(signal.SIGTERM))
        return {}

    words, use_cases = ["doctor", "--policy"], Faked(policies=verb)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert main.main(words, use_cases) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    in_thread = threading.Thread(target=main.main, args=(words, use_cases))
    in_thread.start()
    in_thread.join()
    assert [each is signal.SIG_DFL for each in during] == [False, True]
