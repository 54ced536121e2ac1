"""Any process may be killed at any instruction: the history stays legal, the bill holds, and nothing is left behind.

Twenty jobs of a sleeping script; callers in processes of their own create, describe, list and stop them, while
supervisors, scripts and callers are killed at random, and one supervisor in the middle of a training, so that there
is an interruption for certain. `TUNER_TEST_KILLS` sets how many kills, `TUNER_TEST_SEED` where chance begins.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from local_world import command_line, pids, processes_with

from tuner.local.billing import bill
from tuner.local.jobdir import ENDS

KILLS = int(os.environ.get("TUNER_TEST_KILLS", "30"))
SEED = int(os.environ.get("TUNER_TEST_SEED", "1"))
LONGEST_S = max(3.0, 0.15 * KILLS)
JOBS = [f"job-{number:02d}" for number in range(20)]
# The transitions that are allowed; written here a second time, not taken from the code.
FOLLOWS = {
    "Starting": {"Downloading", "Stopping"},
    "Downloading": {"Training", "Interrupted", "Stopping", "Failed"},
    "Training": {"Uploading", "Interrupted", "Stopping", "Failed"},
    "Interrupted": {"Starting", "Stopping"},
    "Uploading": {"Completed", "Interrupted", "Stopping"},
    "Stopping": {"Stopped"},
}
CALLER = """
import random, sys
from pathlib import Path
from botocore.exceptions import ClientError
from local_world import LocalWorld
world, source = LocalWorld(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
longest_s, names = float(sys.argv[3]), sys.argv[4:]
while True:
    name = source.choice(names)
    try:
        match source.randrange(12):
            case 0 | 1 | 2:
                world.create(name, f"import time; time.sleep({source.uniform(0.5, longest_s)})")
            case 3:
                world.client.stop_training_job(TrainingJobName=name)
            case 4 | 5:
                world.client.list_training_jobs(MaxResults=100)
            case _:
                world.describe(name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"ResourceInUse", "ValidationException"}:
            raise
"""


def start_caller(state_dir, number):
    command = [sys.executable, "-c", CALLER, str(state_dir), str(number), str(LONGEST_S), *JOBS]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    errors = (state_dir.parent / f"caller-{number}.err").open("w")
    with errors:
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=errors)


@pytest.mark.parametrize("private", [True, False])
def test_kills_at_any_moment_leave_a_true_bill_and_nothing_else(world, private):
    world.settings(private_opt_ml=private)
    source = random.Random(SEED)
    callers = [start_caller(world.state_dir, SEED + number) for number in range(3)]
    for name in JOBS[:12]:  # the others are created by callers that may be killed doing so
        world.create(name, f"import time; time.sleep({source.uniform(0.5, LONGEST_S)})")
    try:
        for number in range(KILLS):
            time.sleep(source.uniform(0.0, 0.3))
            kind = source.choice(["caller", *["supervisor"] * 4, *["script"] * 2])
            victims = {
                "caller": [caller.pid for caller in callers],
                "supervisor": processes_with(f"supervisor.py\0{world.state_dir}"),
                "script": processes_with_environment(str(world.state_dir)),
            }[kind]
            if victims:
                kill(source.choice(victims))
            for position, caller in enumerate(callers):
                if caller.poll() is not None:
                    callers[position] = start_caller(world.state_dir, SEED + 100 + 3 * number + position)
    finally:
        for caller in callers:
            caller.kill()
            caller.wait()
    assert_no_caller_failed(world.state_dir.parent)
    gate = world.state_dir.parent / "gate"
    world.create(
        "job-last",
        f"import os, time\nprint('up', flush=True)\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)",
    )
    world.printed("up", "job-last")
    kill(world.supervisor_pid("job-last"))
    gate.touch()
    created = [path.name for path in (world.state_dir / "jobs").iterdir()]
    for name in created:
        check(world, name)
    assert "Interrupted" in world.secondary("job-last")
    world.until(lambda: processes_with(str(world.state_dir)), lambda left: not left)
    assert not processes_with_environment(str(world.state_dir))
    assert {path.name for path in (world.state_dir / "jobs").iterdir()} == set(created)


def check(world, name):
    seen = world.ended(name)
    history = [row["Status"] for row in seen["SecondaryStatusTransitions"]]
    assert history[0] == "Starting"
    assert history[-1] in ENDS
    for before, after in pairwise(history):
        assert after in FOLLOWS[before], (name, history)
    times = [row["StartTime"] for row in seen["SecondaryStatusTransitions"]]
    assert times == sorted(times)
    up_s = billed_by_hand(seen["SecondaryStatusTransitions"])
    recomputed = bill(world.state_dir, name)
    assert recomputed.billable_s == seen.get("BillableTimeInSeconds")
    assert recomputed.training_s == seen.get("TrainingTimeInSeconds")
    assert (up_s is None) == (recomputed.training_s is None)
    assert up_s is None or abs(up_s - recomputed.training_s) <= 1
    assert recomputed.training_s is None or 0.3 <= 1 - recomputed.billable_s / max(recomputed.training_s, 2) <= 1.0


def billed_by_hand(transitions):
    """Seconds on an instance, added up naively from what Describe shows."""
    total, on = 0.0, False
    for row in transitions[:-1]:
        if row["Status"] != "Stopping":
            on = row["Status"] in {"Downloading", "Training", "Uploading"}
        if on:
            total += (row["EndTime"] - row["StartTime"]).total_seconds()
    return total if any(row["Status"] in {"Downloading", "Training"} for row in transitions) else None


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def processes_with_environment(state_dir):
    """The scripts of any job of this state directory."""
    found = []
    for pid in pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_text(errors="replace")
        except OSError:
            continue
        if f"TUNER_LOCAL_JOB={state_dir}/" in environment and "supervisor.py" not in command_line(pid):
            found.append(pid)
    return found


def assert_no_caller_failed(folder):
    for path in folder.glob("caller-*.err"):
        assert "Traceback" not in path.read_text(), path.read_text()
