"""How checkpoints are written, as the kernel tells it; and what a snapshot and a torn file are."""

import os

import pytest

from tuner.rehearse.saves import SaveWatch, own_files, save_seconds
from tuner.rehearse.stage import newest_files, snapshot, tear, written_since


@pytest.fixture
def watched(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    watch = SaveWatch(folder)
    if not watch.works:
        pytest.skip("the kernel has no watch to give")
    yield folder, watch
    watch.close()


def test_a_file_that_is_renamed_is_not_written_in_place(watched):
    folder, watch = watched
    (folder / "state.tmp").write_text("1")
    (folder / "state.tmp").rename(folder / "state")
    (folder / "other").write_text("2")
    watch.drain(1.0)
    assert watch.in_place == {"other"}


def test_a_folder_that_is_renamed_takes_its_files_along(watched):
    folder, watch = watched
    (folder / "step.tmp").mkdir()
    watch.drain(1.0)
    (folder / "step.tmp" / "weights").write_text("1")
    watch.drain(2.0)
    assert watch.in_place == {"step.tmp/weights"}
    (folder / "step.tmp").rename(folder / "step-1")
    watch.drain(3.0)
    assert watch.in_place == set()


def test_what_is_ours_or_the_agents_is_no_save(watched):
    folder, watch = watched
    (folder / "metrics").mkdir()
    watch.drain(1.0)
    (folder / "metrics" / "001-a-algo-1.jsonl").write_text("{}")
    (folder / "state.sagemaker-uploading").write_text("")
    watch.drain(2.0)
    assert (watch.moments, watch.in_place) == ([], set())
    (folder / "state.sagemaker-ignore").write_text("1")
    watch.drain(3.0)
    assert set(watch.moments) == {3.0}  # part of a save, but never uploaded
    assert watch.in_place == set()


def test_a_folder_that_is_not_there_is_not_watched(tmp_path):
    watch = SaveWatch(tmp_path / "absent")
    assert not watch.works
    watch.drain(1.0)
    watch.close()


def test_writes_that_lie_close_together_are_one_save():
    assert save_seconds([], 1.0) is None
    assert save_seconds([0.0, 0.1, 0.3, 1.0, 1.2, 2.0, 2.3], 1.0) == pytest.approx(0.3)


def test_a_snapshot_holds_the_scripts_files_and_changes_no_more(tmp_path):
    prefix, copy = tmp_path / "prefix", tmp_path / "copy"
    (prefix / "metrics").mkdir(parents=True)
    (prefix / "metrics" / "m.jsonl").write_text("{}")
    (prefix / "deep").mkdir()
    (prefix / "deep" / "state").write_text("12345678")
    (prefix / "x.sagemaker-uploading").write_text("")
    snapshot(prefix, copy)
    assert list(own_files(copy)) == ["deep/state"]
    tear(copy / "deep" / "state")
    assert (copy / "deep" / "state").read_text() == "1234"
    assert (prefix / "deep" / "state").read_text() == "12345678"


def test_the_newest_files_are_those_stored_last_the_largest_first(tmp_path):
    for name, size, at in (("old", 9, 100.0), ("latest.txt", 1, 200.0), ("weights", 5, 199.99)):
        (tmp_path / name).write_text("x" * size)
        os.utime(tmp_path / name, (at, at))
    assert newest_files(tmp_path) == ["weights", "latest.txt"]


def test_of_a_step_with_a_manifest_its_data_is_torn(tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"step-0000000{step}"
        folder.mkdir()
        (folder / "state").write_text("12")
        (folder / "manifest.json").write_text("{}" * 9)
    assert newest_files(tmp_path) == ["step-00000002/state"]


def test_a_checkpoint_may_lie_among_files_that_were_stored_after_it(tmp_path):
    for name, at in (("config", 50.0), ("state", 100.0), ("train.log", 200.0)):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (at, at))
    assert written_since(tmp_path, 90.0) == ["train.log", "state"]
    assert written_since(tmp_path, 300.0) == ["train.log"]


def test_beside_the_newest_step_folder_lie_files_of_the_scripts_own(tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"step-0000000{step}"
        folder.mkdir()
        for name in ("state", "manifest.json"):
            (folder / name).write_text("12")
    (tmp_path / "train.log").write_text("12")
    assert sorted(written_since(tmp_path, 0.0)) == ["step-00000002/state", "train.log"]
