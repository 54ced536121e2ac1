"""The simulated world: that its misfortunes are what they say, and that it repeats itself exactly."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import job_request
from tuner.core.clock import VirtualClock
from tuner.core.jobs import (
    CapacityUnavailable,
    CredentialsRefused,
    JobError,
    JobNameTaken,
    JobRequest,
    JobStatus,
    RequestRejected,
    ServiceUnavailable,
    Throttled,
)
from tuner.core.records import ProgressReport
from tuner.simulator.cloud import SimulatedCloud
from tuner.simulator.parts import (
    Outage,
    Script,
    SimulatedFaults,
    SimulatorSettings,
    exponential_outages,
    smooth_curve,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
PREFIX = "s3://b/t1/"
REQUEST = job_request(
    "s-1-1",
    hyperparameters={"lr": "0.1"},
    environment={"TUNER_ATTEMPT": "1"},
    entrypoint=("bootstrap",),
    checkpoint_uri=PREFIX,
    output_uri="s3://b/o/",
)
# Ten steps of ten seconds; up after 20 to 60 s.
SCRIPT = Script(epochs=10, step_s=10.0, start_s=40.0, download_s=5.0, upload_s=5.0)


def world(
    script: Script | Callable[[JobRequest], Script] = SCRIPT,
    *,
    seed: int = 1,
    outages: Sequence[Outage] = (),
    chosen: SimulatorSettings | None = None,
    faults: SimulatedFaults | None = None,
) -> SimulatedCloud:
    scripts = script if callable(script) else lambda _request: script
    clock = VirtualClock(START)
    return SimulatedCloud(clock, seed, scripts=scripts, outages=outages, settings=chosen, faults=faults)


def go(cloud: SimulatedCloud, seconds: float) -> None:
    until = cloud._clock.now() + timedelta(seconds=seconds)
    cloud._clock.wait(until, due=until)


def run(cloud: SimulatedCloud, request: JobRequest = REQUEST) -> ProgressReport:
    """Create the job and let it end; all that it left."""
    cloud.create(request)
    finish(cloud, request.name)
    return cloud.progress().read(request.checkpoint_uri)


def finish(cloud: SimulatedCloud, name: str = REQUEST.name) -> None:
    while not cloud.jobs[name].status.final:
        assert cloud.next_event_at() is not None
        go(cloud, 1.0)


def steps(report: ProgressReport) -> list[list[int | None]]:
    """The steps that each run reported."""
    runs = dict.fromkeys(point.run for point in report.points)
    return [[point.step for point in report.points if point.run == run_id] for run_id in runs]


def story(cloud: SimulatedCloud, name: str = REQUEST.name) -> str:
    return " ".join(row.status for row in cloud.describe(name).history)


# ---- training


def test_an_undisturbed_job_reports_each_step_once() -> None:
    report = run(cloud := world())
    assert steps(report) == [list(range(1, 11))]
    (record,) = report.records
    assert (record.resume_step, record.resume_saved_at, record.own_files) == (None, None, 0)
    assert record.started_at == next(
        r.started_at for r in cloud.describe(REQUEST.name).history if r.status == "Training"
    )
    assert (report.checkpoint_step, report.checkpoint_at) == (10, report.points[-1].at)
    curve = smooth_curve(1)
    assert [point.value for point in report.points] == [curve(REQUEST.hyperparameters, step) for step in range(1, 11)]


def test_an_interrupted_job_resumes_after_its_newest_checkpoint() -> None:
    cloud = world(replace(SCRIPT, checkpoint_every=2))
    cloud.interrupt_when(REQUEST.name, "Training", after_s=35)
    report = run(cloud)
    assert steps(report) == [[1, 2, 3], [3, 4, 5, 6, 7, 8, 9, 10]]
    assert [record.resume_step for record in report.records] == [None, 2]
    assert report.records[1].resume_saved_at == report.points[1].at
    assert report.records[0].run < report.records[1].run


def test_a_next_attempt_resumes_where_the_last_one_ended() -> None:
    cloud = world()
    run(cloud, replace(REQUEST, max_run_s=40))
    second = replace(REQUEST, name="s-1-2", environment={"TUNER_ATTEMPT": "2"})
    report = run(cloud, second)
    assert steps(report) == [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    assert [(record.attempt, record.resume_step) for record in report.records] == [(1, None), (2, 3)]


@pytest.mark.parametrize(
    ("script", "second_run", "resume_step"),
    [
        (replace(SCRIPT, resumes=False), 1, 3),
        (replace(SCRIPT, checkpoint_every=0), 1, None),
        (replace(SCRIPT, torn=True), 3, 2),
        (replace(SCRIPT, save_s=8.0), 2, 1),  # 38 s: the checkpoint of step 2 is being written
        (replace(SCRIPT, sync_stops_after=1), 2, 1),
        (replace(SCRIPT, manifests=False), 4, None),
    ],
    ids=["starts over", "never saves", "torn", "while saving", "sync stopped", "own files"],
)
def test_what_a_second_run_starts_from(script: Script, second_run: int, resume_step: int | None) -> None:
    cloud = world(replace(script))
    cloud.interrupt_when(REQUEST.name, "Training", after_s=35)
    cloud.create(REQUEST)
    while len(cloud.progress().read(PREFIX).records) < 2:
        go(cloud, 1.0)
    assert cloud.jobs[REQUEST.name].step == second_run - 1
    assert cloud.progress().read(PREFIX).records[1].resume_step == resume_step


def test_the_newest_checkpoint_is_that_of_the_highest_step() -> None:
    """As for a reader of manifests: a script that starts over saves low steps later."""
    cloud = world(replace(SCRIPT, resumes=False))
    cloud.create(REQUEST)
    for seconds in (35, 15, 0):
        cloud.interrupt_when(REQUEST.name, "Training", after_s=seconds)
        while REQUEST.name in {name for name, _ in cloud._traps}:
            go(cloud, 1.0)
    finish(cloud)
    records = cloud.progress().read(PREFIX).records
    assert [record.resume_step for record in records] == [None, 3, 3, 3]


def test_a_sync_that_stopped_shows_nothing_more() -> None:
    report = run(world(replace(SCRIPT, sync_stops_after=4)))
    assert steps(report) == [[1, 2, 3, 4]]
    assert report.checkpoint_step == 4


def test_an_image_s_own_entrypoint_keeps_no_records() -> None:
    report = run(world(), replace(REQUEST, entrypoint=()))
    assert report.records == ()
    assert len(report.points) == 10


def test_metrics_may_be_missing_or_not_a_number_or_without_a_step() -> None:
    assert run(world(replace(SCRIPT, metric=None))).points == ()
    values = [point.value for point in run(world(replace(SCRIPT, curve=lambda _hp, _step: float("nan")))).points]
    assert len(values) == 10
    assert all(value != value for value in values)  # noqa: PLR0124 - that is what NaN is
    assert {point.step for point in run(world(replace(SCRIPT, numbered=False))).points} == {None}


def test_readers_are_incremental_and_each_its_own() -> None:
    cloud = world()
    cloud.create(REQUEST)
    reader = cloud.progress()
    assert reader.read("s3://b/nothing/") == ProgressReport(
        points=(), records=(), checkpoint_step=None, checkpoint_at=None, more=False
    )
    pieces = []
    while not cloud.jobs[REQUEST.name].status.final:
        go(cloud, 25.0)
        pieces.append(reader.read(PREFIX))
    everything = cloud.progress().read(PREFIX)
    assert tuple(point for piece in pieces for point in piece.points) == everything.points
    assert tuple(record for piece in pieces for record in piece.records) == everything.records
    assert reader.read(PREFIX).points == ()
    cloud.fail_next("read", OSError("the store does not answer"))
    with pytest.raises(OSError, match="does not answer"):
        reader.read(PREFIX)
    batched = cloud.progress(batch=6)
    assert [(len(report.points), report.more) for report in (batched.read(PREFIX), batched.read(PREFIX))] == [
        (6, True),
        (4, False),
    ]


# ---- interruptions, by phase


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("Downloading", "Starting Downloading Interrupted Starting Downloading Training Uploading Completed"),
        ("Training", "Starting Downloading Training Interrupted Starting Downloading Training Uploading Completed"),
        (
            "Uploading",
            "Starting Downloading Training Uploading Interrupted Starting Downloading Training Uploading Completed",
        ),
    ],
)
def test_an_interruption_in_each_phase(status: str, expected: str) -> None:
    cloud = world()
    cloud.interrupt_when(REQUEST.name, status, after_s=2.0)
    report = run(cloud)
    assert story(cloud) == expected
    assert {point.step for point in report.points} == set(range(1, 11))


def test_an_instance_that_is_lost_while_stopping_ends_the_job() -> None:
    cloud = world(replace(SCRIPT, ignores_sigterm=True))
    cloud.create(REQUEST)
    go(cloud, 80)
    cloud.stop(REQUEST.name)
    cloud.interrupt()
    assert story(cloud) == "Starting Downloading Training Stopping Stopped"


def test_a_restart_by_the_service_is_no_interruption() -> None:
    cloud = world()
    cloud.create(REQUEST)
    go(cloud, 80)
    cloud.restart(REQUEST.name)
    finish(cloud)
    assert story(cloud).startswith("Starting Downloading Training Restarting Starting Downloading Training")


def test_rows_that_nobody_foresaw_change_nothing() -> None:
    plain, odd = world(), world()
    for cloud in (plain, odd):
        cloud.create(REQUEST)
        go(cloud, 80)
    odd.show(REQUEST.name, "Levitating")
    for cloud in (plain, odd):
        finish(cloud)
    assert story(odd) == "Starting Downloading Training Levitating Uploading Completed"
    assert odd.describe(REQUEST.name).training_s == plain.describe(REQUEST.name).training_s


def test_the_starting_row_after_an_interruption_is_a_switch() -> None:
    cloud = world(chosen=SimulatorSettings(starting_after_interruption=False))
    cloud.interrupt_when(REQUEST.name, "Training", after_s=15)
    run(cloud)
    assert "Training Interrupted Downloading Training" in story(cloud)


def test_the_market_takes_spot_only_and_keeps_it_until_it_is_back() -> None:
    cloud = world(outages=[(100.0, 400.0)])
    cloud.create(REQUEST)
    cloud.create(replace(REQUEST, name="od", checkpoint_uri="s3://b/od/", spot=False, max_wait_s=None))
    go(cloud, 150)
    cloud.create(replace(REQUEST, name="late", checkpoint_uri="s3://b/late/"))
    go(cloud, 245)
    for name in (REQUEST.name, "late"):
        waiting = cloud.describe(name).history[-1]
        assert (waiting.status, "Insufficient capacity" in waiting.message) == ("Starting", True)
    assert cloud.describe("od").status is JobStatus.COMPLETED
    for name in (REQUEST.name, "late"):
        finish(cloud, name)
        assert cloud.describe(name).status is JobStatus.COMPLETED


def test_a_job_that_is_starting_when_capacity_goes_waits_until_it_is_back() -> None:
    cloud = world(outages=[(5.0, 1000.0)])
    cloud.create(REQUEST)
    go(cloud, 6)
    seen = cloud.describe(REQUEST.name)
    assert "Insufficient capacity" in seen.history[-1].message
    assert seen.modified_at == START + timedelta(seconds=5)
    finish(cloud)
    seen = cloud.describe(REQUEST.name)
    assert story(cloud) == "Starting Downloading Training Uploading Completed"
    assert seen.history[1].started_at > START + timedelta(seconds=1000)


# ---- limits


def test_max_run_reads_both_ways() -> None:
    """36 s of the first run and what the second takes: together over the limit of 80 s, each of them below it."""
    for per_run, secondary, steps_done in ((False, "MaxRuntimeExceeded", 6), (True, "Completed", 10)):
        cloud = world(chosen=SimulatorSettings(max_run_per_run=per_run))
        cloud.interrupt_when(REQUEST.name, "Training", after_s=31)
        report = run(cloud, replace(REQUEST, max_run_s=80))
        assert (cloud.describe(REQUEST.name).secondary, report.points[-1].step) == (secondary, steps_done)
    training_s = 36 + 5 + 7 * 10 + 5  # the first run, and download, steps and upload of the second
    assert cloud.describe(REQUEST.name).training_s == training_s


def test_a_script_that_ignores_sigterm_uses_up_the_grace() -> None:
    for ignores, stops_for in ((False, 1 + 5), (True, 30 + 5)):
        cloud = world(replace(SCRIPT, epochs=100, ignores_sigterm=ignores), chosen=SimulatorSettings(stop_grace_s=30))
        cloud.create(REQUEST)
        go(cloud, 100)
        cloud.stop(REQUEST.name)
        finish(cloud)
        stopping, stopped = cloud.describe(REQUEST.name).history[-2:]
        assert stopped.started_at - stopping.started_at == timedelta(seconds=stops_for)


def test_a_script_that_hangs_is_there_until_it_is_stopped() -> None:
    cloud = world(replace(SCRIPT, hangs_after=2))
    report = run(cloud)
    assert steps(report) == [[1, 2]]
    assert cloud.describe(REQUEST.name).secondary == "MaxRuntimeExceeded"


def test_a_script_fails_at_a_step() -> None:
    failing = replace(SCRIPT, failure="AlgorithmError: ExecuteUserScriptError:\nExitCode 75", fails_at=3)
    cloud = world(failing)
    assert steps(run(cloud)) == [[1, 2]]
    seen = cloud.describe(REQUEST.name)
    assert (seen.status, seen.failure) == (JobStatus.FAILED, failing.failure)
    assert seen.training_s is not None
    assert seen.model_uri is None


def test_a_job_may_fail_before_it_starts_and_is_not_billed() -> None:
    cloud = world(replace(SCRIPT, failure="CapacityError: none"))
    run(cloud, replace(REQUEST, spot=False, max_wait_s=None))
    seen = cloud.describe(REQUEST.name)
    assert (story(cloud), seen.training_s, seen.billable_s) == ("Starting Failed", None, None)
    assert cloud.bill(REQUEST.name).billable_s is None


def test_quotas_count_instances_of_a_type_and_kind() -> None:
    cloud = world(chosen=SimulatorSettings(quota=2))
    cloud.create(replace(REQUEST, instance_count=2))
    with pytest.raises(CapacityUnavailable, match="utilization of 2"):
        cloud.create(replace(REQUEST, name="b"))
    cloud.create(replace(REQUEST, name="c", instance_type="ml.m5.xlarge"))
    cloud.create(replace(REQUEST, name="d", spot=False, max_wait_s=None))


def test_nonsense_is_rejected() -> None:
    for bad in (replace(REQUEST, spot=False), replace(REQUEST, max_wait_s=None), replace(REQUEST, max_wait_s=1)):
        with pytest.raises(RequestRejected):
            world().create(bad)


# ---- faults at the port


@pytest.mark.parametrize(
    "error", [Throttled("x"), CredentialsRefused("x"), CapacityUnavailable("x"), ServiceUnavailable("x")]
)
def test_a_planned_refusal_has_no_effect_and_happens_once(error: JobError) -> None:
    cloud = world()
    cloud.fail_next("create", error)
    with pytest.raises(type(error)):
        cloud.create(REQUEST)
    assert cloud.jobs == {}
    cloud.create(REQUEST)
    for call, ask in (
        ("describe", lambda: cloud.describe(REQUEST.name)),
        ("list", lambda: cloud.list_changed("s", created_after=START, modified_after=START)),
        ("stop", lambda: cloud.stop(REQUEST.name)),
    ):
        cloud.fail_next(call, error)
        with pytest.raises(type(error)):
            ask()
        ask()
    assert cloud.calls == {"create": 2, "describe": 2, "list": 2, "stop": 2}


def test_a_lost_answer_comes_after_the_effect() -> None:
    cloud = world()
    cloud.fail_next("create", ServiceUnavailable("lost"), lost=True)
    with pytest.raises(ServiceUnavailable):
        cloud.create(REQUEST)
    with pytest.raises(JobNameTaken):
        cloud.create(REQUEST)
    cloud.fail_next("stop", ServiceUnavailable("lost"), lost=True)
    with pytest.raises(ServiceUnavailable):
        cloud.stop(REQUEST.name)
    assert cloud.describe(REQUEST.name).status is JobStatus.STOPPING


def test_a_lagging_list_shows_the_past_and_invents_nothing() -> None:
    cloud = world(faults=SimulatedFaults(lagging=1.0, lag_s=30.0))
    cloud.create(REQUEST)

    def listed() -> list[str]:
        return [job.secondary for job in cloud.list_changed("s-", created_after=START, modified_after=START)]

    assert listed() == []
    go(cloud, 30)
    assert listed() == ["Starting"]
    finish(cloud)
    assert listed() == ["Training"]
    go(cloud, 30)
    assert listed() == ["Completed"]


def test_seeded_faults_follow_the_seed_and_end_with_calm() -> None:
    def outcomes(seed: int) -> list[str]:
        cloud = world(seed=seed, faults=SimulatedFaults(refused=0.3, lost=0.3, repeated=0.5))
        seen = []
        for number in range(40):
            try:
                cloud.create(replace(REQUEST, name=f"j{number}"))
                seen.append("ok")
            except JobError as error:
                seen.append(type(error).__name__)
        return seen

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert {"ok", "Throttled", "ServiceUnavailable"} <= set(outcomes(1))
    cloud = world(faults=SimulatedFaults(refused=1.0))
    cloud.fail_next("create", Throttled("x"))
    cloud.calm()
    cloud.create(REQUEST)


def test_a_list_may_repeat_itself() -> None:
    cloud = world(faults=SimulatedFaults(repeated=1.0))
    cloud.create(REQUEST)
    found = cloud.list_changed("s-", created_after=START, modified_after=START)
    assert [job.name for job in found] == [REQUEST.name] * 2


# ---- time


def test_a_virtual_clock_jumps_from_event_to_event() -> None:
    cloud = world()
    cloud.create(REQUEST)
    polls = 0
    while not cloud.jobs[REQUEST.name].status.final:
        cloud._clock.wait(cloud._clock.now() + timedelta(seconds=1))
        polls += 1
    assert polls == 1 + 1 + 10 + 1  # Downloading, Training, the steps (Uploading comes with the last), the end
    assert cloud.next_event_at() is None or cloud.jobs[REQUEST.name].status.final


def test_a_clock_that_jumps_back_does_not_turn_the_cloud_back() -> None:
    cloud = world()
    cloud.create(REQUEST)
    go(cloud, 80)
    before = cloud.describe(REQUEST.name)
    cloud._clock.jump(timedelta(seconds=-70))
    assert cloud.describe(REQUEST.name) == before
    cloud.stop(REQUEST.name)
    go(cloud, 300)
    seen = cloud.describe(REQUEST.name)
    assert seen.status is JobStatus.STOPPED
    assert all(row.started_at <= later.started_at for row, later in pairwise(seen.history))


def test_outages_are_endless_seeded_and_in_order() -> None:
    first = list(islice(exponential_outages(3, mean_s=20, down_s=2), 200))
    assert first == list(islice(exponential_outages(3, mean_s=20, down_s=2), 200))
    gaps = [start - end for (_, end), (start, _) in pairwise(first)]
    assert min(gaps) >= 5
    assert 18 < sum(gaps) / len(gaps) < 26


# ---- anything, in any order


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), torn=st.booleans(), ignores=st.booleans(), per_run=st.booleans())
def test_whatever_happens_the_bill_and_the_history_hold(seed: int, *, torn: bool, ignores: bool, per_run: bool) -> None:
    cloud = chaos(seed, torn=torn, ignores=ignores, per_run=per_run)
    again = chaos(seed, torn=torn, ignores=ignores, per_run=per_run)
    for name, job in cloud.jobs.items():
        seen, bill = cloud.describe(name), cloud.bill(name)
        assert seen.status.final
        assert (bill.training_s, bill.billable_s) == (seen.training_s, seen.billable_s)
        moments = [moment for row in seen.history for moment in (row.started_at, row.ended_at) if moment]
        assert moments == sorted(moments)
        assert (seen.training_s or 0) <= (seen.modified_at - seen.created_at).total_seconds() + 1
        assert seen.history == again.describe(name).history
        if not per_run and seen.training_s:
            uploads_s = story(cloud, name).count("Uploading") * SCRIPT.upload_s
            grace_s = cloud.settings.stop_grace_s if ignores else 1.0
            assert seen.training_s <= job.request.max_run_s + uploads_s + grace_s + SCRIPT.upload_s + 1
        uri = job.request.checkpoint_uri
        assert cloud.progress().read(uri) == again.progress().read(uri)


def chaos(seed: int, *, torn: bool, ignores: bool, per_run: bool) -> SimulatedCloud:
    """A few jobs to which things happen at random, until all have ended."""
    dice = random.Random(seed)
    cloud = world(
        replace(SCRIPT, torn=torn, ignores_sigterm=ignores),
        seed=seed,
        outages=list(islice(exponential_outages(seed, mean_s=150, down_s=20), 10)),
        chosen=SimulatorSettings(max_run_per_run=per_run, stop_grace_s=25),
    )
    for number in range(3):
        max_run_s = dice.randint(1, 200)
        name = f"j{number}"
        cloud.create(replace(REQUEST, name=name, checkpoint_uri=f"s3://b/{name}/", max_run_s=max_run_s, max_wait_s=900))
    for _ in range(8):
        go(cloud, dice.uniform(1, 60))
        name = dice.choice(list(cloud.jobs))
        dice.choice([cloud.interrupt, cloud.restart, cloud.stop, lambda _name: cloud.interrupt()])(name)
    for name in cloud.jobs:
        finish(cloud, name)
    return cloud


# --- pools


def of_type(kind: str, name: str, **changes) -> JobRequest:
    return replace(REQUEST, name=name, checkpoint_uri=f"s3://b/{name}/", instance_type=kind, **changes)


def pools(outages: dict, chosen: SimulatorSettings | None = None) -> SimulatedCloud:
    settings = chosen or SimulatorSettings(starting_after_interruption=False)
    return SimulatedCloud(
        VirtualClock(START),
        1,
        scripts=lambda _request: SCRIPT,
        outages=[(70.0, 75.0)],
        pools=outages,
        settings=settings,
    )


def test_each_pool_has_outages_of_its_own() -> None:
    cloud = pools({"ml.a.large": [(80.0, 500.0)], ("ml.b.large", "subnet-2"): []})
    cloud.create(of_type("ml.a.large", "a"))
    cloud.create(of_type("ml.b.large", "b1", subnets=("subnet-1",), security_groups=("sg",)))
    cloud.create(of_type("ml.b.large", "b2", subnets=("subnet-2",), security_groups=("sg",)))
    go(cloud, 400)
    lost = {
        name: [(r.started_at - START).seconds for r in job.history if r.status == "Interrupted"]
        for name, job in cloud.jobs.items()
    }
    assert lost == {"a": [80], "b1": [70], "b2": []}
    assert [cloud.jobs[name].status for name in ("a", "b1", "b2")] == [
        JobStatus.IN_PROGRESS,
        JobStatus.COMPLETED,
        JobStatus.COMPLETED,
    ]
    finish(cloud, "a")


def test_a_type_may_have_a_quota_of_its_own_and_its_refusal_names_it() -> None:
    cloud = pools({}, SimulatorSettings(quota=1, quotas={"ml.a.large": 0}))
    with pytest.raises(CapacityUnavailable, match="is 0 Instances") as refused:
        cloud.create(of_type("ml.a.large", "a"))
    assert refused.value.limit == 0
    cloud.create(of_type("ml.b.large", "b"))
    with pytest.raises(CapacityUnavailable) as refused:
        cloud.create(of_type("ml.b.large", "c"))
    assert refused.value.limit == 1
    cloud.create(of_type("ml.b.large", "d", spot=False, max_wait_s=None))
