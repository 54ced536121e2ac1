"""Compares the store with the job service: attempts with jobs in both directions, and the ledger with billed seconds.

It exists because money can be spent where we do not see it. Each difference is one line with its remedy. It reads the
job service through the port, as the engine does, and writes nothing.

Rules: a job belongs to a study only if its whole name has the study's form. A common beginning is not enough: names of
another study may begin the same way, and orphans are stopped. An orphan costs the rate of its instance type; if the
service does not report the type, the most expensive one that the study lists is assumed.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from operator import attrgetter

from tuner.core.commands import Command, Message
from tuner.core.jobs import JobError, JobNotFound, JobRequest, JobService, JobSummary, Observation, trial_and_attempt
from tuner.core.policy import history
from tuner.core.prices import PriceUnknown, Rate, RateCard, cost_microusd
from tuner.core.records import Attempt, AttemptEnd, Study
from tuner.reports.records import Audit, AuditRow, Orphan
from tuner.spec.records import MICROUSD
from tuner.spec.study_file import StudySpec
from tuner.store.check import check
from tuner.store.store import Store

# Our clock and the service's may differ: a job may seem older than its study, by this much at most.
_CLOCKS_DIFFER = timedelta(hours=1)


def audit(study: Study, spec: StudySpec, store: Store, jobs: JobService) -> Audit:
    """Compare everything. Raises JobError if the service does not answer."""
    listed = _listed(study, jobs)
    attempts = {attempt.job_name: attempt for attempt in store.attempts(study.id)}
    running = {each.job: each.text for each in _orphans(study, spec, jobs, listed, attempts)}
    rows = [_compare(study, attempt, jobs, listed, running.get(name)) for name, attempt in attempts.items()]
    rows += [_unasked(each, spec, jobs, running.get(name)) for name, each in listed.items() if name not in attempts]
    lines = [Message(f"{row.job}: ", row.difference) for row in rows if row.difference is not None]
    return Audit(lines=(*check(store, study.id), *lines), rows=tuple(rows))


def orphans(study: Study, spec: StudySpec, store: Store, jobs: JobService) -> list[Orphan]:
    """Jobs with names of the study that cost money and that no live attempt of it asked for.

    Jobs are listed before attempts are read. An attempt is recorded before its job is created, so no job of a new
    attempt is reported as an orphan. Raises JobError if the service does not answer.
    """
    listed = _listed(study, jobs)
    attempts = {attempt.job_name: attempt for attempt in store.attempts(study.id)}
    return list(_orphans(study, spec, jobs, listed, attempts))


def _listed(study: Study, jobs: JobService) -> dict[str, JobSummary]:
    since = study.created_at - _CLOCKS_DIFFER
    found = jobs.list_changed(f"{study.key}-", created_after=since, modified_after=since)
    ours = (each for each in found if trial_and_attempt(each.name, study.key) is not None)
    return {each.name: each for each in sorted(ours, key=attrgetter("name"))}


def _orphans(
    study: Study, spec: StudySpec, jobs: JobService, listed: Mapping[str, JobSummary], attempts: Mapping[str, Attempt]
) -> Iterator[Orphan]:
    for name, summary in listed.items():
        attempt = attempts.get(name)
        if summary.status.final or (attempt is not None and attempt.live):
            continue
        try:
            seen = jobs.describe(name)
        except JobNotFound:
            continue
        if seen.status.final:  # lists lag
            continue
        if attempt is None:
            why = "no attempt asked for it"
        elif attempt.end is AttemptEnd.FOREIGN:
            why = f"not the job that trial {attempt.trial} asked for"
        else:
            why = f"recorded as ended ({attempt.end})"
        costs = f"ORPHAN: {why}, and it costs {_rate(spec, seen.asked)}: "
        yield Orphan(job=name, text=Message(costs, Command("audit", study.name, "--stop-orphans"), " ends it"))


def _compare(
    study: Study, attempt: Attempt, jobs: JobService, listed: Mapping[str, JobSummary], orphaned: Message | None
) -> AuditRow:
    try:
        seen = jobs.describe(attempt.job_name)
    except JobNotFound:
        seen = None
    differences = list(_differences(study, attempt, seen, listed))
    billed = None if seen is None or not seen.status.final else _billed(attempt, seen)
    return AuditRow(
        job=attempt.job_name,
        trial=attempt.trial,
        attempt=attempt.number,
        status=None if seen is None else seen.secondary,
        billed_usd=None if billed is None else billed / MICROUSD,
        ledger_usd=None if attempt.spend_microusd is None else attempt.spend_microusd / MICROUSD,
        difference=orphaned or _joined(differences),
    )


def _joined(differences: Sequence[str | Message]) -> Message | None:
    parts = [part for each in differences for part in ("; ", each)]
    return Message(*parts[1:]) if parts else None


def _billed(attempt: Attempt, seen: Observation) -> int:
    return cost_microusd(seen.billable_s or 0, attempt.instance_count, attempt.rate_microusd_per_h)


def _differences(
    study: Study, attempt: Attempt, seen: Observation | None, listed: Mapping[str, JobSummary]
) -> Iterator[str | Message]:
    if attempt.arn is None and (seen is None or seen.digest != attempt.digest):
        return  # nothing was submitted, or the name belongs to a foreign job: there is nothing to compare
    if seen is None:
        yield "recorded, but the service knows no such job: it was deleted; its figures are the last ones seen"
        return
    if seen.digest != attempt.digest:
        yield "the job is not ours: its digest differs"
        return
    if attempt.job_name not in listed:
        yield "the service describes it but does not list it"
    if attempt.live and seen.status.final:
        resume = Command("resume", study.name)
        yield Message(f"ended as {seen.secondary}, but its result is not recorded yet: ", resume, " records it")
    elif not attempt.live and not seen.status.final:
        yield f"recorded as ended, but it is {seen.secondary}"
    elif not attempt.live:
        yield from _final_differences(attempt, seen)


def _final_differences(attempt: Attempt, seen: Observation) -> Iterator[str]:
    if attempt.billable_s != seen.billable_s:
        yield f"billed {seen.billable_s} s, recorded {attempt.billable_s} s"
    if attempt.spend_microusd != _billed(attempt, seen):
        yield f"billed {_billed(attempt, seen)} micro-dollars, recorded {attempt.spend_microusd}"
    interruptions = history.totals(seen.history, seen.modified_at).interruptions
    if attempt.interruptions != interruptions:
        yield f"{interruptions} interruptions in its history, recorded {attempt.interruptions}"


def _unasked(job: JobSummary, spec: StudySpec, jobs: JobService, orphaned: Message | None) -> AuditRow:
    """A job with a name of the study that no attempt asked for."""
    try:
        seen = jobs.describe(job.name)
        billed_usd = None if seen.billable_s is None else _cost(spec, seen.asked, seen.billable_s)
    except JobError:
        billed_usd = None
    return AuditRow(
        job=job.name,
        trial=None,
        attempt=None,
        status=job.secondary,
        billed_usd=billed_usd,
        ledger_usd=None,
        difference=orphaned,
        # an ended orphan cannot be corrected, and people ignore a check that fails for ever
        note="" if orphaned else "no attempt of ours asked for it; it has ended, and costs nothing more",
    )


def _resources(spec: StudySpec, asked: JobRequest | None) -> tuple[Rate, int]:
    """The rate and the number of a job's instances. Raises PriceUnknown."""
    card = RateCard(spec.prices)
    if asked is not None and asked.instance_type:
        return card.rate(asked.instance_type, spec.region), asked.instance_count
    listed = (card.rate(kind, spec.region) for kind in spec.training.instance_types)
    return max(listed, key=attrgetter("microusd_per_hour")), spec.training.instance_count


def _rate(spec: StudySpec, asked: JobRequest | None) -> str:
    try:
        rate, count = _resources(spec, asked)
    except PriceUnknown:
        return "an unknown rate"
    return f"up to ${rate.usd_per_hour * count}/h"


def _cost(spec: StudySpec, asked: JobRequest | None, billable_s: int) -> float | None:
    try:
        rate, count = _resources(spec, asked)
    except PriceUnknown:
        return None
    return cost_microusd(billable_s, count, rate.microusd_per_hour) / MICROUSD
