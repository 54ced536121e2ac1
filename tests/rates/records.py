"""One builder per record."""

from datetime import datetime

from tuner.core.jobs import JobRequest, JobStatus, JobSummary
from tuner.core.records import Attempt, AttemptState


def attempt(name: str, at: datetime) -> Attempt:
    return Attempt(
        trial=0,
        number=1,
        state=AttemptState.TRAINING,
        version=0,
        job_name=name,
        digest="d",
        instance_type="ml.m5.large",
        instance_count=1,
        spot=True,
        rate_microusd_per_h=100_000,
        max_run_s=3600,
        max_wait_s=7200,
        reserved_microusd=1,
        created_at=at,
        arn=f"arn:{name}",
        submitted_at=at,
    )


def summary(name: str, modified_at: datetime) -> JobSummary:
    return JobSummary(
        name=name,
        arn=f"arn:{name}",
        status=JobStatus.IN_PROGRESS,
        secondary="Training",
        created_at=modified_at,
        modified_at=modified_at,
    )


def request(name: str) -> JobRequest:
    return JobRequest(
        name=name,
        hyperparameters={},
        environment={},
        entrypoint=(),
        image_uri="image",
        channels=(),
        checkpoint_uri=f"s3://bucket/{name}/",
        output_uri="s3://bucket/out/",
        instance_type="ml.m5.large",
        instance_count=1,
        volume_gb=1,
        spot=True,
        max_run_s=3600,
        max_wait_s=7200,
        role_arn="arn:aws:iam::123456789012:role/jobs",
        tags={},
    )
