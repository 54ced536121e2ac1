"""The observing half of a tick: what jobs and prefixes show, and what follows from it for trials.

Rules: jobs first, then the prefixes, then the rules of `core.policy`, each trial in turn. An attempt's end is applied
to its trial only after everything under the prefix was read.
"""

from dataclasses import replace

from tuner.core.calls import UNMETERED, Calls
from tuner.core.events import EventKind
from tuner.core.hints import Hints
from tuner.core.jobs import JobService
from tuner.engine import ending, liveness, stopping
from tuner.engine.jobs import JobObserver
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.progress import ProgressObserver, is_to_be_read
from tuner.engine.unit_of_work import UnitOfWork
from tuner.storage.progress import Progress


class Observer:
    """Brings memory up to date, for one tick."""

    def __init__(
        self,
        live: LiveStudy,
        jobs: JobService,
        progress: Progress,
        unit: UnitOfWork,
        *,
        calls: Calls = UNMETERED,
        hints: Hints | None = None,
    ) -> None:
        self._live = live
        self._jobs = JobObserver(live, jobs, unit, calls=calls, hints=hints)
        self._progress = progress
        self._prefixes = ProgressObserver(live, progress, unit)
        self._unit = unit

    def observe(self) -> None:
        """Everything, in order: jobs, then what lies under the prefixes, then what follows."""
        self._jobs.look()
        trials = self._in_turn()
        self._progress.expect(trial.record.prefix for trial in trials if is_to_be_read(trial))
        for trial in trials:
            self._prefixes.read(trial)
            self._apply_rules(trial)
        stopping.move_waiting(self._live, self._unit)
        self._warn()

    def _in_turn(self) -> list[LiveTrial]:
        """Trials whose prefix could be read last; then the others, the one that failed longest ago first.

        Only a few that fail are tried in a tick: always the same ones would keep all others from their end.
        """
        failed = {what: place for place, what in enumerate(self._live.troubles)}
        return sorted(self._live.trials.values(), key=lambda trial: failed.get(trial.record.prefix, -1))

    def _apply_rules(self, trial: LiveTrial) -> None:
        stopping.stop_if_due(self._live, self._unit, trial)
        ending.conclude(self._live, self._unit, trial)

    def _warn(self) -> None:
        """Keep the warnings of the study as they are now; a new one is also an event."""
        unit = self._unit
        fresh = liveness.warnings(self._live.trials.values(), self._live.policy, unit.now, self._live.sync_delay_s)
        known = unit.study.warnings
        for line in fresh:
            if line not in known:
                unit.event(EventKind.WARNING, message=line)
        now_known = liveness.replaced(known, fresh)
        if now_known != known:
            unit.set_study(replace(unit.study, warnings=now_known))
