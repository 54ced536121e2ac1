"""Hostile studies, scripts and places through the command line, with real processes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from below import contents

from tests.endtoend.conftest import Desk
from tuner.local.processes import end_all_of

ECHO = """
import json
import os
import sys

from tuner.training import report

value = sys.argv[sys.argv.index("--c") + 1]
print("GOT", json.dumps([value, os.environ["GREETING"]]))
report(1, loss=len(value))
"""

CHOICES = [
    "two words",
    "'\"",
    "$(touch pwned)",
    "`touch pwned`",
    "../../etc/passwd",
    "; touch pwned",
    "ünïcødé 🐌",
    "12e4",
    "null",
    "-leading",
    "",
    "\\back\\slash %s {x}\t\x1b[31m",
    "v" * 2500,
]

# How the script ends, the state and the reason of its trial.
ENDS = {
    "silent": ("pass", "failed", "no_metric"),
    "nan": ("report(1, loss=0.5); report(2, loss=float('nan'))", "failed", "no_metric"),
    "infinite": ("report(1, loss=float('inf'))", "failed", "no_metric"),
    "back in time": ("report(5, loss=0.5); report(2, loss=0.1)", "succeeded", None),
    "import": ("import a_library_that_nobody_has", "failed", "No module named 'a_library_that_nobody_has'"),
    "exit": ("raise SystemExit(7)", "failed", "ExitCode 7"),
    "control": ("print('\\x1b]0;pwned\\x07\\x1b[2J\\u202e'); raise SystemExit(1)", "failed", "ExitCode 1"),
    "parse": ("import argparse; argparse.ArgumentParser().parse_args()", "failed", "unrecognized arguments: --kind"),
}


def write(folder: Path, script: str, **changes: object) -> Path:
    """JSON is YAML; the text keeps every character."""
    study = {
        "name": "hostile",
        "objective": {"metric": "loss", "direction": "minimize"},
        "space": {"c": {"type": "categorical", "choices": ["x"]}},
        "search": {"sampler": {"name": "BruteForceSampler", "seed": 1}},
        "trials": 1,
        "parallel": 4,
        "training": {"entry_point": "train.py"},
    }
    (folder / "train.py").write_text(script)
    (folder / "study.yaml").write_text(json.dumps(study | changes, ensure_ascii=False))
    return folder / "study.yaml"


def one_line(done: subprocess.CompletedProcess, code: int) -> str:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_hostile_choices_in_a_hostile_place_arrive_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dir ü 'q' $(touch pwned); ..weird"
    folder.mkdir()
    desk = Desk(folder)
    greeting = "$(touch pwned) 'x' \"y\" ü"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "hidden-from-everybody")
    write(
        folder,
        ECHO,
        name="12e4",
        trials=len(CHOICES),
        space={"c": {"type": "categorical", "choices": CHOICES}},
        training={
            "entry_point": "train.py",
            "environment": {"GREETING": greeting},
            "hyperparameters": {"fixed": "$(touch pwned) '\";", "nested": {"a": [1, None]}, "empty": ""},
        },
    )
    done = desk.run("launch", "study.yaml")
    assert done.returncode == 0, done.stderr
    rows = desk.json("trials", "12e4")
    assert sorted(row["params"]["c"] for row in rows) == sorted(CHOICES)
    for row in rows:
        assert row["value"] == len(row["params"]["c"])
        log = desk.run("logs", "12e4", str(row["number"])).stdout
        got = next(line for line in log.splitlines() if line.startswith("GOT "))
        assert json.loads(got.removeprefix("GOT ")) == [row["params"]["c"], greeting]
    table = desk.run("trials", "12e4").stdout
    assert "\x1b" not in table
    assert "\\x1b" in table
    assert desk.run("audit", "12e4").returncode == 0
    assert not [path for path, _ in contents(tmp_path) if path.name == "pwned"]
    for path, held in contents(folder):
        assert b"hidden-from-everybody" not in held, path


@pytest.mark.parametrize(
    ("value", "said"),
    [("v" * 5000, "more than 2500 characters"), ("line\nbreak", "line break"), ("return\r", "line break")],
)
def test_values_that_no_job_takes_are_refused_before_anything_is_written(desk: Desk, value: str, said: str) -> None:
    write(desk.folder, ECHO, space={"c": {"type": "categorical", "choices": ["x", value]}})
    assert said in one_line(desk.run("launch", "study.yaml"), 2)
    write(desk.folder, ECHO, training={"entry_point": "train.py", "hyperparameters": {"h": value}})
    assert said in one_line(desk.run("launch", "study.yaml"), 2)
    assert not (desk.folder / ".tuner").exists()


@pytest.mark.parametrize("name", ["../up", "", "a b", "$(x)", "A", "ü", "-a", "a" * 33, "a\nb", "a/b", "'"])
def test_names_that_could_be_anything_else_are_refused(desk: Desk, name: str) -> None:
    write(desk.folder, ECHO, name=name)
    assert "name" in one_line(desk.run("launch", "study.yaml"), 2)


@pytest.mark.parametrize("name", ["--x", "a b", "", "$(x)", "a=b", "ü", "a\nb"])
def test_parameters_whose_names_are_no_options_are_refused(desk: Desk, name: str) -> None:
    write(desk.folder, ECHO, space={name: {"type": "float", "low": 0, "high": 1}})
    one_line(desk.run("launch", "study.yaml"), 2)


@pytest.mark.parametrize("entry_point", ["../train.py", "/etc/passwd", "absent.py", "a\nb.py", ""])
def test_scripts_outside_of_the_source_tree_are_refused(desk: Desk, entry_point: str) -> None:
    write(desk.folder, ECHO, training={"entry_point": entry_point})
    one_line(desk.run("launch", "study.yaml"), 2)


@pytest.mark.slow
def test_every_end_of_a_script_is_told(desk: Desk) -> None:
    branches = "".join(f"if kind == {kind!r}:\n    {code}\n" for kind, (code, _, _) in ENDS.items())
    script = "import sys\nfrom tuner.training import report\nkind = sys.argv[sys.argv.index('--kind') + 1]\n" + branches
    write(
        desk.folder, script, trials=len(ENDS), space={"kind": {"type": "categorical", "choices": list(ENDS)}},
    )  # fmt: skip
    done = desk.run("launch", "study.yaml")
    assert done.returncode == 0, done.stderr
    rows = {row["params"]["kind"]: row for row in desk.json("trials", "hostile")}
    for kind, (_, state, reason) in ENDS.items():
        assert rows[kind]["state"] == state, rows[kind]
        assert reason is None or reason in rows[kind]["reason"], rows[kind]
    assert (rows["back in time"]["step"], rows["back in time"]["value"]) == (5, 0.5)
    control = str(rows["control"]["number"])
    for shown in (done, desk.run("show", "hostile", control), desk.run("logs", "hostile", control)):
        assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout + shown.stderr)
    assert "\\x1b]0;pwned" in desk.run("logs", "hostile", control).stdout
    for words in (("audit", "hostile"), ("status", "hostile", "--check")):
        assert desk.run(*words).returncode == 0


def test_requirements_that_are_not_met_here_are_named(desk: Desk) -> None:
    (desk.folder / "requirements.txt").write_text("numpy\na-library-that-nobody-has==1.0\n")
    write(desk.folder, ECHO)
    assert desk.run("launch", "study.yaml").returncode == 1
    (row,) = desk.json("trials", "hostile")
    assert "requirements.txt asks for a-library-that-nobody-has" in row["reason"]


def test_two_launches_of_one_name_at_once(desk: Desk) -> None:
    write(desk.folder, ECHO, training={"entry_point": "train.py", "environment": {"GREETING": "x"}})
    both = [desk.start("launch", "study.yaml") for _ in range(2)]
    said = [process.communicate(timeout=270)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    assert "tuner resume hostile" in said[codes.index(2)]
    assert len(desk.json("local", "jobs")) == 1


@pytest.mark.slow
def test_two_studies_in_one_store_and_one_state_directory_at_once(desk: Desk) -> None:
    engines = []
    for name in ("one", "other"):
        folder = desk.folder / name
        folder.mkdir()
        file = write(
            folder,
            ECHO,
            name=name,
            trials=4,
            space={"c": {"type": "categorical", "choices": ["a", "bb", "ccc", "dddd"]}},
            training={"entry_point": "train.py", "environment": {"GREETING": "x"}},
        )
        engines.append(desk.start("launch", str(file)))
    for engine in engines:
        _, err = engine.communicate(timeout=270)
        assert engine.returncode == 0, err
    for name in ("one", "other"):
        assert sorted(row["value"] for row in desk.json("trials", name)) == [1, 2, 3, 4]
        assert desk.run("audit", name).returncode == 0
    assert len(desk.json("local", "jobs")) == 8


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another filesystem than the temporary one."""
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no /dev/shm here")
    made = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield made
    for job in made.glob("state/jobs/*"):
        end_all_of(job)  # its supervisor may be tidying up in there
    shutil.rmtree(made)


def test_a_state_directory_on_another_filesystem(desk: Desk, elsewhere: Path) -> None:
    write(desk.folder, ECHO, training={"entry_point": "train.py", "environment": {"GREETING": "x"}})
    environment = {**desk.environment, "TUNER_LOCAL": str(elsewhere / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "launch", "study.yaml"],
        cwd=desk.folder, env=environment, capture_output=True, text=True, timeout=270, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert desk.run("audit", "hostile").returncode == 0
    assert not (desk.folder / ".tuner").exists()


@pytest.mark.parametrize("with_store", [True, False])
def test_launching_from_a_directory_that_cannot_be_written(desk: Desk, *, with_store: bool) -> None:
    """/proc is read-only even to root."""
    file = write(desk.folder, ECHO)
    store = ["--store", f"sqlite:///{desk.folder}/tuner.db"] if with_store else []
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "launch", str(file), *store],
        cwd="/proc", env=desk.environment, capture_output=True, text=True, timeout=270, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert ("state directory /proc/.tuner cannot be written" if with_store else "tuner.db") in said


# HOSTILE_STEPS=1000000 for the whole story: a minute of CPU
STEPS = int(os.environ.get("HOSTILE_STEPS", "100000"))


@pytest.mark.slow
def test_a_trial_that_reports_a_hundred_thousand_steps_ends(desk: Desk) -> None:
    write(
        desk.folder,
        "import sys, time\n"
        f"for step in range({STEPS}):\n"
        "    sys.stdout.write('[tuner %.6f] step=%d loss=1.0\\n' % (time.time(), step))\n",
    )
    done = desk.run("launch", "study.yaml", "--set", "trials=1", timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert desk.json("trials", "hostile")[0]["step"] == STEPS - 1
