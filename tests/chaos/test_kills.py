"""SIGKILL at random moments, for engines and supervisors of jobs: nothing lost, nothing twice, every cent known."""

import os
import random

import pytest
from chaos_desk import EPOCHS, ChaosDesk, destroy

# `CHAOS_KILLS=50 CHAOS_SEED=7 pytest tests/chaos/test_kills.py` is the long run.
KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
SEED = int(os.environ.get("CHAOS_SEED", "20260101"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle machine; every wait has a limit of its own
def test_a_sweep_under_random_kills(desk: ChaosDesk) -> None:
    chance = random.Random(SEED)
    desk.write_sweep(trials=8)
    desk.allow(EPOCHS - 1)
    desk.start_engine()
    desk.wait_until(lambda: desk.kill_supervisor(chance), "one is killed that has saved a step, and is not done")
    desk.allow(EPOCHS)
    counts = destroy(desk, KILLS, chance)
    desk.end_engine()
    status = desk.all_is_well()
    figures = {name: status[name] for name in ("attempts", "interruptions", "resumed_runs", "spend_usd", "lost_work_s")}
    print(f"seed {SEED}: {counts}, {figures}")
    assert status["resumed_runs"] > 0
