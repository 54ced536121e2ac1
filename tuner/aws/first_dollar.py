"""One smallest spot job that finds out what AWS does not document, as far as one job for a few cents can.

Some of our assumptions about AWS (docs/explanation/what-aws-leaves-open.md) differ between accounts, and some were
never measured. One job through the whole path (role, image, bucket, signals, bill) proves more than any check. Its
findings are stored as facts of the account and region.

`probe_plan` makes the request and its cost limit, `probe_watch` runs the job, `probe_findings` reads the results.

Rules: everything is written below one prefix, which is deleted at the end, however the run ends.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from tuner.aws import hints
from tuner.aws.probe_findings import FACT_PREFIX, fault_of, findings, rates_of
from tuner.aws.probe_plan import Pace, ProbePlan
from tuner.aws.probe_watch import ProbeBackend, watch
from tuner.aws.rates import RATES_FACT
from tuner.core.clock import Clock
from tuner.core.records import Fact
from tuner.engine.liveness import SYNC_FACT
from tuner.storage.objects import ObjectsError

SOURCE = "doctor --first-dollar"
# What one job cannot show, and why.
BEYOND = (
    "whether a script is told when spot capacity is reclaimed: unless it happened to this job",
    "whether MaxRuntimeInSeconds starts again after an interruption: it would take hours of a job",
    "whether TrainingTimeInSeconds counts the gap between two runs: unless this job was interrupted",
    "how far Search lags: it is not used",
)


class FactStore(Protocol):
    """The part of the store that keeps facts."""

    def facts(self, scope: str) -> list[Fact]: ...

    def put_fact(self, fact: Fact) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOutcome:
    """The findings of the job. `fault`: one line that says why a study would fail here, and what to check."""

    facts: tuple[Fact, ...]
    fault: str | None


def run(
    planned: ProbePlan,
    place: ProbeBackend,
    store: FactStore,
    clock: Clock,
    *,
    report: Callable[[str], None],
    pace: Pace | None = None,
) -> ProbeOutcome:
    """Run the job, watch it, record what was found. Raises JobError, AwsError, ObjectsError, UserError."""
    pace = pace or Pace()
    objects = place.objects()
    queue = hints.queue_of(store.facts(place.scope))
    try:
        seen = watch(planned, place, objects, queue, clock, report, pace)
        found = dict(findings(planned, seen, objects))
    finally:
        with suppress(ObjectsError):  # a few kilobytes; what went wrong first is said
            objects.delete([info.uri for info in objects.list(planned.base)])
    found[RATES_FACT.removeprefix(FACT_PREFIX)] = rates_of(place.aws)
    now = clock.now()
    facts = tuple(
        Fact(
            scope=place.scope,
            name=f"{FACT_PREFIX}{name}",
            value=value,
            learned_at=now,
            source=f"{SOURCE} ({planned.name})",
        )
        for name, value in sorted(found.items())
        if value is not None
    )
    for fact in facts:
        store.put_fact(fact)
    return ProbeOutcome(
        facts=facts, fault=fault_of(planned, seen, saved=found[SYNC_FACT.removeprefix(FACT_PREFIX)] is not None)
    )
