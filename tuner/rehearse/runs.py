"""The runs that a rehearsal makes of a script, one after the other.

One run without interruptions is what the others are compared with. A second trial is killed and stopped at random
moments and resumed, each time with everything gone but what had reached the store. Then it is resumed from what the
last interruption left, once for each of the newest files, with half of that file: which of them is the checkpoint and
which a log beside it, nobody says. Only where curves differ, the first run is repeated, to tell chance from a defect.

Rules: what is drawn comes from the seed. It decides which runs to make and how long to wait for each, and judges
nothing: that is the verdict's.
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
from tuner.rehearse.stage import LiveRun, Outcome, Stage, StagedJob, newest_files, snapshot, tear, written_since
from tuner.spec.study_file import COST_METRIC

_LEAST_STEPS = 4  # fewer cannot be interrupted between a save and the end
_LEASHES_MAX = 10  # a first step that takes longer than so many leashes is not waited for
_SILENT_LEASHES = 5
_SILENT_STEPS = 20  # a run that reports nothing for so many steps' time hangs
_ENDS_WITHIN_STEPS = 3
_TORN_STEPS = 2
_TORN_ATTEMPT = 9
_TORN_MAX = 4  # files; each costs a start of the script


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalOptions:
    """What the user asked of a rehearsal."""

    overrides: tuple[str, ...] = ()
    inputs: Mapping[str, Path] | None = None  # directories that stand for channels
    steps: int | None = None  # the step to train up to
    leash_s: float = 60.0  # how long the uninterrupted run may take, where no step is given
    interruptions: int = 3
    seed: int = 0
    tolerance: float = 1e-6
    keep: Path | None = None
    grace_s: float = 15.0  # between SIGTERM and SIGKILL; AWS gives 120 s


class RunWatcher(Protocol):
    """Whoever looks on while a rehearsal runs."""

    def phase(self, text: str) -> None:
        """Something else is tried now."""
        ...

    def step(self, step: int | None, of: int | None) -> None:
        """How far the run is; called often."""
        ...


@dataclass(frozen=True, slots=True)
class _Blow:
    """One interruption to come: so long after this step was reported, by SIGKILL or by StopTrainingJob."""

    step: int
    delay_s: float
    stop: bool


class Runs:
    """The runs of one rehearsal."""

    def __init__(
        self,
        stage: Stage,
        params: Mapping[str, ParamValue],
        wish: RehearsalOptions,
        watcher: RunWatcher,
        *,
        isolated: bool,
    ) -> None:
        self._stage = stage
        self._params = params
        self._wish = wish
        self._watcher = watcher
        self._isolated = isolated
        self._objectives = tuple(each.metric for each in stage.spec.objectives if each.metric != COST_METRIC)
        self._patience_s = wish.leash_s * _SILENT_LEASHES

    def make(self) -> Evidence:
        reference, saves = self._uninterrupted()
        evidence = Evidence(
            objectives=self._objectives,
            tolerance=self._wish.tolerance,
            grace_s=self._wish.grace_s,
            isolated=self._isolated,
            reference=reference,
            saves=saves,
        )
        if reference.ending is Ending.FAILED or not saves.after_steps or len(reference.points) <= 1:
            return evidence
        self._patience_s = max(self._patience_s, _longest_s(reference) * _SILENT_STEPS)
        blows = self._blows(reference, saves)
        if not blows:
            return evidence
        runs = self._interrupted(reference, blows)
        evidence = replace(evidence, interrupted=tuple(runs), torn=self._torn(reference, saves, runs))
        return replace(evidence, repeat=self._repeat(evidence))

    # --- without interruptions

    def _uninterrupted(self) -> tuple[RunSeen, SavesSeen]:
        wish = self._wish
        limit = f"to step {wish.steps}" if wish.steps is not None else f"for {wish.leash_s:g}s"
        self._watcher.phase(f"without interruptions, {limit} or to its end")
        job = self._start("reference")
        job.observe_saves()
        outcome = self._follow(job, 1, lambda run: self._is_enough(job, run), wish.steps)
        if outcome == "reached" and wish.steps is not None:
            # A script that knows where to end does so now; another one goes on, and is cut.
            limit_s = job.training_for_s() + max(1.0, _ENDS_WITHIN_STEPS * _step_s(job.run(1)))
            outcome = self._follow(job, 1, lambda _: job.training_for_s() > limit_s, wish.steps)
        seen = _up_to(wish.steps, self._end(job, 1, outcome))
        return seen, self._saves(job, seen)

    def _is_enough(self, job: StagedJob, run: LiveRun) -> bool:
        steps, since_s = self._wish.steps, job.training_for_s()
        if not run.points and any(run.loose_reports[name] >= _LEAST_STEPS for name in self._objectives):
            return since_s > self._wish.leash_s  # the objective has no steps, and never will
        if steps is not None:
            return max(run.points, default=-1) >= steps
        if since_s > self._wish.leash_s * _LEASHES_MAX:
            return True
        return since_s > self._wish.leash_s and len(run.points) >= _LEAST_STEPS

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

    def _blows(self, reference: RunSeen, saves: SavesSeen) -> list[_Blow]:
        """Random steps after the first save and before the last step; one of several is a stop."""
        rng = random.Random(self._wish.seed)  # noqa: S311 - to be repeated, not to be secret
        first, last = saves.after_steps[0], max(reference.points)
        if reference.ending is Ending.COMPLETED and first >= last:
            return []  # saved at its end only: there is nothing to resume
        before_end = [step for step in sorted(reference.points) if step < last]
        steps = [step for step in before_end if step > first] or before_end
        chosen = sorted(rng.sample(steps, min(self._wish.interruptions, len(steps))))
        stopped = rng.randrange(len(chosen)) if len(chosen) > 1 else None
        step_s = step_seconds(reference) or 0.0
        return [_Blow(step, rng.random() * step_s, index == stopped) for index, step in enumerate(chosen)]

    def _interrupted(self, reference: RunSeen, blows: list[_Blow]) -> list[RunSeen]:
        """One trial to the reference's last step, through all these interruptions, or until it is lost."""
        runs: list[RunSeen] = []
        attempt, number, last = 1, 1, max(reference.points)
        job = self._start("interrupted")
        for count, blow in enumerate(blows, start=1):
            how = "stopped (SIGTERM)" if blow.stop else "killed"
            self._watcher.phase(f"to be {how} after step {blow.step}, {count} of {len(blows)}")
            outcome = self._follow(job, number, self._is_due(blow, last), last)
            if outcome != "reached" or not self._strike(job, number, blow, runs):
                break
            snapshot(self._stage.prefix_folder("interrupted"), self._stage.prefix_folder("torn"))
            if blow.stop:
                attempt, number = attempt + 1, 1
                job = self._start("interrupted", attempt)
            else:
                number += 1
            outcome = self._follow(job, number, lambda run: bool(run.points), None)
            if outcome != "reached" or _began_anew(job.run(number), reference):
                break
        else:
            self._watcher.phase(f"resumed, to step {last}")
            outcome = self._follow(job, number, self._is_at_end(reference), last)
        return [*runs, self._end(job, number, outcome)]

    def _is_due(self, blow: _Blow, last: int) -> Callable[[LiveRun], bool]:
        """When an interruption proves something: at its step, once there is anything in the store to resume from."""
        stored = self._stage.prefix_folder("interrupted")

        def is_due(run: LiveRun) -> bool:
            step = max(run.points, default=-1)
            return step >= blow.step and (step > last or bool(own_files(stored)))

        return is_due

    @staticmethod
    def _is_at_end(reference: RunSeen) -> Callable[[LiveRun], bool]:
        """When a run has come as far as the one without interruptions: to its own end, or to where that one was cut."""
        last, was_cut = max(reference.points), reference.ending is not Ending.COMPLETED
        return lambda run: was_cut and max(run.points, default=-1) >= last

    @staticmethod
    def _strike(job: StagedJob, number: int, blow: _Blow, runs: list[RunSeen]) -> bool:
        """Interrupt a run and add what was seen of it; False if it had ended before."""
        job.pause(blow.delay_s)
        if not (job.stop() if blow.stop else job.interrupt()):
            return False
        runs.append(job.seen(number, Ending.STOPPED if blow.stop else Ending.KILLED))
        return True

    def _torn(self, reference: RunSeen, saves: SavesSeen, runs: list[RunSeen]) -> tuple[TornSeen, ...]:
        """Resumes from what the last interruption left, each with another of its newest files cut in half."""
        folder = self._stage.prefix_folder("torn")
        taken = [run for run in runs if run.ending in (Ending.KILLED, Ending.STOPPED) and run.points]
        if not folder.is_dir() or not taken or runs[-1].ending in (Ending.FAILED, Ending.SILENT):
            return ()
        names = written_since(folder, taken[-1].started_at)
        # Those first that an upload can really catch half-written.
        names.sort(key=lambda name: name not in saves.in_place)
        found: list[TornSeen] = []
        for name in names[:_TORN_MAX]:
            found.append(self._resumed_torn(f"torn-{len(found) + 1}", name, reference, max(taken[-1].points)))
            if found[-1].run.ending is Ending.SILENT:
                break  # the worst that can be, and minutes each time
        return tuple(found)

    def _resumed_torn(self, role: str, name: str, reference: RunSeen, before: int) -> TornSeen:
        folder = self._stage.prefix_folder(role)
        snapshot(self._stage.prefix_folder("torn"), folder)
        tear(folder / name)
        first = min(reference.points)
        goal = max([step for step in sorted(reference.points) if step > before][:_TORN_STEPS], default=before)
        self._watcher.phase(f"resumed with half of {name}, to step {goal}")
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
        self._watcher.phase(f"without interruptions again, to step {last}: is it the same twice?")
        job = self._start("repeat")
        return self._end(job, 1, self._reach(job, 1, last, last))

    # --- small things

    def _start(self, role: str, attempt: int = 1) -> StagedJob:
        # Only the first run is told where to end: the others must not be over before they are interrupted.
        until = self._wish.steps if role == "reference" else None
        return self._stage.start(role, self._params, attempt=attempt, until=until)

    def _reach(self, job: StagedJob, number: int, step: int, of: int) -> Outcome:
        return self._follow(job, number, lambda run: max(run.points, default=-1) >= step, of)

    def _follow(self, job: StagedJob, number: int, reached: Callable[[LiveRun], bool], of: int | None) -> Outcome:
        def look(run: LiveRun) -> bool:
            self._watcher.step(max(run.points, default=None), of)
            return reached(run)

        return job.follow(number, look, self._patience_s)

    def _end(self, job: StagedJob, number: int, outcome: Outcome) -> RunSeen:
        """End a run, whatever it does."""
        ending = Ending.SILENT if outcome == "silent" else Ending.CUT
        seen = job.seen(number, job.ended_as() if job.is_over() else ending)
        job.cut()
        return seen


def _up_to(step: int | None, run: RunSeen) -> RunSeen:
    """A run without what it did after a step; that it ended there was our wish."""
    if step is None or not run.points or max(run.points) < step:
        return run
    limit = max(step, min(run.points))
    points = {each: values for each, values in run.points.items() if each <= limit}
    at = {each: run.reported_at[each] for each in points}
    ending = Ending.CUT if run.ending is Ending.COMPLETED else run.ending
    return replace(run, ending=ending, points=points, reported_at=at)


def _began_anew(run: LiveRun, reference: RunSeen) -> bool:
    """Whether a run that could have resumed began at the beginning: more interruptions would tell nothing new."""
    record = run.record
    had_checkpoint = record is not None and (record.resume_step is not None or record.own_files > 0)
    return had_checkpoint and min(run.points) <= min(reference.points)


def _step_s(run: LiveRun) -> float:
    gaps = [later - earlier for earlier, later in pairwise(sorted(run.reported_at.values()))]
    return statistics.median(gaps) if gaps else 0.0


def _longest_s(run: RunSeen) -> float:
    """The longest time that a run reported nothing."""
    return max(abs(later - earlier) for earlier, later in pairwise([run.started_at, *sorted(run.reported_at.values())]))
