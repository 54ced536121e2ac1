"""The study file, the scripts and the Python of `docs/`: keys exist, defaults are real, examples run."""

import re
from pathlib import Path

import pytest
import yaml

import tuner
from tests.docs.pages import ROOT, TEXTS, blocks, code, entries, section
from tuner.spec import study_file
from tuner.spec.channels import KEYS as CHANNEL_KEYS
from tuner.spec.document import flatten, to_document

PAGES = ("docs/reference/study-file.md", "docs/reference/training.md")
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
    """Each key that stands in the file by itself, with what is said of its default."""
    found = []
    for page in PAGES:
        for head in entries(page):
            key, said = re.fullmatch(r"`([^`]+)` \((.*)\)", " ".join(head.split())).groups()
            if not re.search(r"\*|\[\]|^objective\.|^search\.\w+\.|\.framework\.|on_demand_after\.", key):
                found.append((key, said))
    return found


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


SECTIONS = {
    *("search", "training", "capacity", "budget", "checkpoints"),
    *("sagemaker", "sagemaker.vpc", "local", "settings"),
}
UNLESS_SET = {"training.entry_point", *(f"local.interruptions.{kind}" for kind in ("at", "every", "trace"))}


@pytest.mark.parametrize(("key", "said"), [row for row in rows() if row[0] not in SECTIONS | UNLESS_SET])
def test_the_default_is_the_one_that_is_shown(key: str, said: str, tmp_path: Path) -> None:
    assert "unknown key" not in refusal(key, tmp_path)
    if said == "required":
        with pytest.raises(study_file.SpecError, match=f"{key.rpartition('.')[2]}: is missing"):
            load(tmp_path, without(MINIMAL, key))
        return
    expected = None if said == "not set" or not code(said) else yaml.safe_load(code(said)[0])
    if key in WORDS:
        expected = WORDS[key]
    if key == "training.source_dir":
        expected = str((tmp_path / str(expected)).resolve())
    found = default_of(key, tmp_path)
    assert found in (expected, [expected])


# what is said in words, for the smallest study
WORDS = {"training.max_wait": "4h", "sagemaker.region": None, "sagemaker.outputs": None, "sagemaker.role": None}


def test_the_keys_of_no_default_are_refused_as_values_not_as_keys(tmp_path: Path) -> None:
    for key in SECTIONS | UNLESS_SET:
        assert "unknown key" not in refusal(key, tmp_path)
        assert key in {row[0] for row in rows()}


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
    named = {key for key, _ in rows()} - SECTIONS
    for key, _ in flatten(to_document(load(tmp_path, MINIMAL))):
        parts = key.split(".")
        assert any(".".join(parts[:n]) in named for n in range(1, len(parts) + 1)) or key == "local", key


def test_each_key_of_a_channel_is_told() -> None:
    named = [code(head)[0] for head in entries(PAGES[1])]
    assert [key.removeprefix("training.inputs.*.") for key in named if key.startswith("training.inputs.*.")] == [
        key.name for key in CHANNEL_KEYS
    ]


def example(language: str, holds: str) -> str:
    (found,) = [
        block
        for page, text in TEXTS.items()
        if page != "README.md"
        for block in blocks(language, text=text)
        if holds in block
    ]
    return found


def test_the_study_file_of_the_reference_is_valid(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "study.yaml").write_text(example("yaml", "objective:"))
    found = study_file.load(tmp_path / "study.yaml")
    study_file.refuse_unbuilt(found)
    assert found.warnings == ()


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if "objective:" not in block])
def test_each_piece_of_a_study_file_is_valid(block: str, tmp_path: Path) -> None:
    piece = yaml.safe_load(block)
    top = {name for name in piece if name in ("training", "capacity", "budget", "local", "sagemaker")}
    training = piece["training"] if top else piece
    if "hyperparameters" in training:  # of an image that starts itself
        training = training | {"entrypoint": "image", "image_uri": "1.dkr.ecr.us-east-1.amazonaws.com/x:1"}
    on_aws = not {"algorithm", "entrypoint", "framework"}.isdisjoint(training)
    whole = MINIMAL | {"training": ({} if "algorithm" in training else MINIMAL["training"]) | training}
    if on_aws:
        whole |= {"backend": "sagemaker"}
        whole["training"] |= {"metrics": [*training.get("metrics", []), {"name": "loss", "regex": "loss=(.*)"}]}
    load(tmp_path, whole)


def test_what_is_shown_of_a_shipped_study_stands_in_it() -> None:
    script = (ROOT / "studies" / "plain" / "train.py").read_text()
    for part in example("python", "sagemaker-ignore").split("# …\n"):
        assert part in script
    study = (ROOT / "studies" / "plain" / "study.yaml").read_text()
    (metrics,) = [block for block in blocks("yaml") if block.startswith("training:\n  metrics:")]
    for line in metrics.splitlines():
        assert line in study


def test_every_shipped_study_stands_in_the_tutorial() -> None:
    told = section("docs/tutorial/own-script.md", "Four studies to copy from")
    assert set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)) == {
        path.parent.name for path in ROOT.glob("studies/*/study.yaml")
    }


def test_the_python_of_the_page_names_what_there_is() -> None:
    lines = example("python", "tuner.load").splitlines()
    compile("\n".join(lines), "python.md", "exec")
    used = set(re.findall(r"\bstudy\.(\w+)", "\n".join(line.partition("#")[0] for line in lines)))
    assert used <= set(dir(tuner.Study))
    public = {name for name in vars(tuner.Study) if not name.startswith("_")}
    assert public - used <= {"name", "comparison"}, "methods that the page does not show"
