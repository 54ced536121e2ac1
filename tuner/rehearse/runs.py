"""The runs of a rehearsal, in order.

1. A reference run without interruptions. The other runs are compared with it.
2. A second trial that is killed and stopped at random moments and then resumed. Each time only what had reached the
   store survives.
3. Resumes with a torn file: the last interruption's files, with one of the newest files cut in half. Every one of them
   is tried, because we cannot know which file is the checkpoint and which is a log.
4. A second reference run, only if the curves differ: it tells randomness from a defect.

Rules: every random choice comes from the seed. This module decides which runs to make and how long to wait;
`verdict` judges them.
"""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from tuner.core.records import ParamValue
from tuner.rehearse.advice import step_seconds
from tuner.rehearse.compare import departures
from tuner.rehearse.records import Ending, Evidence, RunSeen, SavesSeen, TornSeen
from tuner.rehearse.saves import own_files, save_seconds
from tuner.rehearse.stage import FollowOutcome, LiveRun, Stage, StagedJob, newest_files, snapshot, tear, written_since
from tuner.spec.study_file import COST_METRIC

_LEAST_STEPS = 4  # with fewer steps there is no room for an interruption between a save and the end
_DURATIONS_MAX = 10  # how many times max_duration_s we wait for the first steps
_SILENT_DURATIONS = 5
_SILENT_STEPS = 20  # a run that reports nothing for the time of this many steps hangs
_ENDS_WITHIN_STEPS = 3
_TORN_STEPS = 2
_TORN_ATTEMPT = 9
_TORN_MAX = 4  # files; each costs a start of the script


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalOptions:
    """The options of `tuner rehearse`."""

    overrides: tuple[str, ...] = ()
    inputs: Mapping[str, Path] | None = None  # local directories, by channel
    steps: int | None = None  # the step to train up to
    max_duration_s: float = 60.0  # of the reference run, if `steps` is not given
    interruptions: int = 3
    seed: int = 0
    tolerance: float = 1e-6
    keep: Path | None = None
    grace_s: float = 15.0  # between SIGTERM and SIGKILL; AWS gives 120 s
    after_look: Callable[[StagedJob], None] = lambda _job: None  # tests answer the script


class RehearsalProgress(Protocol):
    """Shows how far a rehearsal is."""

    def phase(self, text: str) -> None:
        """The rehearsal begins its next part."""
        ...

    def step(self, step: int | None, of: int | None) -> None:
        """The run has reached this step; called often."""
        ...


@dataclass(frozen=True, slots=True)
class _Interruption:
    """A planned interruption: `delay_s` after this step is reported, by SIGKILL or by StopTrainingJob."""

    step: int
    delay_s: float
    stop: bool


class Runs:
    """The runs of one rehearsal."""

    def __init__(
        self,
        stage: Stage,
        params: Mapping[str, ParamValue],
        options: RehearsalOptions,
        progress: RehearsalProgress,
        *,
        isolated: bool,
    ) -> None:
        self._stage = stage
        self._params = params
        self._options = options
        self._progress = progress
        self._isolated = isolated
        self._objectives = tuple(each.metric for each in stage.spec.objectives if each.metric != COST_METRIC)
        self._patience_s = options.max_duration_s * _SILENT_DURATIONS

    def make(self) -> Evidence:
        reference, saves = self._uninterrupted()
        evidence = Evidence(
            objectives=self._objectives,
            tolerance=self._options.tolerance,
            grace_s=self._options.grace_s,
            isolated=self._isolated,
            reference=reference,
            saves=saves,
        )
        if reference.ending is Ending.FAILED or not saves.after_steps or len(reference.points) <= 1:
            return evidence
        self._patience_s = max(self._patience_s, _longest_s(reference) * _SILENT_STEPS)
        interruptions = self._plan_interruptions(reference, saves)
        if not interruptions:
            return evidence
        runs = self._interrupted(reference, interruptions)
        evidence = replace(evidence, interrupted=tuple(runs), torn=self._torn(reference, saves, runs))
        return replace(evidence, repeat=self._repeat(evidence))

    # --- without interruptions

    def _uninterrupted(self) -> tuple[RunSeen, SavesSeen]:
        options = self._options
        limit = f"to step {options.steps}" if options.steps is not None else f"for {options.max_duration_s:g}s"
        self._progress.phase(f"without interruptions, {limit} or to its end")
        job = self._start("reference")
        job.observe_saves()
        outcome = self._follow(job, 1, lambda run: self._is_enough(job, run), options.steps)
        if outcome == "reached" and options.steps is not None:
            # A script that reads TUNER_UNTIL_STEP ends now; another one goes on, and we end it.
            limit_s = job.training_for_s() + max(1.0, _ENDS_WITHIN_STEPS * _step_s(job.run(1)))
            outcome = self._follow(job, 1, lambda _: job.training_for_s() > limit_s, options.steps)
        seen = _up_to(options.steps, self._end(job, 1, outcome))
        return seen, self._saves(job, seen)

    def _is_enough(self, job: StagedJob, run: LiveRun) -> bool:
        steps, since_s = self._options.steps, job.training_for_s()
        if not run.points and any(run.loose_reports[name] >= _LEAST_STEPS for name in self._objectives):
            return since_s > self._options.max_duration_s  # the script reports the objective without steps
        if steps is not None:
            return max(run.points, default=-1) >= steps
        if since_s > self._options.max_duration_s * _DURATIONS_MAX:
            return True
        return since_s > self._options.max_duration_s and len(run.points) >= _LEAST_STEPS

    def _saves(self, job: StagedJob, seen: RunSeen) -> SavesSeen:
        stored = self._stage.prefix_folder("reference")
        files, newest = own_files(stored), newest_files(stored)
        watch, step_s = job.watch, step_seconds(seen)
        return SavesSeen(
            after_steps=tuple(sorted({min(step, seen.last_step or 0) for step in job.saved_after})),
            size_bytes=sum(files[name].st_size for name in newest) if newest else None,
            save_s=save_seconds(watch.moments, step_s) if watch is not None and step_s is not None else None,
            in_place=frozenset(watch.in_place) if watch is not None else frozenset(),
            watched=watch is not None and watch.works,
        )

    # --- with interruptions

    def _plan_interruptions(self, reference: RunSeen, saves: SavesSeen) -> list[_Interruption]:
        """Random steps after the first save and before the last step. If there are several, one is a stop."""
        rng = random.Random(self._options.seed)  # noqa: S311 - to be repeated, not to be secret
        first, last = saves.after_steps[0], max(reference.points)
        if reference.ending is Ending.COMPLETED and first >= last:
            return []  # it saves only at its end, so nothing can be resumed
        before_end = [step for step in sorted(reference.points) if step < last]
        steps = [step for step in before_end if step > first] or before_end
        chosen = sorted(rng.sample(steps, min(self._options.interruptions, len(steps))))
        stopped = rng.randrange(len(chosen)) if len(chosen) > 1 else None
        step_s = step_seconds(reference) or 0.0
        return [_Interruption(step, rng.random() * step_s, index == stopped) for index, step in enumerate(chosen)]

    def _interrupted(self, reference: RunSeen, interruptions: list[_Interruption]) -> list[RunSeen]:
        """Train one trial to the reference's last step through all interruptions; stop early if it is lost."""
        runs: list[RunSeen] = []
        attempt, number, last = 1, 1, max(reference.points)
        job = self._start("interrupted")
        for count, interruption in enumerate(interruptions, start=1):
            how = "stopped (SIGTERM)" if interruption.stop else "killed"
            self._progress.phase(f"to be {how} after step {interruption.step}, {count} of {len(interruptions)}")
            outcome = self._follow(job, number, self._is_due(interruption, last), last)
            if outcome != "reached" or not self._interrupt(job, number, interruption, runs):
                break
            snapshot(self._stage.prefix_folder("interrupted"), self._stage.prefix_folder("torn"))
            if interruption.stop:
                attempt, number = attempt + 1, 1
                job = self._start("interrupted", attempt)
            else:
                number += 1
            outcome = self._follow(job, number, lambda run: bool(run.points), None)
            if outcome != "reached" or _started_over(job.run(number), reference):
                break
        else:
            self._progress.phase(f"resumed, to step {last}")
            outcome = self._follow(job, number, self._is_at_end(reference), last)
        return [*runs, self._end(job, number, outcome)]

    def _is_due(self, interruption: _Interruption, last: int) -> Callable[[LiveRun], bool]:
        """An interruption is due at its step, once the store holds something to resume from."""
        stored = self._stage.prefix_folder("interrupted")

        def is_due(run: LiveRun) -> bool:
            step = max(run.points, default=-1)
            return step >= interruption.step and (step > last or bool(own_files(stored)))

        return is_due

    @staticmethod
    def _is_at_end(reference: RunSeen) -> Callable[[LiveRun], bool]:
        """Whether a run has reached the end of the reference run: its own end, or the step at which we cut that one."""
        last, was_cut = max(reference.points), reference.ending is not Ending.COMPLETED
        return lambda run: was_cut and max(run.points, default=-1) >= last

    @staticmethod
    def _interrupt(job: StagedJob, number: int, interruption: _Interruption, runs: list[RunSeen]) -> bool:
        """Interrupt a run and record what it did; False if it ended before."""
        job.pause(interruption.delay_s)
        if not (job.stop() if interruption.stop else job.interrupt()):
            return False
        runs.append(job.seen(number, Ending.STOPPED if interruption.stop else Ending.KILLED))
        return True

    def _torn(self, reference: RunSeen, saves: SavesSeen, runs: list[RunSeen]) -> tuple[TornSeen, ...]:
        """Resume from what the last interruption left, once for each of its newest files, cut in half."""
        folder = self._stage.prefix_folder("torn")
        taken = [run for run in runs if run.ending in (Ending.KILLED, Ending.STOPPED) and run.points]
        if not folder.is_dir() or not taken or runs[-1].ending in (Ending.FAILED, Ending.SILENT):
            return ()
        names = written_since(folder, taken[-1].started_at)
        # First the files that an upload can really catch half-written.
        names.sort(key=lambda name: name not in saves.in_place)
        found: list[TornSeen] = []
        for name in names[:_TORN_MAX]:
            found.append(self._resumed_torn(f"torn-{len(found) + 1}", name, reference, max(taken[-1].points)))
            if found[-1].run.ending is Ending.SILENT:
                break  # nothing is worse, and each costs minutes
        return tuple(found)

    def _resumed_torn(self, role: str, name: str, reference: RunSeen, before: int) -> TornSeen:
        folder = self._stage.prefix_folder(role)
        snapshot(self._stage.prefix_folder("torn"), folder)
        tear(folder / name)
        first = min(reference.points)
        goal = max([step for step in sorted(reference.points) if step > before][:_TORN_STEPS], default=before)
        self._progress.phase(f"resumed with half of {name}, to step {goal}")
        # An attempt of its own: reports that come back with the checkpoints belong to those before.
        job = self._start(role, _TORN_ATTEMPT)

        def is_enough(run: LiveRun) -> bool:
            return bool(run.points) and (max(run.points) >= goal or min(run.points) <= first)

        run = self._end(job, 1, self._follow(job, 1, is_enough, goal))
        return TornSeen(name=name, before_step=before, run=run)

    def _repeat(self, evidence: Evidence) -> RunSeen | None:
        """The uninterrupted run once more, as far as curves differ; None where they do not."""
        curves = [run.points for run in evidence.interrupted]
        curves += [torn.run.points for torn in evidence.torn]
        found = departures(evidence.reference.points, curves, evidence.tolerance)
        if not found:
            return None
        last = found[-1].step
        self._progress.phase(f"without interruptions again, to step {last}: is it the same twice?")
        job = self._start("repeat")
        return self._end(job, 1, self._reach(job, 1, last, last))

    # --- small things

    def _start(self, role: str, attempt: int = 1) -> StagedJob:
        # Only the reference run gets TUNER_UNTIL_STEP: the others must not end before they are interrupted.
        until = self._options.steps if role == "reference" else None
        return self._stage.start(role, self._params, attempt=attempt, until=until)

    def _reach(self, job: StagedJob, number: int, step: int, of: int) -> FollowOutcome:
        return self._follow(job, number, lambda run: max(run.points, default=-1) >= step, of)

    def _follow(self, job: StagedJob, number: int, reached: Callable[[LiveRun], bool], of: int | None) -> FollowOutcome:
        def look(run: LiveRun) -> bool:
            self._progress.step(max(run.points, default=None), of)
            return reached(run)

        return job.follow(number, look, self._patience_s)

    def _end(self, job: StagedJob, number: int, outcome: FollowOutcome) -> RunSeen:
        """End a run, whatever it is doing."""
        ending = Ending.SILENT if outcome == "silent" else Ending.CUT
        seen = job.seen(number, job.ended_as() if job.is_over() else ending)
        job.cut()
        return seen


def _up_to(step: int | None, run: RunSeen) -> RunSeen:
    """The run up to `step`. We asked it to end there, so a completed run counts as cut."""
    if step is None or not run.points or max(run.points) < step:
        return run
    limit = max(step, min(run.points))
    points = {each: values for each, values in run.points.items() if each <= limit}
    at = {each: run.reported_at[each] for each in points}
    ending = Ending.CUT if run.ending is Ending.COMPLETED else run.ending
    return replace(run, ending=ending, points=points, reported_at=at)


def _started_over(run: LiveRun, reference: RunSeen) -> bool:
    """Whether a run started over although it could have resumed. More interruptions would show nothing new."""
    record = run.record
    had_checkpoint = record is not None and (record.resume_step is not None or record.own_files > 0)
    return had_checkpoint and min(run.points) <= min(reference.points)


def _step_s(run: LiveRun) -> float:
    gaps = [later - earlier for earlier, later in pairwise(sorted(run.reported_at.values()))]
    return statistics.median(gaps) if gaps else 0.0


def _longest_s(run: RunSeen) -> float:
    """The longest time between two reports."""
    return max(abs(later - earlier) for earlier, later in pairwise([run.started_at, *sorted(run.reported_at.values())]))
