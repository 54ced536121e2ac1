"""The service on a port: who gets in, what is answered to those who do not, and what no caller can use up."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, ConnectionClosedError
from local_world import LocalWorld, request
from served import client_of, served

from tuner.local.served import serve
from tuner.local.served.serve import LocalServer
from tuner.local.served.signature import KeyUnsafe, key_pair
from tuner.local.service import LocalSageMaker
from tuner.storage.objects import STATE_MARK


class Shifted:
    """A clock that is off."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self):
        return datetime.now(UTC) + self._by


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def server(state):
    with served(state) as running:
        yield running


def signed(server, body=b"{}", *, target="SageMaker.ListTrainingJobs", **headers):
    """The headers of a request as botocore signs it; `headers` are part of what is signed."""
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    made = AWSRequest(
        "POST",
        f"{server.url}/",
        headers={"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"} | names,
        data=body,
    )
    keys = Credentials(server.keys.access_key_id, server.keys.secret_access_key)
    SigV4Auth(keys, "sagemaker", "us-east-1").add_auth(made)
    return dict(made.headers.items())


def send(server, body=b"{}", headers=None, *, method="POST", path="/"):
    """Status and answer of a request with these headers, signed by default."""
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path, body, signed(server, body) if headers is None else headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        assert answer.headers["Content-Type"] == "application/x-amz-json-1.1"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        return answer.status, content
    finally:
        connection.close()


def refusal(server, body=b"{}", headers=None, **how):
    status, answer = send(server, body, headers, **how)
    assert set(answer) == {"__type", "message"}
    return status, answer["__type"]


# --- who gets in ---


def test_a_signed_request_is_answered_as_in_process(server):
    assert send(server) == (200, {"TrainingJobSummaries": []})
    with pytest.raises(ClientError, match="Requested resource not found") as raised:
        client_of(server).describe_training_job(TrainingJobName="nobody")
    assert raised.value.response["Error"]["Code"] == "ValidationException"
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_a_job_runs_to_its_end_and_outlives_the_service(state):
    world = LocalWorld(state)
    world.put("code/job-1/train.py", "print('hello')")
    try:
        with served(state) as server:
            arn = client_of(server).create_training_job(**request())["TrainingJobArn"]
        assert arn == "arn:aws:sagemaker:us-east-1:000000000000:training-job/job-1"
        assert world.ended()["TrainingJobStatus"] == "Completed"
    finally:
        world.leave_nothing()


def test_nobody_gets_in_unsigned(server):
    assert refusal(server, headers={}) == (403, "MissingAuthenticationTokenException")
    assert refusal(server, headers={"Authorization": "Basic dXNlcjpwdw=="}) == (403, "IncompleteSignatureException")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"aws_secret_access_key": "another"}, "InvalidSignatureException"),
        ({"aws_access_key_id": "ANOTHER"}, "UnrecognizedClientException"),
        ({"region_name": "eu-west-1"}, "InvalidSignatureException"),
    ],
)
def test_nobody_gets_in_with_a_wrong_key_or_for_another_region(server, changes, code):
    with pytest.raises(ClientError) as raised:
        client_of(server, **changes).list_training_jobs()
    assert raised.value.response["Error"]["Code"] == code
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_signature_is_good_for_its_request_alone(server):
    headers = signed(server)
    assert send(server, headers=headers)[0] == 200
    assert refusal(server, b'{"MaxResults": 5}', headers) == (403, "InvalidSignatureException")
    other = headers | {"X-Amz-Target": "SageMaker.StopTrainingJob"}
    assert refusal(server, headers=other) == (403, "InvalidSignatureException")


def test_the_body_is_part_of_the_signature_whatever_its_hash_is_said_to_be(server):
    unsigned = signed(server, X_Amz_Content_SHA256="UNSIGNED-PAYLOAD")
    assert refusal(server, headers=unsigned) == (403, "InvalidSignatureException")
    claimed = signed(server, X_Amz_Content_SHA256="0" * 64)
    assert refusal(server, headers=claimed) == (403, "InvalidSignatureException")


@pytest.mark.parametrize("name", ["host", "x-amz-date", "x-amz-target"])
def test_what_a_signature_must_cover(server, name):
    headers = signed(server)
    headers["Authorization"] = headers["Authorization"].replace(f"{name};", "").replace(f";{name}", "")
    assert refusal(server, headers=headers) == (403, "IncompleteSignatureException")


@pytest.mark.parametrize(("minutes", "status"), [(-6, 403), (-4, 200), (4, 200), (6, 403)])
def test_a_signature_is_good_for_five_minutes(state, minutes, status):
    with served(state, clock=Shifted(timedelta(minutes=minutes)), arrives_within_s=1000) as server:
        assert send(server)[0] == status


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_web_page_does_not_get_in_by_a_name_of_its_own(server, host):
    headers = signed(server) | {"Host": host.format(port=server.server_address[1])}
    assert refusal(server, headers=headers) == (403, "AccessDeniedException")


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}"])
def test_names_of_this_machine_are_the_service(server, host):
    named = host.format(port=server.server_address[1])
    assert client_of(server, endpoint_url=f"http://{named}").list_training_jobs()["TrainingJobSummaries"] == []


# --- the key ---


def test_the_key_is_drawn_once_and_can_be_read_by_its_owner_alone(state):
    state.mkdir(mode=0o755)
    first = key_pair(state)
    assert key_pair(state) == first
    assert (state.stat().st_mode & 0o777, (state / "credentials.json").stat().st_mode & 0o777) == (0o700, 0o600)
    assert first.secret_access_key not in repr(first)
    assert list((state / "tmp").iterdir()) == []


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o640), lambda path: path.write_text("{}")])
def test_a_key_that_cannot_be_trusted_is_refused(state, spoil):
    state.mkdir()
    key_pair(state)
    spoil(state / "credentials.json")
    with pytest.raises(KeyUnsafe, match="remove it"):
        LocalServer(LocalSageMaker(state))


# --- what is not a request ---


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"MaxResults": NaN}', b'{"MaxResults": 1e400}', b'{"MaxResults": 1e30}'),
        *(b'{"NameContains": "\\ud800"}', b"\xff\xfe", b"[" * 100_000, b'{"MaxResults": 123456789012345678901}'),
        b'{"SearchExpression":' + b'{"SubExpressions":[' * 3000 + b"]}" * 3000 + b"}",
    ],
)
def test_bodies_that_are_no_request(server, body):
    status, answer = send(server, body)
    assert (status, answer.get("__type")) == ((200, None) if body == b"" else (400, "SerializationException"))
    assert send(server)[0] == 200


@pytest.mark.parametrize("depth", [10, 100, 240, 490, 5000])
def test_a_search_may_be_nested_as_deeply_as_anybody_likes(server, capfd, depth):
    expression = b'{"SubExpressions":[' * depth + b'{"Filters":[{"Name":"A"}]}' + b"]}" * depth
    body = b'{"Resource":"TrainingJob","SearchExpression":' + expression + b"}"
    status, answer = send(server, body, signed(server, body, target="SageMaker.Search"))
    assert (status, answer.get("__type")) in [
        (200, None),
        (400, "SerializationException"),
        (400, "ValidationException"),
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"X-Amz-Target": "SageMaker.LaunchRockets"},
        {"X-Amz-Target": "DynamoDB.PutItem"},
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
    ],
)
def test_other_targets_and_content_types(server, changes):
    changes = {key.replace("-", "_"): value for key, value in changes.items()}
    target = changes.pop("X_Amz_Target", "SageMaker.ListTrainingJobs")
    status, code = refusal(server, headers=signed(server, target=target, **changes))
    assert (status, code) in [(404, "UnknownOperationException"), (400, "UnknownOperationException")]


def test_other_paths_and_methods(server):
    assert refusal(server, path="/jobs") == (404, "UnknownOperationException")
    for method in ("GET", "OPTIONS", "PUT", "DELETE"):
        assert refusal(server, method=method) == (501, "UnknownOperationException")


def test_a_body_has_a_length_and_a_limit(server):
    chunked = {**signed(server), "Transfer-Encoding": "chunked"}
    assert refusal(server, None, chunked) == (411, "SerializationException")
    for length in ("1048577", "9" * 5000, "-1", "1e3", "٣"):
        status, _ = refusal(server, None, {**signed(server), "Content-Length": length.encode()})
        assert status in (411, 413)


@pytest.mark.parametrize("line", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"A" * 70_000])
def test_what_is_not_http_is_answered_or_dropped(server, line):
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        answer = b""
        with suppress(ConnectionError):  # dropped before all of it was sent
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(1 << 16):
                answer += data
    assert answer == b"" or b"UnknownOperationException" in answer
    assert send(server)[0] == 200


# --- what no caller can use up ---


def test_a_request_that_does_not_arrive_is_dropped(state):
    with served(state, arrives_within_s=0.5) as server:
        host, port = server.server_address[:2]
        with socket.create_connection((host, port), timeout=60) as slow:
            slow.sendall(b"POST / HTTP/1.1\r\n")
            try:
                for _ in range(600):  # a byte now and then is not enough
                    slow.sendall(b"X")
                    time.sleep(0.05)
                raise AssertionError("it is still listening")
            except OSError:
                pass


def test_more_callers_than_served_at_a_time_wait_for_their_turn(state, monkeypatch):
    monkeypatch.setattr(serve, "_AT_A_TIME", 2)
    monkeypatch.setattr(serve, "_WAITS_S", 60)
    with served(state, arrives_within_s=120) as server, ThreadPoolExecutor() as pool:
        idle = [socket.create_connection(server.server_address[:2], timeout=60) for _ in range(2)]
        third = pool.submit(send, server)
        for connection in idle:
            connection.close()
        assert third.result(timeout=60)[0] == 200


def test_a_caller_that_goes_away_is_no_news(server, capfd):
    for sent in (b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 100\r\nHost: "):
        with socket.create_connection(server.server_address[:2], timeout=60) as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    assert send(server)[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fault", [ZeroDivisionError, OSError(28, "No space left on device")])
def test_a_fault_of_ours_is_told_on_this_side_only(server, monkeypatch, capfd, fault):
    def fail(*_):
        raise fault

    monkeypatch.setattr(server.service, "handle", fail)
    assert send(server) == (500, {"__type": "InternalFailure", "message": ""})
    assert "Traceback" in capfd.readouterr().err


def test_settings_that_cannot_be_used_are_named(server, state):
    (state / "settings.json").write_text('{"lost": 1}')
    status, answer = send(server)
    assert (status, answer["__type"]) == (500, "InternalFailure")
    assert "'lost'" in answer["message"]


# --- faults ---


def switch(state, **settings):
    (state / "settings.json").write_text(json.dumps(settings))


def codes(server, count):
    return [answer.get("__type", "done") for _, answer in (send(server) for _ in range(count))]


def test_a_share_of_calls_is_throttled_the_same_for_the_same_seed(state):
    state.mkdir()
    switch(state, throttled_share=0.3, fault_seed=5)
    seen = []
    for _ in range(2):
        with served(state) as server:
            seen.append(codes(server, 60))
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"done", "ThrottlingException"}
    assert 8 <= seen[0].count("ThrottlingException") <= 28


def test_a_lost_answer_belongs_to_a_call_that_was_carried_out(state):
    world = LocalWorld(state)
    try:
        with served(state) as server:
            world.settings(lost_share=1)
            world.put("code/job-1/train.py", "pass")
            with pytest.raises(ConnectionClosedError):
                client_of(server).create_training_job(**request())
            with pytest.raises(ConnectionClosedError):
                world.client.describe_training_job(TrainingJobName="job-1")  # in process too
            world.settings()
            assert world.ended()["TrainingJobStatus"] == "Completed"
    finally:
        world.leave_nothing()


def test_credentials_expire_and_are_renewed(server, state):
    switch(state, credentials_expired=True)
    with pytest.raises(ClientError, match="expired") as raised:
        client_of(server).list_training_jobs()
    assert raised.value.response["Error"]["Code"] == "ExpiredTokenException"
    switch(state)
    assert send(server)[0] == 200


def test_capacity_can_be_set_for_every_study(state):
    world = LocalWorld(state)
    started = datetime.now(UTC).isoformat()
    try:
        world.settings(market={"kind": "at", "started_at": started, "at_s": [0], "down_s": 1e6})
        world.create("spot")
        world.create("other", spot=False)
        assert world.ended("other")["TrainingJobStatus"] == "Completed"
        waiting = world.until(
            lambda: world.describe("spot")["SecondaryStatusTransitions"][-1]["StatusMessage"],
            lambda message: message.startswith("Insufficient capacity"),
        )
        assert waiting
    finally:
        world.leave_nothing()


def test_a_market_that_cannot_be_is_refused_with_its_key(server, state):
    switch(state, market={"kind": "tides", "started_at": "2026-01-01T00:00:00+00:00"})
    assert "tides" in send(server)[1]["message"]


def test_the_state_directory_holds_no_more_than_was_asked(state):
    with served(state):
        pass
    assert sorted(path.name for path in state.iterdir()) == [STATE_MARK, "credentials.json", "tmp"]
