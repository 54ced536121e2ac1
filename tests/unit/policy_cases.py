"""Records of one trial on one page: what the tests of the policy begin with."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tuner.core.jobs import HistoryRow, Observation
from tuner.core.policy.settings import Policy
from tuner.core.records import Attempt, AttemptState, Trial, TrialState

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def history(*rows):
    """Rows of (status, started at); each ends where the next begins."""
    ends = [started for _, started in rows[1:]]
    return tuple(
        HistoryRow(status=status, started_at=at(started), ended_at=at(end) if end is not None else None)
        for (status, started), end in zip(rows, [*ends, None], strict=True)
    )


def policy(**changes):
    base = Policy(
        trials=10,
        parallel=2,
        max_run_s=3600,
        max_wait_s=7200,
        max_faults=2,
        poll_s=30.0,
        stop_within_s=300.0,
        stop_grace_s=120.0,
        upload_allowance_s=300.0,
        spot=True,
        instance_types=("ml.a.large", "ml.b.large"),
        instance_count=1,
        rates_microusd_per_h=(1_000_000, 2_000_000),
    )
    return replace(base, **changes)


def trial(**changes):
    base = Trial(
        number=0,
        state=TrialState.RUNNING,
        version=0,
        params={},
        distributions="{}",
        attrs={},
        prefix="s3://bucket/key/00000/",
        bundle_uri="s3://bucket/bundles/b/",
        asked_seq=1,
        created_at=NOW,
    )
    return replace(base, **changes)


def attempt(**changes):
    base = Attempt(
        trial=0,
        number=1,
        state=AttemptState.ENDED,
        version=0,
        job_name="key-00000-001",
        digest="d",
        instance_type="ml.a.large",
        instance_count=1,
        spot=True,
        rate_microusd_per_h=1_000_000,
        max_run_s=3600,
        max_wait_s=7200,
        reserved_microusd=0,
        created_at=NOW,
    )
    return replace(base, **changes)


def seen(status, rows, **changes):
    base = Observation(
        name="key-00000-001",
        arn="arn",
        status=status,
        secondary=rows[-1].status,
        history=rows,
        created_at=NOW,
        modified_at=rows[-1].started_at,
    )
    return replace(base, **changes)
