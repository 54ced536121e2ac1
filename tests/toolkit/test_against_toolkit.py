"""The bootstrap against SageMaker's own entrypoint, script by script: equal, or different for a reason given here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from toolkit.scripts import SCRIPTS, Script, condensed, lay_out, outcome

from tuner.spec.space import toolkit_argument
from tuner.storage.bundle import make_bundle

TOOLKIT = json.loads((Path(__file__).parent / "toolkit.json").read_text())["outcomes"]

AS_SENT = "what was sent arrives as it was sent, where the toolkit reads it as JSON and writes it its own way"
DASHES = "a name of one letter has two dashes as every other, so that nothing depends on how long a name is"
CODE = "the job ends with the script's own code, which retry_on can name; the toolkit ends with 1 whatever it was"
WORDS = "the failure has the script's last lines, where the toolkit has its command line"
GROUPS = "instance groups (heterogeneous clusters) are not supported"
FRAMEWORKS = "frameworks' own entrypoints are not run by the bootstrap"
LAYOUT = "the toolkit's own view of itself; what scripts read of it is compared in a test of its own"

# What depends on the machine, not on the entrypoint.
MACHINE = {"num_cpus", "num_gpus", "SM_NUM_CPUS", "SM_NUM_GPUS"}

# By script, what differs and why. Everything that is not named here is equal.
DIFFERENCES: dict[str, dict[str, str]] = {
    "no hyperparameter": {
        **dict.fromkeys(
            (
                "SM_CURRENT_INSTANCE_GROUP",
                "SM_CURRENT_INSTANCE_GROUP_HOSTS",
                "SM_DISTRIBUTION_INSTANCE_GROUPS",
                "SM_INSTANCE_GROUPS",
                "SM_INSTANCE_GROUPS_DICT",
                "SM_IS_HETERO",
            ),
            GROUPS,
        ),
        **dict.fromkeys(("SM_FRAMEWORK_MODULE", "SM_FRAMEWORK_PARAMS"), FRAMEWORKS),
        "SM_TRAINING_ENV": LAYOUT,
    },
    "true and false": {"argv": AS_SENT, "SM_USER_ARGS": AS_SENT},
    "null": {"argv": AS_SENT, "SM_HP_NOTHING": AS_SENT, "SM_USER_ARGS": AS_SENT},
    "an object": {"argv": AS_SENT, "SM_USER_ARGS": AS_SENT},
    "quoted": {"argv": AS_SENT, "SM_HP_TEXT": AS_SENT, "SM_USER_ARGS": AS_SENT},
    "a hex-like id": {"argv": AS_SENT, "SM_HP_RUN": AS_SENT, "SM_USER_ARGS": AS_SENT},
    "one letter": {"argv": DASHES, "SM_USER_ARGS": DASHES},
    "names out of order": {"argv": DASHES, "SM_USER_ARGS": DASHES},
    "a shell script": {"argv": DASHES, "SM_USER_ARGS": DASHES},
    "exit 1": {"failure": WORDS},
    "exit 75": {"exit_code": CODE, "failure": WORDS},
    "exit 137": {"exit_code": CODE, "failure": WORDS},
    "killed": {"exit_code": CODE, "failure": WORDS},
    "an exception": {"failure": WORDS},
    "sys.exit with words": {"failure": WORDS},
    "a failure file of its own": {"exit_code": CODE},
    "a child process": {"exit_code": CODE, "failure": WORDS},
    "a shell script that fails": {"exit_code": CODE, "failure": WORDS},
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return condensed({script.name: run(script, tmp_path_factory.mktemp("ml")) for script in SCRIPTS})


def run(script: Script, folder: Path) -> dict[str, Any]:
    root, source = folder / "ml", folder / "source"
    lay_out(script, root, source, {})
    channel = root / "input" / "data" / "code"
    for file in make_bundle(source, script.entry_point, "python", []).files:
        (channel / file.name).parent.mkdir(parents=True, exist_ok=True)
        (channel / file.name).write_bytes(file.data)
    environment = {"TUNER_ML_ROOT": str(root), "TUNER_LOCAL": "1"}
    return outcome([sys.executable, str(channel / "tuner" / "bootstrap.py")], root, environment)


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """Every thing that is compared; variables that hold JSON as what it means."""
    seen = found["seen"] or {"argv": None, "cwd": None, "sm": {}}
    named = {name: value for name, value in seen["sm"].items() if name != "SM_STUDIO_LOCAL_MODE"}
    variables = {name: _meaning(value) if not name.startswith("SM_HP_") else value for name, value in named.items()}
    return {
        "exit_code": found["exit_code"],
        "failure": found["failure"],
        "argv": seen["argv"],
        "cwd": seen["cwd"],
        **variables,
    }


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("name", [script.name for script in SCRIPTS])
def test_a_script_is_run_as_the_toolkit_runs_it(name: str, ours: dict[str, Any]) -> None:
    theirs, mine = flat(TOOLKIT[name]), flat(ours[name])
    # JSON in a variable of a hyperparameter may be spaced differently
    different = {
        key
        for key in theirs.keys() | mine.keys()
        if theirs.get(key) != mine.get(key)
        and not (key.startswith("SM_HP_") and key in mine and _same_json(theirs.get(key), mine[key]))
    }
    assert different - MACHINE == set(DIFFERENCES.get(name, {}))


def _same_json(one: str | None, other: str) -> bool:
    try:
        return isinstance(json.loads(one or ""), dict | list) and json.loads(one or "") == json.loads(other)
    except ValueError:
        return False


def test_what_scripts_read_of_the_training_environment(ours: dict[str, Any]) -> None:
    name = SCRIPTS[0].name
    theirs = json.loads(TOOLKIT[name]["seen"]["sm"]["SM_TRAINING_ENV"])
    mine = json.loads(ours[name]["seen"]["sm"]["SM_TRAINING_ENV"])
    missing = theirs.keys() - mine.keys()
    assert {key for key in theirs.keys() & mine.keys() if theirs[key] != mine[key]} <= MACHINE
    assert missing == {
        *("additional_framework_parameters", "framework_module"),
        *("current_instance_group", "current_instance_group_hosts", "distribution_hosts", "topology"),
        *("distribution_instance_groups", "instance_groups", "instance_groups_dict", "is_hetero"),
        *("is_master", "is_modelparallel_enabled", "is_smddpmprun_installed", "is_smddprun_installed"),
        *("job_name", "master_hostname"),
    }


def test_what_a_study_file_is_warned_of_is_what_the_toolkit_does() -> None:
    compared = 0
    for script in SCRIPTS:
        seen = TOOLKIT[script.name]["seen"]
        if seen is None or not script.hyperparameters or script.entry_point != "train.py":
            continue
        given = sorted(script.hyperparameters.items())
        told = [(("--" if len(name) > 1 else "-") + name, toolkit_argument(text)) for name, text in given]
        assert seen["argv"] == [word for pair in told for word in pair], script.name
        compared += 1
    assert compared > 10


def test_what_a_failed_script_said_is_the_failure(ours: dict[str, Any]) -> None:
    assert ours["an exception"]["failure"].endswith("ValueError: the data is empty")
    assert ours["exit 75"]["failure"] == "ExecuteUserScriptError: ExitCode 75\ncome again"
    assert TOOLKIT["exit 75"]["exit_code"] == 1
    assert "OutOfMemory" in TOOLKIT["exit 137"]["failure"]
    assert "out of memory" in ours["exit 137"]["failure"]
