"""What a study's jobs look like: from the study file and a recorded trial to a policy and a request.

Rules: pure; everything in a request follows from what is recorded, so that a job asked for twice is asked for alike
and the digest in its environment proves whose it is. Values are data: strings go through as they are, everything else
as JSON. Every checkpoint prefix ends in "/", since S3 prefixes are strings and `…/1` would also name `…/10`.
"""

import math
from collections.abc import Mapping
from datetime import timedelta

from tuner.decide import Policy
from tuner.jobs import DIGEST_VARIABLE, Channel, JobRequest, MetricDefinition, digest
from tuner.model import Attempt, ParamValue, Study, Trial
from tuner.prices import RateCard, cost_microusd
from tuner.spec import StudySpec, encoded

# Tag keys of every job of ours; the study's key is also what the local service finds its market by.
STUDY_TAG = "tuner:study"
TRIAL_TAG = "tuner:trial"
ATTEMPT_TAG = "tuner:attempt"

ENTRYPOINT = ("python3", "/opt/ml/input/data/code/tuner/bootstrap.py")
_LOCAL_ROLE = "arn:aws:iam::000000000000:role/local-tuner"
_LOCAL_IMAGE = "local-python"
_CODE_CHANNEL = "code"


def policy(spec: StudySpec, study: Study) -> Policy:
    """The part of the study file that decisions need. Raises PriceUnknown for a type without a price."""
    card = RateCard(spec.prices)
    training, spot = spec.training, spec.capacity.policy == "spot"
    rates = tuple(card.rate(kind, spec.region).microusd_per_hour for kind in training.instance_types)
    deadline_s = spec.budget.deadline_s
    return Policy(
        trials=spec.trials,
        parallel=spec.parallel,
        max_run_s=training.max_run_s,
        max_wait_s=training.max_wait_s if spot else None,
        max_faults=spec.capacity.max_faults,
        poll_s=spec.settings.poll_interval_s,
        stop_within_s=spec.settings.stop_within_s,
        stop_grace_s=spec.settings.stop_grace_s,
        upload_allowance_s=spec.settings.upload_allowance_s,
        spot=spot,
        instance_types=training.instance_types,
        instance_count=training.instance_count,
        rates_microusd_per_h=rates,
        budget_microusd=spec.budget.microusd,
        trial_budget_microusd=spec.budget.per_trial_microusd,
        deadline_at=None if deadline_s is None else study.created_at + timedelta(seconds=deadline_s),
        stall_after_s=training.stall_after_s,
        retry_exit_codes=frozenset(rule.exit_code for rule in training.retry_on if rule.exit_code is not None),
        retry_logs=tuple(rule.log for rule in training.retry_on if rule.log is not None),
    )


def worst_case_microusd(spec: StudySpec) -> int:
    """The most that a study on spot may bill if the service reads against us what it leaves open.

    MaxRuntime may count each run of a job anew: then `max_wait` alone ends a job that is interrupted again and again.
    Jobs in flight when the budget is full may overrun their reservations by that much, and none is submitted after.
    Raises PriceUnknown.
    """
    training, card = spec.training, RateCard(spec.prices)
    rate = max(card.rate(kind, spec.region).microusd_per_hour for kind in training.instance_types)
    job_s = math.ceil(training.max_wait_s + spec.settings.stop_grace_s + spec.settings.upload_allowance_s)
    job_microusd = cost_microusd(job_s, training.instance_count, rate)
    if spec.budget.microusd is not None:
        return spec.budget.microusd + spec.parallel * job_microusd
    return spec.trials * (cost_microusd(training.max_run_s, training.instance_count, rate) + job_microusd)


def root(spec: StudySpec) -> str:
    """Where checkpoints, bundles and outputs of a study's jobs lie; ends in "/"."""
    assert spec.checkpoints.root is not None, "the default bucket of an account is not looked up yet"
    return spec.checkpoints.root


def prefix(spec: StudySpec, study_key: str, trial: int) -> str:
    """The checkpoint prefix of a trial: shared by its attempts and by nothing else."""
    return f"{root(spec)}{study_key}/{trial:05d}/"


def hyperparameters(spec: StudySpec, params: Mapping[str, ParamValue]) -> dict[str, str]:
    """The fixed and the proposed ones, each as the string that the script receives."""
    return {name: encoded(value) for name, value in {**spec.training.hyperparameters, **params}.items()}


def job_digest(spec: StudySpec, trial: Trial) -> str:
    """What tells a job of this trial from a foreign one of the same name."""
    return digest(hyperparameters(spec, trial.params), trial.prefix, trial.bundle_uri)


def job_request(spec: StudySpec, study: Study, trial: Trial, attempt: Attempt) -> JobRequest:
    """The request that `attempt` stands for."""
    training, cloud = spec.training, spec.sagemaker
    environment = {
        **training.environment,
        "TUNER_STUDY": study.name,
        "TUNER_TRIAL": str(trial.number),
        "TUNER_ATTEMPT": str(attempt.number),
        DIGEST_VARIABLE: attempt.digest,
    }
    if study.local_dir is not None:
        environment["TUNER_LOCAL"] = "1"
    channels = [Channel(name=each.channel, uri=each.uri, mode=each.mode) for each in training.inputs]
    return JobRequest(
        name=attempt.job_name,
        hyperparameters=hyperparameters(spec, trial.params),
        environment=environment,
        entrypoint=ENTRYPOINT if training.entrypoint == "bootstrap" else (),
        image_uri=training.image_uri or _LOCAL_IMAGE,
        channels=(*channels, Channel(name=_CODE_CHANNEL, uri=trial.bundle_uri)),
        checkpoint_uri=trial.prefix,
        output_uri=cloud.outputs or f"{root(spec)}{study.key}/outputs/",
        instance_type=attempt.instance_type,
        instance_count=attempt.instance_count,
        volume_gb=cloud.volume_gb,
        spot=attempt.spot,
        max_run_s=attempt.max_run_s,
        max_wait_s=attempt.max_wait_s,
        role_arn=cloud.role or _LOCAL_ROLE,
        tags={
            **spec.tags,
            STUDY_TAG: study.key,
            TRIAL_TAG: str(trial.number),
            ATTEMPT_TAG: str(attempt.number),
        },
        metrics=tuple(MetricDefinition(name=each.name, regex=each.regex) for each in training.metrics),
    )
