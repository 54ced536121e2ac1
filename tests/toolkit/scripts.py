"""Thirty-odd small training scripts, and what an entrypoint makes of each on a crafted /opt/ml.

Both entrypoints are run on them: SageMaker's own toolkit once, by `record.py`, which keeps what it did in
`toolkit.json`; ours in the test.
"""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Writes down what it was started with.
LOOK = """
import json, os, sys
seen = {"argv": sys.argv[1:], "sm": {k: v for k, v in os.environ.items() if k.startswith("SM_")}, "cwd": os.getcwd()}
with open(os.path.join(os.environ["SM_MODEL_DIR"], "seen.json"), "w") as file:
    json.dump(seen, file)
"""


@dataclass(frozen=True)
class Script:
    """A source directory, what runs of it, and the hyperparameters as SageMaker gives them: text."""

    name: str
    files: dict[str, str] = field(default_factory=lambda: {"train.py": LOOK})
    hyperparameters: dict[str, str] = field(default_factory=dict)
    entry_point: str = "train.py"


def _sent(name: str, **hyperparameters: str) -> Script:
    return Script(name, hyperparameters=hyperparameters)


def _does(name: str, text: str) -> Script:
    return Script(name, {"train.py": f"import os, signal, subprocess, sys\n{text}\n"})


SCRIPTS = (
    _sent("no hyperparameter"),
    _sent("a word", optimizer="adam"),
    _sent("an integer", epochs="30"),
    _sent("a small float", lr="1e-05"),
    _sent("a long float", lr="0.00012345678901234567"),
    _sent("true and false", fast="true", slow="false"),
    _sent("null", nothing="null"),
    _sent("an object", sizes='{"a": 1, "b": [2, 3]}'),
    _sent("a list", sizes="[1, 2, 3]"),
    _sent("spaces", text="two  words"),
    _sent("quotes", text="it's \"so\""),
    _sent("quoted", text='"quoted"'),
    _sent("for a shell", text="$(echo no); `id` | cat > x && y"),
    _sent("a line break", text="two\nlines"),
    _sent("not ASCII", text="grün 試験"),
    _sent("one letter", l="0.1"),
    _sent("a hex-like id", run="12e4"),
    _sent("a number with a leading zero", run="007"),
    _sent("a dash in the name", **{"n-layers": "3"}),
    _sent("a dash before the value", shift="-1"),
    _sent("nothing as a value", text=""),
    _sent("names out of order", b="1", a="2", c="3"),
    _does("exit 0", "print('fine')"),
    _does("exit 1", "sys.exit(1)"),
    _does("exit 75", "print('come again'); sys.exit(75)"),
    _does("exit 137", "os._exit(137)"),
    _does("killed", "os.kill(os.getpid(), signal.SIGKILL)"),
    _does("an exception", "raise ValueError('the data is empty')"),
    _does("sys.exit with words", "sys.exit('no data')"),
    _does("a failure file of its own", "open(os.environ['SM_OUTPUT_DIR'] + '/failure', 'w').write('me'); sys.exit(4)"),
    _does("a child process", "sys.exit(subprocess.run([sys.executable, '-c', 'import sys; sys.exit(9)']).returncode)"),
    _does("much output", "print('x' * 5_000_000); print('end')"),
    Script("a module next to it", {"train.py": "import beside\n" + LOOK, "beside.py": "value = 1\n"}),
    Script("in a folder", {"deep/train.py": LOOK}, {"epochs": "3"}, "deep/train.py"),
    Script("a shell script", {"train.sh": '#!/bin/sh\npython3 a.py "$@"\n', "a.py": LOOK}, {"a": "x y"}, "train.sh"),
    Script("a shell script that fails", {"train.sh": "#!/bin/sh\nexit 12\n"}, {}, "train.sh"),
    Script(
        "its own hyperparameters.json",
        {
            "train.py": "import json, os\n"
            "config = os.path.join(os.environ['SM_INPUT_CONFIG_DIR'], 'hyperparameters.json')\n"
            "assert json.load(open(config))['text'] == '$(id)'\n" + LOOK
        },
        {"text": "$(id)"},
    ),
)  # fmt: skip


def lay_out(script: Script, root: Path, code: Path, more: dict[str, str]) -> None:
    """An /opt/ml at `root` as the platform makes it, with the sources in `code`; `more` are further hyperparameters."""
    for name, text in script.files.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(text)
    config = root / "input" / "config"
    config.mkdir(parents=True)
    for folder in ("model", "output", "input/data/train", "input/data/validation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    resources = {
        "current_host": "algo-1",
        "hosts": ["algo-1"],
        "network_interface_name": "eth0",
        "current_instance_type": "ml.m5.xlarge",
        "current_group_name": "homogeneousCluster",
        "instance_groups": [
            {"instance_group_name": "homogeneousCluster", "instance_type": "ml.m5.xlarge", "hosts": ["algo-1"]}
        ],
    }
    (config / "hyperparameters.json").write_text(json.dumps({**script.hyperparameters, **more}))
    (config / "inputdataconfig.json").write_text(json.dumps({"train": channel, "validation": channel}))
    (config / "resourceconfig.json").write_text(json.dumps(resources))


def outcome(command: Sequence[str], root: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run an entrypoint on a laid out /opt/ml: what the script saw, how it ended, what the platform would say of it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, check=False, timeout=120)
    seen = root / "model" / "seen.json"
    failure = root / "output" / "failure"
    found = {
        "exit_code": done.returncode,
        "seen": json.loads(seen.read_text()) if seen.exists() else None,
        "failure": failure.read_text() if failure.exists() else None,
    }
    # without what is peculiar to this place
    text = json.dumps(found).replace(str(root), "/opt/ml")
    return json.loads(re.sub(r'/[^\s"]*/(python3?(\.\d+)?)\b', "python", text))


def condensed(outcomes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The variables of the first script's outcome are common to all: of the others only what differs is kept."""
    first = outcomes[SCRIPTS[0].name]["seen"]["sm"].items()
    for name, found in outcomes.items():
        if name != SCRIPTS[0].name and found["seen"]:
            found["seen"]["sm"] = dict(sorted(found["seen"]["sm"].items() - first))
            found["seen"]["sm"].pop("SM_TRAINING_ENV", None)
    return outcomes
