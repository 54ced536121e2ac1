"""The store against the job service: attempts against jobs both ways, and the ledger against billed seconds.

It exists because money is spent where we do not see it. Each difference is one line with its remedy. It reads the job
service through the port, as the engine does, and writes nothing.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta

from tuner import decide
from tuner.jobs import JobError, JobNotFound, JobService, JobSummary, Observation
from tuner.model import Attempt, Study
from tuner.prices import PriceUnknown, RateCard, cost_microusd
from tuner.spec import StudySpec
from tuner.spec_records import MICROUSD
from tuner.store import Store
from tuner.store_check import check
from tuner.verbs import Audit, AuditRow

# A job may be older than its row by clocks that differ; nothing of ours is older than this before its study.
_CLOCKS_DIFFER = timedelta(hours=1)


def audit(study: Study, spec: StudySpec, store: Store, jobs: JobService) -> Audit:
    """Compare everything. Raises JobError when the service does not answer."""
    since = study.created_at - _CLOCKS_DIFFER
    listed = {each.name: each for each in jobs.list_changed(f"{study.key}-", created_after=since, modified_after=since)}
    attempts = store.attempts(study.id)
    rows = [_compare(attempt, jobs, listed) for attempt in attempts]
    known = {attempt.job_name for attempt in attempts}
    rows += [_orphan(each, study, spec, jobs) for name, each in sorted(listed.items()) if name not in known]
    lines = [f"{row.job}: {row.difference}" for row in rows if row.difference is not None]
    return Audit(lines=(*check(store, study.id), *lines), rows=tuple(rows))


def _compare(attempt: Attempt, jobs: JobService, listed: Mapping[str, JobSummary]) -> AuditRow:
    try:
        seen = jobs.describe(attempt.job_name)
    except JobNotFound:
        seen = None
    differences = list(_differences(attempt, seen, listed))
    billed = None if seen is None or not seen.status.final else _billed(attempt, seen)
    return AuditRow(
        job=attempt.job_name,
        trial=attempt.trial,
        attempt=attempt.number,
        status=None if seen is None else seen.secondary,
        billed_usd=None if billed is None else billed / MICROUSD,
        ledger_usd=None if attempt.spend_microusd is None else attempt.spend_microusd / MICROUSD,
        difference="; ".join(differences) or None,
    )


def _billed(attempt: Attempt, seen: Observation) -> int:
    return cost_microusd(seen.billable_s or 0, attempt.instance_count, attempt.rate_microusd_per_h)


def _differences(attempt: Attempt, seen: Observation | None, listed: Mapping[str, JobSummary]) -> Iterator[str]:
    if attempt.arn is None and (seen is None or seen.digest != attempt.digest):
        return  # nothing was submitted, or the name belongs to somebody else: neither claims anything
    if seen is None:
        yield "recorded, but the service knows no such job: it was deleted; its figures are the last ones seen"
        return
    if seen.digest != attempt.digest:
        yield "the job is not ours: its digest differs"
        return
    if attempt.job_name not in listed:
        yield "the service describes it but does not list it"
    if attempt.live and seen.status.final:
        yield f"ended as {seen.secondary}, not harvested yet: tuner resume does"
    elif not attempt.live and not seen.status.final:
        yield f"recorded as ended, but it is {seen.secondary} and costs money: stop it by hand"
    elif not attempt.live:
        yield from _final_differences(attempt, seen)


def _final_differences(attempt: Attempt, seen: Observation) -> Iterator[str]:
    if attempt.billable_s != seen.billable_s:
        yield f"billed {seen.billable_s} s, recorded {attempt.billable_s} s"
    if attempt.spend_microusd != _billed(attempt, seen):
        yield f"billed {_billed(attempt, seen)} micro-dollars, recorded {attempt.spend_microusd}"
    interruptions = decide.account(seen.history, seen.modified_at).interruptions
    if attempt.interruptions != interruptions:
        yield f"{interruptions} interruptions in its history, recorded {attempt.interruptions}"


def _orphan(job: JobSummary, study: Study, spec: StudySpec, jobs: JobService) -> AuditRow:
    """A job with a name of ours that no attempt asked for."""
    if job.status.final:
        difference = "no attempt of ours asked for it; it has ended and costs nothing more"
    else:
        rate = _rate(spec)
        difference = (
            f"ORPHAN: no attempt of study {study.name} asked for it, and it runs at {rate}: "
            f"aws sagemaker stop-training-job --training-job-name {job.name}"
        )
    try:
        billable_s = jobs.describe(job.name).billable_s
    except JobError:
        billable_s = None
    return AuditRow(
        job=job.name,
        trial=None,
        attempt=None,
        status=job.secondary,
        billed_usd=None if billable_s is None else _cost(spec, billable_s),
        ledger_usd=None,
        difference=difference,
    )


def _rate(spec: StudySpec) -> str:
    try:
        rate = RateCard(spec.prices).rate(spec.training.instance_types[0], spec.region)
    except PriceUnknown:
        return "an unknown rate"
    return f"up to ${rate.usd_per_hour * spec.training.instance_count}/h"


def _cost(spec: StudySpec, billable_s: int) -> float | None:
    try:
        rate = RateCard(spec.prices).rate(spec.training.instance_types[0], spec.region)
    except PriceUnknown:
        return None
    return cost_microusd(billable_s, spec.training.instance_count, rate.microusd_per_hour) / MICROUSD
