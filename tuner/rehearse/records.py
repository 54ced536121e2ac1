"""What a rehearsal saw, and what it says of it: the records between running, judging and printing.

Rules: frozen and slotted. Moments are epoch seconds, as the bootstrap and the job's history write them: they are only
subtracted from each other. What is not known is None, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tuner.core.records import ParamValue

Curve = Mapping[int, Mapping[str, float]]  # metrics by name, by step


class RehearsalRefused(Exception):  # noqa: N818 - named for what happened
    """The study cannot be rehearsed as it is; one line that says what to change."""


class RehearsalBroken(Exception):  # noqa: N818 - as above
    """Something outside of the script ended the rehearsal; one line that says what."""


class Ending(StrEnum):
    """How a run of the script ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    KILLED = "killed"  # SIGKILL without notice, as an interruption
    STOPPED = "stopped"  # SIGTERM and a grace period, as StopTrainingJob
    CUT = "cut"  # enough was seen
    SILENT = "silent"  # it neither reported nor ended for longer than it ever took before


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """One start of the script, to its end."""

    ending: Ending
    started_at: float
    points: Curve  # the last value of each metric at each step
    reported_at: Mapping[int, float]  # when each step was reported first
    loose: Mapping[str, float] = field(default_factory=dict)  # metrics without a step, the last of each
    words: str = ""  # of a run that failed: why
    had_checkpoint: bool | None = None  # something to resume from lay there when it started
    resume_step: int | None = None  # of the complete checkpoint that it found, by its manifest
    outside: tuple[str, ...] = ()  # files that it left outside the checkpoint folder
    stopping_s: float | None = None  # of a run that was stopped: from SIGTERM to its end

    @property
    def first_step(self) -> int | None:
        return min(self.points, default=None)

    @property
    def last_step(self) -> int | None:
        return max(self.points, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavesSeen:
    """What an uninterrupted run did to its checkpoint folder."""

    after_steps: tuple[int, ...]  # the step reported last, each time that files had changed
    size_bytes: int | None = None  # of what one save writes
    save_s: float | None = None  # median, from the first to the last write of one save
    in_place: frozenset[str] = frozenset()  # files that were written under their final name
    watched: bool = False  # whether the kernel told how files were written


@dataclass(frozen=True, slots=True, kw_only=True)
class TornSeen:
    """A resume from a checkpoint of which one of the newest files is only half there."""

    name: str  # the file, below the checkpoint folder
    before_step: int  # the last step before the interruption
    run: RunSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that a rehearsal saw. What it did not come to is None or empty."""

    objectives: tuple[str, ...]
    tolerance: float  # relative difference of two values that counts as none
    grace_s: float
    isolated: bool  # whether the script saw a file system of its own
    reference: RunSeen
    saves: SavesSeen
    interrupted: tuple[RunSeen, ...] = ()  # the runs of one trial, oldest first
    torn: tuple[TornSeen, ...] = ()  # one file after the other, each time all others whole
    repeat: RunSeen | None = None  # a second uninterrupted run, made where the curves differ


class Result(StrEnum):
    PASSED = "passed"
    WARNING = "warning"  # it works, at a price
    FAILED = "failed"
    UNCLEAR = "could not tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the verdict."""

    name: str
    result: Result
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What was measured on this machine; seconds unless said."""

    steps: int
    step_s: float | None = None
    startup_s: float | None = None  # from the start of the script to the beginning of its first step
    restart_s: float | None = None  # the same of a run that resumed, with what loading its checkpoint takes
    save_s: float | None = None
    checkpoint_bytes: int | None = None
    steps_per_save: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How often to save on one instance type, and what interruptions then cost. Shares are of training time."""

    instance_type: str
    per_hour: float  # interruptions per hour of running
    basis: str  # where that rate comes from
    interval_s: float  # between two saves, by Young and Daly
    interval_steps: int  # the same, at this machine's speed
    lost_s: float  # work that an interruption costs, with that interval
    overhead: float  # saving, work done again and start-up
    overhead_now: float | None  # the same, at the interval that the script has now
    usd_per_hour: float | None  # on demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The outcome of a rehearsal."""

    study: str
    params: Mapping[str, ParamValue]
    checks: tuple[Check, ...]
    evidence: Evidence
    measures: Measures
    advice: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = ()  # where the rehearsal differs from what will run

    @property
    def fit(self) -> bool:
        """Nothing failed, and it was seen to resume."""
        resumes = any(check.name == RESUMES and check.result is Result.PASSED for check in self.checks)
        return resumes and all(check.result is not Result.FAILED for check in self.checks)


RESUMES = "resumes"
