"""What a rehearsal finds in scripts with one defect each, run, killed, stopped and resumed for real."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import rehearsed as scripts

from tuner.local.namespace import find_isolation
from tuner.rehearse.runs import RehearsalOptions, RehearsalProgress, Runs
from tuner.rehearse.stage import LiveRun, Stage, StagedJob

FIT = {
    "runs": "passed",
    "saves": "passed",
    "resumes": "passed",
    "same curve": "passed",
    "nothing outside": "passed",
    "torn file": "passed",
    "stops": "passed",
}
UNSAVED = {"runs": "passed", "saves": "failed"}
# Script, the checks of the verdict, and words that its findings must hold.
FINDINGS = {
    "good": (scripts.GOOD, FIT, ["bit for bit", "half of state.json it goes on from an older checkpoint"]),
    "forgets to load": (
        scripts.FORGETS_TO_LOAD,
        {"runs": "passed", "saves": "passed", "resumes": "failed"},
        ["began again at step 1", "load the newest checkpoint"],
    ),
    "resets the optimizer": (
        scripts.RESETS_THE_OPTIMIZER,
        FIT | {"same curve": "failed"},
        ["departs at step", "optimizer"],
    ),
    "seeded by the clock": (
        scripts.SEEDED_BY_THE_CLOCK,
        FIT | {"same curve": "could not tell"},
        ["two runs without interruptions differ in loss", "seed"],
    ),
    "never saves": (scripts.NEVER_SAVES, UNSAVED, ["nothing was saved in 10 steps", "save to /opt/ml/checkpoints"]),
    "saves at its end": (scripts.SAVES_AT_ITS_END, UNSAVED, ["saves only at its end, after step 10"]),
    "one file": (scripts.ONE_FILE, FIT | {"torn file": "warning"}, ["state.json", "by a rename"]),
    "writes in place": (scripts.WRITES_IN_PLACE, FIT | {"torn file": "failed"}, ["JSONDecodeError", "rename"]),
    "writes in place beside a log": (
        scripts.WRITES_IN_PLACE_BESIDE_A_LOG,
        FIT | {"torn file": "failed"},
        ["half of state.json it fails: ", "JSONDecodeError"],
    ),
    "pads its one file": (scripts.PADS_ITS_ONE_FILE, FIT, ["half of state.json made no difference"]),
    "writes in place and begins again": (
        scripts.WRITES_IN_PLACE_AND_BEGINS_ANEW,
        FIT | {"torn file": "failed"},
        ["half of state.json it starts over from zero", "rename"],
    ),
    "elsewhere": (scripts.ELSEWHERE, UNSAVED, ["it wrote /opt/ml/code/state.json"]),
    "half elsewhere and needed": (
        scripts.HALF_ELSEWHERE_AND_NEEDED,
        {"runs": "passed", "saves": "passed", "resumes": "failed"},
        ["it fails, which it did not before", "FileNotFoundError", "momentum.json", "it wrote /opt/ml/code/momentum"],
    ),
    "half elsewhere and forgotten": (
        scripts.HALF_ELSEWHERE_AND_FORGOTTEN,
        FIT | {"same curve": "failed", "nothing outside": "could not tell"},
        ["departs at step", "it wrote /opt/ml/code/momentum.json"],
    ),
    "fails at once": (scripts.FAILS_AT_ONCE, {"runs": "failed"}, ["no GPU was found"]),
    "says nothing": (scripts.SAYS_NOTHING, {"runs": "failed"}, ["no loss was reported", "tuner.training.report"]),
    "forks and ignores SIGTERM": (scripts.FORKS_AND_IGNORES_SIGTERM, FIT | {"stops": "warning"}, ["up to 120s more"]),
}


def rehearse(call, file):
    options = () if "LAST = 10\n" in file.with_name("train.py").read_text() else ("--steps", scripts.STEPS)
    code, out, err = call("rehearse", file, "--interruptions", scripts.INTERRUPTIONS, "--json", *options)
    assert code in (0, 1), err
    return code, json.loads(out)


def judged(document):
    return {check["name"]: check["result"] for check in document["checks"]}


@pytest.mark.parametrize("name", FINDINGS)
def test_a_rehearsal_finds_what_is_wrong_with_a_script_and_says_so(name, folder, call, grace):
    grace(2.0 if "SIGTERM" in name else 120.0)
    defect, expected, words = FINDINGS[name]
    code, document = rehearse(call, scripts.write_study(folder, defect))
    text = " ".join(check["text"] + " " + check["remedy"] for check in document["checks"])
    assert judged(document) == expected | _on_this_machine(expected, folder), text
    for word in words:
        assert word in text
    fit = expected.get("resumes") == "passed" and "failed" not in expected.values()
    assert (code, document["fit"]) == (0 if fit else 1, fit)
    assert nothing_is_left(folder)


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm", "~"])
def test_what_a_script_leaves_elsewhere_is_gone_and_never_reaches_the_real_place(place, folder, call):
    path = f"{place}/{scripts.OF_THIS_TEST}"
    if place != "~" and not (Path(place).is_dir() and find_isolation(folder).is_private):
        pytest.skip(f"jobs have no {place} of their own here")
    code, document = rehearse(call, scripts.write_study(folder, scripts.needed(path)))
    failed = next(check for check in document["checks"] if check["name"] == "resumes")
    assert (code, failed["result"]) == (1, "failed")
    assert "FileNotFoundError" in failed["text"]
    assert place == "/dev/shm" or f"it wrote {path}" in failed["remedy"]  # memory cannot be looked into
    assert not Path(path).expanduser().exists()


def test_a_script_sees_an_empty_home_and_still_finds_what_its_user_installed(folder, call, tmp_path, monkeypatch):
    home = tmp_path / "home-of-the-user"
    home.mkdir()
    (home / "data").write_text("1")
    monkeypatch.setenv("HOME", str(home))
    looks = """
        def report(state):
            there = list(Path.home().iterdir())
            packages = os.environ["PYTHONUSERBASE"]
            raise SystemExit(f"HOME {there} PACKAGES {packages}")
    """
    _, document = rehearse(call, scripts.write_study(folder, looks))
    assert f"HOME [] PACKAGES {home}/.local" in document["checks"][0]["text"]


@pytest.mark.parametrize("options", [(), ("--steps", scripts.STEPS)])
def test_without_steps_in_its_reports_no_resume_is_proven_and_none_is_waited_for(options, folder, call):
    """The script never ends, nor comes to any step."""
    unstepped = scripts.STUDY.replace(", step_regex: 'epoch=([0-9]+)'", "")
    code, out, err = call(
        "rehearse", scripts.write_study(folder, scripts.GOOD, unstepped), "--leash", "1s", "--json", *options
    )
    (check,) = json.loads(out)["checks"]
    assert (code, check["name"], check["result"]) == (1, "runs", "could not tell"), err
    assert check["text"] == "loss is reported without a step: that it resumes cannot be proven"
    assert "step_regex" in check["remedy"]
    assert "tuner.training.report" in check["remedy"]


def test_what_is_printed_of_each_batch_does_not_cut_a_long_first_epoch():
    """Losses without a step say nothing of the objective, which comes with its first step after --max-duration."""
    objectives = (SimpleNamespace(metric="val_accuracy"),)
    stage = cast("Stage", SimpleNamespace(spec=SimpleNamespace(objectives=objectives)))
    runs = Runs(stage, {}, RehearsalOptions(max_duration_s=60.0), cast("RehearsalProgress", None), isolated=True)
    job, run = cast("StagedJob", SimpleNamespace(training_for_s=lambda: 61.0)), LiveRun()
    run.loose_reports.update(batch_loss=1000)
    assert not runs._is_enough(job, run)
    run.loose_reports.update(val_accuracy=4)
    assert runs._is_enough(job, run)


def _on_this_machine(expected, folder):
    """Where the kernel gives jobs no /tmp of their own, nothing can be said of it."""
    if expected.get("nothing outside") == "passed" and not find_isolation(folder).is_private:
        return {"nothing outside": "could not tell"}
    return {}


def nothing_is_left(folder: Path) -> bool:
    """No directory beside the study's own files, and no process that runs in one or belongs to a job there."""
    assert sorted(path.name for path in folder.iterdir()) == ["study.yaml", "train.py"]
    assert [path.name for path in folder.parent.iterdir() if path.name != "opt"] == [folder.name]
    return not [line for line in _command_lines() if str(folder.parent) in line or scripts.SLEEPER in line]


def _command_lines():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # of any process of the machine: some are no text
                yield "".join((entry / name).read_text(errors="replace") for name in ("cmdline", "environ"))
            except OSError:
                continue
