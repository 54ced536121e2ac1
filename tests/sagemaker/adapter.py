"""Requests and answers as tests of the adapter need them, and the adapter on a client of plain functions."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from tests.factories import job_request
from tuner.core.jobs import (
    Channel,
    MetricDefinition,
)
from tuner.sagemaker.service import SageMakerJobs

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ARN = "arn:aws:sagemaker:us-east-1:000000000000:training-job/digits-00001-001"
SPOT = job_request(
    "digits-00001-001",
    hyperparameters={"lr": "0.1", "hidden": "64"},
    environment={"TUNER_DIGEST": "d1", "TUNER_TRIAL": "1", "WANDB_API_KEY": "hunter2hunter2"},
    entrypoint=("python3", "/opt/ml/input/data/code/tuner/bootstrap.py"),
    image_uri="763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.5.1-gpu-py311",
    channels=(Channel(name="code", uri="s3://b/code/"), Channel(name="train", uri="s3://b/data/", mode="FastFile")),
    checkpoint_uri="s3://b/digits/00001/",
    output_uri="s3://b/outputs/",
    instance_type="ml.g5.xlarge",
    instance_count=2,
    volume_gb=30,
    spot=True,
    max_run_s=3600,
    max_wait_s=14400,
    role_arn="arn:aws:iam::000000000000:role/training",
    tags={"tuner:study": "digits"},
    metrics=(MetricDefinition(name="acc", regex="acc=([0-9.]+)"),),
)
BARE = replace(SPOT, entrypoint=(), channels=(), metrics=(), environment={}, hyperparameters={}, tags={})
ON_DEMAND = replace(SPOT, spot=False, max_wait_s=None)
WHOLE = replace(
    SPOT,
    instance_type="ml.m5.xlarge",
    security_groups=("sg-1", "sg-2"),
    subnets=("subnet-1",),
    kms_key="arn:aws:kms:us-east-1:000000000000:key/1",
    network_isolation=True,
    raw={
        "EnableInterContainerTrafficEncryption": True,
        "OutputDataConfig": {"CompressionType": "NONE"},
        "ExperimentConfig": {"ExperimentName": "digits"},
    },
)
ALGORITHM = replace(BARE, image_uri="", algorithm="arn:aws:sagemaker:us-east-1:000000000000:algorithm/mine")
MODEL = {"S3ModelArtifacts": "s3://b/outputs/x/output/model.tar.gz"}
OTHER_ZONE = timezone(timedelta(hours=9))


def answering(**answers: Callable[..., Any]) -> SageMakerJobs:
    """The adapter on a client whose operations are these functions."""
    names = ("create_training_job", "describe_training_job", "list_training_jobs", "stop_training_job")
    return SageMakerJobs(SimpleNamespace(**{name: answers.get(name) for name in names}))  # type: ignore[arg-type]


def described(**changes: object) -> Mapping[str, object]:
    reply = {
        "TrainingJobName": SPOT.name,
        "TrainingJobArn": ARN,
        "ModelArtifacts": {},
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
        "StoppingCondition": {},
        "CreationTime": NOON.astimezone(OTHER_ZONE),
        **changes,
    }
    return {key: value for key, value in reply.items() if value is not None}
