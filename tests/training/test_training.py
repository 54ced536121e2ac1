"""`tuner.training` by itself: atomic save, verified load, retention by age, reports without a tuner around."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tuner import _job_checkpoints, training
from tuner.training import Checkpoints, report, until_step


@pytest.fixture(autouse=True)
def standalone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("TUNER_", "SM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    vars(training._reports).update(vars(training._Reports()))  # as in a new process


def save(checkpoints: Checkpoints, step: int, text: str = "state") -> Path:
    with checkpoints.save(step) as folder:
        (folder / "model.txt").write_text(f"{text} {step}")
        (folder / "deep").mkdir()
        (folder / "deep" / "more.bin").write_bytes(bytes(100))
    return checkpoints.directory / f"step-{step:08d}"


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def latest_step(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.latest()
    resume = _job_checkpoints.resume_point(checkpoints.directory)
    assert (found.step if found else None) == (resume.step if resume else None), "bootstrap and training disagree"
    return found.step if found else None


def test_what_was_saved_is_found_in_the_documented_format() -> None:
    checkpoints = Checkpoints("there")
    assert checkpoints.latest() is None
    folder = save(checkpoints, 3)
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.path) == (3, folder)
    assert (latest.path / "model.txt").read_text() == "state 3"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["saved_at"]) == (1, 3, latest.saved_at)
    assert [(f["name"], f["size"], len(f["sha256"])) for f in manifest["files"]] == [
        ("deep/more.bin", 100, 64),
        ("model.txt", 7, 64),
    ]
    assert sorted(path.name for path in Path("there").iterdir()) == ["step-00000003"]


def test_an_exception_while_saving_leaves_what_was_there() -> None:
    checkpoints = Checkpoints()
    save(checkpoints, 1)

    def interrupted() -> None:
        with checkpoints.save(2) as folder:
            (folder / "model.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert latest_step(checkpoints) == 1
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-00000001"]


def test_a_step_may_be_saved_again() -> None:
    checkpoints = Checkpoints()
    save(checkpoints, 1)
    with checkpoints.save(1) as folder:
        (folder / "other").write_text("new")
    latest = checkpoints.latest()
    assert latest is not None
    assert sorted(path.name for path in latest.path.iterdir()) == ["manifest.json", "other"]


def test_an_unfinished_save_of_a_killed_process_is_no_obstacle() -> None:
    checkpoints = Checkpoints()
    for step in (1, 2):
        left = checkpoints.directory / f"step-0000000{step}.sagemaker-ignore"
        left.mkdir(parents=True)
        (left / "model.txt").write_text("half")
    assert latest_step(checkpoints) is None
    assert _job_checkpoints.own_files(checkpoints.directory) == 0
    assert _job_checkpoints.newest_step(checkpoints.directory) is None
    save(checkpoints, 1)
    assert _job_checkpoints.newest_step(checkpoints.directory) == 1
    assert latest_step(checkpoints) == 1
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-00000001"]


DAMAGE = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "torn manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "st'),
    "foreign manifest": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "incomplete manifest": lambda folder: (folder / "manifest.json").write_text('{"step": 2}'),
    "binary manifest": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "of another step": lambda folder: (folder / "manifest.json").write_text(
        (folder.parent / "step-00000001" / "manifest.json").read_text()
    ),
    "missing file": lambda folder: (folder / "model.txt").unlink(),
    "short file": lambda folder: (folder / "model.txt").write_text("sta"),
    "other bytes of the same size": lambda folder: (folder / "model.txt").write_text("state 1"),
    "a folder in place of a file": lambda folder: ((folder / "model.txt").unlink(), (folder / "model.txt").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: object, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints()
    save(checkpoints, 1)
    damage(save(checkpoints, 2))
    assert latest_step(checkpoints) == 1
    assert "step-00000002 is not complete" in capsys.readouterr().err
    found = _job_checkpoints.resume_point(checkpoints.directory)
    assert (found.step, _job_checkpoints.newest_step(checkpoints.directory)) == (1, 2)  # what a torn one is told by
    save(checkpoints, 2)
    assert latest_step(checkpoints) == 2


def test_names_of_the_agent_are_not_seen() -> None:
    checkpoints = Checkpoints()
    folder = save(checkpoints, 1)
    for suffix in ("uploading", "uploaded", "ignore"):
        (folder / f"model.txt.sagemaker-{suffix}").touch()
        (checkpoints.directory / f"step-00000009.sagemaker-{suffix}").touch()
    assert latest_step(checkpoints) == 1
    assert _job_checkpoints.own_files(checkpoints.directory) == 3


def test_old_steps_go_by_age_and_two_stay() -> None:
    checkpoints = Checkpoints(keep_s=50_000)
    for step in range(1, 7):
        save(checkpoints, step)
    assert len(list(checkpoints.directory.iterdir())) == 6  # all younger than that
    for step in range(1, 6):
        age(checkpoints.directory / f"step-{step:08d}", 100_000 - 9_000 * step)  # 5 is 55,000 s old
    save(checkpoints, 7)
    assert sorted(path.name[-1] for path in checkpoints.directory.iterdir()) == ["6", "7"]
    for path in list(checkpoints.directory.iterdir()):
        age(path, 1_000_000)
    save(checkpoints, 8)
    assert sorted(path.name[-1] for path in checkpoints.directory.iterdir()) == ["7", "8"]


def test_what_is_being_uploaded_or_is_not_complete_does_not_count() -> None:
    checkpoints = Checkpoints(keep_s=5_000)
    for step in (1, 2):
        save(checkpoints, step)
    (save(checkpoints, 3) / "manifest.json").unlink()
    (checkpoints.directory / "step-00000001" / "model.txt.sagemaker-uploading").touch()
    for path in list(checkpoints.directory.iterdir()):
        age(path, 10_000)
    save(checkpoints, 4)
    assert sorted(path.name[-1] for path in checkpoints.directory.iterdir()) == ["1", "2", "3", "4"]
    (checkpoints.directory / "step-00000001" / "model.txt.sagemaker-uploading").unlink()
    save(checkpoints, 5)
    assert sorted(path.name[-1] for path in checkpoints.directory.iterdir()) == ["4", "5"]


@pytest.mark.parametrize("names", [[], ["manifest.json"], ["only.sagemaker-ignore"]])
def test_a_save_without_files_is_a_mistake(names: list[str]) -> None:
    checkpoints = Checkpoints()

    def save_these() -> None:
        with checkpoints.save(1) as folder:
            for name in names:
                (folder / name).touch()

    with pytest.raises(ValueError, match="at least one file"):
        save_these()
    assert latest_step(checkpoints) is None


def test_steps_are_whole_numbers() -> None:
    with pytest.raises(ValueError, match="0 or more"), Checkpoints().save(-1):
        pass
    with pytest.raises(TypeError), Checkpoints().save(1.5):
        pass
    with Checkpoints().save(np.int64(7)) as folder:
        (folder / "x").touch()
    assert latest_step(Checkpoints()) == 7


def test_reports_without_a_tuner_go_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    report(1, loss=np.float32(0.5), acc=True)
    report(np.int64(2), loss=float("inf"))
    report(None, final=3)
    [file] = Path("checkpoints/metrics").iterdir()
    assert _job_checkpoints._METRICS_FILE.fullmatch(file.name)
    assert file.name.startswith("000-")
    assert [(e["step"], e["metrics"]) for e in map(json.loads, file.read_text().splitlines())] == [
        (1, {"loss": 0.5, "acc": 1.0}),
        (2, {"loss": "inf"}),
        (None, {"final": 3.0}),
    ]
    assert "step=1 loss=0.5 acc=1.0\n" in capsys.readouterr().out


@pytest.mark.parametrize("values", [{}, {"a b": 1}, {"a=b": 1}, {"": 1}])
def test_names_that_a_line_cannot_hold_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="names without spaces"):
        report(1, **values)


def test_a_value_that_is_no_number_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        report(1, loss="much")
    with pytest.raises(TypeError):
        report(1.5, loss=1)
    assert not Path("checkpoints").exists()


def test_the_manifest_repeats_the_reports_that_the_store_may_lack() -> None:
    checkpoints = Checkpoints(keep_s=0)
    for step in range(1, 5):
        report(step, loss=step)
    folder = save(checkpoints, 4)
    repeated = json.loads((folder / "manifest.json").read_text())["metrics"]
    [file] = Path("checkpoints/metrics").iterdir()
    assert repeated["file"] == file.name
    assert repeated["entries"] == [json.loads(line) for line in file.read_text().splitlines()]
    report(5, loss=5)
    entries = json.loads((save(checkpoints, 5) / "manifest.json").read_text())["metrics"]["entries"]
    assert [entry["step"] for entry in entries] == [5]
    entries = json.loads((save(Checkpoints(keep_s=6_000), 6) / "manifest.json").read_text())["metrics"]["entries"]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]


def test_the_manifest_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_RUN", "abc")
    for step in range(3000):
        report(step, loss=1)
    manifest = json.loads((save(Checkpoints(), 1) / "manifest.json").read_text())
    assert [entry["step"] for entry in manifest["metrics"]["entries"]] == list(range(2000, 3000))
    assert manifest["metrics"]["file"] == "000-abc-algo-1.jsonl"
    assert not Path("checkpoints/metrics").exists()  # the bootstrap writes it


def test_until_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert until_step(30) == 30
    monkeypatch.setenv("TUNER_UNTIL_STEP", "9")
    assert (until_step(30), until_step(5)) == (9, 5)
