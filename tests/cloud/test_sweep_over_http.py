"""A whole sweep through `backend: sagemaker`, by the real command line, over HTTP, on a bad day.

SageMaker is the local service on a port: it throttles three calls in ten, loses answers, has a quota of two, takes
capacity away from everybody at once, and refuses the credentials for a while. S3, EventBridge and SQS are moto's.
"""

import json
import re
from datetime import UTC, datetime
from itertools import accumulate

import pytest
import yaml
from cloud_account import Account, Program

from tuner.local.billing import bill
from tuner.local.jobdir import open_job
from tuner.local.market import write_market

SCRIPT = """
import argparse, json, time
from tuner.training import Checkpoints, report

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
parser.add_argument("--gate")  # a file that says how many epochs are allowed
args = parser.parse_args()

checkpoints = Checkpoints()
found = checkpoints.latest()
state = json.loads((found.path / "state.json").read_text()) if found else {"epoch": 0, "loss": 1.0}
print("from epoch", state["epoch"], flush=True)
for epoch in range(state["epoch"] + 1, args.epochs + 1):
    time.sleep(0.1)
    while epoch > int(open(args.gate).read()):
        time.sleep(0.02)
    state = {"epoch": epoch, "loss": state["loss"] * (1 - args.lr)}
    report(epoch, loss=state["loss"])
    with checkpoints.save(epoch) as folder:
        (folder / "state.json").write_text(json.dumps(state))
"""

BUCKET = "sweeps"
EPOCHS = 8
USD_PER_HOUR = 0.1
STUDY = {
    "name": "stormy",
    "objective": {"metric": "loss", "direction": "minimize"},
    "space": {"lr": {"type": "float", "low": 0.01, "high": 0.5}},
    "search": {"sampler": {"name": "RandomSampler", "seed": 3}},
    "trials": 6,
    "parallel": 3,
    "training": {
        "entry_point": "train.py",
        "source_dir": "code",
        "hyperparameters": {"epochs": EPOCHS},
        "image_uri": "public.ecr.aws/docker/library/python:3.11",
        "instance_types": ["ml.m5.large"],
        "max_run": "5m",
        "max_wait": "20m",
    },
    "budget": {"usd": 5},
    "prices": {"ml.m5.large": USD_PER_HOUR},
    "checkpoints": {"root": f"s3://{BUCKET}/tuner/", "keep": "best"},
    "backend": "sagemaker",
    "sagemaker": {"role": "training", "region": "us-east-1"},
    "settings": {"poll": "1s"},
}


# Every call of the whole sweep is subject to this.
STORM = {
    "start_delay_s": 0.1,
    "sync_interval_s": 0.2,
    "grace_s": 2,
    "throttled_share": 0.3,
    "lost_share": 0.08,
    "fault_seed": 11,
    "spot_quota": {"ml.m5.large": 2},
    "list_lag_s": 1,
    "events_twice_share": 0.3,
    "events_late_share": 0.3,
}
FIRST_PART = 3
ALL_LOST = {"lost_share": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle machine; every wait has a limit of its own
def test_a_sweep_finishes_whatever_the_service_does(account: Account, service: Program) -> None:
    write_study(account)
    account.tuner("doctor", "--events", "create")
    account.switch(**STORM | ALL_LOST)
    sweep = account.program("launch", "study.yaml", "-y")
    try:
        sweep.until(lambda line: "CreateTrainingJob" in line and "not known" in line)
        account.switch(**STORM)
        account.wait_for(lambda: len(saved(account, FIRST_PART)) == 2)  # as many as the quota allows
        take_capacity_away(account, for_s=4)
        account.wait_for(lambda: [runs(account, name) for name in account.jobs()] == [2, 2])
        account.switch(**STORM, credentials_expired=True)
        sweep.until(lambda line: "ExpiredTokenException" in line)
        account.switch(**STORM)
        allow(account, EPOCHS)
        assert sweep.end() == 0, "".join(sweep.said)
    finally:
        sweep.kill()
    assert "ThrottlingException" in "".join(sweep.said)
    assert hints_left(account) < changes(account)  # the engine took them
    account.switch(throttled_share=0.3)  # a call that is throttled had no effect: verbs make it again
    assert_all_is_well(account)
    assert_it_can_be_looked_at(account)


def write_study(account: Account) -> None:
    (account.folder / "code").mkdir()
    (account.folder / "code" / "train.py").write_text(SCRIPT)
    study = json.loads(json.dumps(STUDY))
    study["training"]["hyperparameters"]["gate"] = str(account.folder / "gate")
    (account.folder / "study.yaml").write_text(yaml.safe_dump(study))
    allow(account, FIRST_PART)


def allow(account: Account, epochs: int) -> None:
    """Let every script train so far and no further, so that nothing here goes by the clock."""
    (account.folder / "gate.new").write_text(str(epochs))
    (account.folder / "gate.new").replace(account.folder / "gate")


def saved(account: Account, step: int) -> list[str]:
    """The complete checkpoints of this step in S3."""
    found = account.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return [each["Key"] for each in found if re.search(rf"/step-0*{step}/manifest\.json", each["Key"])]


def runs(account: Account, name: str) -> int:
    """How often a job began to train."""
    return [row.status for row in open_job(account.state_dir, name).rows()].count("Training")


def take_capacity_away(account: Account, *, for_s: float) -> None:
    key = account.jobs()[0].rsplit("-", 2)[0]
    now = datetime.now(UTC).isoformat()
    write_market(account.state_dir, key, {"kind": "at", "started_at": now, "at_s": [0], "down_s": for_s})


def assert_all_is_well(account: Account) -> None:
    status = account.json("status", "stormy", "--check")
    assert (status["state"], status["simulated"]) == ("finished", False)
    assert (status["trials"]["succeeded"], status["attempts"]) == (6, 6)
    assert (status["interruptions"], status["resumed_runs"]) == (2, 2)
    assert (status["restarted_from_zero"], status["never_checkpointed"]) == (0, 0)
    audit = account.json("audit", "stormy")
    assert (audit["ok"], len(audit["attempts"])) == (True, 6)
    ledger = {attempt["job"]: attempt["ledger_usd"] for attempt in audit["attempts"]}
    assert ledger == {name: billed_usd(account, name) for name in account.jobs()}
    assert most_at_a_time(account) == 2


def billed_usd(account: Account, name: str) -> float:
    """By the service's own books, from the transitions of the job."""
    return round(bill(account.state_dir, name).billable_s * USD_PER_HOUR / 3600, 6)


def changes(account: Account) -> int:
    return sum(len(open_job(account.state_dir, name).rows()) for name in account.jobs())


def hints_left(account: Account) -> int:
    """Events that nobody took out of the queue."""
    queues = account.client("sqs")
    (url,) = queues.list_queues()["QueueUrls"]
    kinds = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    return sum(
        int(count) for count in queues.get_queue_attributes(QueueUrl=url, AttributeNames=kinds)["Attributes"].values()
    )


def most_at_a_time(account: Account) -> int:
    changes = []
    for name in account.jobs():
        rows = open_job(account.state_dir, name).rows()
        changes += [(rows[0].at, 1), (rows[-1].at, -1)]
    return max(accumulate(change for _, change in sorted(changes)))


def assert_it_can_be_looked_at(account: Account) -> None:
    story = account.tuner("show", "stormy", "0")
    assert f"resumed from step {FIRST_PART}" in story
    account.wait_for(lambda: f"from epoch {FIRST_PART}" in account.tuner("logs", "stormy", "0"))
    assert "stormy" in account.tuner("compare", "stormy")
    account.tuner("gc", "stormy")
    assert len(saved(account, EPOCHS)) == 1  # checkpoints.keep: best
    account.tuner("resume", "stormy")
    assert len(account.jobs()) == 6
