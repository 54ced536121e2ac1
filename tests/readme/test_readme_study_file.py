"""The study file and the scripts of the README: keys exist, defaults are real, examples run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from readme_text import ROOT, blocks, code, table

import tuner
from tuner.spec import study_file
from tuner.spec.channels import KEYS as CHANNEL_KEYS
from tuner.spec.document import flatten, to_document

MINIMAL = {
    "name": "n",
    "objective": {"metric": "loss", "direction": "minimize"},
    "space": {"x": {"type": "float", "low": 0, "high": 1}},
    "trials": 3,
    "training": {"entry_point": "train.py"},
}
MARKETS = [{"at": ["1s"]}, {"every": "1s"}, {"trace": "trace.csv"}]


def load(folder: Path, document: dict) -> study_file.StudySpec:
    (folder / "train.py").touch()
    (folder / "trace.csv").write_text("start_s,duration_s,instances_up\n0,10,1\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(document))
    return study_file.load(folder / "study.yaml")


def rows() -> list[tuple[str, str]]:
    """Each key of the table with its default."""
    return [(key, row[1]) for row in table("key") for key in code(row[0])]


def value_at(document: object, key: str) -> object:
    for name in key.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return None if document in ({}, []) else document


def default_of(key: str, folder: Path) -> object:
    """The value of a key that is not written; those of a market need one that has them."""
    documents = [to_document(load(folder, MINIMAL))]
    if key.startswith("local.interruptions."):
        documents = [to_document(load(folder, MINIMAL | {"local": {"interruptions": each}})) for each in MARKETS]
    return next((found for each in documents if (found := value_at(each, key)) is not None), None)


@pytest.mark.parametrize(("key", "shown"), rows())
def test_the_default_is_the_one_that_is_shown(key: str, shown: str, tmp_path: Path) -> None:
    if shown == "required":
        with pytest.raises(study_file.SpecError, match=f"{key.rpartition('.')[2]}: is missing"):
            load(tmp_path, without(MINIMAL, key))
        return
    (text,) = code(shown)
    expected = None if text == "-" else yaml.safe_load(text)
    if key == "training.source_dir":
        expected = str((tmp_path / text).resolve())
    found = default_of(key, tmp_path)
    assert found in (expected, [expected])
    assert "unknown key" not in refusal(key, tmp_path)


def without(document: dict, key: str) -> dict:
    first, _, rest = key.partition(".")
    inner = {first: without(document[first], rest)} if rest else {}
    return {name: value for name, value in document.items() if name != first} | inner


def refusal(key: str, folder: Path) -> str:
    """What is said of a value that cannot be, under this key."""
    nested: object = ["no such value"]
    for name in reversed(key.split(".")):
        nested = {name: nested}
    try:
        load(folder, merged(MINIMAL, nested))
    except study_file.SpecError as error:
        return str(error)
    return ""


def merged(one: dict, other: dict) -> dict:
    both = {key: merged(one[key], value) for key, value in other.items() if isinstance(value, dict) and key in one}
    return one | other | both


def test_no_key_is_left_out(tmp_path: Path) -> None:
    named = {key for key, _ in rows()}
    for key, _ in flatten(to_document(load(tmp_path, MINIMAL))):
        parts = key.split(".")
        assert any(".".join(parts[:n]) in named for n in range(1, len(parts) + 1)) or key == "local", key


def test_each_key_of_a_channel_is_told() -> None:
    assert tuple(key for row in table("of a channel") for key in code(row[0])) == tuple(
        key.name for key in CHANNEL_KEYS
    )


def example(language: str, holds: str) -> str:
    (found,) = [block for block in blocks(language) if holds in block]
    return found


def run(folder: Path, epochs: int) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNER_", "SM_"))}
    arguments = [sys.executable, "-W", "error", "train.py", "--lr", "0.5", "--epochs", str(epochs)]
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "TUNER_CHECKPOINT_DIR": str(folder / "checkpoints")},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.partition("] ")[2] for line in done.stdout.splitlines()]


def test_the_script_of_the_readme_resumes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(example("python", "Checkpoints"))
    assert run(tmp_path, 2) == ["step=1 loss=0.5", "step=2 loss=0.25"]
    assert run(tmp_path, 4) == ["step=3 loss=0.125", "step=4 loss=0.0625"]


def test_the_study_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(example("python", "Checkpoints"))
    (tmp_path / "study.yaml").write_text(example("yaml", "objective:"))
    found = study_file.load(tmp_path / "study.yaml")
    study_file.refuse_unbuilt(found)
    assert found.warnings == ()
    assert json.loads(json.dumps(dict(found.training.hyperparameters))) == {"epochs": 30}


def test_what_is_shown_of_a_shipped_study_stands_in_it() -> None:
    script = (ROOT / "studies" / "plain" / "train.py").read_text()
    for part in example("python", "sagemaker-ignore").split("# …\n"):
        assert part in script
    study = (ROOT / "studies" / "plain" / "study.yaml").read_text()
    (metrics,) = [block for block in blocks("yaml") if block.startswith("metrics:")]
    for line in metrics.splitlines():
        assert line in study


def test_the_python_of_the_readme_names_what_there_is() -> None:
    lines = example("python", "tuner.load").splitlines()
    compile("\n".join(lines), "README.md", "exec")
    used = set(re.findall(r"\bstudy\.(\w+)", "\n".join(line.partition("#")[0] for line in lines)))
    assert used <= set(dir(tuner.Study))
    public = {name for name in vars(tuner.Study) if not name.startswith("_")}
    assert public - used <= {"name", "comparison"}, "methods that the README does not show"
