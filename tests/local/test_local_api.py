"""Listing, searching, tags, limits of the service, and the transport: on jobs whose directories are written by hand."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError
from local_world import request

from tuner.core.clock import VirtualClock
from tuner.local.jobdir import create_job
from tuner.local.service import LocalSageMaker
from tuner.local.settings import BadSettings, LocalSettings, read_settings
from tuner.local.transport import make_client

HISTORIES = {
    "Completed": ["Downloading", "Training", "Uploading", "Completed"],
    "Failed": ["Downloading", "Training", "Failed"],
    "Stopped": ["Stopping", "Stopped"],
}


def write_job(state_dir, name, *, created_at, status="Completed", tags=(), **request_changes):
    record = {
        "created_at": float(created_at),
        "arn": f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{name}",
        "request": request(name, Tags=None, **request_changes),
        "saving": 0.65,
    }
    job, lock = create_job(state_dir, name, record, [{"Key": k, "Value": v} for k, v in dict(tags).items()])
    for step, entered in enumerate(HISTORIES[status], 1):
        job.append(entered, created_at + 10.0 * step, "", facts={"training_s": 20, "billable_s": 7, "cause": "user"})
    os.close(lock)
    return job


@pytest.fixture
def hundred(world):
    """25 jobs, created 1000, 1001, …; every fifth failed."""
    for number in range(25):
        status = "Failed" if number % 5 == 0 else "Completed"
        study = f"study-{number % 2}"
        tags = {"tuner:study": study}
        write_job(
            world.state_dir,
            f"job-{number:02d}",
            created_at=1000 + number,
            status=status,
            tags=tags,
            HyperParameters={"n": str(number)},
        )
    return world


def names(page):
    return [job["TrainingJobName"] for job in page["TrainingJobSummaries"]]


def moment(epoch):
    return datetime.fromtimestamp(epoch, UTC)


def listed(world, **params):
    return names(world.client.list_training_jobs(**params))


def test_a_page_has_ten_of_the_newest_by_default(hundred):
    assert listed(hundred) == [f"job-{number:02d}" for number in range(24, 14, -1)]


def test_pages_join_to_everything_even_when_jobs_appear_between_them(hundred):
    first = hundred.client.list_training_jobs(MaxResults=20)
    write_job(hundred.state_dir, "newer", created_at=2000)
    second = hundred.client.list_training_jobs(MaxResults=20, NextToken=first["NextToken"])
    assert names(first) + names(second) == [f"job-{number:02d}" for number in range(24, -1, -1)]
    assert "NextToken" not in second


def test_status_is_filtered_after_paging_so_pages_may_be_short(hundred):
    page = hundred.client.list_training_jobs(MaxResults=7, StatusEquals="Failed")
    assert names(page) == ["job-20"]
    assert "NextToken" in page
    pages = hundred.client.get_paginator("list_training_jobs").paginate(StatusEquals="Failed", MaxResults=7)
    assert [name for page in pages for name in names(page)] == [f"job-{n:02d}" for n in (20, 15, 10, 5, 0)]


def test_filters_and_orders(hundred):
    assert listed(hundred, NameContains="b-1", CreationTimeBefore=moment(1012)) == ["job-11", "job-10"]
    assert listed(hundred, CreationTimeAfter=moment(1022)) == ["job-24", "job-23"]
    assert listed(hundred, SortBy="Name", MaxResults=2) == ["job-00", "job-01"]
    assert listed(hundred, SortBy="Name", SortOrder="Descending", MaxResults=1) == ["job-24"]
    assert listed(hundred, SortBy="Status", SortOrder="Descending", MaxResults=6)[0].startswith("job-")
    assert listed(hundred, LastModifiedTimeAfter=moment(1062.5)) == ["job-24", "job-23"]


def test_a_summary_has_both_statuses_and_no_money(hundred):
    summary = hundred.client.list_training_jobs(MaxResults=1)["TrainingJobSummaries"][0]
    assert (summary["TrainingJobStatus"], summary["SecondaryStatus"]) == ("Completed", "Completed")
    assert not {"BillableTimeInSeconds", "FailureReason"} & summary.keys()


@pytest.mark.parametrize("token", ["nonsense", "e30=", "W10=", "WzEsMl0="])
def test_a_token_that_is_not_ours_is_refused(hundred, token):
    with pytest.raises(ClientError, match="Invalid NextToken"):
        hundred.client.list_training_jobs(NextToken=token)


def test_finished_jobs_are_parsed_once(hundred):
    hundred.client.list_training_jobs(MaxResults=100)
    for record in (hundred.state_dir / "jobs").glob("*/job.json"):
        record.unlink()
    assert len(listed(hundred, MaxResults=100)) == 25


def search(world, *filters, **params):
    rules = [dict(zip(("Name", "Operator", "Value"), rule, strict=False)) for rule in filters]
    pages = world.client.get_paginator("search").paginate(
        Resource="TrainingJob",
        SearchExpression={"Filters": rules, **params},
        SortBy="CreationTime",
        SortOrder="Ascending",
    )
    return [result["TrainingJob"]["TrainingJobName"] for page in pages for result in page["Results"]]


def test_search_finds_by_tag_status_time_and_member(hundred):
    both = search(hundred, ("Tags.tuner:study", "Equals", "study-0"), ("TrainingJobStatus", "Equals", "Failed"))
    assert both == ["job-00", "job-10", "job-20"]
    assert search(hundred, ("TrainingJobName", "In", "job-03, job-01")) == ["job-01", "job-03"]
    assert search(hundred, ("CreationTime", "GreaterThan", "1970-01-01T00:17:02Z")) == ["job-23", "job-24"]
    assert search(hundred, ("HyperParameters.n", "LessThanOrEqualTo", "1")) == ["job-00", "job-01"]
    assert search(hundred, ("TrainingJobName", "Contains", "2"), ("TrainingJobStatus", "NotEquals", "Completed")) == [
        "job-20"
    ]
    assert search(hundred, ("FailureReason", "Exists")) == []
    assert len(search(hundred, ("FailureReason", "NotExists"))) == 25
    either = search(
        hundred, ("TrainingJobName", "Equals", "job-01"), ("TrainingJobName", "Equals", "job-02"), Operator="Or"
    )
    assert either == ["job-01", "job-02"]


def test_search_gives_whole_records_with_tags(hundred):
    found = hundred.client.search(Resource="TrainingJob", MaxResults=1)["Results"][0]["TrainingJob"]
    assert found["Tags"] == [{"Key": "tuner:study", "Value": "study-0"}]
    assert (found["TrainingTimeInSeconds"], found["BillableTimeInSeconds"]) == (20, 7)
    assert found["SecondaryStatusTransitions"][0]["Status"] == "Starting"
    assert "Tags" not in hundred.describe(found["TrainingJobName"])


def test_a_comparison_with_no_number_is_refused(hundred):
    with pytest.raises(ClientError, match="Invalid value"):
        search(hundred, ("CreationTime", "GreaterThan", "yesterday"))


def test_tags_are_added_and_replaced(world):
    arn = write_job(world.state_dir, "job-1", created_at=1000, tags={"a": "1"}).record["arn"]
    world.client.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "2"}, {"Key": "b", "Value": "3"}])
    assert world.client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "a", "Value": "2"}, {"Key": "b", "Value": "3"}]
    with pytest.raises(ClientError, match="Too many tags"):
        world.client.add_tags(ResourceArn=arn, Tags=[{"Key": str(n), "Value": ""} for n in range(49)])
    with pytest.raises(ClientError, match="not found"):
        world.client.list_tags(ResourceArn=arn + "x")


@pytest.mark.parametrize("operation", ["describe_training_job", "stop_training_job", "delete_training_job"])
def test_an_unknown_job_is_a_validation_exception(world, operation):
    with pytest.raises(ClientError, match="Requested resource not found") as caught:
        getattr(world.client, operation)(TrainingJobName="nobody")
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_a_finished_job_cannot_be_stopped(hundred):
    with pytest.raises(ClientError, match="The request was rejected because the training job is in status Completed"):
        hundred.client.stop_training_job(TrainingJobName="job-01")


def test_an_operation_that_is_not_here_says_so(world):
    with pytest.raises(ClientError, match="no operation ListModels"):
        world.client.list_models()


def test_calls_beyond_the_rate_are_throttled_for_all_clients_together(tmp_path):
    clock = VirtualClock(moment(1000))
    (tmp_path / "settings.json").write_text(json.dumps({"rates": {"ListTrainingJobs": 2}}))
    services = [LocalSageMaker(tmp_path, clock=clock) for _ in range(3)]

    def answers():
        return [service.handle("ListTrainingJobs", {})[1].get("__type") for service in services]

    assert answers() == [None, None, "ThrottlingException"]
    assert services[0].handle("Search", {"Resource": "TrainingJob"})[0] == 200
    clock.jump(timedelta(seconds=0.5))
    assert answers() == [None, "ThrottlingException", "ThrottlingException"]
    clock.jump(timedelta(seconds=100))
    assert answers() == [None, None, "ThrottlingException"]


def test_lists_and_searches_may_lag_behind_describe(tmp_path):
    clock = VirtualClock(moment(1035))
    (tmp_path / "settings.json").write_text(json.dumps({"list_lag_s": 10, "search_lag_s": 100}))
    write_job(tmp_path, "job-1", created_at=1000)
    service = LocalSageMaker(tmp_path, clock=clock)
    listed_now = service.handle("ListTrainingJobs", {})[1]["TrainingJobSummaries"]
    assert [job["SecondaryStatus"] for job in listed_now] == ["Training"]
    assert service.handle("Search", {"Resource": "TrainingJob"})[1]["Results"] == []
    assert service.handle("DescribeTrainingJob", {"TrainingJobName": "job-1"})[1]["SecondaryStatus"] == "Completed"


def test_a_client_needs_nothing_of_the_user_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nope")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "broken"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    (tmp_path / "broken").write_text("[nonsense")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    assert make_client(tmp_path / "state").list_training_jobs()["TrainingJobSummaries"] == []


def test_the_state_directory_is_private(tmp_path):
    LocalSageMaker(tmp_path / "deep" / "state")
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"unknown": 1}',
        '{"grace_s": "long"}',
        '{"grace_s": -1}',
        '{"torn_upload": 1}',
        '{"saving_seed": 0.5}',
        '{"max_runtime": "sometimes"}',
        '{"spot_quota": {"ml.g5.xlarge": "many"}}',
        '{"rates": 3}',
        '{"grace_s": true}',
    ],
)
def test_bad_settings_are_refused_by_name(text, tmp_path):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(BadSettings, match="local settings:"):
        read_settings(tmp_path)


def test_settings_come_back_as_they_were_written(tmp_path):
    written = LocalSettings(grace_s=1, spot_quota={"ml.g5.xlarge": 2}, max_runtime="each_run")
    assert LocalSettings.parse(json.loads(json.dumps(written.as_json()))) == written
    assert read_settings(tmp_path) == LocalSettings()
