"""The code bundle: what is in, what is out, what is refused, and that it is uploaded once."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tuner import training
from tuner.local.service import LocalSageMaker
from tuner.storage import bundle as packaging
from tuner.storage.bundle import Bundle, BundleRefused, has_same_code, make_bundle, refuse_downloads, upload
from tuner.storage.objects import DirectoryObjects, ObjectNotFound, StorageUnavailable

OURS = {
    "tuner_bundle.json",
    "tuner/__init__.py",
    "tuner/_job_checkpoints.py",
    "tuner/_job_output.py",
    "tuner/bootstrap.py",
    "tuner/training.py",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    write(folder, "train.py", "lib/net.py", "lib/data/table.csv")
    return folder


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")


def bundle(source: Path, **arguments: object) -> Bundle:
    return make_bundle(source, "train.py", "python", [("acc", "acc=(.*)", None)], **arguments)


def names(packed: Bundle) -> set[str]:
    return {file.name for file in packed.files} - OURS


def test_the_bundle_holds_the_tree_and_what_travels(source: Path) -> None:
    packed = bundle(source)
    files = {file.name: file.data for file in packed.files}
    assert names(packed) == {"train.py", "lib/net.py", "lib/data/table.csv"}
    assert files.keys() >= OURS
    assert files["tuner/__init__.py"] == b""
    assert files["tuner/training.py"] == Path(training.__file__).read_bytes()
    assert json.loads(files["tuner_bundle.json"]) == {
        "format": 1,
        "entry_point": "train.py",
        "launcher": "python",
        "metrics": [{"name": "acc", "regex": "acc=(.*)", "step_regex": None}],
    }
    assert packed.size_bytes == sum(map(len, files.values()))


def test_the_digest_is_of_names_and_contents_alone(source: Path, tmp_path: Path) -> None:
    first = bundle(source).digest
    copied = shutil.copytree(source, tmp_path / "elsewhere")
    os.utime(copied / "train.py", (1, 1))
    assert bundle(copied).digest == first
    assert make_bundle(source, "train.py", "torchrun", []).digest != first
    (copied / "lib" / "net.py").rename(copied / "lib" / "net2.py")
    assert bundle(copied).digest != first
    (source / "train.py").write_text("edited")
    assert bundle(source).digest != first


def test_what_is_no_code_stays_out(source: Path, tmp_path: Path) -> None:
    write(source, ".git/config", ".env", "lib/.hidden/x", "__pycache__/a.pyc", "lib/__pycache__/b.pyc", "x.pyc")
    write(source, "tuner.db", "tuner.db-wal", "lib/tuner.db-shm", ".tuner/jobs/x", "state/jobs/x", "study.yaml")
    write(source, "venv/pyvenv.cfg", "venv/lib/huge.py", "p.egg-info/PKG")
    LocalSageMaker(source / "served")  # as `tuner local serve --dir` does, which keeps its keys there
    write(source, "served/credentials.json", "served/s3/bucket/model")
    os.mkfifo(source / "pipe")
    packed = bundle(source, exclude=[source / "state", source / "study.yaml", tmp_path / "not-there"])
    assert names(packed) == {"train.py", "lib/net.py", "lib/data/table.csv"}


def test_the_ignore_file(source: Path) -> None:
    write(
        source, "runs/a", "lib/runs/b", "notes.md", "lib/notes.md", "lib/data/keep.csv", "out", "top.txt", "lib/top.txt"
    )
    (source / ".tunerignore").write_text("# a comment\n\nruns/\n*.md\nlib/data/t*.csv\n/top.txt\nout/\n")
    assert names(bundle(source)) == {"train.py", "lib/net.py", "lib/data/keep.csv", "out", "lib/top.txt"}
    (source / ".tunerignore").write_text("!notes.md\n")
    with pytest.raises(BundleRefused, match="negation"):
        bundle(source)


@pytest.mark.parametrize("name", ["tuner/__init__.py", "tuner.py", "tuner/x"])
def test_a_tree_with_its_own_tuner_is_refused(source: Path, name: str) -> None:
    write(source, name)
    with pytest.raises(BundleRefused, match="named tuner"):
        bundle(source)


def test_a_tree_with_our_configuration_is_refused(source: Path) -> None:
    write(source, "tuner_bundle.json")
    with pytest.raises(BundleRefused, match="rename yours"):
        bundle(source)


def test_links_inside_are_packed_and_others_refused(source: Path, tmp_path: Path) -> None:
    (source / "alias.py").symlink_to("lib/net.py")
    files = {file.name: file.data for file in bundle(source).files}
    assert files["alias.py"] == files["lib/net.py"]
    write(tmp_path, "secret")
    for target, words in [(tmp_path / "secret", "leads out"), (source / "lib", "folder"), (source / "gone", "nothing")]:
        (source / "link").symlink_to(target)
        with pytest.raises(BundleRefused, match=words):
            bundle(source)
        (source / "link").unlink()
    (source / "ignored").symlink_to(tmp_path)
    (source / ".tunerignore").write_text("ignored")
    assert "ignored" not in names(bundle(source))


@pytest.mark.parametrize("entry_point", ["missing.py", "../code/train.py", "/etc/passwd", "lib", ".hidden.py", "md.md"])
def test_an_entry_point_that_is_not_packed_is_refused(source: Path, entry_point: str) -> None:
    write(source, ".hidden.py", "md.md")
    (source / ".tunerignore").write_text("*.md")
    with pytest.raises(BundleRefused, match="entry_point"):
        make_bundle(source, entry_point, "python", [])


def test_a_tree_that_is_too_large_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "MAX_FILES", 3)
    bundle(source)
    write(source, "one.more")
    with pytest.raises(BundleRefused, match=r"training\.inputs"):
        bundle(source)
    monkeypatch.setattr(packaging, "MAX_FILES", 100)
    with (source / "data.bin").open("wb") as file:
        file.truncate(packaging.MAX_BYTES + 1)
    with pytest.raises(BundleRefused, match=r"data\.bin"):
        bundle(source)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match="not a directory"):
        bundle(tmp_path / "none")


@pytest.mark.parametrize("text", ["torch==2.5.1\n", "# ours\n-r base.txt\n", "--pre\nnumpy  # fast\n", "-e ./lib"])
def test_packages_that_no_network_brings_are_refused(source: Path, text: str) -> None:
    (source / "requirements.txt").write_text(text)
    with pytest.raises(BundleRefused, match=r"would fail unless the image has it: .* a line --no-index .*"):
        refuse_downloads(bundle(source))
    (source / ".tunerignore").write_text("requirements.txt\n")
    refuse_downloads(bundle(source))


@pytest.mark.parametrize(
    "text", ["", "# none\n", "--no-index\ntorch\n", "--no-index --find-links wheels\n./wheels/a.whl\n"]
)
def test_requirements_that_need_no_network_are_not(source: Path, text: str) -> None:
    refuse_downloads(bundle(source))
    (source / "requirements.txt").write_text(text)
    refuse_downloads(bundle(source))


class Counting(DirectoryObjects):
    writes = 0
    fail_at = -1

    def write(self, uri: str, data: bytes) -> None:
        self.writes += 1
        if self.writes == self.fail_at:
            raise StorageUnavailable(uri)
        super().write(uri, data)


def test_an_upload_happens_once_and_survives_being_cut_off(source: Path, tmp_path: Path) -> None:
    objects = Counting(tmp_path / "s3")
    packed = bundle(source)
    objects.fail_at = 4
    with pytest.raises(StorageUnavailable):
        upload(packed, objects, "s3://bucket/study/")
    uri = upload(packed, objects, "s3://bucket/study/")
    assert uri == f"s3://bucket/study/bundles/{packed.digest}/"
    written = objects.writes
    assert upload(packed, objects, "s3://bucket/study") == uri
    assert objects.writes == written
    assert {info.uri.removeprefix(uri): info.size for info in objects.list(uri)} == {
        file.name: len(file.data) for file in packed.files
    }


# --- the user's code, and the tuner's own


def stored_by_another_version(source: Path, objects: DirectoryObjects) -> str:
    """The address of a bundle of this code that a tuner with other modules of its own uploaded."""
    files = {file.name: file.data for file in bundle(source).files} | {
        "tuner/bootstrap.py": b"as it was then",
        "tuner/gone_since.py": b"as it was then",
    }
    packed = tuple(packaging.BundleFile(name, files[name]) for name in sorted(files))
    return upload(Bundle(packaging._digest(packed), packed), objects, "s3://bucket/study/")


def test_a_bundle_of_another_version_of_the_tuner_has_the_same_code(source: Path, tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "s3")
    former = stored_by_another_version(source, objects)
    assert not former.endswith(f"/{bundle(source).digest}/")
    assert has_same_code(bundle(source), objects, former)


def test_an_edited_tree_has_other_code_than_a_bundle_of_another_version(source: Path, tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "s3")
    former = stored_by_another_version(source, objects)
    write(source, "lib/more.py")
    assert not has_same_code(bundle(source), objects, former)


def test_a_bundle_that_is_gone_cannot_be_compared(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound):
        has_same_code(bundle(source), DirectoryObjects(tmp_path / "s3"), "s3://bucket/bundles/gone/")
