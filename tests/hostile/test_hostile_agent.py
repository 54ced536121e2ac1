"""What a script may make of its checkpoint folder, as the agent takes it: files go up, and nothing else; no hanging."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from tuner.local.agent import Agent
from tuner.local.tree import Tree

URI = "s3://bucket/trial/1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "state/s3/bucket/trial/1"


@pytest.fixture
def agent(tmp_path: Path, folder: Path) -> Agent:
    return Agent(Tree(tmp_path / "state"), URI, folder, markers=True)


def stored(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_links_are_not_followed(tmp_path: Path, folder: Path, store: Path, agent: Agent) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("private")
    (folder / "file").symlink_to(secret / "key")
    (folder / "directory").symlink_to(secret)
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere").symlink_to("absent")
    (folder / "model").write_text("weights")
    (folder / "model.sagemaker-uploading").symlink_to(secret / "made by the marker")
    agent.sync()
    agent.sync()
    assert stored(store) == {"model": b"weights"}
    assert [path.name for path in secret.iterdir()] == ["key"]


def test_a_folder_that_became_a_link_is_empty(tmp_path: Path, folder: Path, store: Path, agent: Agent) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/key").write_text("private")
    folder.rmdir()
    folder.symlink_to(tmp_path / "outside")
    agent.sync()
    assert stored(store) == {}


class Swapped(Tree):
    """A link takes the place of each file between the look and the upload."""

    def put(self, source: Path, uri: str) -> None:
        source.unlink()
        source.symlink_to("/etc/passwd")
        super().put(source, uri)


def test_a_link_that_takes_a_files_place_is_no_content(tmp_path: Path, folder: Path, store: Path) -> None:
    (folder / "model").write_text("weights")
    Agent(Swapped(tmp_path / "state"), URI, folder, markers=True).sync()
    assert stored(store) == {}


def test_pipes_sockets_and_devices_are_passed_over(
    folder: Path, store: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # the names of sockets are short
        listener.bind("socket")
    if os.geteuid() == 0:
        os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    (folder / "model").write_text("weights")
    agent.sync()
    assert stored(store) == {"model": b"weights"}


@pytest.mark.parametrize(
    "name", ["with space", "line\nbreak", "$(touch x)", "-rf", "ünïcødé", "\\", "'\"", "\x1b[31m", "*", "x" * 255]
)
def test_every_name_that_is_text_goes_up_and_comes_back(
    tmp_path: Path, folder: Path, store: Path, agent: Agent, name: str
) -> None:
    (folder / name).write_text("weights")
    agent.sync()
    assert stored(store) == {name: b"weights"}
    again = tmp_path / "again"
    again.mkdir()
    Agent(Tree(tmp_path / "state"), URI, again, markers=True).download()
    assert (again / name).read_text() == "weights"
    (folder / name).unlink()
    agent.sync()
    assert stored(store) == {}


def test_a_name_that_is_no_text_stays_behind(folder: Path, store: Path, agent: Agent) -> None:
    Path(os.fsdecode(bytes(folder) + b"/\xff")).write_text("weights")
    Path(os.fsdecode(bytes(folder) + b"/\xfe")).mkdir()
    Path(os.fsdecode(bytes(folder) + b"/\xfe/a")).write_text("weights")
    (folder / "b").write_text("more")
    agent.sync()
    assert stored(store) == {"b": b"more"}


def test_a_file_becomes_a_folder_and_a_file_again(folder: Path, store: Path, agent: Agent) -> None:
    (folder / "a").write_text("file")
    agent.sync()
    (folder / "a").unlink()
    (folder / "a").mkdir()
    (folder / "a/b").write_text("inside")
    agent.sync()
    assert stored(store) == {"a/b": b"inside"}
    (folder / "a/b").unlink()
    for marker in (folder / "a").iterdir():
        marker.unlink()
    (folder / "a").rmdir()
    (folder / "a").write_text("file again")
    agent.sync()
    assert stored(store) == {"a": b"file again"}


def test_what_the_store_does_not_take_is_tried_again(
    folder: Path, store: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "model").write_text("weights")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfileobj", no_space)
        agent.sync()
        agent.sync()
    assert capfd.readouterr().err.count("could not be uploaded") == 1
    agent.sync()
    assert stored(store) == {"model": b"weights"}


@pytest.mark.slow
def test_ten_thousand_files(tmp_path: Path, folder: Path, store: Path, agent: Agent) -> None:
    for number in range(10_000):
        (folder / f"{number}").touch()
    agent.sync()
    assert len(stored(store)) == 10_000
    for path in folder.iterdir():
        path.unlink()
    agent.sync()
    assert stored(store) == {}


def test_a_folder_that_is_removed_as_a_whole_is_removed_in_the_store(folder: Path, store: Path, agent: Agent) -> None:
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/c").write_text("x")
    agent.sync()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    agent.sync()
    assert stored(store) == {}
