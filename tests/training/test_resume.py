"""The example studies, killed again and again, give the metrics of an uninterrupted training, bit for bit.

With `tuner.training` every step keeps its metric, for it lies in the checkpoint too. A script that only prints loses
the metric of a step whose checkpoint was in the store when the machine went, and its line was not.
"""

import functools
import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from training_container import PREFIX, Container

from tuner.storage.checkpoints import MetricsReader, scan
from tuner.storage.objects import DirectoryObjects

STUDIES = Path(__file__).parents[2] / "studies"
PATTERN = ("val_accuracy", "val_accuracy=([-+0-9.eEnaif]+)", "epoch=([0-9]+)")


def curves(container: Container) -> dict[str, dict[int | None, float]]:
    """The metrics as the engine sees them: for a repeated step the later run wins."""
    found: dict[str, dict[int | None, float]] = {}
    for point in sorted(MetricsReader(container.objects, PREFIX).poll(), key=lambda p: (p.attempt, p.run)):
        found.setdefault(point.name, {})[point.step] = point.value
    return found


def uninterrupted(container: Container) -> dict[str, dict[int | None, float]]:
    assert container.run() == 0, container.log
    container.sync(random.Random(0))
    whole = curves(container)
    shutil.rmtree(container.store)
    container.store.mkdir()
    return whole


# Put before a script: it says that it has come to its last epoch, and waits until it may end.
AT_ITS_END = """
import os, time
from pathlib import Path
from tuner import training

def report(step, _report=training.report, **metrics):
    if step == 6:
        print("at its end", flush=True)
    while step == 6 and not Path(os.environ["MAY_END"]).exists():
        time.sleep(0.001)
    _report(step, **metrics)

training.report = report
"""
NEVER_ENDS, NOT_KILLED = 2, 12


def interrupted(container: Container, rng: random.Random) -> int:
    """Kill run after run just after its next report, at every phase of saving and uploading; how many were killed.

    However fast or slow this machine is, the first two are, the second one beside a whole checkpoint in the store.
    """
    may_end = container.folder / "may-end"
    container.environment["MAY_END"] = str(may_end)

    def is_due(lines: int, *, saved: bool) -> bool:
        heard = container.log.count("val_accuracy=") >= lines or "at its end" in container.log
        return heard and (not saved or scan(container.objects, PREFIX).newest_complete is not None)

    for kills in range(NOT_KILLED + 1):
        if kills == NEVER_ENDS:
            may_end.touch()
        before = scan(container.objects, PREFIX)
        process = container.start()
        lines = rng.randint(1, 3)
        while process.poll() is None and (kills == NOT_KILLED or not is_due(lines, saved=kills == 1)):
            container.sync(rng)
        # of the third run, which has something to resume from, the record is in the store as well
        container.sync(rng, most={1: 0, 2: None}.get(kills, rng.randint(0, 6)))
        ended = process.poll() is not None
        container.kill(process)
        if "resuming after" in container.log:
            assert before.newest_complete is not None
            assert f"resuming after epoch {before.newest_complete.step}\n" in container.log
        if ended:
            assert process.returncode == 0, container.log
            container.sync(rng)
            return kills
    raise AssertionError("a run that was not killed did not end")


@pytest.mark.parametrize(("seed", "keep_s"), [(1, "600"), (2, "0.2")])
def test_digits_resumes_bit_for_bit(container: Container, seed: int, keep_s: str) -> None:
    """Whether old checkpoints are kept for long, or for less than an upload takes: then a run may start over."""
    shutil.copytree(STUDIES / "digits", container.source, dirs_exist_ok=True)
    container.hyperparameters = {"hidden": "16", "layers": "1", "epochs": "6", "activation": "tanh"}
    container.environment = {"TUNER_KEEP_S": keep_s}
    whole = uninterrupted(container)
    assert len(whole["val_accuracy"]) == len(whole["train_loss"]) == 6
    train = container.source / "train.py"
    train.write_text(AT_ITS_END + train.read_text())
    assert interrupted(container, random.Random(seed)) >= 2
    assert curves(container) == whole
    records = MetricsReader(container.objects, PREFIX).records()
    resumed = [record.resume_step for record in records if record.resume_step is not None]
    assert resumed
    assert keep_s != "600" or resumed == sorted(resumed)


# Put before a script that saves by renaming: after each save it waits until it is allowed one more.
IN_STEP = """
import os, time
from pathlib import Path

def rename(self, target, _rename=Path.replace, _saves=[0]):
    done = _rename(self, target)
    _saves[0] += 1
    while len(list(Path(os.environ["ALLOWED"]).iterdir())) < _saves[0]:
        time.sleep(0.001)
    return done

Path.replace = rename
"""


def reports(folder: Path) -> int:
    """How many metrics lie in the files of a checkpoint folder, repeated ones counted again."""
    prefix = f"s3://{folder.parent.name}/{folder.name}/"
    return len(MetricsReader(DirectoryObjects(folder.parent.parent), prefix).poll())


def interrupted_in_step(container: Container, rng: random.Random) -> int:
    """Kill run after run in any phase of a step; everything of the steps before is in the store; how many were killed.

    A run is allowed two steps beyond its first at most, so that at least two are killed.
    """
    allowed = container.folder / "allowed"
    container.environment["ALLOWED"] = str(allowed)

    # By its content: two saves may have one time and one size.
    def stamp() -> bytes | None:
        path = container.checkpoints / "state.npz"
        return path.read_bytes() if path.exists() else None

    def is_done(heard: int, old: bytes | None) -> bool:
        return stamp() != old and reports(container.checkpoints) >= heard

    for kills in range(40):
        shutil.rmtree(allowed, ignore_errors=True)
        allowed.mkdir()
        before = reports(container.store)
        old = (container.store / "state.npz").read_bytes() if kills else None
        process = container.start()
        for steps in range(1, rng.randint(1, 2) + 1):
            container.until(functools.partial(is_done, before + steps, old), process)
            container.sync(rng)
            old = stamp()
            (allowed / str(steps)).touch()
        if rng.random() < 0.7:  # its checkpoint is there, and its line was heard or not
            container.until(functools.partial(is_done, 0, old), process)
        container.sync(rng, most=rng.randint(0, 2))
        ended = process.poll() is not None
        container.kill(process)
        if ended:
            assert process.returncode == 0, container.log
            container.sync(rng)
            return kills
    raise AssertionError("40 runs, and no end of it")


def test_plain_script_resumes_bit_for_bit_and_loses_a_metric_at_most_with_each_kill(container: Container) -> None:
    shutil.copytree(STUDIES / "plain", container.source, dirs_exist_ok=True)
    train = container.source / "train.py"
    plain = train.read_text()
    container.hyperparameters = {"epochs": "6"}
    container.metrics = [PATTERN]
    whole = uninterrupted(container)["val_accuracy"]
    assert len(whole) == 6
    train.write_text(IN_STEP + plain)
    kills = interrupted_in_step(container, random.Random(1))
    assert kills >= 2
    again = curves(container)["val_accuracy"]
    # What there is is right, and so is the end: the script prints its last metric again.
    assert again.items() <= whole.items()
    assert again[6] == whole[6]
    assert len(whole.keys() - again.keys()) <= kills
    records = MetricsReader(container.objects, PREFIX).records()
    assert {record.resume_step for record in records} == {None}  # its checkpoints have no manifest
    assert sum(record.own_files > 0 for record in records) >= 1


SAVES_AND_DIES = """
import os, pathlib, signal, time
from tuner.training import Checkpoints, report
done = Checkpoints().latest()
first = done.step + 1 if done else 1
if first == 1:
    for step in range(1, 4):
        report(step, loss=step / 3)
        with Checkpoints().save(step) as folder:
            (folder / "state").write_text("x")
    metrics = pathlib.Path(os.environ["TUNER_CHECKPOINT_DIR"]) / "metrics"
    end = time.monotonic() + 120
    while sum(file.read_bytes().count(b"\\n") for file in metrics.iterdir()) < 3 and time.monotonic() < end:
        time.sleep(0.01)  # the bootstrap writes them, from a pipe
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
report(first, loss=first / 3)
"""


@pytest.mark.parametrize("torn", [None, 0, 10, 70])
def test_a_checkpoint_never_survives_without_the_metric_of_its_step(container: Container, torn: int | None) -> None:
    """The agent uploads in any order: here the metrics file did not make it, or not to its end."""
    assert container.script(SAVES_AND_DIES).run() == -signal.SIGKILL, container.log
    container.sync(random.Random(0))
    [file] = (container.store / "metrics").iterdir()
    if torn is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:torn])
    assert container.run() == 0, container.log
    container.sync(random.Random(0))
    assert curves(container) == {"loss": {1: 1 / 3, 2: 2 / 3, 3: 1.0, 4: 4 / 3}}
    points = MetricsReader(container.objects, PREFIX).poll()
    assert len(points) == 4  # nothing twice
    # What was put back belongs to the run that reported it: the second run began at step 4.
    runs = [record.run for record in sorted(MetricsReader(container.objects, PREFIX).records(), key=lambda r: r.run)]
    assert [point.step for point in points if point.run == runs[1]] == [4]
    record = json.loads(max((container.store / "runs").iterdir()).read_text())
    assert record["resume_step"] == 3
    assert record["own_files"] == 6
