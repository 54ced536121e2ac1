"""The directory of a job: durable lines, guarded moves, and a lock that dies with its holder."""

import json
import os
import subprocess
import sys
import threading

import pytest

from tuner.local.jobdir import create_job, job_names, log_paths, open_job

RECORD = {"created_at": 100.0, "request": {}}


@pytest.fixture
def job(tmp_path):
    made, lock = create_job(tmp_path, "job-1", RECORD, [])
    os.close(lock)
    return made


def history(job):
    return [(row.status, row.at) for row in job.rows()]


def test_a_move_says_what_it_expects_to_leave(job):
    assert job.append("Training", 105.0, "", after=["Starting"])
    assert not job.append("Training", 106.0, "", after=["Starting"])
    assert job.append("Stopping", 107.0, "", facts={"cause": "user"})
    assert job.rows()[-1].facts == {"cause": "user"}
    assert job.append("Stopped", 108.0, "")
    assert not job.append("Training", 109.0, "")
    assert history(job) == [("Starting", 100), ("Training", 105), ("Stopping", 107), ("Stopped", 108)]


def test_time_never_goes_back_in_a_history(job):
    job.append("Training", 50.0, "")
    assert history(job)[-1] == ("Training", 100.0)


def test_what_is_said_of_a_status_may_change(job):
    job.explain("no capacity", of="Starting")
    job.explain("no capacity", of="Starting")
    job.explain("too late", of="Training")
    assert [(row.status, row.message) for row in job.rows()] == [("Starting", "no capacity")]
    assert (job.path / "history.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_that_a_killed_writer_left_is_not_there_and_is_cut_off(job, cut):
    job.append("Training", 105.0, "")
    whole = (job.path / "history.jsonl").read_bytes()
    job.append("Interrupted", 106.0, "")
    torn = (job.path / "history.jsonl").read_bytes()[: len(whole) + cut]
    (job.path / "history.jsonl").write_bytes(torn)
    assert history(job)[-1] == ("Training", 105.0)
    job.append("Uploading", 107.0, "")
    assert history(job) == [("Starting", 100), ("Training", 105), ("Uploading", 107)]


def test_of_many_who_move_it_at_once_one_does(job):
    moved = []
    with (job.path / "history.jsonl").open("a") as history:  # so long that others have the time to come in between
        history.writelines(json.dumps({"message": f"waiting {number}"}) + "\n" for number in range(10_000))

    def move():
        moved.append(job.append("Training", 105.0, "", after=["Starting"]))

    threads = [threading.Thread(target=move) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(moved) == [False] * 7 + [True]


def test_a_name_is_taken_once(tmp_path):
    create_job(tmp_path, "job-1", RECORD, [])
    with pytest.raises(FileExistsError):
        create_job(tmp_path, "job-1", RECORD, [])
    assert job_names(tmp_path) == ["job-1"]


def test_the_lock_is_asked_without_being_taken_and_dies_with_its_holder(tmp_path):
    job, lock = create_job(tmp_path, "job-1", RECORD, [])
    assert job.is_attended()
    assert job.is_attended()  # asking twice is asking: flock would have two askers see each other
    assert job.take_lock() is None
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    assert job.is_attended()
    child.kill()
    child.wait()
    child.stdin.close()
    assert not job.is_attended()
    taken = job.take_lock()
    assert taken is not None
    os.close(taken)


@pytest.mark.parametrize("name", ["../job-1", "", ".", "job_1", "job-1/", "nobody"])
def test_no_name_leads_elsewhere(job, name):
    assert open_job(job.state_dir, name) is None
    assert log_paths(job.state_dir, name) == []


def test_logs_are_in_the_order_of_their_runs(job):
    for run in (10, 2, 1):
        job.log_path(run).write_text("")
    assert [path.name for path in log_paths(job.state_dir, "job-1")] == ["1.log", "2.log", "10.log"]
