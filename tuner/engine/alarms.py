"""What the user must learn once: jobs that differ from their request, and calls that are refused.

Both cost money or time until somebody looks. An SDK once dropped the spot flag silently, and credentials that expire
over a weekend are refused at every tick.

Rules: a difference stops the study and all its jobs, because the next job would have it, too; it is never a trial's
failure. If the next job would be refused for the same reason, running jobs may go on to their end. Trouble is an event
when it begins, not at every tick that meets it again. The figures of a service are checked against ours, and never
replace them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from tuner.core.commands import Command, from_stored, stored
from tuner.core.events import EventKind
from tuner.core.jobs import CredentialsRefused, Observation, SecretMissing, differences
from tuner.core.records import HALTED, Intent
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.unit_of_work import UnitOfWork
from tuner.spec import workload

# SageMaker keeps metrics in single precision, which has seven digits.
_SINGLE_PRECISION = 1e-6
# If this many creates in a row are refused with the same words, the cause is not the values of a trial.
REJECTED_ALIKE = 3


def compare(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial, seen: Observation) -> None:
    """Stop the study if the last attempt's job differs from its request, as far as the service reports it.

    Only jobs that this process created are compared: the study file may have changed since the others.
    """
    live.compared = True
    live.uncompared.discard(seen.name)
    if seen.asked is None or live.halted:
        return
    attempt = trial.attempts[-1]
    lines = differences(workload.job_request(live.spec, unit.study, trial.record, attempt), seen.asked)
    if seen.digest != attempt.digest:
        lines = (*lines, f"environment: asked for the digest {attempt.digest}, the job has {seen.digest}")
    if not lines:
        return
    halted = stored(
        f"job {attempt.job_name} is not what was asked for: {'; '.join(lines)}. The study and its jobs are stopped, "
        f"since the next would differ in the same way: look for what changes requests on their way (the versions of "
        f"boto3 and botocore, a proxy)",
        Command("resume", unit.study.name),
    )
    live.halted = from_stored(halted)
    said = {"message": halted["message"], "remedy": halted["remedy"]}
    unit.event(EventKind.DIFFERS, trial=trial, attempt=attempt.number, job=attempt.job_name, **said)
    unit.remember({HALTED: halted})
    if unit.study.intent is not Intent.CANCEL:
        unit.set_study(replace(unit.study, intent=Intent.STOP_NOW, intent_at=unit.now))


def rejected(live: LiveStudy, unit: UnitOfWork, job: str, reason: str) -> None:
    """Begin nothing new once several jobs in a row were refused with the same words: every trial would fail."""
    live.rejections.append(reason.replace(job, "JOB"))
    if len(live.rejections) < REJECTED_ALIKE or len(set(live.rejections[-REJECTED_ALIKE:])) > 1:
        return
    halt(
        live,
        unit,
        f"{REJECTED_ALIKE} jobs in a row were refused for the same reason, the last one so: {reason}",
        "--retry-failed",
    )


def halt(live: LiveStudy, unit: UnitOfWork, why: str, *options: str) -> None:
    """Begin nothing new until somebody has fixed `why` and resumed with `options`; running jobs go on to their end."""
    halted = stored(
        f"{why}. Nothing new is begun; jobs that run go on to their end. Mend it (changes of the study file need "
        "--accept-changes)",
        Command("resume", unit.study.name, *options),
    )
    live.halted = from_stored(halted)
    unit.event(EventKind.HALTED, message=halted["message"], remedy=halted["remedy"])
    unit.remember({HALTED: halted})
    if unit.study.intent is Intent.RUN:
        unit.set_study(replace(unit.study, intent=Intent.DRAIN, intent_at=unit.now))


def trouble(live: LiveStudy, unit: UnitOfWork, what: str, error: Exception, trial: LiveTrial | None = None) -> None:
    """Record the error of a call, unless `what` met the same kind when it was last tried."""
    before = live.troubles.pop(what, None)
    live.troubles[what] = error  # as the latest of them
    if type(before) is not type(error):
        unit.trouble(error, trial)


def over(live: LiveStudy, unit: UnitOfWork, what: str) -> None:
    """Note that `what` succeeded again."""
    error = live.troubles.pop(what, None)
    if isinstance(error, CredentialsRefused | SecretMissing):
        unit.event(EventKind.RECOVERED, what=what)


def cross_check(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial, final: Mapping[str, float]) -> None:
    """Record where a trial's value differs from what the service read from the same job's log.

    Both come from one script in two ways. With several hosts, the service keeps the value of the last one to report.
    """
    if live.policy.instance_count > 1:
        return
    for objective in live.spec.objectives:
        ours, theirs = trial.value(objective.metric), final.get(objective.metric)
        if ours is None or theirs is None or math.isclose(ours, theirs, rel_tol=_SINGLE_PRECISION, abs_tol=1e-12):
            continue
        if not math.isfinite(theirs):  # events hold JSON, which has no such number
            continue
        unit.event(EventKind.METRIC_DIFFERS, trial=trial, metric=objective.metric, value=ours, service_value=theirs)
