"""What was found out about an account, shown by `tuner doctor FILE`: paid for once, it can be read again."""

import json
from contextlib import closing

import pytest

from tests.aws.aws_account import ACCOUNT, REGION, ROLE, study_file
from tests.store import store_records as records
from tuner.cli import main
from tuner.core.records import Fact
from tuner.store.store import Store

SCOPE = f"{ACCOUNT}/{REGION}"
SOURCE = "doctor --first-dollar (tuner-first-dollar-bcdfgh)"


@pytest.fixture
def url(account, sqlite_url, monkeypatch):  # the account forgets the settings of this machine
    monkeypatch.setenv("TUNER_STORE", sqlite_url)
    return sqlite_url


@pytest.fixture
def store(account, url):
    account.quotas = {"ml.m5.large for spot training job usage": 4}
    with closing(Store.open(url)) as opened:
        for scope, name, value in (
            (SCOPE, "probe.sync_delay_s", {"files": 12, "max": 31.5, "median": 30.0}),
            (SCOPE, "events.queue", "https://queue"),
            (f"{ACCOUNT}/eu-west-1", "probe.stop_again", "accepted"),
        ):
            opened.put_fact(Fact(scope=scope, name=name, value=value, learned_at=records.NOW, source=SOURCE))
        yield opened


def call(capsys, *words):
    code = main.main(["doctor", *map(str, words)])
    return code, *capsys.readouterr()


def test_each_fact_of_the_account_and_region_with_when_and_by_what(store, tmp_path, capsys):
    code, out, err = call(capsys, study_file(tmp_path))
    assert (code, err) == (0, "")
    assert f"{SCOPE} " in out
    line = next(line for line in out.splitlines() if "probe.sync_delay_s" in line)
    assert [part in line for part in ('"max": 31.5', "2026-03-01T12:00:00.123456Z", SOURCE)] == [True] * 3
    assert "events.queue" in out
    assert "stop_again" not in out, "of another region"


def test_the_same_as_a_document(store, tmp_path, capsys):
    code, out, _ = call(capsys, study_file(tmp_path), "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    assert document["facts"] == [
        {"scope": SCOPE, "name": name, "value": value, "learned_at": "2026-03-01T12:00:00.123456Z", "source": SOURCE}
        for name, value in (
            ("events.queue", "https://queue"),
            ("probe.sync_delay_s", {"files": 12, "max": 31.5, "median": 30.0}),
        )
    ]


def test_where_nothing_is_known_or_can_be_asked_there_is_nothing(store, account, tmp_path, capsys):
    local = study_file(tmp_path / "local", ("backend: sagemaker", "backend: local"), (f", role: {ROLE}", ""))
    assert json.loads(call(capsys, local, "--json")[1])["facts"] == []
    (tmp_path / "broken.yaml").write_text("name: [")
    assert json.loads(call(capsys, tmp_path / "broken.yaml", "--json")[1])["facts"] == []
    account.refuse["GetCallerIdentity"] = ("ExpiredToken", "expired")
    code, out, err = call(capsys, study_file(tmp_path), "--json")
    assert (code, json.loads(out)["facts"], err) == (1, [], "")


def test_a_look_makes_no_store(account, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TUNER_STORE", f"sqlite:///{tmp_path}/none.db")
    assert json.loads(call(capsys, study_file(tmp_path), "--json")[1])["facts"] == []
    assert not list(tmp_path.glob("*.db"))
