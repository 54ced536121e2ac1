"""A `StudySpec` back to a plain document, in the words of the study file, with every default filled in.

This is the one form in which a spec is stored, changed, compared and shown; `spec_parse` reads it back to an equal
spec, so there is no second description of the file to keep in step.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal

from tuner.spec.records import (
    CategoricalParam,
    Component,
    Input,
    Json,
    LocalMarket,
    Metric,
    Param,
    SageMakerSettings,
    Space,
    SpaceFunction,
    StudySpec,
    Training,
)
from tuner.spec.values import duration_text


def to_document(spec: StudySpec) -> dict[str, Json]:
    """The whole study file; what is not set is null."""
    capacity, budget, settings = spec.capacity, spec.budget, spec.settings
    losses = capacity.on_demand_after_losses
    return {
        "name": spec.name,
        "description": spec.description,
        "objective": [{"metric": objective.metric, "direction": objective.direction} for objective in spec.objectives],
        "space": _space(spec.space),
        "search": {
            "sampler": _component(spec.search.sampler),
            "pruner": None if spec.search.pruner is None else _component(spec.search.pruner),
            "warm_start": list(spec.search.warm_start),
        },
        "trials": spec.trials,
        "parallel": spec.parallel,
        "training": _training(spec.training),
        "capacity": {
            "policy": capacity.policy,
            "on_demand_after": None if losses is None else {"losses": losses},
            "max_faults": capacity.max_faults,
        },
        "budget": {
            "usd": _money(budget.usd),
            "per_trial_usd": _money(budget.per_trial_usd),
            "deadline": _duration(budget.deadline_s),
        },
        "checkpoints": {"root": spec.checkpoints.root, "keep": spec.checkpoints.keep},
        "prices": {name: _money(price) for name, price in spec.prices.items()},
        "tags": dict(spec.tags),
        "backend": spec.backend,
        "sagemaker": _sagemaker(spec.sagemaker),
        "local": None if spec.local is None else {"interruptions": _market(spec.local)},
        "settings": {
            "poll": duration_text(settings.poll_interval_s),
            "stop_within": duration_text(settings.stop_within_s),
            "stop_grace": duration_text(settings.stop_grace_s),
            "upload_allowance": duration_text(settings.upload_allowance_s),
        },
    }


def flatten(value: Json, key: str = "") -> Iterator[tuple[str, Json]]:
    """The settings of a document by dotted key, in the order of the file. Lists are settings as a whole."""
    if not isinstance(value, dict) or not value:
        yield key, None if value == {} else value
        return
    for name, inner in value.items():
        yield from flatten(inner, f"{key}.{name}" if key else name)


def setting_text(value: Json) -> str:
    """A setting as the plan shows it."""
    if value is None or value == []:
        return "-"
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(setting_text(item) for item in value)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else duration_text(seconds)


def _money(amount: Decimal | None) -> str | None:
    # as text: a floating-point number would not be exact
    return None if amount is None else f"{amount:f}"


def _space(space: Space) -> Json:
    if isinstance(space, SpaceFunction):
        return f"{space.path}:{space.function}"
    return {param.name: _param(param) for param in space}


def _param(param: Param) -> Json:
    if isinstance(param, CategoricalParam):
        return {"type": "categorical", "choices": list(param.choices)}
    kind = "int" if isinstance(param.low, int) else "float"
    return {"type": kind, "low": param.low, "high": param.high, "step": param.step, "log": param.log}


def _component(component: Component) -> Json:
    return {"name": component.name, **component.arguments}


def _training(training: Training) -> Json:
    return {
        "entry_point": training.entry_point,
        "source_dir": None if training.source_dir is None else str(training.source_dir),
        "algorithm": training.algorithm,
        "hyperparameters": dict(training.hyperparameters),
        "environment": dict(training.environment),
        "secrets": {name: {"from_env": source} for name, source in training.secrets.items()},
        "metrics": [_metric(metric) for metric in training.metrics],
        "instance_types": list(training.instance_types),
        "instance_count": training.instance_count,
        "launcher": None if training.algorithm else training.launcher,
        "entrypoint": training.entrypoint,
        "image_uri": training.image_uri,
        "framework": _framework(training),
        "inputs": {each.channel: _input(each) for each in training.inputs},
        "max_run": duration_text(training.max_run_s),
        "max_wait": duration_text(training.max_wait_s),
        "stall_after": _duration(training.stall_after_s),
        "retry_on": [_without_nulls({"exit_code": rule.exit_code, "log": rule.log}) for rule in training.retry_on],
    }


def _metric(metric: Metric) -> Json:
    return _without_nulls({"name": metric.name, "regex": metric.regex, "step_regex": metric.step_regex})


def _input(channel: Input) -> Json:
    return _without_nulls(
        {
            "uri": channel.uri,
            "mode": channel.mode,
            "content_type": channel.content_type,
            "distribution": channel.distribution,
            "compression": channel.compression,
            "record_wrapper": channel.record_wrapper,
            "data_type": channel.data_type,
            "attributes": list(channel.attributes) or None,
        }
    )


def _framework(training: Training) -> Json:
    framework = training.framework
    if framework is None:
        return None
    return {"name": framework.name, "version": framework.version, "python": framework.python}


def _market(market: LocalMarket) -> Json:
    match market.kind:
        case "at":
            return {"at": [duration_text(at_s) for at_s in market.at_s], "down": duration_text(market.down_s)}
        case "every":
            return {"every": _duration(market.every_s), "seed": market.seed, "down": duration_text(market.down_s)}
        case "trace":
            return {"trace": str(market.trace), "speed": market.speed}


def _sagemaker(settings: SageMakerSettings) -> Json:
    return {
        "region": settings.region,
        "role": settings.role,
        "profile": settings.profile,
        "volume_gb": settings.volume_gb,
        "kms_key": settings.kms_key,
        "vpc": {
            "security_groups": list(settings.security_groups),
            "subnets": list(settings.subnets),
        },
        "zones": dict(settings.zones),
        "network_isolation": settings.network_isolation,
        "outputs": settings.outputs,
        "request": dict(settings.request),
    }


def _without_nulls(values: Mapping[str, Json]) -> Json:
    return {key: value for key, value in values.items() if value is not None}
