"""Jobs as real processes: what happens to a script, and what the API says of it."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from local_world import LocalWorld, channel, processes_with

from tuner.local import supervisor
from tuner.local.billing import bill
from tuner.local.market import write_market

# Counts the runs by the files that come back, saves one, and waits to be interrupted; the second run ends.
RESUMES = """
    import os, time
    from pathlib import Path
    folder = Path("/opt/ml/checkpoints")
    seen = sorted(p.name for p in folder.iterdir() if p.name.startswith("step"))
    print("found", seen, flush=True)
    (folder / f"step-{len(seen)}").write_text("saved")
    time.sleep(0 if seen else 600)
"""
SLEEPS = "import time; print('started', flush=True); time.sleep(600)"


def seconds_ago(seconds):
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()


def test_a_job_runs_its_script_in_the_folders_that_sagemaker_gives(world):
    script = """
        import json, os, sys
        config = lambda name: json.load(open(f"/opt/ml/input/config/{name}.json"))
        print(json.dumps([config("hyperparameters"), config("resourceconfig")["hosts"], config("checkpointconfig")]))
        print(open("/opt/ml/input/data/train/a/x.txt").read(), os.environ["TRAINING_JOB_NAME"], os.environ["MINE"])
        print(os.getcwd(), os.environ["TUNER_ML_ROOT"], sys.argv[1:])
        open("/opt/ml/model/weights", "w").write("w")
        open("/opt/ml/output/data/notes", "w").write("n")
    """
    world.put("data/a/x.txt", "input")
    world.put("code/job-1/train.py", script)
    inputs = [channel("code", "s3://bucket/code/job-1/"), channel("train", "s3://bucket/data/")]
    algorithm = {
        "TrainingImage": "none",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["python3", "/opt/ml/input/data/code/train.py"],
        "ContainerArguments": ["--x", "1 2"],
    }
    changes = {"HyperParameters": {"lr": "0.1"}, "Environment": {"MINE": "yes"}, "InputDataConfig": inputs}
    world.create(script=script, AlgorithmSpecification=algorithm, **changes)
    seen = world.ended()
    assert seen["TrainingJobStatus"] == "Completed", world.job().log_paths()[0].read_text()
    assert world.secondary() == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    first, second, third = world.printed("").splitlines()
    assert json.loads(first) == [{"lr": "0.1"}, ["algo-1"], {"LocalPath": "/opt/ml/checkpoints/"}]
    assert second == "input job-1 yes"
    assert third == "/opt/ml /opt/ml ['--x', '1 2']"
    model = seen["ModelArtifacts"]["S3ModelArtifacts"]
    assert model == "s3://bucket/outputs/job-1/output/model.tar.gz"
    with tarfile.open(world.object("outputs/job-1/output/model.tar.gz")) as tar:
        assert tar.getnames() == ["weights"]
    with tarfile.open(world.object("outputs/job-1/output/output.tar.gz")) as tar:
        assert tar.getnames() == ["notes"]
    world.until(world.job().ml.exists, lambda there: not there)  # the instance is gone, and its disk with it


def test_without_a_private_opt_ml_the_environment_says_where_the_folders_are(world):
    world.settings(private_opt_ml=False)
    world.create(script="import os, sys; print(os.environ['TUNER_ML_ROOT'], sys.argv[0])")
    assert world.ended()["TrainingJobStatus"] == "Completed"
    notice, line = world.printed("").splitlines()
    root = str(world.job().ml)
    assert "no private /opt/ml" in notice
    assert root in notice
    assert line == f"{root} {root}/input/data/code/train.py"


def test_a_job_sees_an_allow_listed_environment_and_one_thread(world, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    world.create(script="import os, json; print(json.dumps(dict(os.environ)))")
    world.ended()
    seen = json.loads(world.printed(""))
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("1", "2")
    assert seen["AWS_REGION"] == "us-east-1"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit(3)", "AlgorithmError: ExitCode 3"),
        ("open('/opt/ml/output/failure','w').write('bad data' + 'x' * 5000)", None),
    ],
)
def test_a_script_that_fails_fails_its_job_with_its_own_words(world, script, reason):
    world.create(script=script + ("" if reason else "; raise SystemExit(1)"))
    seen = world.ended()
    assert seen["TrainingJobStatus"] == seen["SecondaryStatus"] == "Failed"
    assert len(seen["FailureReason"]) <= 1024
    assert seen["FailureReason"] == reason or seen["FailureReason"].startswith("AlgorithmError: bad dataxx")
    assert seen["TrainingTimeInSeconds"] >= 1


def test_a_missing_program_or_missing_input_is_a_failure_that_says_so(world):
    nothing = {"TrainingImage": "none", "TrainingInputMode": "File", "ContainerEntrypoint": ["no-such-program"]}
    world.create("job-1", AlgorithmSpecification=nothing)
    world.create("job-2", InputDataConfig=[channel("train", "s3://bucket/nothing/")])
    assert world.ended("job-1")["FailureReason"] == "AlgorithmError: ExitCode 127"
    assert "cannot start no-such-program" in world.printed("")
    seen = world.ended("job-2")
    assert seen["FailureReason"].startswith("ClientError: Data download failed:No S3 objects found under S3 URL")
    assert world.secondary("job-2") == ["Starting", "Downloading", "Failed"]


def test_file_channels_are_copied_in(world, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("theirs")
    inputs = [channel("code", "s3://bucket/code/job-1/"), channel("train", f"file://{tmp_path}/data")]
    world.create(script="open('/opt/ml/input/data/train/x', 'w').write('mine')", InputDataConfig=inputs)
    assert world.ended()["TrainingJobStatus"] == "Completed"
    assert (tmp_path / "data" / "x").read_text() == "theirs"


def test_the_market_interrupts_and_the_script_resumes_in_the_same_job(world):
    world.create(script=RESUMES)
    world.until(world.object("checkpoints/job-1/step-0").exists, bool)
    start = time.time()
    write_market(world.state_dir, "study-a", {"started_at": seconds_ago(0), "kind": "at", "at_s": [0], "down_s": 0.3})
    seen = world.ended()
    assert seen["TrainingJobStatus"] == "Completed"
    run = ["Starting", "Downloading", "Training"]
    assert world.secondary() == [*run, "Interrupted", *run, "Uploading", "Completed"]
    assert [path.read_text().strip() for path in world.job().log_paths()] == ["found []", "found ['step-0']"]
    taken, back = (seen["SecondaryStatusTransitions"][n]["StartTime"] for n in (3, 6))
    assert start <= taken.timestamp()
    assert start + 0.3 <= back.timestamp()
    assert seen["BillableTimeInSeconds"] == bill(world.state_dir, "job-1").billable_s


def test_a_whole_pool_goes_at_once_and_on_demand_stays(world):
    for name in ("spot-1", "spot-2", "other-study", "on-demand"):
        tags = [{"Key": "tuner:study", "Value": "study-b" if name == "other-study" else "study-a"}]
        world.create(name, SLEEPS, spot=name != "on-demand", Tags=tags)
        world.printed("started", name)
    write_market(world.state_dir, "study-a", {"started_at": seconds_ago(1), "kind": "at", "at_s": [1.1], "down_s": 600})
    for name in ("spot-1", "spot-2"):
        world.until(lambda name=name: world.secondary(name), lambda seen: "Interrupted" in seen)
        waiting = world.until(
            lambda name=name: world.describe(name)["SecondaryStatusTransitions"][-1],
            lambda row: "Insufficient capacity" in row["StatusMessage"],
        )
        assert waiting["Status"] == "Starting"
    assert world.secondary("other-study")[-1] == world.secondary("on-demand")[-1] == "Training"


def test_nothing_starts_while_capacity_is_away_and_maxwait_ends_it(world):
    write_market(world.state_dir, "study-a", {"started_at": seconds_ago(1), "kind": "at", "at_s": [0], "down_s": 600})
    world.create(StoppingCondition={"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1})
    seen = world.ended()
    assert (seen["TrainingJobStatus"], seen["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")
    assert world.secondary() == ["Starting", "Stopping", "MaxWaitTimeExceeded"]
    absent = {"TrainingStartTime", "TrainingEndTime", "TrainingTimeInSeconds", "BillableTimeInSeconds"}
    assert not absent & seen.keys()


def test_maxruntime_counts_all_runs_of_a_job_together(world):
    world.settings(grace_s=0.1)
    world.create(script=SLEEPS, max_run_s=8)
    world.until(world.secondary, lambda seen: seen[-1] == "Training")
    began = datetime.fromtimestamp(world.job().rows()[-1].at, UTC).isoformat()
    write_market(world.state_dir, "study-a", {"started_at": began, "kind": "at", "at_s": [4], "down_s": 0.1})
    seen = world.ended()
    assert (seen["TrainingJobStatus"], seen["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert "Interrupted" in world.secondary()
    assert seen["TrainingTimeInSeconds"] >= 8
    at = {row["Status"]: row["StartTime"].timestamp() for row in seen["SecondaryStatusTransitions"]}
    assert at["Stopping"] - at["Training"] < 8, "the second run got what the first had left, and no new time"


def test_a_stop_is_seen_at_once_and_the_script_may_save(world):
    script = """
        import os, signal, sys, time
        def save(*_):
            while not os.path.exists("/opt/ml/go"):
                time.sleep(0.01)
            open("/opt/ml/checkpoints/last", "w").write("saved in time")
            open("/opt/ml/model/weights", "w").write("w")
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("started", flush=True)
        time.sleep(600)
    """
    world.settings(grace_s=600.0)
    world.create(script=script)
    world.printed("started")
    world.client.stop_training_job(TrainingJobName="job-1")
    world.client.stop_training_job(TrainingJobName="job-1")  # once more is no error, unless switched so
    assert world.describe()["TrainingJobStatus"] == "Stopping"
    (world.job().ml / "go").touch()
    seen = world.ended()
    assert world.secondary() == ["Starting", "Downloading", "Training", "Stopping", "Stopped"]
    assert world.object("checkpoints/job-1/last").read_text() == "saved in time"
    assert seen["ModelArtifacts"]["S3ModelArtifacts"].endswith("model.tar.gz")


def test_stopping_again_is_an_error_where_switched_so(world):
    world.settings(grace_s=600.0)
    world.create(
        script="import signal, time; signal.signal(15, signal.SIG_IGN); print('started', flush=True); time.sleep(600)"
    )
    world.printed("started")
    world.settings(stop_again="reject")
    world.client.stop_training_job(TrainingJobName="job-1")
    with pytest.raises(ClientError, match="is in status Stopping"):
        world.client.stop_training_job(TrainingJobName="job-1")


@pytest.mark.parametrize("private", [True, False])
def test_nothing_survives_a_stop_not_even_what_ignores_it_and_changed_its_session(world, private):
    world.settings(private_opt_ml=private, grace_s=0.5)
    token = f"escaped-{os.getpid()}-{time.monotonic_ns()}"
    script = f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = "import os, time; os.setsid() if os.fork() == 0 else os._exit(0); time.sleep(600)"
        subprocess.Popen([sys.executable, "-S", "-c", code, "{token}"], start_new_session=True).wait()
        print("started", flush=True)
        time.sleep(600)
    """
    world.create(script=script)
    world.printed("started")
    assert processes_with(token)
    world.client.stop_training_job(TrainingJobName="job-1")
    assert world.ended()["TrainingJobStatus"] == "Stopped"
    assert not processes_with(token)


def test_a_script_that_leaves_a_daemon_behind_ends_with_it(world):
    token = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    code = "import time; time.sleep(600)"
    world.create(script=f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{code}', '{token}'])")
    assert world.ended()["TrainingJobStatus"] == "Completed"
    assert not processes_with(token)


@pytest.mark.parametrize("private", [True, False])
def test_the_death_of_a_supervisor_is_the_death_of_the_instance(world, private):
    world.settings(private_opt_ml=private)
    script = RESUMES.replace('Path("/opt/ml/checkpoints")', 'Path(os.environ["TUNER_ML_ROOT"], "checkpoints")')
    world.create(script=script)
    world.until(world.object("checkpoints/job-1/step-0").exists, bool)
    now = time.time()
    world.until(world.job().last_life, lambda life: life > now)  # it is signed after the sync, and after the last row
    pid = world.supervisor_pid()
    os.kill(pid, signal.SIGSTOP)  # no sign of life from here on
    world.until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "T".__eq__)
    last_life = world.job().last_life()
    os.kill(pid, signal.SIGKILL)
    world.until(world.job().is_attended, lambda attended: not attended)
    time.sleep(0.3)  # nobody looks: this is not paid
    seen = world.ended()
    assert seen["TrainingJobStatus"] == "Completed"
    assert world.secondary().count("Interrupted") == 1
    interrupted = next(r for r in seen["SecondaryStatusTransitions"] if r["Status"] == "Interrupted")
    assert interrupted["StartTime"].timestamp() == pytest.approx(last_life, abs=0.002)  # Describe shows milliseconds
    assert "found ['step-0']" in world.printed("", run=2)


def test_on_demand_that_dies_is_a_service_fault(world):
    world.create(script=SLEEPS, spot=False)
    world.printed("started")
    os.kill(world.supervisor_pid(), signal.SIGKILL)
    seen = world.ended()
    assert seen["FailureReason"] == "InternalServerError: We encountered an internal error. Please try again."
    assert seen["BillableTimeInSeconds"] == seen["TrainingTimeInSeconds"]


def test_a_job_outlives_its_client_and_is_found_by_the_next(world):
    world.create(script=RESUMES.replace("600", "0.5"))
    world.client = None
    other = LocalWorld(world.state_dir)
    assert other.ended()["TrainingJobStatus"] == "Completed"


def test_an_interruption_uploads_nothing_more_unless_a_torn_upload_is_wanted(world):
    script = """
        import os, time
        print("waiting", flush=True)
        while not os.path.exists("/opt/ml/go"):
            time.sleep(0.01)
        open("/opt/ml/checkpoints/step", "w").write("0123456789")
        print("started", flush=True)
        time.sleep(600)
    """
    for name, torn in (("whole", False), ("torn", True)):
        world.settings(torn_upload=torn, sync_interval_s=6000)
        world.create(name, script)
        world.printed("waiting", name)
        now = time.time()
        world.until(world.job(name).last_life, lambda life, now=now: life > now)  # its one round of syncing is over
        (world.job(name).ml / "go").touch()
        world.printed("started", name)
    write_market(world.state_dir, "study-a", {"started_at": seconds_ago(1), "kind": "at", "at_s": [1], "down_s": 600})
    for name in ("whole", "torn"):
        world.until(lambda name=name: world.secondary(name), lambda seen: "Interrupted" in seen)
    assert not world.object("checkpoints/whole/step").exists()
    assert world.object("checkpoints/torn/step").read_text() == "01234"


def test_a_notice_before_the_interruption_is_a_switch(world):
    world.settings(interruption_notice_s=60.0)
    script = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("noticed", flush=True), sys.exit(0)))
        print("started", flush=True)
        time.sleep(600)
    """
    world.create(script=script)
    world.printed("started")
    write_market(world.state_dir, "study-a", {"started_at": seconds_ago(1), "kind": "at", "at_s": [1], "down_s": 600})
    world.printed("noticed")
    world.until(world.secondary, lambda seen: "Interrupted" in seen)


def test_deletion_and_the_name_after_it(world):
    world.create(script=SLEEPS)
    world.printed("started")  # from here on nobody reads the script that the next create puts in its place
    with pytest.raises(world.client.exceptions.ResourceInUse):
        world.client.delete_training_job(TrainingJobName="job-1")
    with pytest.raises(world.client.exceptions.ResourceInUse, match="already exists"):
        world.create(script="pass")
    world.client.stop_training_job(TrainingJobName="job-1")
    world.ended()
    world.client.delete_training_job(TrainingJobName="job-1")
    with pytest.raises(ClientError, match="Requested resource not found"):
        world.describe()
    world.create(script="pass")
    assert world.ended()["TrainingJobStatus"] == "Completed"


def test_a_full_quota_refuses_and_an_ended_job_frees_it(world):
    world.settings(spot_quota={"ml.g5.xlarge": 1})
    world.create("job-1", SLEEPS)
    with pytest.raises(world.client.exceptions.ResourceLimitExceeded) as refusal:
        world.create("job-2")
    assert "'ml.g5.xlarge for spot training job usage' is 1 Instances, with current utilization of 1" in str(
        refusal.value
    )
    world.create("job-3", spot=False)  # on-demand has a quota of its own
    world.client.stop_training_job(TrainingJobName="job-1")
    world.ended("job-1")
    world.create("job-2")


def test_a_supervisor_is_of_the_package_that_started_it_whichever_else_is_installed(tmp_path):
    (tmp_path / "tuner").mkdir()
    (tmp_path / "tuner/__init__.py").write_text("raise SystemExit('another tuner')")
    run = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", run, str(tmp_path), supervisor.__file__],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "another tuner" not in done.stderr
    assert "in main" in done.stderr, "it came as far as to ask for its job"
