"""The container's PID 1 with real scripts: arguments, signals, exit codes, output, metrics, records."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_container import PREFIX, Container, all_gone, gone, kill

from tuner import bootstrap
from tuner.storage.checkpoints import MetricsReader


def lines(container: Container) -> list[dict[str, object]]:
    files = (container.checkpoints / "metrics").iterdir()
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def metrics(container: Container) -> list[tuple[object, object]]:
    return [(line["step"], line["metrics"]) for line in lines(container)]


def test_a_script_is_started_as_the_toolkit_does(container: Container) -> None:
    container.script("""
import json, os, sys, tuner.training
keep = ("SM_", "TUNER_", "PYTHONPATH")
print(json.dumps({"argv": sys.argv, "cwd": os.getcwd(), "tuner": tuner.training.__file__,
                  "env": {k: v for k, v in os.environ.items() if k.startswith(keep)}}))
open("scratch", "w").close()
""")
    container.hyperparameters = {"lr": "12e4", "name": "it's; $(rm -rf x)", "n-layers": "3", "flag": "true", "e": ""}
    assert container.run() == 0, container.log
    seen = json.loads(container.log)
    arguments = ["--e", "", "--flag", "true", "--lr", "12e4", "--n-layers", "3", "--name", "it's; $(rm -rf x)"]
    assert seen["argv"] == ["train.py", *arguments]
    assert seen["cwd"] == str(container.root / "code")
    assert seen["tuner"] == str(container.root / "code" / "tuner" / "training.py")
    assert not (container.root / "input" / "data" / "code" / "scratch").exists()
    env = seen["env"]
    assert env["SM_MODEL_DIR"] == str(container.root / "model")
    assert env["SM_CHANNELS"] == '["train"]'
    assert env["SM_CHANNEL_TRAIN"] == str(container.root / "input" / "data" / "train")
    assert env["SM_HP_N-LAYERS"] == "3"
    assert json.loads(env["SM_HPS"])["flag"] is True
    assert json.loads(env["SM_USER_ARGS"]) == arguments
    assert json.loads(env["SM_TRAINING_ENV"])["hosts"] == ["algo-1"]
    assert (env["SM_CURRENT_HOST"], env["SM_HOSTS"], env["SM_NUM_GPUS"].isdigit()) == ("algo-1", '["algo-1"]', True)
    assert env["TUNER_CHECKPOINT_DIR"] == str(container.checkpoints)
    assert env["TUNER_RESUME_STEP"] == ""
    assert env["TUNER_RUN"].isalnum()
    for name in ("SM_OUTPUT_DATA_DIR", "SM_OUTPUT_INTERMEDIATE_DIR", "SM_MODEL_DIR"):
        assert Path(env[name]).is_dir()


def test_the_modules_of_its_own_are_the_bundles_whatever_else_lies_about(container: Container) -> None:
    """Neither a tuner that is installed in the image nor files of the user's stand in for a module that it imports."""
    installed = container.folder / "installed" / "tuner"
    installed.mkdir(parents=True)
    for path in (
        installed / "__init__.py",
        installed / "_job_output.py",
        *(container.source / name for name in STDLIB),
    ):
        path.write_text("raise SystemExit('not the one that was meant')")
    container.environment = {"PYTHONPATH": str(installed.parent)}
    container.script("print('began')")
    assert container.run() == 0, container.log
    assert container.log == "began\n"
    written = {path.name for path in (container.root / "input" / "data" / "code").rglob("*")}
    assert "__pycache__" not in written


STDLIB = ("hashlib.py", "json.py", "shutil.py", "collections.py")


def test_runs_are_ordered_by_their_ids_and_recorded(container: Container) -> None:
    container.script("pass")
    for _ in range(3):
        assert container.run() == 0
        for path in (container.checkpoints / "runs").iterdir():
            (container.store / "runs").mkdir(exist_ok=True)
            path.rename(container.store / "runs" / path.name)
    records = MetricsReader(container.objects, PREFIX).records()
    assert len(records) == 3
    assert sorted(records, key=lambda r: r.run) == sorted(records, key=lambda r: r.started_at)
    assert {(r.attempt, r.host, r.resume_step, r.resume_saved_at, r.own_files) for r in records} == {
        (1, "algo-1", None, None, 0)
    }


@pytest.mark.parametrize(
    ("script", "code"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("import os; os.abort()", 134)],
)
def test_exit_codes_are_kept_and_the_failure_is_written(container: Container, script: str, code: int) -> None:
    container.script(f"print('first words'); print('last wörds \\U0001f40c'); {script}")
    assert container.run() == code
    assert container.failure.startswith(f"ExecuteUserScriptError: ExitCode {code}\n")
    assert "last wörds \U0001f40c" in container.failure
    assert ("out of memory" in container.failure) == (code == 137)


def test_a_traceback_without_an_end_of_line_is_not_lost_and_not_too_long(container: Container) -> None:
    container.script("import sys; print('x' * 5000); sys.stderr.write('y' * 3000 + 'the end'); sys.exit(1)")
    assert container.run() == 1
    assert len(container.failure) <= 1024
    container.script("import sys; sys.stderr.write('no newline'); sys.exit(1)")
    assert container.run() == 1
    assert container.failure.endswith("no newline")


def test_the_script_may_explain_its_failure_itself(container: Container) -> None:
    container.script(
        "import os; open(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('mine'); raise SystemExit(3)"
    )
    assert container.run() == 3
    assert container.failure == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_script_and_its_exit_code_is_kept(container: Container, number: int) -> None:
    container.script("""
import signal, sys
def leave(number, frame):
    print("saving", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
print("ready")
while True:
    signal.pause()
""")
    process = container.start()
    container.until(lambda: "ready" in container.log, process)
    process.send_signal(number)
    assert process.wait(timeout=120) == 5
    assert "saving" in container.log
    assert not (container.root / "output" / "failure").exists()  # a stop is no failure


def test_a_script_that_dies_of_the_signal_or_has_children(container: Container) -> None:
    container.script("""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready")
child.wait()
print("child", child.returncode)
sys.exit(4)
""")
    process = container.start()
    container.until(lambda: "ready" in container.log, process)
    process.terminate()
    assert process.wait(timeout=120) == 143


def test_a_script_that_ignores_the_signal_goes_on(container: Container) -> None:
    container.script("""
import signal, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: (seen.append(1), print("ignored", flush=True)))
print("ready")
while len(seen) < 2:
    time.sleep(0.01)
""")
    process = container.start()
    container.until(lambda: "ready" in container.log, process)
    process.terminate()
    container.until(lambda: "ignored" in container.log, process)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=120) == 0


def test_a_daemon_that_keeps_the_output_open_does_not_keep_the_job(container: Container) -> None:
    container.script("""
import os, time
settled, settle = os.pipe()
for detach in (False, True):
    pid = os.fork()
    if pid == 0:
        if detach:
            os.setsid()
        os.write(settle, b".")
        time.sleep(600)
        os._exit(0)
    print(pid, flush=True)
    os.read(settled, 1)
print("done", flush=True)
os._exit(0)
""")
    assert container.run() == 0
    assert "done" in container.log
    first, second = (int(pid) for pid in container.log.split()[:2])
    lives_on = not gone(second)  # the one that left the script's session
    kill(second)  # in a container the end of PID 1 takes it along; here the supervisor does
    assert lives_on
    assert all_gone([first])


def test_a_script_that_closes_its_output_lives_on(container: Container) -> None:
    container.script("import os, time; os.close(1); os.close(2); time.sleep(0.3); os._exit(6)")
    process = container.start()
    assert process.wait(timeout=120) == 6


def test_gigantic_lines_pass_in_bounded_memory(container: Container) -> None:
    container.script("""
import os, sys
for _ in range(600):
    sys.stdout.write("x" * 100_000)
sys.stdout.flush()
os.write(1, b"\\nval=0.5\\n")
peak = open(f"/proc/{os.getppid()}/status").read().split("VmHWM:")[1].split()[0]
print("peak", peak)
""")
    container.metrics = [("val", "val=(.*)", None)]
    assert container.run() == 0
    assert (container.root / "log").stat().st_size > 60_000_000
    assert int((container.root / "log").read_bytes()[-40:].split()[-1]) < 40_000  # kB
    assert metrics(container) == [(None, {"val": 0.5})]


def test_output_passes_unchanged(container: Container) -> None:
    data = bytes(range(256)) * 3 + "żółw\r\n\r10%\r20%".encode()
    container.script(f"import os; os.write(1, {data!r})")
    assert container.run() == 0
    assert (container.root / "log").read_bytes() == data


def test_metrics_are_found_by_regexes(container: Container) -> None:
    container.metrics = [
        ("acc", "acc=([-+0-9.eEnaif]+)", "epoch=([0-9]+)"),
        ("loss", "loss: (\\S+)", None),
        ("late", "late=(\\S+)", "Epoch (\\d+)"),
    ]
    container.script("""
print("epoch=1 acc=0.5 loss: 2.5")
print("\\r 50%|####\\r epoch=2 acc=nan loss: broken")
print("epoch=3 acc=1e-3")
print("Epoch 7")
print("late=-inf")
print("acc=")
print("x" * 5000 + "acc=0.9")
print("epoch=4 acc=.75", end="")
""")
    assert container.run() == 0
    assert metrics(container) == [
        (1, {"acc": 0.5}),
        (None, {"loss": 2.5}),
        (2, {"acc": "nan"}),
        (3, {"acc": 0.001}),
        (7, {"late": "-inf"}),
        (4, {"acc": 0.75}),
    ]


def test_reports_are_found_even_after_an_unfinished_line(container: Container) -> None:
    container.metrics = [("loss", "loss=(.*)", None)]
    container.script("""
import sys
from tuner.training import report
report(1, loss=0.1, **{"val/acc": 1})
sys.stdout.write("50%|#### ")
report(2, loss=float("nan"))
report(None, loss=float("-inf"))
""")
    assert container.run() == 0, container.log
    assert metrics(container) == [
        (1, {"loss": 0.1, "val/acc": 1.0}),
        (2, {"loss": "nan"}),
        (None, {"loss": "-inf"}),
    ]


def test_a_metric_is_in_the_file_while_the_script_still_runs(container: Container) -> None:
    container.script("""
import glob, os, time
from tuner.training import report
report(1, loss=0.5)
end = time.monotonic() + 120
while not any(open(f).read().endswith("\\n") for f in glob.glob(os.environ["TUNER_CHECKPOINT_DIR"] + "/metrics/*")):
    assert time.monotonic() < end
    time.sleep(0.005)
""")
    assert container.run() == 0, container.log


def test_requirements_are_checked_locally_and_never_installed(container: Container) -> None:
    (container.source / "requirements.txt").write_text(
        "# ours\nnumpy>=1\n-r other.txt\nnot-there-at-all[extra]==3  # why\nold; python_version < '3'\n"
    )
    container.script("print('never')")
    assert container.run() == 1
    assert "not-there-at-all" in container.failure
    assert "numpy" not in container.failure
    assert "never" not in container.log
    (container.source / "requirements.txt").write_text("numpy\n")
    assert container.run() == 0


def test_what_cannot_start_is_explained(container: Container) -> None:
    container.metrics = [("acc", "(", None)]
    container.script("pass")
    assert container.run() == 1
    assert "re.error" in container.failure


def test_orphans_are_reaped_by_pid_1(container: Container) -> None:
    """In a PID namespace of its own, where the kernel allows one."""
    if os.system("unshare -rpf --mount-proc true 2>/dev/null"):
        pytest.skip("no PID namespaces here")
    container.script("""
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.wait()
end = time.monotonic() + 120
while os.getppid() == 1 and time.monotonic() < end:  # else these are the processes of the whole machine
    if len([pid for pid in os.listdir("/proc") if pid.isdigit()]) == 2:
        break
    time.sleep(0.05)
states = [open(f"/proc/{pid}/stat").read().split()[2] for pid in os.listdir("/proc") if pid.isdigit()]
print("zombies", states.count("Z"), "processes", len(states))
""")
    container.start().wait()  # makes the folders
    code = container.root / "input" / "data" / "code" / "tuner" / "bootstrap.py"
    process = subprocess.run(
        ["unshare", "-rpf", "--mount-proc", sys.executable, str(code)],
        env={"TUNER_ML_ROOT": str(container.root), "TUNER_LOCAL": "1"},
        capture_output=True,
        check=True,
    )
    assert process.stdout == b"zombies 0 processes 2\n"


@pytest.mark.parametrize(("gpus", "options"), [(0, ""), (4, "--nproc_per_node 4 ")])
def test_torchrun_knows_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, options: str) -> None:
    if gpus:
        listing = tmp_path / "nvidia-smi"
        listing.write_text("#!/bin/sh\n" + 'echo "GPU 0"\n' * gpus)
        listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    job = bootstrap.Job(
        root=tmp_path,
        checkpoints=tmp_path,
        bundle={"entry_point": "train.py", "launcher": "torchrun", "metrics": []},
        hyperparameters={"lr": "1"},
        resources={"current_host": "algo-2", "hosts": ["algo-2", "algo-1"]},
        channels=[],
        attempt=1,
        run="1",
    )
    command = " ".join(bootstrap.command(job)[1:])
    hosts = "--nnodes 2 --node_rank 1 --master_addr algo-1 --master_port 29500"
    assert command == f"-m torch.distributed.run {options}{hosts} train.py --lr 1"
