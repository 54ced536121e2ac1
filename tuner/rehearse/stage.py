"""The stage of a rehearsal: a local SageMaker in its own state directory, with one job at a time.

A rehearsal must run what the real study will run. So the request is the study's, and the container, the bootstrap, the
checkpoint agent and the death of an instance are the local service's. The stage decides nothing: it starts jobs, looks
at them, takes capacity away, stops jobs and ends them.

Rules: we write to none of the user's files; only the script can, by absolute paths outside /tmp, /var/tmp and /dev/shm.
HOME is a temporary folder. When `close` returns, all processes of the jobs are gone.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from tuner.core.clock import Clock
from tuner.core.jobs import JobError, job_name
from tuner.core.records import (
    Attempt,
    AttemptState,
    Intent,
    MetricPoint,
    ParamValue,
    RunRecord,
    Study,
    StudyState,
    Trial,
    TrialState,
)
from tuner.local.jobdir import ENDS, JobDir, Row, job_names, open_job
from tuner.local.market import write_market
from tuner.local.processes import end_all_of
from tuner.local.transport import make_client
from tuner.rehearse.records import Ending, RehearsalBroken, RunSeen
from tuner.rehearse.saves import OWN_FOLDERS, SaveWatch, own_files
from tuner.sagemaker.service import SageMakerJobs
from tuner.spec import workload
from tuner.spec.study_file import StudySpec
from tuner.storage import bundle as packaging
from tuner.storage.checkpoints import MetricsReader
from tuner.storage.objects import DirectoryObjects, ObjectsError

BUCKET = "tuner-rehearsal"
ROOT = f"s3://{BUCKET}/"
_SYNC_S = 0.05
_LOOK_S = 0.02
_DOWN_S = 0.3  # how long capacity is away; we look at the store meanwhile
_LEAST_PATIENCE_S = 60.0
# Jobs end by themselves if the rehearsal is killed. No rehearsal needs that long.
_MAX_RUN_S = 6 * 3600
_OUTSIDE_SHOWN = 20
_TAIL_BYTES = 4096

FollowOutcome = Literal["reached", "over", "silent"]


@dataclass(slots=True)
class LiveRun:
    """What a run of the script has reported so far."""

    points: dict[int, dict[str, float]] = field(default_factory=dict)
    reported_at: dict[int, float] = field(default_factory=dict)
    loose: dict[str, float] = field(default_factory=dict)
    loose_reports: Counter[str] = field(default_factory=Counter)  # by metric
    record: RunRecord | None = None

    def take(self, point: MetricPoint) -> None:
        if point.step is None:
            self.loose[point.name] = point.value
            self.loose_reports[point.name] += 1
            return
        self.points.setdefault(point.step, {})[point.name] = point.value
        self.reported_at.setdefault(point.step, point.at.timestamp())


class Stage:
    """A local SageMaker for one rehearsal of one study."""

    def __init__(  # noqa: PLR0917 - everything that a rehearsal has
        self,
        folder: Path,
        spec: StudySpec,
        bundle: packaging.Bundle,
        clock: Clock,
        grace_s: float,
        after_look: Callable[["StagedJob"], None],
    ) -> None:
        self.folder = folder
        self.after_look = after_look
        self.clock = clock
        settings = {"start_delay_s": 0.0, "sync_interval_s": _SYNC_S, "grace_s": grace_s, "private_tmp": True}
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        self.spec = spec
        self.code_names = frozenset(file.name for file in bundle.files)
        self.jobs = SageMakerJobs(make_client(folder, region=spec.region))
        bundle_uri = packaging.upload(bundle, DirectoryObjects(folder / "s3"), ROOT)
        self.study = _study(spec, folder, bundle_uri, clock.now())

    def start(self, role: str, params: Mapping[str, ParamValue], *, attempt: int = 1, until: int | None) -> "StagedJob":
        """Start the script as an attempt of the trial with this role; `until` is the step to end at."""
        trial = _trial(self.study, role, params, self.clock.now())
        name = job_name(f"{self.study.key}-{role}", 0, attempt)
        request = workload.job_request(self.spec, self.study, trial, _attempt(self.spec, trial, attempt, name))
        if until is not None:
            request = replace(request, environment={**request.environment, "TUNER_UNTIL_STEP": str(until)})
        self._give_capacity()
        try:
            self.jobs.create(request)
        except JobError as error:
            raise RehearsalBroken(f"the local service does not take the job: {error}") from error
        job = open_job(self.folder, name)
        assert job is not None, "it was just created"
        return StagedJob(self, job, trial.prefix, attempt)

    def prefix_folder(self, role: str) -> Path:
        """The folder that stands for a role's checkpoint prefix."""
        return self.folder / "s3" / BUCKET / self.study.key / role

    def take_capacity(self) -> None:
        self._market({"kind": "at", "at_s": [0.0], "down_s": _DOWN_S})

    def _give_capacity(self) -> None:
        self._market({"kind": "none"})

    def _market(self, market: dict[str, object]) -> None:
        write_market(self.folder, self.study.key, {"started_at": self.clock.now().isoformat(), **market})

    def close(self) -> None:
        """End every process of every job."""
        for name in job_names(self.folder):
            end_all_of(self.folder / "jobs" / name)


class StagedJob:
    """One job on the stage: the reports of its runs, and the ways to end them."""

    def __init__(self, stage: Stage, job: JobDir, prefix: str, attempt: int) -> None:
        self.saved_after: list[int] = []  # the last reported step at each change of the script's files
        self.watch: SaveWatch | None = None
        self._stage = stage
        self._job = job
        self._attempt = attempt
        self._runs: dict[str, LiveRun] = {}
        # New files are on the instance's disk first; those of earlier runs are only in the store.
        self._readers = (
            MetricsReader(DirectoryObjects(stage.folder / "jobs"), f"s3://{job.name}/ml/checkpoints/"),
            MetricsReader(DirectoryObjects(stage.folder / "s3"), prefix),
        )
        self._stamp: object = None
        self._own: object = None
        self._outside: tuple[str, ...] = ()

    # --- looking ---

    @property
    def checkpoints(self) -> Path:
        return self._job.ml / "checkpoints"

    def run(self, number: int) -> LiveRun:
        """The run of this number, from 1; an empty one before its first report."""
        ids = sorted(self._runs)
        return self._runs[ids[number - 1]] if number <= len(ids) else LiveRun()

    def follow(self, number: int, reached: Callable[[LiveRun], bool], patience_s: float) -> FollowOutcome:
        """Wait until a run has come that far, its job is over, or it has reported nothing for too long."""
        silent_since = self._stage.clock.now()
        while True:
            now = self._stage.clock.now()
            if self._look():
                silent_since = now
            if reached(self.run(number)):
                return "reached"
            if self.is_over():
                self._look(whole=True)
                return "reached" if reached(self.run(number)) else "over"
            if now - silent_since > timedelta(seconds=max(patience_s, _LEAST_PATIENCE_S)):
                return "silent"
            self._rest()

    def training_for_s(self) -> float:
        """Seconds since the newest run of the script was started."""
        started = self._rows_of("Training")
        return self._stage.clock.now().timestamp() - started[-1].at if started else 0.0

    def pause(self, seconds: float) -> None:
        """Let it run on for a while."""
        until = self._stage.clock.now() + timedelta(seconds=seconds)
        while self._stage.clock.now() < until and not self.is_over():
            self._look()
            self._rest()

    def observe_saves(self) -> None:
        """Record how checkpoints are written. The run must not be over."""
        self._own = {}

    def _look(self, *, whole: bool = False) -> bool:
        """Read new reports from the instance, and from the store if its disk may be gone. True if there were any."""
        stamp = _stamp(self.checkpoints)
        readers = self._readers if whole else self._readers[:1] if stamp != self._stamp else ()
        self._stamp = stamp
        news = [point for reader in readers for point in _new_points(reader)]
        for point in news:
            if point.attempt == self._attempt:
                self._runs.setdefault(point.run, LiveRun()).take(point)
        for record in (record for reader in readers for record in _new_records(reader)):
            if record.attempt == self._attempt:
                self._runs.setdefault(record.run, LiveRun()).record = record
        if self._own is not None:
            self._look_at_saves()
            if news:  # its disk is deleted at its end
                self._outside = self._outside_files() or self._outside
        self._stage.after_look(self)
        return bool(news)

    def _look_at_saves(self) -> None:
        if self.watch is None and self.checkpoints.is_dir():
            self.watch = SaveWatch(self.checkpoints)
        if self.watch is not None:
            self.watch.drain(self._stage.clock.now().timestamp())
        own = {name: (status.st_mtime_ns, status.st_size) for name, status in own_files(self.checkpoints).items()}
        steps = [step for run in self._runs.values() for step in run.points]
        if own and own != self._own:
            self._own = own
            self.saved_after.append(max(steps, default=-1))

    def _rest(self) -> None:
        clock = self._stage.clock
        if self.watch is not None and self.watch.works:
            self.watch.wait(_LOOK_S, lambda: clock.now().timestamp())
        else:
            clock.wait(clock.now() + timedelta(seconds=_LOOK_S))

    def is_over(self) -> bool:
        if self._job.rows()[-1].status in ENDS:
            return True
        if not self._job.is_attended() and self._job.rows()[-1].status not in ENDS:
            raise RehearsalBroken(f"the supervisor of {self._job.name} is gone: run the rehearsal again")
        return False

    def _rows_of(self, status: str) -> list[Row]:
        return [row for row in self._job.rows() if row.status == status]

    # --- ending a run ---

    def interrupt(self) -> bool:
        """Take the instance away without notice for a moment. False if the script has ended before."""
        self._outside = self._outside_files()
        taken = len(self._rows_of("Interrupted"))
        self._stage.take_capacity()
        while len(self._rows_of("Interrupted")) == taken:
            if self.is_over():
                return False
            self._look()
            self._rest()
        self._look(whole=True)
        return True

    def stop(self) -> bool:
        """StopTrainingJob: SIGTERM, a grace period, SIGKILL. False if the script has ended before."""
        self._outside = self._outside_files()
        self._stage.jobs.stop(self._job.name)
        while not self.is_over():
            self._look()
            self._rest()
        self._look(whole=True)
        return self.ended_as() is Ending.STOPPED

    def cut(self) -> None:
        """End the job and all its processes at once."""
        if self._job.path.exists():
            end_all_of(self._job.path)
        if self.watch is not None:
            self.watch.close()

    def seen(self, number: int, ending: Ending) -> RunSeen:
        """The record of a run that has just ended."""
        run, rows, started = self.run(number), self._job.rows(), self._rows_of("Training")
        last, stopping = rows[-1], self._rows_of("Stopping")
        if ending not in (Ending.KILLED, Ending.STOPPED):
            self._outside = self._outside_files() or self._outside
        record = run.record
        return RunSeen(
            ending=ending,
            started_at=started[number - 1].at if number <= len(started) else rows[0].at,
            points=run.points,
            reported_at=run.reported_at,
            loose=run.loose,
            words=self._last_words(number) if last.status == "Failed" else "",
            had_checkpoint=None if record is None else record.resume_step is not None or record.own_files > 0,
            resume_step=None if record is None else record.resume_step,
            outside=self._outside,
            stopping_s=last.at - stopping[-1].at if stopping else None,
        )

    def _last_words(self, number: int) -> str:
        """Why a run failed: its last printed line, else the service's reason."""
        logs = self._job.log_paths()
        if number <= len(logs):
            with logs[number - 1].open("rb") as file:
                file.seek(max(0, logs[number - 1].stat().st_size - _TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").split("\n")
            if said := next((line.strip() for line in reversed(lines) if line.strip()), None):
                return said
        return str(self._job.rows()[-1].facts.get("reason") or "")

    def ended_as(self) -> Ending:
        """How the job ended by itself."""
        ends = {"Completed": Ending.COMPLETED, "Stopped": Ending.STOPPED}
        return ends.get(self._job.rows()[-1].status, Ending.FAILED)

    def _outside_files(self) -> tuple[str, ...]:
        """The script's files that an interruption deletes, by the paths that the script uses.

        Files in /dev/shm are in its own memory and cannot be seen from here.
        """
        job, found = self._job, []
        places = {"/tmp/": job.tmp, "/var/tmp/": job.var_tmp, "~/": job.home, "/opt/ml/": job.ml}  # noqa: S108 - names
        for shown, folder in places.items():
            for where, folders, names in os.walk(folder):
                inside = Path(where).relative_to(folder)
                if inside.parts[:1] in (("checkpoints",), ("input",)):
                    folders.clear()
                    continue
                found += [shown + (inside / name).as_posix() for name in names if not self._is_given(inside / name)]
        return tuple(sorted(found)[:_OUTSIDE_SHOWN])

    def _is_given(self, path: Path) -> bool:
        if "__pycache__" in path.parts or path.parts[:1] == ("output",):
            return True
        return path.parts[:1] == ("code",) and path.relative_to("code").as_posix() in self._stage.code_names


def snapshot(source: Path, target: Path) -> list[str]:
    """Copy the script's files from one prefix to another by hard links: objects are never changed in place.

    Metrics and records are left out: they belong to the runs that wrote them.
    """
    shutil.rmtree(target, ignore_errors=True)
    names = [name for name in own_files(source) if name.split("/")[0] not in OWN_FOLDERS]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(source / name, target / name)
    return names


def newest_files(folder: Path) -> list[str]:
    """The files that were stored last, together, the largest first; of a step folder with a manifest, its data."""
    files = own_files(folder)
    steps = sorted(name for name in files if name.startswith("step-") and name.endswith("/manifest.json"))
    if steps:
        newest = steps[-1].split("/")[0]
        names = [name for name in files if name.startswith(f"{newest}/") and name != steps[-1]]
    else:
        last = max((status.st_mtime for status in files.values()), default=0.0)
        names = [name for name, status in files.items() if status.st_mtime >= last - _SYNC_S / 2]
    return sorted(names, key=lambda name: -files[name].st_size)


def written_since(folder: Path, moment: float) -> list[str]:
    """The files that were stored since then, or together with the newest, the newest first.

    Of step folders with a manifest only the newest is looked at, and its manifest is passed over.
    """
    files, newest = own_files(folder), newest_files(folder)
    whole = {name.split("/")[0] for name in files if name.startswith("step-") and name.endswith("/manifest.json")}
    named = [name for name in files if name.split("/")[0] not in whole and files[name].st_mtime >= moment]
    return sorted({*named, *newest}, key=lambda name: (-files[name].st_mtime, name))


def tear(path: Path) -> None:
    """Leave the first half of a file."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()  # its content is shared with where it was copied from
    path.write_bytes(half)


def _stamp(checkpoints: Path) -> object:
    """Changes whenever a report or a record is written below a checkpoint folder."""
    found = []
    for folder in OWN_FOLDERS:
        with suppress(OSError), os.scandir(checkpoints / folder) as entries:
            found += [(entry.name, entry.stat().st_size) for entry in entries]
    return sorted(found)


def _new_points(reader: MetricsReader) -> list[MetricPoint]:
    try:
        return reader.poll()
    except (ObjectsError, OSError):  # the disk of an instance vanishes while it is read
        return []


def _new_records(reader: MetricsReader) -> list[RunRecord]:
    try:
        return reader.records()
    except (ObjectsError, OSError):
        return []


def _study(spec: StudySpec, folder: Path, bundle_uri: str, now: datetime) -> Study:
    return Study(
        id=0,
        name=spec.name,
        key=spec.name,
        owner="",
        state=StudyState.RUNNING,
        version=0,
        spec="",
        backend="local",
        bundle_uri=bundle_uri,
        local_dir=str(folder),
        intent=Intent.RUN,
        intent_at=now,
        created_at=now,
    )


def _trial(study: Study, role: str, params: Mapping[str, ParamValue], now: datetime) -> Trial:
    return Trial(
        number=0,
        state=TrialState.RUNNING,
        version=0,
        params=params,
        distributions="{}",
        attrs={},
        prefix=f"{ROOT}{study.key}/{role}/",
        bundle_uri=study.bundle_uri,
        asked_seq=0,
        created_at=now,
    )


def _attempt(spec: StudySpec, trial: Trial, number: int, name: str) -> Attempt:
    return Attempt(
        trial=trial.number,
        number=number,
        state=AttemptState.SUBMITTING,
        version=0,
        job_name=name,
        digest=workload.job_digest(spec, trial),
        instance_type=spec.training.instance_types[0],
        instance_count=1,
        spot=True,
        rate_microusd_per_h=0,
        max_run_s=_MAX_RUN_S,
        max_wait_s=_MAX_RUN_S,
        reserved_microusd=0,
        created_at=trial.created_at,
    )
