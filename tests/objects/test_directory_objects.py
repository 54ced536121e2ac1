"""The object store in a directory tree: the contract, and no address leads out of the tree."""

import threading
from pathlib import Path

import pytest
from object_store import ROOT, ObjectsContract, names

from tuner.storage.objects import DirectoryObjects, ObjectNotFound, StorageRefused, StorageUnavailable


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryObjects:
    return DirectoryObjects(tmp_path / "state" / "s3")


class TestDirectoryObjects(ObjectsContract):
    @pytest.mark.parametrize("key", ["../x", "a/../../x", "a/./b", "a//b", "/etc/passwd", "a/", "", "a\0b", "..", "."])
    def test_no_key_leads_out_of_the_tree(self, objects: DirectoryObjects, key: str, tmp_path: Path) -> None:
        uri = f"s3://a-bucket/{key}"
        for act in (objects.read, lambda uri: objects.write(uri, b""), lambda uri: objects.delete([uri])):
            with pytest.raises(StorageRefused):
                act(uri)
        with pytest.raises((StorageRefused, ObjectNotFound)):
            objects.copy(ROOT + "x", uri)
        assert not (tmp_path / "x").exists()

    def test_no_listing_leads_out_of_the_tree(self, objects: DirectoryObjects, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "secret").write_text("")
        for prefix in ("s3://a-bucket/../", "s3://a-bucket/../../state/"):
            with pytest.raises(StorageRefused):
                list(objects.list(prefix))

    def test_a_link_that_leads_out_is_refused_and_not_listed(self, objects: DirectoryObjects, tmp_path: Path) -> None:
        objects.write(ROOT + "x", b"")
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "state" / "s3" / "a-bucket" / "root" / "out").symlink_to(tmp_path)
        with pytest.raises(StorageRefused, match="symbolic link"):
            objects.read(ROOT + "out/secret")
        with pytest.raises(StorageRefused):
            objects.write(ROOT + "out/secret", b"")
        assert names(objects) == ["x"]

    def test_a_key_that_a_tree_cannot_hold_is_refused(self, objects: DirectoryObjects) -> None:
        objects.write(ROOT + "a/b", b"")
        for uri in (ROOT + "a", ROOT + "a/b/c"):
            with pytest.raises(StorageRefused):
                objects.write(uri, b"")
        with pytest.raises(StorageRefused):
            objects.write(ROOT + "x" * 300, b"")
        assert names(objects) == ["a/b"]

    def test_a_disk_that_is_full_may_be_free_later(
        self, objects: DirectoryObjects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageUnavailable, match="No space left"):
            objects.write(ROOT + "x", b"")

    def test_a_write_and_a_delete_leave_no_file_and_no_folder(self, objects: DirectoryObjects, tmp_path: Path) -> None:
        objects.write(ROOT + "x", b"")
        objects.delete([ROOT + "x"])
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["s3.lock"]
        assert list((tmp_path / "state" / "s3" / "a-bucket").iterdir()) == []

    def test_a_reader_never_sees_half_an_object(self, objects: DirectoryObjects) -> None:
        versions = [bytes([i]) * 50_000 for i in range(2)]
        objects.write(ROOT + "d/x", versions[0])
        done = threading.Event()

        def churn() -> None:
            try:
                for i in range(300):
                    objects.write(ROOT + "d/x", versions[i % 2])
                    objects.write(ROOT + "e/y", b"")
                    objects.delete([ROOT + "e/y"])  # its folder comes and goes
            finally:
                done.set()

        thread = threading.Thread(target=churn)
        thread.start()
        while not done.is_set():
            assert objects.read(ROOT + "d/x") in versions
            objects.write(ROOT + "e/z", b"")
            assert "d/x" in names(objects)
            objects.delete([ROOT + "e/z"])
        thread.join()

    def test_a_folder_is_not_removed_while_an_object_is_written_into_it(
        self, objects: DirectoryObjects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        objects.write(ROOT + "e/y", b"")
        rename, deletes = Path.replace, []

        def in_between(path: Path, target: Path) -> Path:
            deletes.append(threading.Thread(target=objects.delete, args=([ROOT + "e/y"],)))
            deletes[-1].start()
            deletes[-1].join(0.1)
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", in_between)
        objects.write(ROOT + "e/z", b"")
        for thread in deletes:
            thread.join()
        assert names(objects) == ["e/z"]
