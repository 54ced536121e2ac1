"""Jobs whose `s3://` is an object store at an endpoint, not a folder: code, inputs, checkpoints and models go there."""

import io
import tarfile

import pytest
from local_world import LocalWorld, channel, request
from served import moto_client, moto_server, session

from tuner.local.agent import Agent
from tuner.local.container import Container, TransferFailed
from tuner.local.served.bucket import LocalBucket
from tuner.local.service import LocalSageMaker
from tuner.local.transport import attach

SCRIPT = """
import os, pathlib, time
folder = pathlib.Path(os.environ["TUNER_ML_ROOT"])
checkpoints = folder / "checkpoints"
found = sorted(path.name for path in checkpoints.iterdir())
data = (folder / "input/data/train/part/one.csv").read_text()
(checkpoints / f"step-{len(found)}").write_text(data)
(folder / "model" / "weights").write_text("w" * 100)
print("found", found, data, flush=True)
"""


@pytest.fixture(scope="module")
def s3_url():
    with moto_server() as url:
        yield url


@pytest.fixture
def s3(s3_url, request, monkeypatch):
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_url)
    client = moto_client("s3", s3_url)
    client.create_bucket(Bucket="bucket")
    yield client
    for key in keys(client):
        client.delete_object(Bucket="bucket", Key=key)


@pytest.fixture
def bucket(s3, tmp_path):
    return LocalBucket(tmp_path / "state", "us-east-1")


def keys(client):
    return [found["Key"] for found in client.list_objects_v2(Bucket="bucket").get("Contents", [])]


def body(client, key):
    return client.get_object(Bucket="bucket", Key=key)["Body"].read()


# --- the store ---


def test_what_is_fetched_is_what_begins_so(s3, bucket, tmp_path):
    for key in ("trial/1/a", "trial/1/b/c", "trial/10/d", "trial/1/", "trial/1/../x", "trial/1//y"):
        s3.put_object(Bucket="bucket", Key=key, Body=key.encode())
    assert sorted(bucket.fetch("s3://bucket/trial/1/", tmp_path / "in")) == ["a", "b/c"]
    assert (tmp_path / "in/b/c").read_text() == "trial/1/b/c"
    assert bucket.fetch("s3://bucket/trial/1/a", tmp_path / "one") == ["a"]
    assert bucket.fetch("s3://bucket/nothing/", tmp_path / "none") == []


def test_what_is_put_is_a_regular_file_and_nothing_stays_behind(s3, bucket, tmp_path):
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    bucket.put(tmp_path / "file", "s3://bucket/put")
    for name in ("link", "absent"):
        with pytest.raises(FileNotFoundError):
            bucket.put(tmp_path / name, f"s3://bucket/{name}")
    bucket.put_bytes(b"bytes", "s3://bucket/bytes")
    assert (keys(s3), body(s3, "put")) == (["bytes", "put"], b"content")
    bucket.delete("s3://bucket/put")
    bucket.delete("s3://bucket/never")
    assert keys(s3) == ["bytes"]
    assert list((tmp_path / "state/tmp").iterdir()) == []


def test_what_cannot_be_had_is_an_error_of_the_operating_system(bucket, tmp_path):
    (tmp_path / "file").touch()
    for call in (
        lambda: bucket.fetch("s3://no-such-bucket/x/", tmp_path),
        lambda: bucket.put(tmp_path / "file", "s3://no-such-bucket/x"),
        lambda: bucket.delete("s3://no-such-bucket/x"),
    ):
        with pytest.raises(PermissionError, match="NoSuchBucket"):
            call()


def test_the_agent_syncs_through_it(s3, bucket, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    agent = Agent(bucket, "s3://bucket/trial/1/", folder, markers=False)
    (folder / "one").write_text("1")
    (folder / "half.sagemaker-ignore").write_text("-")
    agent.sync()
    (folder / "two").write_text("2")
    (folder / "one").unlink()
    agent.sync()
    assert keys(s3) == ["trial/1/two"]


# --- jobs ---


@pytest.fixture
def world(s3, s3_url, tmp_path):
    made = LocalWorld(tmp_path / "state")
    made.client = session().client("sagemaker", region_name="us-east-1", endpoint_url="http://x.invalid")
    attach(made.client, LocalSageMaker(made.state_dir, s3_endpoint=s3_url))
    yield made
    made.leave_nothing()


def create(world, s3, name="job-1", script=SCRIPT, **changes):
    s3.put_object(Bucket="bucket", Key=f"code/{name}/train.py", Body=script.encode())
    s3.put_object(Bucket="bucket", Key="data/part/one.csv", Body=b"1,2")
    inputs = [channel("code", f"s3://bucket/code/{name}/"), channel("train", "s3://bucket/data/")]
    checkpoints = {"S3Uri": "s3://bucket/checkpoints/"}
    asked = request(name, InputDataConfig=inputs, CheckpointConfig=checkpoints) | changes
    world.client.create_training_job(**asked)


def why(world, name="job-1"):
    return (world.job(name).path / "supervisor.log").read_text()


def test_jobs_read_and_write_there_and_the_next_one_finds_the_checkpoints(world, s3):
    create(world, s3)
    seen = world.ended()
    assert seen["TrainingJobStatus"] == "Completed", why(world)
    assert body(s3, "checkpoints/step-0") == b"1,2"
    model = seen["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://bucket/")
    with tarfile.open(fileobj=io.BytesIO(body(s3, model))) as archive:
        assert archive.getnames() == ["weights"]
    assert not (world.state_dir / "s3").exists()
    create(world, s3, "job-2")
    world.ended("job-2")
    assert "found ['step-0'] 1,2" in world.printed("found", "job-2")
    assert "checkpoints/step-1" in keys(s3)


def test_credentials_of_the_service_reach_neither_the_script_nor_the_directory_of_the_job(world, s3):
    create(world, s3, script="import os; print('environment', dict(os.environ))")
    world.ended()
    assert "anything" not in world.printed("environment")
    folder = world.job().path
    assert "anything" not in "".join(path.read_text() for path in [*folder.glob("*.json*"), folder / "supervisor.log"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"CheckpointConfig": {"S3Uri": "s3://no-such-bucket/x/"}}, "ClientError: Data download failed:checkpoints"),
        ({"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket/x"}}, "ClientError: Artifact upload failed:"),
    ],
)
def test_a_bucket_that_is_not_there_fails_the_job_and_not_the_service(world, s3, changes, reason):
    create(world, s3, **changes)
    seen = world.ended()
    assert (seen["TrainingJobStatus"], seen["FailureReason"].startswith(reason)) == ("Failed", True), why(world)
    assert "NoSuchBucket" in seen["FailureReason"]


def test_a_channel_that_is_not_there_is_the_same_refusal(bucket, tmp_path):
    container = Container.__new__(Container)
    container._objects = bucket
    with pytest.raises(
        TransferFailed, match=r"^ClientError: Data download failed:s3://no-such-bucket/x/: .*NoSuchBucket"
    ):
        container._fetch("s3://no-such-bucket/x/", tmp_path)
