"""The engine's clock is set forward and back by hours under real jobs, which live by the cloud's own."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chaos_desk import EPOCHS, ChaosDesk

# The command line, its engine with a clock that is set by a file. The local service keeps the true one, as AWS would.
TUNER = """
import sys
from datetime import timedelta
from pathlib import Path

from tuner.cli import main as cli
from tuner.operations import launch
from tuner.core.clock import SystemClock


class SetClock(SystemClock):
    def now(self):
        return super().now() + timedelta(hours=float(Path("hours").read_text()))


launch.SystemClock = SetClock
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass
class ClockDesk(ChaosDesk):
    def set_clock(self, hours: float) -> None:
        new = self.folder / "hours.new"
        new.write_text(str(hours))
        new.replace(self.folder / "hours")

    def start(self, *words: str) -> subprocess.Popen:
        return self.start_program([sys.executable, "-c", TUNER, *words])

    def ticks_at(self, hours: float) -> bool:
        """Whether the engine has ticked by that clock."""
        last = self.last_tick()
        return last is not None and abs(datetime.now(UTC) + timedelta(hours=hours) - last) < timedelta(hours=1)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[ClockDesk]:
    desk = ClockDesk(tmp_path)
    yield desk
    desk.kill_everything()


def goes_on(desk: ClockDesk, hours: float, *, step: int) -> None:
    """Set the clock; the engine ticks by it, and its jobs go on to the next step and through an interruption."""
    desk.set_clock(hours)
    desk.wait_until(lambda: desk.ticks_at(hours), f"a tick at {hours:+} h")
    desk.allow(step)
    desk.wait_until(lambda: desk.saved(step, trials=2), f"step {step} at {hours:+} h")
    runs = desk.run_count()
    desk.take_capacity(down_s=0.5)
    desk.wait_until(lambda: desk.run_count() >= runs + 2, "both jobs run again")


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle machine; every wait has a limit of its own
def test_a_clock_that_is_set_forward_and_back(desk: ClockDesk) -> None:
    desk.set_clock(0)
    desk.write_sweep(trials=3, parallel=2, step_s=0.05)
    desk.allow(1)
    desk.start_engine()
    desk.wait_until(lambda: desk.saved(1, trials=2), "both have saved a step")
    goes_on(desk, 6, step=2)
    goes_on(desk, -6, step=3)
    desk.set_clock(6)
    desk.wait_until(lambda: desk.ticks_at(6), "a lease that runs out in six hours")
    assert desk.kill_engine(lambda: desk.set_clock(0)), "the next engine finds that lease, and its holder gone"
    desk.wait_until(lambda: desk.ticks_at(0), "the next engine ticks")
    desk.allow(EPOCHS)
    desk.end_engine()
    desk.all_is_well()
