"""The findings of the one job of `doctor --first-dollar`, and whether a study would work here.

Rules: a fact that one job cannot show is reported as unknown, never guessed. An absent answer is null. If the job
failed, never trained or saved nothing, the path that it had to prove has a fault, although some facts were found.
"""

import io
import json
import statistics
import tarfile
from collections.abc import Iterator
from contextlib import suppress

from tuner.aws import preflight
from tuner.aws.connections import Aws, cli_options
from tuner.aws.iam_policy import LOG_GROUP
from tuner.aws.probe_plan import INSTANCE_TYPE, ProbePlan
from tuner.aws.probe_watch import Seen, beats
from tuner.core.jobs import (
    JobStatus,
    Observation,
    classify_failure,
)
from tuner.core.prices import cost_microusd
from tuner.core.records import AttemptEnd, Json
from tuner.engine.liveness import SYNC_FACT
from tuner.spec.records import MICROUSD
from tuner.storage.objects import Objects

FACT_PREFIX = "probe."  # of the names of the facts
_RATES = {
    f"Rate of {operation} requests": operation
    for operation in ("CreateTrainingJob", "DescribeTrainingJob", "ListTrainingJobs", "StopTrainingJob", "Search")
}


def findings(planned: ProbePlan, seen: Seen, objects: Objects) -> Iterator[tuple[str, Json]]:
    last = seen.last
    assert last is not None, "a job that was watched to its end was seen"
    yield "name_taken", seen.name_taken
    yield "stop_again", seen.stop_again
    yield "billable_mid_run", seen.billable_mid_run if seen.trained else None
    yield "training_time_mid_run", seen.training_time_mid_run if seen.trained else None
    yield "list_lag_s", _list_lag_s(seen)
    yield "events", _events(seen)
    yield SYNC_FACT.removeprefix(FACT_PREFIX), _sync_delay(planned, objects)
    yield "sigterm", _sigterm(planned, seen, objects)
    yield "statuses", [f"{row.status}: {row.message}" for row in last.history]
    yield "interruptions", sum(1 for row in last.history if row.status == "Interrupted")
    yield "times_s", {"training": last.training_s, "billable": last.billable_s, "up": _up_s(last)}
    rate = planned.rate.microusd_per_hour
    yield "cost_usd", None if last.billable_s is None else cost_microusd(last.billable_s, 1, rate) / MICROUSD


def fault_of(planned: ProbePlan, seen: Seen, *, saved: bool) -> str | None:
    """One line that says why a study's jobs would fail, and what to check; None if they would work."""
    last = seen.last
    assert last is not None, "as above"
    options = cli_options(planned.spec.region, planned.spec.sagemaker.profile)
    log = f"aws logs tail {LOG_GROUP} --since 1h --log-stream-name-prefix {planned.name}/ {options}"
    if last.status is JobStatus.FAILED:
        reason = " ".join(last.failure.split()) or "SageMaker gives no reason"
        return f"{planned.name} failed: {reason}; {_ADVICE[classify_failure(last.failure)]} (its log: {log})"
    if not any(row.status == "Training" for row in last.history):
        return (
            f"{planned.name} never trained: it ended as {last.secondary}; if it waited for capacity, run it again later"
            f" or look at the quota of {INSTANCE_TYPE} on spot; else see what stopped it"
        )
    if not saved:
        return (
            f"{planned.name} trained, and nothing that it saved came to {planned.base}checkpoints/: no trial could "
            f"resume; look at the role's right to write there, and at its log: {log}"
        )
    return None


_ADVICE = {
    AttemptEnd.CAPACITY: "no instance was to be had: run it again later",
    AttemptEnd.SERVICE_FAULT: "run it again; should it stay so, the image does not start",
    AttemptEnd.SCRIPT_ERROR: "look at the image (it needs Python 3.8 or newer), and at what its role may do",
}


def _list_lag_s(seen: Seen) -> float | None:
    """How much later than Describe a list showed a status, at most; as fine as the looks were apart."""
    both = seen.described.keys() & seen.listed.keys()
    lags = [(seen.listed[status] - seen.described[status]).total_seconds() for status in both]
    return max([0.0, *lags]) if lags else None


def _events(seen: Seen) -> Json:
    """How much later an event showed each status than Describe; None where Describe never showed it.

    `missing` are those that Describe showed and no event did.
    """
    if seen.notified is None:
        return None
    shown = seen.described
    return {
        "after_s": {
            status: round((at - shown[status]).total_seconds(), 1) if status in shown else None
            for status, at in seen.notified.items()
        },
        "missing": [status for status in shown if status not in seen.notified],
    }


def _sync_delay(planned: ProbePlan, objects: Objects) -> Json:
    """From a file's writing, by the instance's clock, to its being in S3, by S3's."""
    # S3 gives whole seconds, and two clocks differ: never below nothing
    delays = [max(0.0, info.modified.timestamp() - _read(objects, info.uri)["at"]) for info in beats(planned, objects)]
    if not delays:
        return None
    return {"files": len(delays), "median": round(statistics.median(delays), 1), "max": round(max(delays), 1)}


def _sigterm(planned: ProbePlan, seen: Seen, objects: Objects) -> Json:
    """Whether SIGTERM reached the script, and which of its last files arrived: by the checkpoint sync, in the model."""
    if seen.stop_sent_at is None or not seen.trained:
        return None
    synced = [_read(objects, info.uri) for info in objects.list(f"{planned.base}checkpoints/sigterm-")]
    packed = list(_packed(planned, objects))
    words = [*synced, *packed]
    return {
        "received": bool(words),
        "after_s": round(words[-1]["at"] - seen.stop_sent_at.timestamp(), 1) if words else None,
        "synced": bool(synced),
        "in_model": bool(packed),
    }


def _packed(planned: ProbePlan, objects: Objects) -> Iterator[dict[str, float]]:
    """The same file where it went into the model: its archive, which is read in memory, or beside others."""
    for info in objects.list(f"{planned.base}outputs/"):
        if "/sigterm-" in info.uri:  # of a study that wants its model without compression
            yield _read(objects, info.uri)
        if not info.uri.endswith("/model.tar.gz"):
            continue
        with suppress(tarfile.TarError, EOFError), tarfile.open(fileobj=io.BytesIO(objects.read(info.uri))) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member) if "sigterm-" in member.name else None
                if content is not None:
                    yield json.loads(content.read())


def _read(objects: Objects, uri: str) -> dict[str, float]:
    read: dict[str, float] = json.loads(objects.read(uri))
    return read


def _up_s(last: Observation) -> float:
    """Seconds in which an instance was up, by the history."""
    up = [row for row in last.history if row.status in ("Downloading", "Training", "Uploading", "Stopping")]
    return sum(((row.ended_at or last.modified_at) - row.started_at).total_seconds() for row in up)


def rates_of(aws: Aws) -> Json:
    """The calls per second that Service Quotas allows; None if it does not say."""
    found, _ = preflight.read_quotas(aws, _RATES)
    return {_RATES[name]: value for name, value in sorted(found.items())} or None
