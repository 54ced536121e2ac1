"""The tree of objects, and the agent that keeps a prefix equal to a folder."""

import pytest

from tuner.local.agent import Agent
from tuner.local.tree import BadAddress, Tree, split_uri


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "state")


def agent(tree, folder, *, uri="s3://bucket/trial/1/", markers=True):
    return Agent(tree, uri, folder, markers=markers)


def objects(tree, uri="s3://bucket/trial/1/"):
    return {name: path.read_text() for name, path in tree.under(uri)}


def test_new_changed_and_deleted_files_are_so_in_s3_too(tree, folder):
    made = agent(tree, folder)
    (folder / "step-1").mkdir()
    (folder / "step-1" / "state").write_text("one")
    made.sync()
    assert objects(tree) == {"step-1/state": "one"}
    (folder / "step-1" / "state").write_text("two!")
    made.sync()
    assert objects(tree) == {"step-1/state": "two!"}
    (folder / "step-1" / "state").unlink()
    made.sync()
    assert objects(tree) == {}


def test_a_restart_brings_everything_back_and_uploads_nothing(tree, folder, tmp_path):
    (folder / "a").write_text("a")
    agent(tree, folder).sync()
    before = tree.path("s3://bucket/trial/1/a").stat()
    other = tmp_path / "other"
    other.mkdir()
    made = agent(tree, other)
    made.download()
    made.sync()
    assert (other / "a").read_text() == "a"
    assert tree.path("s3://bucket/trial/1/a").stat().st_ino == before.st_ino
    (other / "a").unlink()
    made.sync()
    assert objects(tree) == {}


def test_objects_of_others_under_the_prefix_are_left_alone_and_not_brought_down(tree, folder):
    made = agent(tree, folder)
    made.download()
    tree.put_bytes(b"theirs", "s3://bucket/trial/1/later")
    made.sync()
    assert objects(tree) == {"later": "theirs"}
    assert not list(folder.iterdir())


def test_markers_stand_beside_the_files_and_ignored_names_stay_behind(tree, folder):
    (folder / "a").write_text("a")
    (folder / "b.sagemaker-ignore").write_text("b")
    made = agent(tree, folder)
    made.sync()
    made.sync()
    assert objects(tree) == {"a": "a"}
    assert sorted(p.name for p in folder.iterdir()) == ["a", "a.sagemaker-uploaded", "b.sagemaker-ignore"]
    (folder / "a").unlink()
    made.sync()
    assert [p.name for p in folder.iterdir()] == ["b.sagemaker-ignore"]


def test_a_file_that_goes_away_under_its_upload_is_no_fault(tree, folder, monkeypatch):
    (folder / "a").write_text("a")
    made = agent(tree, folder)
    put = tree.put

    def vanish(source, uri):
        source.unlink()
        put(source, uri)

    monkeypatch.setattr(tree, "put", vanish)
    made.sync()
    assert objects(tree) == {}
    assert not list(folder.iterdir())
    made.sync()


def test_an_object_that_goes_between_the_listing_and_its_copy_is_passed_over(tree, tmp_path, monkeypatch):
    for key in ("stays", "goes"):
        tree.put_bytes(b"x", f"s3://bucket/trial/1/{key}")
    listed = list(tree.under("s3://bucket/trial/1/"))
    monkeypatch.setattr(tree, "under", lambda _: listed)
    tree.delete("s3://bucket/trial/1/goes")
    assert tree.fetch("s3://bucket/trial/1/", tmp_path / "in") == ["stays"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["stays"]


def test_a_torn_upload_is_half_of_the_newest_file(tree, folder):
    (folder / "old").write_text("0123456789")
    made = agent(tree, folder)
    made.sync()
    (folder / "new").write_text("abcdef")
    made.tear()
    assert objects(tree) == {"old": "0123456789", "new": "abc"}


def test_a_prefix_is_a_string(tree):
    for key in ("trial/1/a", "trial/10/b", "trial/2/c"):
        tree.put_bytes(b"", f"s3://bucket/{key}")
    assert sorted(name for name, _ in tree.under("s3://bucket/trial/1/")) == ["a"]
    assert sorted(name for name, _ in tree.under("s3://bucket/trial/1")) == ["0/b", "a"]
    assert sorted(name for name, _ in tree.under("s3://bucket/trial/1/a")) == ["a"]
    assert sorted(name for name, _ in tree.under("s3://bucket")) == ["trial/1/a", "trial/10/b", "trial/2/c"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/../x",
        "s3://bucket/a/../../x",
        "s3://../x",
        "s3://bucket//x",
        "s3://bucket/./x",
        "file:///etc",
        "/etc",
        "",
        "s3://a/x",
        "s3://Bucket/x",
        "s3://bucket/a\x00b",
        "s3://buck..et/x",
        "s3://bucket/..",
    ],
)
def test_no_address_leads_out_of_the_tree(uri):
    with pytest.raises(BadAddress):
        split_uri(uri)


def test_a_put_leaves_no_temporary_behind(tree, tmp_path):
    tree.put_bytes(b"x", "s3://bucket/a/b")
    (tmp_path / "f").write_text("y")
    tree.put(tmp_path / "f", "s3://bucket/a/b")
    with pytest.raises(FileNotFoundError):
        tree.put(tmp_path / "gone", "s3://bucket/a/c")
    assert not list((tmp_path / "state" / "tmp").iterdir())
    assert objects(tree, "s3://bucket/") == {"a/b": "y"}
    tree.delete("s3://bucket/a/b")
    assert not list((tmp_path / "state" / "s3" / "bucket").iterdir())
