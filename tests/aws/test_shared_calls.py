"""A study on AWS takes its calls out of its account's buckets, and listens to the queue that is recorded there."""

from collections import Counter
from contextlib import closing
from pathlib import Path

import boto3
import pytest
import sqlalchemy as sa
from aws_account import ACCOUNT, REGION, Account, study_file

from tuner.aws.rates import RATES, scope
from tuner.cli import main
from tuner.operations import context

pytestmark = pytest.mark.slow

SCOPE = scope(ACCOUNT, REGION)


@pytest.fixture
def folder(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    study_file(made)
    return made


def test_calls_come_out_of_the_buckets_of_the_account(
    account: Account, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buckets hardly fill here, so that what is missing in them is what was called."""
    monkeypatch.setenv("TUNER_CALLS", ",".join(f"{call}=0.0001" for call in RATES))
    monkeypatch.setattr("tuner.aws.rates._BURST_S", 1e7)
    assert main.main(["launch", "study.yaml", "-y"], account.use_cases) == 0
    made = Counter(account.calls)
    assert made["CreateTrainingJob"] == 2
    with closing(context.open_store(None)) as store, store._reading() as connection:
        rows = connection.execute(sa.text("SELECT scope, operation, tokens FROM tuner_buckets")).all()
    assert {row.scope for row in rows} == {SCOPE}
    missing = {row.operation: 1000 - row.tokens for row in rows}
    for call in ("CreateTrainingJob", "DescribeTrainingJob", "ListTrainingJobs"):
        # no call without its token; an engine that leaves may hold a few that it never made
        assert made[call] <= missing[call] + 0.5 <= made[call] + 10, (call, made, missing)


def test_a_wish_for_calls_that_says_nothing_is_one_line(
    account: Account, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TUNER_CALLS", "many")
    assert main.main(["launch", "study.yaml", "-y"], account.use_cases) == 2
    assert "TUNER_CALLS: 'many' is not CALL=NUMBER" in capsys.readouterr().err.splitlines()[-1]
    assert "CreateTrainingJob" not in account.calls


def test_an_engine_listens_to_the_queue_of_its_account(account: Account, folder: Path) -> None:
    assert main.main(["doctor", "study.yaml", "--events", "create"], account.use_cases) == 0
    before = Counter(account.calls)["ReceiveMessage"]
    assert main.main(["launch", "study.yaml", "-y"], account.use_cases) == 0
    assert Counter(account.calls)["ReceiveMessage"] > before
    assert main.main(["doctor", "study.yaml", "--events", "remove"], account.use_cases) == 0
    assert boto3.client("sqs").list_queues().get("QueueUrls", []) == []
