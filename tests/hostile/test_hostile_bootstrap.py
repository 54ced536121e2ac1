"""What a script may print and do to its checkpoint folder, as the bootstrap takes it: bounded memory, a defined end."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.training.training_container import PREFIX, Container
from tuner.storage.checkpoints import MetricsReader

LINE = "epoch {:07d} " + "x" * 85


def peak_kb(process: "subprocess.Popen[bytes]") -> int:
    """The bootstrap's highest memory so far; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def run_watched(container: Container) -> int:
    process, peak = container.start(), 0
    while process.poll() is None:
        peak = max(peak, peak_kb(process))
        time.sleep(0.05)
    assert process.returncode == 0, container.log[-2000:]
    return peak


def points(container: Container) -> list[tuple[int | None, str, float]]:
    shutil.rmtree(container.store)
    container.checkpoints.rename(container.store)
    found = MetricsReader(container.objects, PREFIX).poll()
    return [(point.step, point.name, point.value) for point in found]


@pytest.mark.slow
def test_two_hundred_megabytes_of_log_and_a_line_of_fifty_pass_in_bounded_memory(container: Container) -> None:
    container.metrics = [("loss", "loss=([0-9.]+)", "step=([0-9]+)")]
    container.script("""
import sys
block = ("x" * 99 + "\\n") * 10_000
for _ in range(200):
    sys.stdout.write(block)
sys.stdout.write("y" * 50_000_000)
print("\\nstep=3 loss=0.25")
""")
    assert run_watched(container) < 60_000
    assert (container.root / "log").stat().st_size > 250_000_000
    assert points(container) == [(3, "loss", 0.25)]


@pytest.mark.slow
def test_fifty_megabytes_of_reports_are_put_back_without_reading_them_into_memory(container: Container) -> None:
    container.script("print('nothing')")
    assert container.run() == 0
    name = next((container.checkpoints / "runs").iterdir()).stem + ".jsonl"
    lines = 200_000
    entry = {"step": lines, "at": 1.0, "metrics": {"loss": 0.5}}
    (container.store / "metrics").mkdir()
    (container.store / "metrics" / name).write_bytes(
        b"".join(b'{"step": %d, "at": 1.0, "metrics": {"loss": 0.5}}%200s\n' % (step, b"") for step in range(lines))
        + b'{"step": 1'
    )
    folder = container.store / "step-00000001"
    folder.mkdir()
    manifest = {"format": 1, "step": 1, "saved_at": 1.0, "files": [], "metrics": {"file": name, "entries": [entry]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert run_watched(container) < 60_000
    text = (container.checkpoints / "metrics" / name).read_bytes()
    assert text.count(b"\n") == lines + 1
    assert json.loads(text.splitlines()[-1]) == entry


def test_a_script_that_clears_its_checkpoint_folder_keeps_its_metrics(container: Container) -> None:
    container.script("""
import os, shutil, pathlib, time
from tuner.training import Checkpoints, report
folder = pathlib.Path(os.environ["TUNER_CHECKPOINT_DIR"])
report(1, loss=1)
while not any(path.stat().st_size for path in folder.glob("metrics/*")):
    time.sleep(0.01)  # the bootstrap reads from its pipe when it may, and a folder that is written to cannot be cleared
for path in folder.iterdir():
    shutil.rmtree(path)
report(2, loss=0.5)
with Checkpoints().save(2) as saved:
    (saved / "model").write_text("x")
""")
    assert container.run() == 0, container.log
    assert (2, "loss", 0.5) in points(container)


@pytest.mark.parametrize("what", ["os.symlink('/nowhere', path)", "open(path, 'w').close()", "os.symlink(here, path)"])
def test_a_metrics_folder_that_is_none_any_more_is_made_again(container: Container, what: str) -> None:
    container.script(f"""
import os, shutil
from tuner.training import report
path, here = os.environ["TUNER_CHECKPOINT_DIR"] + "/metrics", os.getcwd()
shutil.rmtree(path)
{what}
report(1, loss=1)
""")
    assert container.run() == 0, container.log
    lost = what == "os.symlink(here, path)"  # what a link leads to is the script's own affair, and does not go up
    assert (container.checkpoints / "metrics").is_symlink() == lost
    assert lost or points(container) == [(1, "loss", 1.0)]


def test_a_file_in_the_place_of_the_metrics_folder_makes_room(container: Container) -> None:
    (container.store / "metrics").write_text("mine")
    container.script("from tuner.training import report; report(1, loss=1)")
    assert container.run() == 0, container.log
    assert len(list((container.checkpoints / "metrics").iterdir())) == 1


def test_lines_that_a_script_writes_to_metrics_itself_stand_beside_ours(container: Container) -> None:
    container.script("""
import json, os
from tuner.training import report
folder = os.environ["TUNER_CHECKPOINT_DIR"] + "/metrics/"
with open(folder + "000-00-algo-1.jsonl", "w") as file:
    file.write("rubbish\\n" + json.dumps({"step": 5, "at": 1.0, "metrics": {"mine": 1}}) + "\\n")
open(folder + "no name of ours", "w").write("rubbish")
report(1, loss=1)
""")
    assert container.run() == 0, container.log
    assert sorted(points(container)) == [(1, "loss", 1.0), (5, "mine", 1.0)]


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("step=1e300 loss=1", [(None, "loss", 1.0)]),
        ("step=-4 loss=1", [(None, "loss", 1.0)]),
        ("step=nan loss=1", [(None, "loss", 1.0)]),
        ("step=2 loss=nan", [(2, "loss", float("nan"))]),
        ("step=2 loss=-inf", [(2, "loss", float("-inf"))]),
        ("step=2 loss=abc", []),
        ("step=2 loss=1e999", [(2, "loss", float("inf"))]),
        ("[tuner 1.0] step=-1 loss=1", []),
        ("[tuner 1.0] step=1 a\x1b[31m=1", []),
        ("[tuner 99999999999999999999.0] step=1 a=1", []),
    ],
)
def test_what_is_printed_for_a_metric_and_is_none(
    container: Container, printed: str, found: list[tuple[int | None, str, float]]
) -> None:
    value = r"^step=\S+ loss=(\S+)"
    container.metrics = [("loss", value, r"^step=(\S+)")]
    container.script(f"print({printed!r})")
    assert container.run() == 0, container.log
    assert repr(points(container)) == repr(found)


@pytest.mark.parametrize("step", ["-1", "10 ** 18", "2 ** 63"])
def test_a_step_that_could_not_be_recorded_is_the_scripts_error(container: Container, step: str) -> None:
    container.script(f"from tuner.training import report; report({step}, loss=1)")
    assert container.run() == 1
    assert "a step is 0 or more, with at most 18 digits" in container.failure


def test_a_crash_at_import_is_told_with_its_exception(container: Container) -> None:
    container.script("import a_library_that_nobody_has")
    assert container.run() == 1
    assert "ModuleNotFoundError: No module named 'a_library_that_nobody_has'" in container.failure


def test_hyperparameters_arrive_as_they_were_sent(container: Container) -> None:
    values = [
        "",
        "two words",
        "'\"",
        "$(touch x)",
        "`id`",
        "../..",
        "; rm -rf /",
        "ünï 🐌",
        "12e4",
        "-x",
        "\\",
        "v" * 2500,
    ]
    container.hyperparameters = {f"p{number}": value for number, value in enumerate(values)}
    container.script("import sys, json; print('ARGS', json.dumps(sys.argv[1:]))")
    assert container.run() == 0, container.log
    said = next(line for line in container.log.splitlines() if line.startswith("ARGS "))
    given = json.loads(said.removeprefix("ARGS "))
    assert dict(zip(given[::2], given[1::2], strict=True)) == {f"--p{n}": value for n, value in enumerate(values)}


@pytest.mark.parametrize("whole", [True, False])
def test_parts_of_a_step_are_no_files_that_a_run_could_have_resumed_from(container: Container, *, whole: bool) -> None:
    """An interruption during the first upload: the run after it begins at the beginning, and is right to do so."""
    container.script("""
from tuner.training import Checkpoints
with Checkpoints().save(1) as folder:
    (folder / "model").write_text("x")
""")
    assert container.run() == 0, container.log
    (container.checkpoints / "step-00000001").rename(container.store / "step-00000001")
    if not whole:
        (container.store / "step-00000001/manifest.json").unlink()
    assert container.run() == 0, container.log
    record = json.loads(max((container.checkpoints / "runs").iterdir()).read_text())
    assert (record["resume_step"], record["own_files"]) == ((1, 2) if whole else (None, 0))
