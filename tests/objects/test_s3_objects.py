"""The object store on S3: the contract on moto, and the translation of errors."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from fake_account import pretend
from moto import mock_aws
from object_store import ObjectsContract

from tuner.storage.objects import ObjectNotFound, ObjectsError, S3Objects, StorageRefused, StorageUnavailable


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the AWS profiles, endpoints and keys of the person who runs the tests."""
    pretend(monkeypatch, tmp_path, "us-east-1")


def make_client() -> object:
    return boto3.client(
        "s3",
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def objects() -> Iterator[S3Objects]:
    with mock_aws():
        client = make_client()
        client.create_bucket(Bucket="a-bucket")
        yield S3Objects(client)


class TestS3Objects(ObjectsContract):
    def test_a_missing_bucket_is_refused(self, objects: S3Objects, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        for act in (
            lambda: list(objects.list("s3://no-bucket/x/")),
            lambda: objects.read("s3://no-bucket/x"),
            lambda: objects.write_file("s3://no-bucket/x", tmp_path / "x"),
        ):
            with pytest.raises(StorageRefused, match="NoSuchBucket"):
                act()


def test_a_listing_has_pages() -> None:
    client = make_client()
    moment = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    pages = [{"Contents": [{"Key": key, "Size": 1, "LastModified": moment, "ETag": f'"{key}"'}]} for key in "abc"]
    with Stubber(client) as stubber:
        for number, page in enumerate(pages):
            more = {"IsTruncated": True, "NextContinuationToken": str(number)} if number < 2 else {}
            stubber.add_response("list_objects_v2", {**page, **more})
        found = list(S3Objects(client).list("s3://a-bucket/"))
    assert [(info.uri, info.etag) for info in found] == [(f"s3://a-bucket/{key}", key) for key in "abc"]
    assert {info.modified for info in found} == {moment}
    assert {info.modified.tzinfo for info in found} == {UTC}


ANSWERS = [
    ("NoSuchKey", 404, ObjectNotFound),
    ("AccessDenied", 403, StorageRefused),
    ("ExpiredToken", 400, StorageRefused),
    ("InvalidAccessKeyId", 403, StorageRefused),
    ("SlowDown", 503, StorageUnavailable),
    ("InternalError", 500, StorageUnavailable),
    ("RequestTimeout", 400, StorageUnavailable),
]


@pytest.mark.parametrize(("code", "status", "kind"), ANSWERS)
def test_error_codes_are_translated_to_decisions(code: str, status: int, kind: type[ObjectsError]) -> None:
    client = make_client()
    with Stubber(client) as stubber:
        stubber.add_client_error("get_object", code, "words of AWS", status)
        with pytest.raises(kind, match=r"s3://a-bucket/x: .*words of AWS"):
            S3Objects(client).read("s3://a-bucket/x")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EndpointConnectionError(endpoint_url="https://s3"), StorageUnavailable),
        (ReadTimeoutError(endpoint_url="https://s3"), StorageUnavailable),
        (NoCredentialsError(), StorageRefused),
        (ResponseParserError("Unable to parse response (syntax error: line 1, column 0)"), StorageUnavailable),
    ],
)
def test_transport_errors_are_translated_to_decisions(
    error: Exception, kind: type[ObjectsError], tmp_path: Path
) -> None:
    client = make_client()

    def fail(**_: object) -> None:
        raise error

    client.meta.events.register("before-send.s3", fail)
    (tmp_path / "x").touch()
    objects = S3Objects(client)
    for act in (
        lambda: objects.read("s3://a-bucket/x"),
        lambda: objects.write("s3://a-bucket/x", b""),
        lambda: list(objects.list("s3://a-bucket/x")),
        lambda: objects.write_file("s3://a-bucket/x", tmp_path / "x"),
    ):
        with pytest.raises(kind, match="s3://a-bucket/x"):
            act()


def test_a_truncated_answer_may_be_retried() -> None:
    client = make_client()
    body = StreamingBody(io.BytesIO(b"short"), content_length=100)
    with Stubber(client) as stubber:
        stubber.add_response("get_object", {"Body": body})
        with pytest.raises(StorageUnavailable):
            S3Objects(client).read("s3://a-bucket/x")


def test_an_object_that_was_not_deleted_is_reported() -> None:
    client = make_client()
    for code, kind in (("AccessDenied", StorageRefused), ("InternalError", StorageUnavailable)):
        with Stubber(client) as stubber:
            stubber.add_response("delete_objects", {"Errors": [{"Key": "x", "Code": code, "Message": "no"}]})
            with pytest.raises(kind, match="s3://a-bucket/x"):
                S3Objects(client).delete(["s3://a-bucket/x"])
