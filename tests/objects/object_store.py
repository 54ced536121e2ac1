"""The contract of the object store port, for every implementation."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tuner.storage.objects import ObjectNotFound, Objects, StorageRefused

ROOT = "s3://a-bucket/root/"


def names(objects: Objects, prefix: str = ROOT, **arguments: str) -> list[str]:
    return [info.uri.removeprefix(ROOT) for info in objects.list(prefix, **arguments)]


class ObjectsContract:
    """Subclasses define the fixture `objects`: an empty store with the bucket `a-bucket`."""

    def test_a_written_object_is_read_and_listed(self, objects: Objects) -> None:
        uri = ROOT + "deep/er/żółw 1%2F+.bin"
        objects.write(uri, b"0123456789")
        assert objects.read(uri) == b"0123456789"
        [info] = objects.list(ROOT)
        assert (info.uri, info.size) == (uri, 10)
        assert info.modified.tzinfo == UTC
        assert abs(info.modified - datetime.now(UTC)) < timedelta(hours=1)

    def test_a_range_is_read(self, objects: Objects) -> None:
        objects.write(ROOT + "x", b"0123456789")
        objects.write(ROOT + "empty", b"")
        assert objects.read(ROOT + "x", 4) == b"456789"
        assert objects.read(ROOT + "x", 4, 3) == b"456"
        assert objects.read(ROOT + "x", 0, 3) == b"012"
        assert objects.read(ROOT + "x", 8, 30) == b"89"
        assert objects.read(ROOT + "x", 4, 0) == b""
        assert objects.read(ROOT + "x", 10) == objects.read(ROOT + "x", 99, 5) == b""
        assert objects.read(ROOT + "empty") == b""

    def test_a_write_replaces_and_changes_the_etag(self, objects: Objects) -> None:
        tags = set()
        for data in (b"one", b"two"):
            objects.write(ROOT + "x", data)
            [info] = objects.list(ROOT)
            tags.add(info.etag)
        assert objects.read(ROOT + "x") == b"two"
        assert len(tags) == 2

    def test_a_listing_is_by_string_prefix_in_the_order_of_bytes(self, objects: Objects) -> None:
        for name in ("1/x", "10/x", "1-x", "1", "b/é", "b/z", "b/Z", "b/\U0001f40c", "b/\uffee"):
            if name != "1":  # a directory tree cannot hold both 1 and 1/x
                objects.write(ROOT + name, b"")
        assert names(objects) == ["1-x", "1/x", "10/x", "b/Z", "b/z", "b/é", "b/\uffee", "b/\U0001f40c"]
        assert names(objects, ROOT + "1") == ["1-x", "1/x", "10/x"]
        assert names(objects, ROOT + "1/") == ["1/x"]
        assert names(objects, start_after=ROOT + "10/x") == ["b/Z", "b/z", "b/é", "b/\uffee", "b/\U0001f40c"]
        assert names(objects, ROOT + "b/", start_after=ROOT + "b/m") == names(objects, ROOT + "b/")[1:]
        assert names(objects, "s3://a-bucket/") == names(objects)
        assert names(objects, ROOT + "none/") == []

    def test_names_of_the_agent_are_listed(self, objects: Objects) -> None:
        for name in ("x.sagemaker-uploaded", ".hidden"):
            objects.write(ROOT + name, b"")
        assert names(objects) == [".hidden", "x.sagemaker-uploaded"]

    def test_files_go_in_and_out(self, objects: Objects, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(bytes(range(256)) * 5000)
        objects.write_file(ROOT + "f", source)
        objects.copy(ROOT + "f", ROOT + "copies/g")
        objects.read_to_file(ROOT + "copies/g", target)
        assert target.read_bytes() == source.read_bytes()
        assert names(objects) == ["copies/g", "f"]

    def test_delete_is_idempotent(self, objects: Objects) -> None:
        uris = [f"{ROOT}many/{i}" for i in range(1100)]
        for uri in uris[::100]:
            objects.write(uri, b"")
        objects.write(ROOT + "other", b"")
        objects.delete(uris)
        objects.delete(uris[:1])
        objects.delete([])
        assert names(objects) == ["other"]
        objects.write(ROOT + "many", b"")  # no empty folder prevents it
        assert names(objects) == ["many", "other"]

    def test_a_missing_object_is_reported(self, objects: Objects, tmp_path: Path) -> None:
        with pytest.raises(ObjectNotFound, match="none"):
            objects.read(ROOT + "none")
        with pytest.raises(ObjectNotFound):
            objects.read_to_file(ROOT + "none", tmp_path / "x")
        with pytest.raises(ObjectNotFound):
            objects.copy(ROOT + "none", ROOT + "x")

    @pytest.mark.parametrize(
        "uri", ["/etc/passwd", "s3://", "s3://../x", "file:///x", "s3://a-bucket", "s3://A_B/x", ""]
    )
    def test_an_invalid_address_is_refused(self, objects: Objects, uri: str) -> None:
        with pytest.raises(StorageRefused):
            objects.read(uri)
        with pytest.raises(StorageRefused):
            objects.write(uri, b"")
        with pytest.raises(StorageRefused):
            objects.delete([uri])
