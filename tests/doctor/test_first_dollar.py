"""The one job that finds out how an account is, on the local SageMaker, whose switches turn its answers."""

import ast
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import resources
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.aws.aws_account import ACCOUNT, IMAGE, REGION, ROLE, study_file
from tests.below import contents
from tests.factories import observation
from tests.rates.test_events import entry, left, put
from tuner.aws import events_setup, first_dollar, hints, prepare, probe_findings, probe_watch
from tuner.aws.iam_policy import PolicyScope, caller_rights
from tuner.aws.probe_plan import CEILING_USD, Pace, plan, probe_request, smallest
from tuner.cli import doctor, main
from tuner.core.clock import SystemClock, VirtualClock
from tuner.core.errors import UserError
from tuner.core.jobs import (
    CredentialsRefused,
    HistoryRow,
    JobError,
    JobNotFound,
    JobStatus,
    RequestRejected,
    ServiceUnavailable,
    Throttled,
)
from tuner.core.prices import Rate
from tuner.local.processes import end_all_of
from tuner.operations.backend import Backends
from tuner.operations.use_cases import UseCases
from tuner.sagemaker.request import request_parameters
from tuner.spec.study_file import load
from tuner.spec.workload import ENTRYPOINT
from tuner.storage.objects import DirectoryObjects
from tuner.store.store import Store

pytestmark = pytest.mark.slow  # jobs as processes

QUICK = {"start_delay_s": 0.0, "sync_interval_s": 0.05, "grace_s": 120.0}
PACE = Pace(poll_s=0.2, beat_s=0.1, beats=4, settle_s=2.0, listen_s=0)
QUOTA = "ml.m5.large for spot training job usage"
SCOPE = f"{ACCOUNT}/{REGION}"


@pytest.fixture
def cloud(account, monkeypatch):
    """The account with quick jobs; its quota shows calls per second, too."""
    account.state_dir.mkdir(exist_ok=True)
    account.quotas = {QUOTA: 4, "Rate of CreateTrainingJob requests": 5, "Rate of ListTrainingJobs requests": 2}
    monkeypatch.setattr(doctor, "_PACE", PACE)
    set_up(account)
    yield account
    for folder in (account.state_dir / "jobs").glob("*"):
        end_all_of(folder)


def set_up(account, **changes):
    (account.state_dir / "settings.json").write_text(json.dumps(QUICK | changes))


@pytest.fixture
def store(sqlite_url, monkeypatch):
    monkeypatch.setenv("TUNER_STORE", sqlite_url)
    opened = Store.open(sqlite_url)
    yield opened
    opened.close()


def ready(account, folder):
    spec = smallest(load(study_file(folder)))
    return prepare.prepare(spec, account.aws(), None, SystemClock().now())


def planned(account, folder, seed=1):
    found = ready(account, folder)
    return plan(found.spec, found.rates, random.Random(seed))


def run(account, folder, store, report=lambda _: None, **changes):
    """Facts by name, of a job that went well; `changes` as of `Changed`."""
    asked = planned(account, folder)
    place = Changed(account.backends, **changes).on_aws(asked.spec)
    outcome = first_dollar.run(asked, place, store, SystemClock(), report=report, pace=PACE)
    assert outcome.fault is None
    assert {fact.scope for fact in outcome.facts} == {SCOPE}
    return {fact.name: fact.value for fact in outcome.facts}


class Changed(Backends):
    """The account's backends, with parts of them put in place of others by functions of these."""

    def __init__(self, given, *, jobs=lambda jobs: jobs, objects=lambda objects: objects):
        self._given, self._jobs, self._objects = given, jobs, objects

    def on_aws(self, spec):
        place = self._given.on_aws(spec)
        return SimpleNamespace(
            aws=place.aws,
            scope=place.scope,
            jobs=lambda: self._jobs(place.jobs()),
            objects=lambda: self._objects(place.objects()),
        )


def told(**hyperparameters):
    """The job service, which tells the script of a new job something else."""

    def changed(jobs):
        create = jobs.create
        jobs.create = lambda request: create(replace(request, hyperparameters=hyperparameters))
        return jobs

    return changed


def test_the_whole_of_it(cloud, tmp_path, store, capsys):
    code = main.main(["doctor", str(study_file(tmp_path)), "--first-dollar", "--yes", "--json"], cloud.use_cases)
    out, err = capsys.readouterr()
    assert code == 0, err
    document = json.loads(out)
    assert (document["ok"], document["fault"]) == (True, None)
    facts = document["facts"]
    assert facts["probe.sigterm"].items() >= {"received": True, "synced": True, "in_model": True}.items()
    assert facts["probe.sync_delay_s"]["files"] >= PACE.beats
    assert facts["probe.sync_delay_s"]["max"] >= facts["probe.sync_delay_s"]["median"] >= -1
    assert facts["probe.billable_mid_run"] is False
    assert "ResourceInUse" in facts["probe.name_taken"]
    # on a machine that is slow enough the job has ended before it is asked again
    assert facts["probe.stop_again"] == "accepted" or "is in status" in facts["probe.stop_again"]
    assert facts["probe.interruptions"] == 0
    assert facts["probe.rates"] == {"CreateTrainingJob": 5, "ListTrainingJobs": 2}
    assert [text.partition(":")[0] for text in facts["probe.statuses"]][:1] == ["Starting"]
    assert 0 <= facts["probe.cost_usd"] < float(CEILING_USD)
    assert "it costs at most $0.0384" in err
    assert {fact.name: fact.value for fact in store.facts(SCOPE)} == facts
    assert all(fact.source.startswith("doctor --first-dollar (tuner-first-dollar-") for fact in store.facts(SCOPE))
    allowed = {operation for right in caller_rights(PolicyScope()) for _, operation in right.calls}
    assert set(cloud.calls) - {"GetCallerIdentity"} <= allowed
    assert dict(contents(cloud.state_dir / "s3")) == {}, "everything that it wrote is deleted"


def test_the_switches_of_the_local_service_turn_its_answers(cloud, tmp_path, store, monkeypatch):
    """Nothing is synced before the job ends, and that is after its first file has become a second old."""
    clock = SystemClock()
    set_up(cloud, stop_again="reject", sync_interval_s=3600.0)
    monkeypatch.setattr(f"{__name__}.PACE", replace(PACE, beats=0))

    def written():
        files = (cloud.state_dir / "jobs").rglob("beat-*.json")
        return [at for path in files if (at := path.stat().st_mtime) < clock.now().timestamp() - 1]

    def report(line):
        while line.endswith(": Training") and not written():
            clock.wait(clock.now() + timedelta(seconds=0.05))

    facts = run(cloud, tmp_path, store, report)
    assert facts["probe.stop_again"] != "accepted"
    assert facts["probe.sync_delay_s"]["max"] > 0.5


def test_a_look_that_comes_late_loses_nothing(cloud, tmp_path, store):
    """On a busy machine, or where a call is throttled, all files may be there before a look shows the job training."""
    asked = planned(cloud, tmp_path)
    place = cloud.backends.on_aws(asked.spec)
    jobs = Refusing(place.jobs(), describe=[Throttled("slow down")])
    held = SimpleNamespace(aws=place.aws, scope=place.scope, jobs=lambda: jobs, objects=place.objects)
    clock = SystemClock()

    def report(line):
        while line.endswith("created") and len(list(probe_watch.beats(asked, place.objects()))) < PACE.beats:
            clock.wait(clock.now() + timedelta(seconds=0.05))

    outcome = first_dollar.run(asked, held, store, clock, report=report, pace=PACE)
    facts = {fact.name: fact.value for fact in outcome.facts}
    assert facts["probe.sigterm"].items() >= {"received": True, "synced": True, "in_model": True}.items()
    assert facts["probe.billable_mid_run"] is False


def test_a_job_that_ends_before_it_is_stopped_is_seen_to_its_end(cloud, tmp_path, store):
    cloud.refuse["StopTrainingJob"] = ("ValidationException", "The training job is in status Completed")
    facts = run(cloud, tmp_path, store, jobs=told(beat="0.1", seconds="2"))
    assert "probe.stop_again" not in facts
    assert facts["probe.statuses"][-1].startswith("Completed")


def at(seconds):
    return datetime(2026, 11, 23, 12, tzinfo=UTC) + timedelta(seconds=seconds)


def test_what_a_job_that_was_interrupted_shows(cloud, tmp_path):
    asked = planned(cloud, tmp_path)
    rows = [("Starting", 0, 60), ("Training", 60, 100), ("Interrupted", 100, 130), ("Starting", 130, 160)]
    rows += [("Training", 160, 200), ("Stopping", 200, 210)]
    seen = probe_watch.Seen(
        last=observation(
            asked.name,
            status=JobStatus.STOPPED,
            secondary="Stopped",
            history=tuple(
                HistoryRow(status=status, started_at=at(start), ended_at=at(end), message="words")
                for status, start, end in rows
            ),
            created_at=at(0),
            modified_at=at(210),
            training_s=150,
            billable_s=45,
        ),
        trained=True,
        described={"Starting": at(5), "Training": at(65), "Stopped": at(215)},
        listed={"Starting": at(5), "Training": at(72.5)},
        notified={"Starting": at(4), "Stopped": at(217.25), "Uploading": at(214)},
    )
    found = dict(probe_findings.findings(asked, seen, DirectoryObjects(tmp_path / "s3")))
    assert found["interruptions"] == 1
    assert found["times_s"] == {"training": 150, "billable": 45, "up": 90}  # AWS counts the gap here: it can be seen
    assert found["list_lag_s"] == 7.5
    assert found["events"] == {
        "after_s": {"Starting": -1.0, "Stopped": 2.2, "Uploading": None},
        "missing": ["Training"],
    }
    assert found["cost_usd"] == pytest.approx(45 * 0.1152 / 3600, abs=1e-6)
    assert found["statuses"][2] == "Interrupted: words"
    assert found["sync_delay_s"] is None, "nothing was uploaded: nothing is known"
    assert found["sigterm"] is None, "nobody stopped it"


# --- events


@pytest.fixture
def queue(cloud, store):
    """The queue of the account, recorded as `doctor --events create` does it."""
    return events_setup.create(cloud.aws(), store, SCOPE, SystemClock().now())


def test_it_records_which_events_came_how_much_later(cloud, tmp_path, store, queue, monkeypatch):
    """Those of Starting and of the end come, beside others', which stay in the queue."""
    monkeypatch.setattr(hints, "VISIBILITY_S", 1)
    put(cloud.aws(), entry("tuner-first-dollar-others"), entry("k-digits-00001-001"))

    def tell(line):
        name, _, secondary = line.partition(": ")
        status = {"Starting": "InProgress", "Stopped": "Stopped"}.get(secondary)
        if status is not None:
            detail = {"TrainingJobName": name, "TrainingJobStatus": status, "SecondaryStatus": secondary}
            put(cloud.aws(), entry(name, Detail=json.dumps(detail)))

    facts = run(cloud, tmp_path, store, report=tell)
    told = facts["probe.events"]
    assert all(0 <= after_s < 60 for after_s in told["after_s"].values())
    assert "InProgress/Training" in told["missing"]
    assert "InProgress/Starting" not in told["missing"]
    assert "Stopped/Stopped" in told["after_s"]
    until = SystemClock().now() + timedelta(seconds=60)  # moto counts one that turns visible meanwhile nowhere
    while (count := left(cloud.aws(), queue)) != 2 and SystemClock().now() < until:
        pass
    assert count == 2


def test_without_a_queue_it_says_how_to_have_one(cloud, tmp_path, store, capsys):
    file = study_file(tmp_path / "my study")
    assert main.main(["doctor", str(file), "--store", str(store.url), "--first-dollar"], cloud.use_cases) == 2
    line = f"to see which events come, first: tuner --store {store.url} doctor '{file}' --events create\n"
    assert line in capsys.readouterr().err
    events_setup.create(cloud.aws(), store, SCOPE, SystemClock().now())
    assert main.main(["doctor", str(study_file(tmp_path)), "--first-dollar"], cloud.use_cases) == 2
    assert "--events create" not in capsys.readouterr().err


def test_a_queue_that_is_gone_is_said_once_and_the_rest_is_found(cloud, tmp_path, store, queue):
    cloud.aws().client("sqs").delete_queue(QueueUrl=queue)
    lines = []
    facts = run(cloud, tmp_path, store, report=lines.append)
    assert "probe.events" not in facts
    assert sum("which events come is not seen: " in line for line in lines) == 1
    assert "probe.sync_delay_s" in facts


# --- what proves that the path does not work


def command(cloud, folder, capsys, **changes):
    """Code, document and the last line of the verb; `changes` as of `Changed`."""
    use_cases = UseCases(Changed(cloud.backends, **changes))
    code = main.main(["doctor", str(study_file(folder)), "--first-dollar", "--yes", "--json"], use_cases)
    out, err = capsys.readouterr()
    return code, json.loads(out), err.splitlines()[-1]


def test_a_job_that_fails_is_said_with_its_reason_and_recorded(cloud, tmp_path, store, capsys):
    """Exit 0 would say that the path works, when the image, the bucket or the role does not."""
    code, document, last = command(cloud, tmp_path, capsys, jobs=told(beat="no number"))
    assert (code, document["ok"]) == (1, False)
    assert last == f"tuner: {document['fault']}"
    assert " failed: AlgorithmError: " in last
    assert "aws logs tail /aws/sagemaker/TrainingJobs" in last
    assert {fact.name: fact.value for fact in store.facts(SCOPE)} == document["facts"]
    assert document["facts"]["probe.statuses"][-1].startswith("Failed")


def test_a_job_that_never_trained_is_no_proof(cloud, tmp_path, store, capsys):
    set_up(cloud, start_delay_s=600.0)

    def stopped_by_another(jobs):
        """After each look."""
        list_changed = jobs.list_changed

        def look(name, **bounds):
            found = list(list_changed(name, **bounds))
            jobs.stop(name)
            return found

        jobs.list_changed = look
        return jobs

    code, document, last = command(cloud, tmp_path, capsys, jobs=stopped_by_another)
    assert (code, document["ok"]) == (1, False)
    assert "never trained: it ended as Stopped" in last
    assert "probe.statuses" in document["facts"]


def test_a_job_whose_checkpoints_never_arrive_is_no_proof(cloud, tmp_path, store, capsys):
    """It would train and be billed as any other, and no trial would ever resume."""

    def without_beats(objects):
        listed = objects.list
        return Mock(wraps=objects, list=lambda prefix: () if "/beat-" in prefix else listed(prefix))

    brief = told(beat="0.1", seconds="0.3")
    code, document, last = command(cloud, tmp_path, capsys, jobs=brief, objects=without_beats)
    assert (code, document["ok"]) == (1, False)
    assert "nothing that it saved came to s3://" in last


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("CapacityError: Unable to provision requested ML compute capacity.", "no instance was to be had"),
        ("InternalServerError: We encountered an internal error.", "the image does not start"),
        ("ClientError: Data download failed:\n403", "what its role may do"),
        ("", "SageMaker gives no reason"),
    ],
)
def test_each_kind_of_failure_is_one_line_with_what_to_do(cloud, tmp_path, failure, said):
    last = observation(status=JobStatus.FAILED, secondary="Failed", failure=failure)
    fault = probe_findings.fault_of(planned(cloud, tmp_path), probe_watch.Seen(last=last), saved=False)
    assert said in fault
    assert "\n" not in fault


def test_the_log_is_looked_for_with_the_study_s_own_profile(cloud, tmp_path):
    asked = planned(cloud, tmp_path)
    asked = replace(asked, spec=replace(asked.spec, sagemaker=replace(asked.spec.sagemaker, profile="my lab")))
    last = observation(status=JobStatus.FAILED, secondary="Failed", failure="ClientError: no")
    fault = probe_findings.fault_of(asked, probe_watch.Seen(last=last), saved=False)
    assert fault.endswith(f"--region {REGION} --profile 'my lab')")


def test_the_ceiling_is_kept_in_dear_regions_by_waiting_less(cloud, tmp_path):
    spec = ready(cloud, tmp_path).spec
    for usd_per_hour in ("0.1152", "0.1285", "0.16", "0.2"):
        made = plan(spec, {"ml.m5.large": Rate(Decimal(usd_per_hour), "price list", "")}, random.Random(1))
        assert made.ceiling_microusd < CEILING_USD * 1_000_000
        assert made.max_wait_s >= 420
    with pytest.raises(UserError, match="cannot be kept below"):
        plan(spec, {"ml.m5.large": Rate(Decimal("0.3"), "price list", "")}, random.Random(1))


def test_the_request_says_what_the_ceiling_counts_on(cloud, tmp_path):
    asked = planned(cloud, tmp_path)
    request = probe_request(asked, "s3://b/code/", PACE)
    assert (request.spot, request.instance_type, request.instance_count) == (True, "ml.m5.large", 1)
    assert request.max_wait_s == asked.max_wait_s >= request.max_run_s
    assert request.checkpoint_uri.startswith(asked.base)
    assert request.output_uri.startswith(asked.base)
    assert request.name.startswith("tuner-first-dollar-")


def test_the_study_s_own_members_go_with_it(cloud, tmp_path):
    """Without TrainingImageConfig a private registry is not reached, and what works in a sweep would fail here."""
    asked = planned(cloud, tmp_path)
    registry = {"TrainingRepositoryAccessMode": "Vpc"}
    request = {
        "AlgorithmSpecification": {
            "TrainingImageConfig": registry,
            "ContainerEntrypoint": ["/run"],
            "ContainerArguments": ["x"],
        },
        "ResourceConfig": {"InstancePlacementConfig": {"EnableMultipleJobs": True}},
        "ProfilerRuleConfigurations": [{"RuleConfigurationName": "r", "RuleEvaluatorImage": "i"}],
        "DebugRuleConfigurations": [{"RuleConfigurationName": "r", "RuleEvaluatorImage": "i"}],
        "ExperimentConfig": {"TrialName": "t"},
        "ModelPackageConfig": {"ModelPackageGroupArn": "arn:aws:sagemaker:us-east-1:1:model-package-group/g"},
    }
    spec = smallest(replace(asked.spec, sagemaker=replace(asked.spec.sagemaker, request=request)))
    made = request_parameters(probe_request(replace(asked, spec=spec), "s3://b/code/", PACE))
    assert made["AlgorithmSpecification"]["TrainingImageConfig"] == registry
    assert made["AlgorithmSpecification"]["ContainerEntrypoint"] == list(ENTRYPOINT)
    assert "ContainerArguments" not in made["AlgorithmSpecification"]
    assert made["ExperimentConfig"] == {"TrialName": "t"}
    assert set(made["ResourceConfig"]) == {"InstanceType", "InstanceCount", "VolumeSizeInGB"}
    assert not made.keys() & {"ProfilerRuleConfigurations", "DebugRuleConfigurations"}, "they start instances of theirs"
    assert "ModelPackageConfig" not in made, "it would leave a version of a model"


def test_what_only_the_study_s_own_machines_may_be_told_is_no_hindrance(cloud, tmp_path):
    """How long a job may be pending is for accelerated instances; ours is not accelerated."""
    members = f"role: {ROLE}, request: {{StoppingCondition: {{MaxPendingTimeInSeconds: 7200}}}}"
    file = study_file(tmp_path, ("[ml.m5.large]", "[ml.g5.xlarge]"), (f"role: {ROLE}", members))
    found = prepare.prepare(smallest(load(file)), cloud.aws(), None, SystemClock().now())
    made = request_parameters(probe_request(plan(found.spec, found.rates, random.Random(1)), "s3://b/code/", PACE))
    assert set(made["StoppingCondition"]) == {"MaxRuntimeInSeconds", "MaxWaitTimeInSeconds"}


@pytest.mark.parametrize(("kind", "said"), [("ml.g5.xlarge", True), ("ml.c5.xlarge", False)])
def test_a_framework_s_image_for_cpus_is_called_so(cloud, tmp_path, store, capsys, monkeypatch, kind, said):  # noqa: PLR0917 - a table
    sdk = SimpleNamespace(retrieve=lambda *_, **__: IMAGE)
    monkeypatch.setitem(sys.modules, "sagemaker.core.image_uris", sdk)
    framework = f"  framework: {{name: pytorch, version: 2.5.1, python: py311}}\n  instance_types: [{kind}]\n"
    file = study_file(tmp_path, (f"  image_uri: {IMAGE}\n", ""), ("  instance_types: [ml.m5.large]\n", framework))
    assert main.main(["doctor", str(file), "--first-dollar"], cloud.use_cases) == 2
    err = capsys.readouterr().err
    assert f"image {IMAGE}" in err
    line = f"that is the framework's image for CPUs: the one for {kind} is another, and is not tried\n"
    assert (line in err) is said


def test_however_it_is_left_the_job_is_stopped(cloud, tmp_path, store):
    """Ctrl-C in the middle: nobody is left running, nothing is recorded, nothing stays in the bucket."""
    asked = planned(cloud, tmp_path)
    place = cloud.backends.on_aws(asked.spec)

    def interrupt(line):
        if line.endswith("Training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_dollar.run(asked, place, store, SystemClock(), report=interrupt, pace=PACE)
    assert place.jobs().describe(asked.name).status.value in ("Stopping", "Stopped")
    assert store.facts(SCOPE) == []


def test_a_store_that_fails_after_the_job_costs_no_second_one(cloud, tmp_path, store):
    asked = planned(cloud, tmp_path)
    cloud.refuse["ListServiceQuotas"] = ("AccessDenied", "no")
    place = cloud.backends.on_aws(asked.spec)
    facts = first_dollar.run(asked, place, store, SystemClock(), report=lambda _: None, pace=PACE).facts
    assert "probe.rates" not in {fact.name for fact in facts}, "what was not answered is not recorded"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--first-dollar", "-y"], 2, "needs a study FILE"),
        (["LOCAL", "--first-dollar", "-y"], 2, "runs on this machine"),
        (["FILE", "--first-dollar"], 2, "no terminal to ask on: pass -y"),
        (["FILE", "--first-dollar", "--policy"], 2, "not allowed with"),
    ],
)
def test_it_is_not_run_by_accident(cloud, tmp_path, store, capsys, words, code, said):  # noqa: PLR0917 - a table
    files = {
        "FILE": str(study_file(tmp_path)),
        "LOCAL": str(study_file(tmp_path / "local", ("backend: sagemaker", "backend: local"))),
    }
    assert main.main(["doctor", *(files.get(word, word) for word in words)], cloud.use_cases) == code
    assert said in capsys.readouterr().err
    assert "CreateTrainingJob" not in cloud.calls
    assert not (cloud.state_dir / "jobs").exists()


def test_a_built_in_algorithm_is_refused_before_anything(cloud, tmp_path, store, capsys):
    text = study_file(tmp_path).read_text()
    lines = [line for line in text.splitlines() if "entry_point" not in line and "image_uri" not in line]
    file = tmp_path / "algorithm.yaml"
    file.write_text("\n".join(lines).replace("training:", "training:\n  algorithm: xgboost"))
    assert main.main(["doctor", str(file), "--first-dollar", "-y"], cloud.use_cases) == 2
    err = capsys.readouterr().err
    assert err == (
        "tuner: doctor: study cloud trains a built-in algorithm, which carries no code of ours: "
        "name a study with an image\n"
    )
    assert cloud.calls == []


def test_a_quota_of_zero_is_refused_before_anything_is_created(cloud, tmp_path, store, capsys):
    cloud.quotas[QUOTA] = 0
    assert main.main(["doctor", str(study_file(tmp_path)), "--first-dollar", "-y"], cloud.use_cases) == 4
    assert "no job of this study can start" in capsys.readouterr().err
    assert not (cloud.state_dir / "jobs").exists()


def test_the_script_travels_into_old_containers():
    """Standard library alone, in the syntax of Python 3.8."""
    source = resources.files("tuner.aws").joinpath("first_dollar_probe.py").read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"argparse", "json", "os", "signal", "sys", "time", "pathlib"}


# --- what it may cost


class Refusing:
    """The job service, some of whose first calls fail."""

    def __init__(self, jobs, **failures):
        self._jobs, self._failures = jobs, failures
        self.asked = Counter()

    def __getattr__(self, name):
        def call(*arguments, **parameters):
            self.asked[name] += 1
            left = self._failures.get(name, [])
            if left:
                raise left.pop(0)
            return getattr(self._jobs, name)(*arguments, **parameters)

        return call


def refused(planned, place, store, **failures):
    """Run it with these failures; the service, for what it was asked."""
    jobs = Refusing(place.jobs(), **failures)
    held = SimpleNamespace(aws=place.aws, scope=place.scope, jobs=lambda: jobs, objects=place.objects)
    lines = []
    with pytest.raises((JobError, KeyboardInterrupt, AssertionError)):
        first_dollar.run(planned, held, store, VirtualClock(at(0)), report=lines.append, pace=PACE)
    return jobs, lines


def test_the_disk_of_the_job_is_not_the_studys(cloud, tmp_path):
    """A terabyte is $0.20 an hour: the instance of the probe is cheaper than that."""
    asked = planned(cloud, tmp_path)
    spec = replace(asked.spec, sagemaker=replace(asked.spec.sagemaker, volume_gb=16_000))
    assert probe_request(replace(asked, spec=spec), "s3://b/code/", PACE).volume_gb == 30


def test_a_stop_that_is_throttled_is_sent_again(cloud, tmp_path, store):
    asked = planned(cloud, tmp_path)
    place = cloud.backends.on_aws(asked.spec)
    gone = CredentialsRefused("expired")
    jobs, _ = refused(asked, place, store, list_changed=[KeyboardInterrupt()], stop=[Throttled("slow down"), gone])
    assert jobs.asked["stop"] == 3
    assert place.jobs().describe(asked.name).status.value in ("Stopping", "Stopped")


def test_a_job_whose_creation_was_not_answered_is_stopped_once_it_shows_itself(cloud, tmp_path, store):
    asked = planned(cloud, tmp_path)
    late = [JobNotFound("no such job"), JobNotFound("no such job")]
    lost = [ServiceUnavailable("no answer")]
    jobs, _ = refused(
        asked, cloud.backends.on_aws(asked.spec), store, create=lost, stop=[*late, Throttled("slow down")]
    )
    assert jobs.asked["stop"] == 5


def test_a_job_that_was_refused_is_not_looked_for(cloud, tmp_path, store):
    asked = planned(cloud, tmp_path)
    for reason in (RequestRejected("no"), AssertionError("a bug, before anything was sent")):
        jobs, lines = refused(asked, cloud.backends.on_aws(asked.spec), store, create=[reason])
        assert (jobs.asked["stop"], lines) == (1, [])


def test_a_job_whose_creation_was_interrupted_is_looked_for(cloud, tmp_path, store):
    """Nobody knows whether the request was sent."""
    asked = planned(cloud, tmp_path)
    late = [JobNotFound("no such job"), JobNotFound("no such job")]
    jobs, _ = refused(asked, cloud.backends.on_aws(asked.spec), store, create=[KeyboardInterrupt()], stop=late)
    assert jobs.asked["stop"] == 5
