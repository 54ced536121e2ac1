"""The records of a rehearsal: what `runs` saw, what `verdict` and `advice` conclude, what the command line prints.

Rules: frozen and slotted. Moments are epoch seconds, as the bootstrap and the job's history write them; only their
differences are used. Unknown is None, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tuner.core.commands import Message
from tuner.core.records import ParamValue

Curve = Mapping[int, Mapping[str, float]]  # metrics by name, by step


class RehearsalRefused(Exception):  # noqa: N818 - named for what happened
    """The study cannot be rehearsed as it is. The message is one line and says what to change."""


class RehearsalBroken(Exception):  # noqa: N818 - as above
    """Something outside the script ended the rehearsal. The message is one line and says what."""


class Ending(StrEnum):
    """How a run of the script ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    KILLED = "killed"  # SIGKILL without notice, as an interruption
    STOPPED = "stopped"  # SIGTERM and a grace period, as StopTrainingJob
    CUT = "cut"  # we ended it: we had seen enough
    SILENT = "silent"  # it neither reported nor ended for much longer than before


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """One run of the script, from its start to its end."""

    ending: Ending
    started_at: float
    points: Curve  # the last value of each metric at each step
    reported_at: Mapping[int, float]  # the first report of each step
    loose: Mapping[str, float] = field(default_factory=dict)  # metrics without a step, the last of each
    words: str = ""  # why it failed
    had_checkpoint: bool | None = None  # it found something to resume from
    resume_step: int | None = None  # of the complete checkpoint that it found, from its manifest
    outside: tuple[str, ...] = ()  # files that it wrote outside the checkpoint folder
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

    after_steps: tuple[int, ...]  # the last reported step at each change of the files
    size_bytes: int | None = None  # of one save
    save_s: float | None = None  # median, from the first to the last write of one save
    in_place: frozenset[str] = frozenset()  # files written under their final name
    watched: bool = False  # whether inotify worked


@dataclass(frozen=True, slots=True, kw_only=True)
class TornSeen:
    """A resume with one of the newest files cut in half."""

    name: str  # the file, below the checkpoint folder
    before_step: int  # the last step before the interruption
    run: RunSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that a rehearsal saw. Parts that were not reached are None or empty."""

    objectives: tuple[str, ...]
    tolerance: float  # relative difference below which two values are equal
    grace_s: float
    isolated: bool  # whether the script had its own /opt/ml
    reference: RunSeen
    saves: SavesSeen
    interrupted: tuple[RunSeen, ...] = ()  # the runs of one trial, oldest first
    torn: tuple[TornSeen, ...] = ()  # one entry for each file; the other files are whole
    repeat: RunSeen | None = None  # a second reference run, made only if the curves differ


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
    remedy: str | Message = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What was measured on this machine, in seconds unless the name says otherwise."""

    steps: int
    step_s: float | None = None
    startup_s: float | None = None  # from the start of the script to the beginning of its first step
    restart_s: float | None = None  # the same for a resumed run, including the load of its checkpoint
    save_s: float | None = None
    checkpoint_bytes: int | None = None
    steps_per_save: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How often to save on one instance type, and what interruptions then cost, as shares of training time."""

    instance_type: str
    per_hour: float  # interruptions per hour of running
    basis: str  # where that rate comes from
    interval_s: float  # between two saves, by Young and Daly
    interval_steps: int  # the same, at this machine's speed
    lost_s: float  # work that an interruption costs, with that interval
    overhead: float  # saves, repeated work and start-up
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
    notes: tuple[str, ...] = ()  # differences from the real run

    @property
    def fit(self) -> bool:
        """No check failed, and the script was seen to resume."""
        resumes = any(check.name == RESUMES and check.result is Result.PASSED for check in self.checks)
        return resumes and all(check.result is not Result.FAILED for check in self.checks)


RESUMES = "resumes"
