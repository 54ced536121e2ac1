"""Studies with `backend: sagemaker`, driven by the command line: what is asked, refused, recorded and gone on with."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import boto3
import pytest
from aws_account import ACCOUNT, BUCKET, IMAGE, REGION, ROLE, Account, study_file

from tuner.aws import metrics as cloud_metrics
from tuner.aws.logs import GROUP
from tuner.aws.metrics import CloudMetrics
from tuner.cli import main
from tuner.core.clock import SystemClock
from tuner.engine.engine import NoListener
from tuner.operations import context
from tuner.spec.study_file import StudySpec, spec_of
from tuner.storage.progress import ReadAhead

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    study_file(made)
    return made


class Shell:
    """The command line, in this process."""

    def __init__(self, account: Account, capsys: pytest.CaptureFixture[str]) -> None:
        self._account = account
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        code = main.main(words, self._account.use_cases)
        self.out, self.err = self._capsys.readouterr()
        return code


@pytest.fixture
def tuner(account: Account, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(account, capsys)


def recorded(name: str = "cloud") -> StudySpec:
    store = context.open_store(None)
    try:
        return spec_of(store.study(name))
    finally:
        store.close()


def nothing_recorded() -> bool:
    store = context.open_store(None)
    try:
        return not store.studies()
    finally:
        store.close()


def print_lines(job: str, lines: list[str]) -> None:
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName=GROUP)
    logs.create_log_stream(logGroupName=GROUP, logStreamName=f"{job}/algo-1-100")
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    events = [{"timestamp": now_ms + place, "message": line} for place, line in enumerate(lines)]
    logs.put_log_events(logGroupName=GROUP, logStreamName=f"{job}/algo-1-100", logEvents=events)


def test_a_study_runs_to_its_end_and_every_verb_finds_it(account: Account, folder: Path, tuner: Shell) -> None:
    assert tuner("launch", "study.yaml", "-y") == 0, tuner.err
    for part in (f"account {ACCOUNT} in {REGION}", ROLE, IMAGE, "at most, if max_run counts each run separately"):
        assert part in tuner.err
    assert "simulated" not in tuner.out + tuner.err

    assert tuner("status", "cloud", "--json") == 0
    status = json.loads(tuner.out)
    assert (status["state"], status["backend"], status["simulated"]) == ("finished", "sagemaker", False)
    assert status["trials"]["succeeded"] == 2
    assert tuner("audit", "cloud") == 0, tuner.out
    assert tuner("best", "cloud", "--download", "kept") == 0
    assert tuner("gc", "cloud", "--dry-run", "--json") == 0
    assert json.loads(tuner.out)["simulated"] is False
    assert tuner("local", "jobs", "cloud") == 2
    assert "does not run on the local service" in tuner.err

    assert tuner("trials", "cloud", "--json") == 0
    job = json.loads(tuner.out)[0]["jobs"][0]["name"]
    print_lines(job, ["one", "two \x1b[31mred"])
    assert tuner("logs", "cloud", "0") == 0
    assert tuner.out == "one\ntwo \\x1b[31mred\n"
    assert tuner("logs", "cloud", "0", "--tail", "1", "-f") == 0
    assert tuner.out.startswith("two")

    assert account.calls.count("CreateTrainingJob") == 2
    assert tuner("launch", "study.yaml", "-y") == 2
    assert "tuner resume cloud" in tuner.err


def test_the_first_jobs_go_where_service_quotas_leaves_room(account: Account, folder: Path, tuner: Shell) -> None:
    """The service played here has no quotas: it would take the type that comes first."""
    study_file(folder, ("[ml.m5.large]", "[ml.c5.xlarge, ml.m5.large]"))
    account.quotas = {
        f"{kind} for spot training job usage": room for kind, room in (("ml.c5.xlarge", 0), ("ml.m5.large", 8))
    }
    assert tuner("launch", "study.yaml", "-y") == 0, tuner.err
    assert "quota ml.c5.xlarge for spot training job usage: 0, and a job needs 1" in tuner.err
    assert tuner("trials", "cloud", "--json") == 0
    assert {trial["instance"] for trial in json.loads(tuner.out)} == {"ml.m5.large"}
    assert account.calls.count("CreateTrainingJob") == 2
    assert tuner("status", "cloud", "--json") == 0
    assert json.loads(tuner.out)["warnings"] == [], "what was found at launch is no longer news when a study has ended"


def test_without_a_terminal_or_a_yes_no_money_is_spent(account: Account, folder: Path, tuner: Shell) -> None:
    assert tuner("launch", "study.yaml") == 2
    assert "pass -y" in tuner.err
    assert nothing_recorded()
    assert "CreateTrainingJob" not in account.calls


def test_the_plan_says_whose_price_it_promises(account: Account, folder: Path, tuner: Shell) -> None:
    tuner("launch", "study.yaml")
    assert re.search(r"\$0\.\d+/h \([a-z ,]*\d{4}-", tuner.err), tuner.err
    tuner("launch", "study.yaml", "--set", "prices={ml.m5.large: 0.07}")
    assert "$0.07/h (study file)" in tuner.err


def test_a_dry_run_asks_nobody(account: Account, folder: Path, tuner: Shell) -> None:
    study_file(folder, (f", role: {ROLE}", ""), (f"checkpoints: {{root: s3://{BUCKET}/tuner/}}\n", ""))
    assert tuner("launch", "study.yaml", "--dry-run") == 0
    assert "looked up at launch" in tuner.out
    assert "the account's default bucket" in tuner.out
    assert account.calls == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((ROLE, "nobody"), "there is no role nobody"),
        ((f"s3://{BUCKET}/", "s3://nobodys-bucket/"), "there is no bucket nobodys-bucket"),
        ((IMAGE, IMAGE.replace(":1", ":2")), "is not there"),
    ],
)
def test_a_launch_that_cannot_work_leaves_nothing(
    account: Account, folder: Path, tuner: Shell, change: tuple[str, str], said: str
) -> None:
    study_file(folder, change)
    assert tuner("launch", "study.yaml", "-y") == 4
    assert said in tuner.err
    assert len(tuner.err.splitlines()) == 1
    assert nothing_recorded()
    assert not {"CreateTrainingJob", "PutObject"} & set(account.calls)


def test_an_unknown_type_with_a_price_is_refused(account: Account, folder: Path, tuner: Shell) -> None:
    study_file(folder, ("ml.m5.large", "ml.m5.lrge"), ("backend:", "prices: {ml.m5.lrge: 1.0}\nbackend:"))
    assert tuner("launch", "study.yaml", "-y") == 4
    assert "did you mean ml.m5.large?" in tuner.err
    assert nothing_recorded()


def test_a_quota_of_zero_is_refused(account: Account, folder: Path, tuner: Shell) -> None:
    account.quotas = {"ml.m5.large for spot training job usage": 0}
    assert tuner("launch", "study.yaml", "-y") == 4
    assert "no listed type may run" in tuner.err
    assert nothing_recorded()


def test_an_unknown_price_says_how_to_set_it(account: Account, folder: Path, tuner: Shell) -> None:
    study_file(folder, ("ml.m5.large", "ml.trn2.48xlarge"))
    assert tuner("launch", "study.yaml", "-y") == 4
    assert "prices: {ml.trn2.48xlarge:" in tuner.err
    assert nothing_recorded()


def launch_and_leave(account: Account, tuner: Shell) -> None:
    """A study whose engine left after recording it: SageMaker refused its jobs."""
    account.refuse["CreateTrainingJob"] = ("ResourceLimitExceeded", "limit 'ml.m5.large for training job usage' is 1")
    assert tuner("launch", "study.yaml", "-y", "--set", "budget.deadline=1s") == 3, tuner.err
    del account.refuse["CreateTrainingJob"]


def test_another_account_is_refused_in_one_line(account: Account, folder: Path, tuner: Shell) -> None:
    launch_and_leave(account, tuner)
    assert tuner("set", "cloud", "budget.deadline=1d") == 0, "a cycle passes over what rests"
    account.caller = "999999999999"
    account.calls.clear()
    for words in (("resume", "cloud"), ("resume", "cloud", "--once"), ("audit", "cloud")):
        assert tuner(*words) == 4
        assert tuner.err.splitlines()[-1].startswith("tuner: these credentials are of account 999999999999")
        assert f"the study runs in {ACCOUNT}" in tuner.err
    assert not {"ListTrainingJobs", "DescribeTrainingJob"} & set(account.calls)


def test_expired_credentials_are_one_line_and_change_nothing(account: Account, folder: Path, tuner: Shell) -> None:
    launch_and_leave(account, tuner)
    assert tuner("set", "cloud", "budget.deadline=1d") == 0, "a cycle passes over what rests"
    account.refuse["GetCallerIdentity"] = ("ExpiredToken", "The security token included in the request is expired")
    store = context.open_store(None)
    before = store.study("cloud")
    assert tuner("resume", "cloud", "--once") == 4
    assert "expired" in tuner.err
    assert "log in (" in tuner.err
    assert len(tuner.err.splitlines()) == 1
    assert store.study("cloud") == before
    store.close()


def test_a_cycle_whose_calls_are_refused_exits_4_and_fails_nothing(
    account: Account, folder: Path, tuner: Shell
) -> None:
    launch_and_leave(account, tuner)
    assert tuner("set", "cloud", "budget.deadline=1d") == 0
    account.refuse["CreateTrainingJob"] = ("ExpiredTokenException", "The security token is expired")
    while tuner("resume", "cloud", "--once") == 3:
        pass  # not due yet: what was refused is tried again after a pause
    assert "ExpiredTokenException" in tuner.err
    del account.refuse["CreateTrainingJob"]
    assert tuner("resume", "cloud") == 0, tuner.err
    assert tuner("status", "cloud", "--json") == 0
    assert json.loads(tuner.out)["trials"]["succeeded"] == 2


# --- what is looked up


class Sdk:
    """Stands in for the SageMaker SDK, of which two functions are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[object] = []
        images, helper = ModuleType("sagemaker.core.image_uris"), ModuleType("session_helper")
        images.retrieve = self._retrieve
        helper.Session = lambda boto_session: boto_session
        helper.get_execution_role = self._role
        for name in ("sagemaker", "sagemaker.core", "sagemaker.core.helper"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "sagemaker.core.image_uris", images)
        monkeypatch.setitem(sys.modules, "sagemaker.core.helper.session_helper", helper)

    def _retrieve(self, name: str, *, instance_type: str, version: str, **given: str) -> str:
        self.asked.append((name, version, instance_type, given["py_version"], given["region"]))
        if name == "nothing":
            raise FileNotFoundError(f"{name}.json")
        if version == "9":
            raise ValueError("Unsupported pytorch version: 9.\nSupported: 2.5.1")
        kind = "gpu" if ".g" in instance_type else "cpu"
        return f"763104351884.dkr.ecr.{REGION}.amazonaws.com/{name}-training:{version}-{kind}"

    def _role(self, session: boto3.session.Session) -> str:
        assert isinstance(session, boto3.session.Session)
        self.asked.append("role")
        return ROLE


FRAMEWORK = (f"image_uri: {IMAGE}", "framework: {name: pytorch, version: '2.5.1', python: py311}")
OPEN = (
    FRAMEWORK,
    (f"checkpoints: {{root: s3://{BUCKET}/tuner/}}\n", ""),
    (f"sagemaker: {{region: {REGION}, role: {ROLE}}}\n", ""),
)


def test_what_the_file_leaves_open_is_looked_up_once_and_recorded(
    account: Account, folder: Path, tuner: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_file(folder, *OPEN)
    boto3.client("s3").create_bucket(Bucket=f"sagemaker-{REGION}-{ACCOUNT}")
    with monkeypatch.context() as patched:
        sdk = Sdk(patched)
        launch_and_leave(account, tuner)
    assert sdk.asked == ["role", ("pytorch", "2.5.1", "ml.m5.large", "py311", REGION)]
    spec = recorded()
    assert spec.account == ACCOUNT
    assert spec.sagemaker.region == REGION
    assert spec.sagemaker.role == ROLE
    assert spec.checkpoints.root == f"s3://sagemaker-{REGION}-{ACCOUNT}/tuner/"
    assert spec.training.image_uri == f"763104351884.dkr.ecr.{REGION}.amazonaws.com/pytorch-training:2.5.1-cpu"
    assert spec.prices["ml.m5.large"] > 0, "one rate for the study's life"

    # without the SDK: nothing is looked up again, and the file is the one that was launched
    assert tuner("resume", "cloud") in (0, 3)
    assert "changed" not in tuner.err
    assert "differ" not in tuner.err
    assert recorded() == spec


def test_a_changed_framework_is_a_change_and_looked_up_when_accepted(
    account: Account, folder: Path, tuner: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_file(folder, FRAMEWORK)
    Sdk(monkeypatch)
    launch_and_leave(account, tuner)
    study_file(folder, FRAMEWORK, ("'2.5.1'", "'2.6.0'"))
    assert tuner("resume", "cloud") == 2
    assert "training.framework" in tuner.err
    assert tuner("resume", "cloud", "--accept-changes") in (0, 3)
    assert str(recorded().training.image_uri).endswith(":2.6.0-cpu")


def test_instances_of_another_kind_get_the_framework_s_image_for_them(
    account: Account, folder: Path, tuner: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the image for CPUs, GPUs would be paid and not used."""
    study_file(folder, FRAMEWORK)
    Sdk(monkeypatch)
    launch_and_leave(account, tuner)
    study_file(folder, FRAMEWORK, ("[ml.m5.large]", "[ml.g5.xlarge]"))
    assert tuner("resume", "cloud", "--accept-changes") in (0, 3)
    assert str(recorded().training.image_uri).endswith(":2.5.1-gpu")


def test_a_role_by_name_is_its_arn_and_no_change(account: Account, folder: Path, tuner: Shell) -> None:
    study_file(folder, (ROLE, "jobs"))
    launch_and_leave(account, tuner)
    assert recorded().sagemaker.role == ROLE
    assert tuner("resume", "cloud", "--once") == 3
    assert "jobs" not in tuner.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("pytorch", "nothing"), "the SageMaker SDK knows no nothing"),
        (("'2.5.1'", "'9'"), "Unsupported pytorch version: 9. Supported: 2.5.1"),
        (("[ml.m5.large]", "[ml.m5.large, ml.g5.xlarge]"), "need different images"),
    ],
)
def test_what_the_sdk_refuses_is_one_line(
    folder: Path, tuner: Shell, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], said: str
) -> None:
    Sdk(monkeypatch)
    study_file(folder, FRAMEWORK, change)
    assert tuner("launch", "study.yaml", "-y") == 2
    assert said in tuner.err
    assert len(tuner.err.splitlines()) == 1
    assert nothing_recorded()


@pytest.mark.parametrize("change", [FRAMEWORK, (f", role: {ROLE}", "")])
def test_without_the_sdk_its_installation_is_named(
    account: Account, folder: Path, tuner: Shell, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    for module in ("image_uris", "helper.session_helper"):
        monkeypatch.setitem(sys.modules, f"sagemaker.core.{module}", None)
    study_file(folder, change)
    assert tuner("launch", "study.yaml", "-y") == 2
    assert "pip install 'spot-tuner[sagemaker]'" in tuner.err
    assert len(tuner.err.splitlines()) == 1


def test_packages_are_not_asked_of_a_network_that_is_not_there(account: Account, folder: Path, tuner: Shell) -> None:
    """Each trial would be billed for a pip that fails."""
    isolated = (f"role: {ROLE}", f"role: {ROLE}, network_isolation: true")
    study_file(folder, isolated)
    (folder / "requirements.txt").write_text("torch\n")
    assert tuner("launch", "study.yaml", "-y") == 2
    assert "requirements.txt asks for 'torch'" in tuner.err
    assert nothing_recorded()
    study_file(folder)
    assert tuner("launch", "study.yaml", "--dry-run") == 0
    study_file(folder, isolated)
    (folder / ".tunerignore").write_text("requirements.txt\n")
    assert tuner("launch", "study.yaml", "--dry-run") == 0


def test_an_algorithm_needs_no_code_and_is_watched_through_cloudwatch(
    account: Account, folder: Path, tuner: Shell
) -> None:
    study_file(
        folder,
        ("  entry_point: train.py\n", "  algorithm: my-algorithm\n"),
        (f"  image_uri: {IMAGE}\n", "  metrics: [{name: loss, regex: 'loss=(.*)'}]\n"),
    )
    (folder / "train.py").unlink()
    launch_and_leave(account, tuner)
    assert recorded().training.image_uri is None
    assert tuner("resume", "cloud", "--once") == 3
    store = context.open_store(None)
    study = store.study("cloud")
    assert study.bundle_uri == ""
    where = account.backends.of(study)
    services = where.services(study, recorded(), store=store, clock=SystemClock(), listener=NoListener())
    reader = services.progress()
    assert isinstance(reader, CloudMetrics)
    assert isinstance(reader._inner, ReadAhead)
    assert reader._metrics == ("score", "loss")
    store.close()


PRINTS = "print('score=0.75')\n"
REPORTS = """\
import os

os.environ["TUNER_CHECKPOINT_DIR"] = os.environ.get("TUNER_ML_ROOT", "/opt/ml") + "/checkpoints"
from tuner.training import report

report(7, score=0.25)
print("score=0.75")
"""


@pytest.mark.parametrize(("script", "found"), [(PRINTS, (0.75, 1)), (REPORTS, (0.25, 7))])
def test_the_value_of_an_image_that_starts_itself_arrives(
    account: Account,
    folder: Path,
    tuner: Shell,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    *,
    found: tuple[float, int],
) -> None:
    """No bootstrap writes metrics: SageMaker's own reading of the log counts, unless the script reports by itself."""
    monkeypatch.setattr(cloud_metrics, "_SETTLES", timedelta(minutes=-2))  # virtual time would not pass for real jobs
    monkeypatch.setattr(cloud_metrics, "_LOOK_EVERY", timedelta(0))
    study_file(folder, ("  max_run: 10m\n", "  max_run: 10m\n  entrypoint: image\n"))
    assert tuner("launch", "study.yaml", "-y") == 2
    assert "add {name: score, regex: 'score=(…)'} there" in tuner.err
    metrics = "  metrics: [{name: score, regex: 'score=([-0-9.]+)'}]\n"
    study_file(folder, ("  max_run: 10m\n", f"  max_run: 10m\n  entrypoint: image\n{metrics}"))
    (folder / "train.py").write_text(script)
    account.image_starts = ["python3", "/opt/ml/input/data/code/train.py"]
    account.in_log = {"score": 0.75}

    assert tuner("launch", "study.yaml", "-y") == 0, tuner.err
    assert tuner("trials", "cloud", "--json") == 0
    trials = json.loads(tuner.out)
    assert [(trial["state"], trial["value"], trial["step"]) for trial in trials] == [("succeeded", *found)] * 2
