"""SIGKILL at random moments, for engines and supervisors of jobs: nothing lost, nothing twice, every cent known."""

import os
import random

import pytest
from chaos_desk import ChaosDesk, destroy

# `CHAOS_KILLS=50 CHAOS_SEED=7 pytest tests/chaos/test_kills.py` is the long run.
KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
SEED = int(os.environ.get("CHAOS_SEED", "20260101"))


@pytest.mark.slow
def test_a_sweep_under_random_kills(desk: ChaosDesk) -> None:
    desk.write_sweep(trials=8)
    desk.start_engine()
    counts = destroy(desk, KILLS, random.Random(SEED))
    desk.end_engine()
    status = desk.all_is_well()
    figures = {name: status[name] for name in ("attempts", "interruptions", "resumed_runs", "spend_usd", "lost_work_s")}
    print(f"seed {SEED}: {counts}, {figures}")
    assert status["resumed_runs"] > 0
