"""The store's disk is full for a while: jobs go on, nothing is submitted, and when there is room again all is well."""

import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_desk import ChaosDesk

WAITS = "jobs go on, and so does the study when the store is there again"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of two megabytes; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def sees_no_tick(desk: ChaosDesk) -> None:
    """The engine waits, as soon as its tick under way is over; the store can still be read."""
    desk.wait_until(lambda: desk.hears(WAITS), "the engine says that it waits")

    def rests() -> bool:
        before = desk.last_tick()
        time.sleep(3.0)
        return desk.last_tick() == before

    desk.wait_until(rests, "no tick in three seconds")
    assert desk.run("status", "small").returncode == 0
    assert not desk.engine_ended, "a full disk is waited out"


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 12, 1 << 6, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle machine; every wait has a limit of its own
def test_a_disk_without_room(desk: ChaosDesk, small_disk: Path) -> None:
    desk.write_sweep(trials=4, parallel=3)
    desk.store = f"sqlite:///{small_disk}/tuner.db"
    desk.start_engine()
    desk.wait_until(lambda: desk.saved(1, trials=1), "a step is saved")
    ballast = fill(small_disk)
    sees_no_tick(desk)
    ballast.unlink()
    desk.end_engine()
    desk.all_is_well()


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle machine; every wait has a limit of its own
def test_a_file_that_may_not_grow(desk: ChaosDesk) -> None:
    """The engine's limit on file sizes stands for the disk; it holds in mid-flight; the engine hears Ctrl-C."""
    desk.write_sweep(trials=4, parallel=3)
    desk.start_engine()
    desk.wait_until(lambda: desk.saved(1, trials=1), "a step is saved")
    assert desk.engine is not None
    full = desk.engine
    resource.prlimit(desk.engine.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    sees_no_tick(desk)
    full.send_signal(signal.SIGINT)
    _, err = full.communicate(timeout=240)
    assert full.returncode == 130, err
    assert (desk.heard + err).count(WAITS) == 1
    assert "tuner resume small" in err.splitlines()[-1]
    desk.start_engine()
    desk.end_engine()
    desk.all_is_well()
