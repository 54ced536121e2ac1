"""The process that looks after one job: it waits for capacity, runs the script, syncs, interrupts, stops, and ends.

It is started by path, with the standard library alone (`python -I -S supervisor.py JOB_DIR`, 10 MB; with the
interpreter's packages where `s3://` is an endpoint and not a folder), in a session of its own, and outlives the process
that created the job. It inherits the job's lock and holds it until it dies. Its death is the death of the instance; the
next call that looks at the job deals with it (`service.py`).

Rules: it alone moves its job on, except to Stopping, which StopTrainingJob writes. Each move names the status that it
expects to leave, so a stop that comes in between is never lost. Nothing of a run survives the run. A
script is killed before its interruption is written: were we killed between the two, the lock would tell.
"""

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # run by path: this package and no other of its name, which may be installed as well
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    importlib.import_module("tuner")  # its modules are found in its folder from now on
    sys.path.append(sys.path.pop(0))  # what else lies there must not stand before the standard library

from tuner.local import namespace
from tuner.local.agent import Agent
from tuner.local.billing import limit_at, limits_of
from tuner.local.container import Container, TransferFailed
from tuner.local.ending import INTERNAL_ERROR, UP, begin_stop, end_job, end_stopped, interrupt
from tuner.local.final_metrics import final_metrics
from tuner.local.jobdir import ENDS, JobDir, Row
from tuner.local.market import Market, market_path, parse_market
from tuner.local.processes import LOCK_DESCRIPTOR, end_descendants
from tuner.local.settings import LocalSettings

# The longest sleep: how late a stop is noticed, and how far back the last sign of life can lie.
_BEAT_S = 0.1
_NO_CAPACITY = "Insufficient capacity error from EC2 while launching instances, retrying!"


class Supervisor:
    """One job, from wherever its history stands to its end."""

    def __init__(self, job: JobDir) -> None:
        self.job = job
        self.settings = LocalSettings.parse(job.record["settings"])
        self._limits = limits_of(job.request, self.settings.max_runtime)
        self._rows: list[Row] = []
        self._stamp: tuple[int, int, int] | None = None
        self._market = _MarketFile(job)

    def main(self) -> None:
        self.job.sign_life(time.time())
        if self.rows()[-1].status == "Interrupted":
            self.job.append("Starting", time.time(), "Launching requested ML instances.", after=["Interrupted"])
        isolation = self._isolate()
        while self._gets_instance():
            ScriptRun(self, isolation).go()
            if self.rows()[-1].status in ENDS:
                return
        end_stopped(self.job, time.time())

    def _isolate(self) -> namespace.Isolation:
        if not self.settings.private_opt_ml:
            return namespace.Isolation(0, "it is switched off")
        self.job.tmp.mkdir(exist_ok=True)
        return namespace.find_isolation(self.job.tmp)

    def _gets_instance(self) -> bool:
        """Wait in Starting until an instance is up; False if the job is to stop first."""
        ready_at = self.rows()[-1].at + self.settings.start_delay_s
        while True:
            now = time.time()
            change, is_up = self._market.next_change(now), self._market.up(now)
            if not is_up:  # said first: a supervisor that comes up when the wait is over has found none either
                self.job.explain(_NO_CAPACITY, of="Starting")
            if self.is_stopping():
                return False
            if not is_up:
                ready_at = (change or now + _BEAT_S) + self.settings.start_delay_s
            elif now >= ready_at:
                return True
            else:
                self.job.explain("Launching requested ML instances.", of="Starting")
            self.rest(min(ready_at, change or ready_at))

    def rows(self) -> list[Row]:
        """The history; read again only when it changed."""
        stamp = self.job.stamp()
        if stamp != self._stamp:
            self._rows, self._stamp = self.job.rows(), stamp
        return self._rows

    def is_stopping(self) -> bool:
        """Whether the job was asked to stop, or has reached a limit and is stopping from now on."""
        if self.rows()[-1].status == "Stopping":
            return True
        at, cause = limit_at(self.rows(), self._limits)
        if time.time() < at:
            return False
        begin_stop(self.job, time.time(), f"Stopping the training job: {cause} reached.", cause=cause)
        return True

    def is_interrupted_since(self, launched_at: float) -> bool:
        """Whether capacity was taken at any moment from then on, however short, before the job was to stop."""
        taken_at = self._market.next_change(launched_at) if self._market.up(launched_at) else launched_at
        if taken_at is None or taken_at > time.time() or self.rows()[-1].status == "Stopping":
            return False
        return taken_at < limit_at(self.rows(), self._limits)[0]

    def rest(self, until: float, process: int | None = None) -> None:
        """Sleep until then, a beat at most, less if the process (by its descriptor) ends; and sign that we live."""
        for moment in (limit_at(self.rows(), self._limits)[0], self._market.next_change(time.time())):
            until = min(until, moment or until)
        pause_s = max(0.001, min(until - time.time(), _BEAT_S))
        select.select([] if process is None else [process], [], [], pause_s)
        self.job.sign_life(time.time())


class ScriptRun:
    """One life of the instance: from getting it to losing it, or to the job's end."""

    def __init__(self, supervisor: Supervisor, isolation: namespace.Isolation) -> None:
        self._supervisor = supervisor
        self._job = supervisor.job
        self._settings = supervisor.settings
        self._isolation = isolation
        self._container = Container(self._job, private=isolation.is_private)
        self._launched_at = time.time()
        self._agent: Agent | None = None
        self._pid = 0
        self._sync_at = 0.0

    def go(self) -> None:
        try:
            self._container.fresh_disk()
            self._agent = self._container.agent()
            if self._container.has_inputs():
                self._job.append("Downloading", time.time(), "Downloading input data", after=["Starting"])
                self._container.download()
            if self._agent is not None:
                self._container.restore(self._agent)
            message = "Training image download completed. Training in progress."
            if self._job.append("Training", time.time(), message, after=["Starting", "Downloading"]):
                self._train()
            else:
                self._stop()
        except TransferFailed as error:
            if not end_job(self._job, "Failed", time.time(), after=UP, reason=str(error)[:1024]):
                end_stopped(self._job, time.time())
        finally:
            end_descendants()
            self._container.remove_disk()

    def _train(self) -> None:
        self._start_script()
        process = os.pidfd_open(self._pid)
        try:
            outcome = self._watch(process)
            if outcome == self._stop:
                self._terminate(process, self._settings.grace_s)
        finally:
            os.close(process)
        outcome()

    def _watch(self, process: int) -> Callable[[], None]:
        """Look after the running script until something happens; what is to be done then."""
        while not select.select([process], [], [], 0)[0]:
            if self._supervisor.is_interrupted_since(self._launched_at):
                return self._interrupt
            if self._supervisor.is_stopping():
                return self._stop
            self._sync_if_due()
            self._supervisor.rest(self._sync_at, process)
        return self._finish

    def _start_script(self) -> None:
        log = self._job.log_path(len(self._job.log_paths()) + 1)
        notice = ""
        if not self._isolation.is_private:
            notice = f"[local] no private /opt/ml ({self._isolation.refusal}): TUNER_ML_ROOT={self._job.ml}\n"
        log.write_text(notice, encoding="utf-8")
        command, environment = self._container.command(), self._container.environment()
        self._pid = namespace.start(
            self._isolation,
            self._job.ml,
            lambda: namespace.execute(command, environment, log, self._container.root),
            tmp=self._container.own_tmp(),
        )

    def _sync_if_due(self) -> None:
        if time.time() >= self._sync_at:
            self._sync()
            self._sync_at = time.time() + self._settings.sync_interval_s

    def _sync(self) -> None:
        limit_s = self._settings.sync_stops_after_s
        if self._agent is not None and not (limit_s and time.time() - self._job.record["created_at"] > limit_s):
            self._agent.sync()

    def _interrupt(self) -> None:
        """The instance is taken: nothing more leaves it."""
        if self._settings.interruption_notice_s:
            process = os.pidfd_open(self._pid)
            self._terminate(process, self._settings.interruption_notice_s)
            os.close(process)
        end_descendants()
        if self._agent is not None and self._settings.torn_upload:
            self._agent.tear()
        if interrupt(self._job, time.time()):
            self._job.append("Starting", time.time(), "Launching requested ML instances.", after=["Interrupted"])
        if self._supervisor.is_stopping():
            end_stopped(self._job, time.time())

    def _terminate(self, process: int, grace_s: float) -> None:
        """SIGTERM to the script, SIGKILL when its time is up; syncing goes on meanwhile."""
        signal.pidfd_send_signal(process, signal.SIGTERM)
        end_at = time.time() + grace_s
        while (left_s := end_at - time.time()) > 0 and not select.select([process], [], [], min(left_s, _BEAT_S))[0]:
            self._job.sign_life(time.time())
            self._sync_if_due()

    def _stop(self) -> None:
        end_descendants()
        self._sync()
        artifacts = self._container.upload()
        end_stopped(self._job, time.time(), artifacts, final_metrics(self._job))

    def _finish(self) -> None:
        """The script ended by itself."""
        exit_code = self._exit_code()
        end_descendants()
        self._sync()
        if self._supervisor.rows()[-1].status == "Stopping":
            self._stop()
        elif exit_code:
            reason, metrics = self._container.failure(exit_code), final_metrics(self._job)
            if not end_job(self._job, "Failed", time.time(), after=["Training"], reason=reason, metrics=metrics):
                self._stop()
        else:
            self._job.append("Uploading", time.time(), "Uploading generated training model", after=["Training"])
            artifacts, metrics = self._container.upload(), final_metrics(self._job)
            if not end_job(
                self._job, "Completed", time.time(), after=["Uploading"], artifacts=artifacts, metrics=metrics
            ):
                end_stopped(self._job, time.time(), artifacts, metrics)

    def _exit_code(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return 128 - code if code < 0 else code


class _MarketFile:
    """The market of the job's study, read again whenever its file changes; without one that of the job's settings."""

    def __init__(self, job: JobDir) -> None:
        key, own = job.record["study_key"], job.record["settings"].get("market")
        self._path = market_path(job.state_dir, key) if job.is_spot and key else None
        self._without_file = parse_market(own) if job.is_spot and own else None
        self._stamp: tuple[int, int] | None = None
        self._market: Market | None = self._without_file

    def up(self, at: float) -> bool:
        market = self._current()
        return market is None or market.up(at)

    def next_change(self, at: float) -> float | None:
        market = self._current()
        return None if market is None else market.next_change(at)

    def _current(self) -> Market | None:
        try:
            status = self._path.stat() if self._path else None
        except FileNotFoundError:
            status = None
        stamp = (status.st_ino, status.st_mtime_ns) if status else None
        if stamp != self._stamp:
            self._stamp = stamp
            self._market = self._without_file
            if self._path and stamp:
                self._market = parse_market(json.loads(self._path.read_text()))
        return self._market


def main() -> None:
    os.set_inheritable(LOCK_DESCRIPTOR, False)
    os.closerange(LOCK_DESCRIPTOR + 1, 1 << 16)  # whatever our starter left open is not ours to hold
    namespace.adopt_orphans()
    supervisor = Supervisor(JobDir(Path(sys.argv[1])))
    try:
        supervisor.main()
    except Exception:  # noqa: BLE001 - a fault of ours is the service's: the job must end, not be restarted for ever
        traceback.print_exc()
        end_descendants()
        end_job(supervisor.job, "Failed", time.time(), reason=INTERNAL_ERROR)


if __name__ == "__main__":
    main()
