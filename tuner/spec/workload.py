"""What a study's jobs look like: from the study file and a recorded trial to a policy and a request.

Rules: pure. A request follows from what is recorded, so that a request that is sent twice is the same both times, and
the digest in its environment proves whose job it is. What shapes a trial's result is what the trial began with, even if
changes were accepted since: an attribute of the trial holds it, and requests and digests use it. Values are data:
strings go through as they are, everything else as JSON. Every checkpoint prefix ends in "/", since S3 prefixes are
strings and `…/1` would also name `…/10`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tuner.core.jobs import DIGEST_VARIABLE, Channel, JobRequest, MetricDefinition, digest, job_name
from tuner.core.policy import budget
from tuner.core.policy.budget import reservation_microusd
from tuner.core.policy.settings import Policy
from tuner.core.prices import RateCard
from tuner.core.records import (
    BEGUN_WITH,
    Attempt,
    AttemptState,
    Intent,
    ParamValue,
    Study,
    StudyState,
    Trial,
    TrialState,
)
from tuner.spec.study_file import (
    CategoricalParam,
    FloatParam,
    Input,
    IntParam,
    Param,
    SpaceFunction,
    StudySpec,
    as_begun,
    encoded,
)

# Tag keys of each job of the tuner. The local service also finds its market by the study's key.
STUDY_TAG = "tuner:study"
TRIAL_TAG = "tuner:trial"
ATTEMPT_TAG = "tuner:attempt"

ENTRYPOINT = ("python3", "/opt/ml/input/data/code/tuner/bootstrap.py")
_LOCAL_ROLE = "arn:aws:iam::000000000000:role/local-tuner"
_LOCAL_IMAGE = "local-python"
_CODE_CHANNEL = "code"
_LONGEST_FLOAT = -1.2345678901234567e-300


def policy(spec: StudySpec, study: Study | None) -> Policy:
    """The part of the study file that decisions need. Raises PriceUnknown for a type without a price.

    Before there is a study there is no deadline.
    """
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
        deadline_at=None if deadline_s is None or study is None else study.created_at + timedelta(seconds=deadline_s),
        stall_after_s=training.stall_after_s,
        retry_exit_codes=frozenset(rule.exit_code for rule in training.retry_on if rule.exit_code is not None),
        retry_logs=tuple(rule.log for rule in training.retry_on if rule.log is not None),
        on_demand_after=spec.capacity.on_demand_after_losses,
        zones=tuple(spec.sagemaker.zones) or (None,),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The most that jobs of a study may bill, on the dearest of its types, if max_run counts all runs of a job.

    A trial may have any number of jobs, because capacity may be lost any number of times. Together they train no longer
    than `max_run`. So the bound of the first job is that of the trial, and each further job adds the time until
    a job is stopped and uploaded.
    """

    first_job_microusd: int
    further_job_microusd: int


def ceiling(spec: StudySpec) -> Ceiling:
    """What attempts reserve, by the engine's own arithmetic. Raises PriceUnknown."""
    rules = policy(spec, None)
    dearest = max(rules.rates_microusd_per_h)
    return Ceiling(
        first_job_microusd=reservation_microusd(rules.max_run_s, dearest, rules),
        further_job_microusd=reservation_microusd(0, dearest, rules),
    )


def worst_case_microusd(spec: StudySpec) -> int:
    """The most that a study on spot may bill: see `budget.worst_case_microusd`. Raises PriceUnknown."""
    return budget.worst_case_microusd(policy(spec, None), spec.training.max_wait_s)


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
    """The digest that tells a job of this trial from a foreign job of the same name."""
    return digest(hyperparameters(_spec_of(spec, trial), trial.params), trial.prefix, trial.bundle_uri)


def job_request(spec: StudySpec, study: Study, trial: Trial, attempt: Attempt) -> JobRequest:
    """The request that `attempt` stands for."""
    spec = _spec_of(spec, trial)
    training, cloud = spec.training, spec.sagemaker
    is_local = spec.backend == "local"
    assert is_local or (cloud.role and (training.image_uri or training.algorithm)), "looked up before it is launched"
    return JobRequest(
        name=attempt.job_name,
        hyperparameters=hyperparameters(spec, trial.params),
        environment=_environment(spec, study, trial, attempt),
        secrets=training.secrets,
        entrypoint=ENTRYPOINT if starts_bootstrap(spec) else (),
        # an algorithm of SageMaker is an image; any other is a resource of the account
        image_uri=training.image_uri or ("" if training.algorithm else _LOCAL_IMAGE),
        algorithm="" if training.image_uri else training.algorithm or "",
        channels=_channels(spec, trial),
        checkpoint_uri=trial.prefix,
        output_uri=cloud.outputs or f"{root(spec)}{study.key}/outputs/",
        instance_type=attempt.instance_type,
        instance_count=attempt.instance_count,
        volume_gb=cloud.volume_gb,
        spot=attempt.spot,
        max_run_s=attempt.max_run_s,
        max_wait_s=attempt.max_wait_s,
        role_arn=cloud.role if cloud.role and not is_local else _LOCAL_ROLE,
        tags={
            **spec.tags,
            STUDY_TAG: study.key,
            TRIAL_TAG: str(trial.number),
            ATTEMPT_TAG: str(attempt.number),
        },
        metrics=_metrics(spec),
        security_groups=cloud.vpc.security_groups,
        subnets=_subnets(spec, attempt.zone),
        kms_key=cloud.kms_key or "",
        network_isolation=cloud.network_isolation,
        raw=cloud.request,
    )


def _spec_of(spec: StudySpec, trial: Trial) -> StudySpec:
    former = trial.attrs.get(BEGUN_WITH)
    return as_begun(spec, former) if isinstance(former, str) else spec


def starts_bootstrap(spec: StudySpec) -> bool:
    """Whether the bootstrap starts the script. It does not start an algorithm or an image that starts itself."""
    return spec.training.algorithm is None and spec.training.entrypoint == "bootstrap"


def _environment(spec: StudySpec, study: Study, trial: Trial, attempt: Attempt) -> dict[str, str]:
    environment = {
        **spec.training.environment,
        "TUNER_STUDY": study.name,
        "TUNER_TRIAL": str(trial.number),
        "TUNER_ATTEMPT": str(attempt.number),
        DIGEST_VARIABLE: attempt.digest,
    }
    return environment if study.local_dir is None else {**environment, "TUNER_LOCAL": "1"}


def _metrics(spec: StudySpec) -> tuple[MetricDefinition, ...]:
    """An algorithm has its own metrics, and SageMaker refuses others."""
    metrics = () if spec.training.algorithm else spec.training.metrics
    return tuple(MetricDefinition(name=each.name, regex=each.regex) for each in metrics)


def _channels(spec: StudySpec, trial: Trial) -> tuple[Channel, ...]:
    """The channels of the study and that of the code. An algorithm gets no code: it may refuse unknown channels."""
    own = [_channel(each) for each in spec.training.inputs]
    if spec.training.algorithm is not None:
        return tuple(own)
    return (*own, Channel(name=_CODE_CHANNEL, uri=trial.bundle_uri))


def _channel(each: Input) -> Channel:
    return Channel(
        name=each.channel,
        uri=each.uri,
        mode=each.mode,
        data_type=each.data_type or "S3Prefix",
        distribution=each.distribution or "FullyReplicated",
        content_type=each.content_type or "",
        compression=each.compression or "",
        record_wrapper=each.record_wrapper or "",
        attributes=each.attributes,
    )


def _subnets(spec: StudySpec, zone: str | None) -> tuple[str, ...]:
    """Where a job may run: the subnet of its zone, or without a zone all subnets of the study file."""
    cloud = spec.sagemaker
    if zone is not None:
        return (cloud.zones[zone],)
    return cloud.vpc.subnets or tuple(cloud.zones.values())


# --- what is checked before the first job


def request_violations(spec: StudySpec) -> tuple[str, ...]:
    """All known reasons for which CreateTrainingJob would refuse jobs of this study, a line each.

    The longest request of each instance type is checked. Image, role and bucket must have been looked up before.
    """
    from tuner.sagemaker.request import request_parameters  # noqa: PLC0415 - as above
    from tuner.sagemaker.rules import violations  # noqa: PLC0415 - with it comes botocore

    lines = [
        line for kind in spec.training.instance_types for line in violations(request_parameters(specimen(spec, kind)))
    ]
    return tuple(dict.fromkeys(lines))


def specimen(spec: StudySpec, instance_type: str) -> JobRequest:
    """A job of the study with the longest value of everything that differs between trials.

    The values of a space function are not known before it is called.
    """
    longest = {} if isinstance(spec.space, SpaceFunction) else {param.name: _longest(param) for param in spec.space}
    now, key, spot = datetime(2000, 1, 1, tzinfo=UTC), f"{spec.name}-{'x' * 6}", spec.capacity.policy == "spot"
    study = Study(
        id=0,
        name=spec.name,
        key=key,
        owner="",
        state=StudyState.RUNNING,
        version=0,
        spec="",
        backend=spec.backend,
        bundle_uri=f"{root(spec)}bundles/{'0' * 64}/",
        local_dir="/" if spec.backend == "local" else None,
        intent=Intent.RUN,
        intent_at=now,
        created_at=now,
    )
    trial = Trial(
        number=99_999,
        state=TrialState.PROPOSED,
        version=0,
        params=longest,
        distributions="",
        attrs={},
        prefix=prefix(spec, key, 99_999),
        bundle_uri=study.bundle_uri,
        asked_seq=0,
        created_at=now,
    )
    attempt = Attempt(
        trial=trial.number,
        number=999,
        state=AttemptState.SUBMITTING,
        version=0,
        job_name=job_name(key, trial.number, 999),
        digest=job_digest(spec, trial),
        instance_type=instance_type,
        instance_count=spec.training.instance_count,
        spot=spot,
        rate_microusd_per_h=0,
        max_run_s=spec.training.max_run_s,
        max_wait_s=spec.training.max_wait_s if spot else None,
        reserved_microusd=0,
        created_at=now,
    )
    return job_request(spec, study, trial, attempt)


def _longest(param: Param) -> ParamValue:
    """The value whose text is the longest that a sampler may draw."""
    match param:
        case CategoricalParam():
            return max(param.choices, key=lambda choice: len(encoded(choice)))
        case IntParam():
            return max((param.low, param.high), key=lambda bound: len(encoded(bound)))
        case FloatParam():
            return _LONGEST_FLOAT
