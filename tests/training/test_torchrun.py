"""`launcher: torchrun`: processes that sum up together, on one host and on two; stopped and resumed together."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_container import Container, all_gone, descendants

pytestmark = pytest.mark.torch

# Each step adds the rank of every process: with two of them one more a step, and rank 0 alone saves and reports.
SCRIPT = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from tuner.training import Checkpoints, report

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
dist.init_process_group("gloo")
rank, checkpoints = dist.get_rank(), Checkpoints()
latest = checkpoints.latest()
total = torch.load(latest.path / "total.pt", weights_only=True) if latest else torch.zeros(1)
for step in range(latest.step + 1 if latest else 1, int(sys.argv[2]) + 1):
    part = torch.tensor([float(rank)])
    dist.all_reduce(part)
    total = total + part
    if rank == 0:
        report(step, total=total.item(), processes=dist.get_world_size())
        with checkpoints.save(step) as folder:
            torch.save(total, folder / "total.pt")
    dist.barrier()
    if step == 3:
        print("waiting", rank, flush=True)
    while step == 3 and not latest and os.environ["MODE"] == "wait":
        time.sleep(0.05)
dist.destroy_process_group()  # else gloo's threads may meet the end of the process, which aborts it
"""


@pytest.fixture
def two_processes(container: Container) -> Container:
    container.script(SCRIPT)
    container.launcher = "torchrun"
    container.hyperparameters = {"steps": "5"}
    container.environment = {"PET_NPROC_PER_NODE": "2", "MODE": "go"}
    return container


def totals(log: str) -> list[str]:
    return [line.split("total=")[1] for line in log.splitlines() if line.startswith("[tuner ")]


def test_a_job_that_is_killed_resumes_with_all_its_processes(two_processes: Container) -> None:
    two_processes.environment["MODE"] = "wait"
    process = two_processes.start()
    two_processes.until(lambda: two_processes.log.count("waiting") == 2, process)
    two_processes.sync(random.Random(1))
    two_processes.kill(process)
    assert two_processes.run() == 0, two_processes.log
    assert totals(two_processes.log) == ["4.0 processes=2.0", "5.0 processes=2.0"]


def test_a_stop_reaches_every_process(two_processes: Container) -> None:
    two_processes.environment["MODE"] = "wait"
    process = two_processes.start()
    two_processes.until(lambda: two_processes.log.count("waiting") == 2, process)
    running = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) != 0
    assert all_gone(running)


def test_a_failure_of_one_process_is_the_jobs(two_processes: Container) -> None:
    two_processes.script("import os, sys\nsys.exit(75 if os.environ['RANK'] == '1' else 0)")
    assert two_processes.run() == 1  # torchrun's own code, whatever the process said
    assert "exitcode  : 75" in two_processes.failure + two_processes.log


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Container]:
    (tmp_path / "second").mkdir()
    other = Container(tmp_path / "second")
    yield other
    other.close()


def test_two_hosts_train_together(two_processes: Container, second: Container, free_port: int) -> None:
    hosts = ["127.0.0.1", "127.0.0.2"]
    processes = []
    for container, host in zip((two_processes, second), hosts, strict=True):
        container.script(SCRIPT)
        container.launcher, container.hyperparameters = "torchrun", {"steps": "2"}
        container.resources = {"current_host": host, "hosts": hosts}
        container.environment = {"MODE": "go", "MASTER_PORT": str(free_port), "GLOO_SOCKET_IFNAME": "lo"}
        processes.append(container.start())
    assert [process.wait(timeout=240) for process in processes] == [0, 0], two_processes.log + second.log
    assert totals(two_processes.log) == ["1.0 processes=2.0", "2.0 processes=2.0"]
    assert totals(second.log) == []
