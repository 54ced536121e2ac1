"""Rules that span sections of a study file, or that look outside it: prices, files, limits of a whole job.

They are checked when a user launches or changes a study, and not when a stored spec is read back. By then a price
table may have changed and a source directory may be gone, and a running study must still be resumable.
"""

import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path

from tuner.core.prices import PriceUnknown, Rate, RateCard, cost_microusd, usd
from tuner.spec import traces
from tuner.spec.records import COST_METRIC, DEFAULT_REGION, MICROUSD, CategoricalParam, SpaceFunction, StudySpec
from tuner.spec.space import check_value, encoded, toolkit_argument
from tuner.spec.training import ALGORITHM_WAIT_S
from tuner.spec.values import SpecError, duration_text, shown

# SageMaker allows 100 of each in a job. The tuner itself uses the rest of the environment, see `workload`.
_MAX_HYPERPARAMETERS = 100
_MAX_ENVIRONMENT = 95
_MAX_VALUE = 512
_SHOWN = 3
_CODE_FOLDER = "/opt/ml/input/data/code"
# Twice the sum of a minute, the time until its average is final, and the time between two polls.
_CLOUDWATCH_LATE_S = 600


def check(spec: StudySpec) -> tuple[str, ...]:
    """Raise `SpecError` for the first rule that is broken; otherwise return warnings about what is allowed but odd."""
    for rule in (
        _hyperparameters,
        _environment,
        _objectives,
        _backend,
        _own_image,
        _inputs,
        _network,
        _request,
        _budget,
    ):
        rule(spec)
    return tuple(_warnings(spec))


def check_files(spec: StudySpec) -> None:
    """Raise `SpecError` unless all files that the spec names are there and can be read."""
    training = spec.training
    if training.source_dir is not None and training.entry_point is not None:
        _check_entry_point(training.source_dir, training.entry_point)
    if isinstance(spec.space, SpaceFunction) and not os.access(spec.space.path, os.R_OK):
        raise SpecError(
            f"space: there is no readable file {shown(spec.space.path)}; name it relative to the study file"
        )
    for each in training.inputs:
        if each.uri.startswith("file://") and not Path(each.uri.removeprefix("file://")).exists():
            raise SpecError(f"training.inputs.{each.channel}: there is nothing at {shown(each.uri)}; correct the path")
    if spec.local is not None and spec.local.trace is not None:
        try:
            traces.read(spec.local.trace)
        except traces.TraceError as error:
            raise SpecError(f"local.interruptions.trace: {error}") from None


def refuse_missing_secrets(spec: StudySpec, environment: Mapping[str, str]) -> None:
    """Raise `SpecError` unless this environment has every secret that jobs need. No message holds a value."""
    for name, variable in spec.training.secrets.items():
        value = environment.get(variable)
        if not value:
            raise SpecError(
                f"training.secrets.{name}: the variable {variable} is not set here; set it where the tuner runs "
                f"(export {variable}=…), or remove the secret"
            )
        if len(value) > _MAX_VALUE:
            raise SpecError(
                f"training.secrets.{name}: the value of {variable} has {len(value)} characters, and a job takes "
                f"{_MAX_VALUE}; let the job fetch it from a secrets manager"
            )


def _check_entry_point(source_dir: Path, entry_point: str) -> None:
    if not source_dir.is_dir():
        raise SpecError(f"training.source_dir: there is no directory {shown(str(source_dir))}; correct the path")
    script = source_dir / entry_point
    if not script.is_file():
        raise SpecError(f"training.entry_point: there is no file {shown(entry_point)} in {shown(str(source_dir))}")
    if not script.resolve().is_relative_to(source_dir.resolve()):
        raise SpecError("training.entry_point: is a link that leaves source_dir; put the file itself there")


def _hyperparameters(spec: StudySpec) -> None:
    fixed = spec.training.hyperparameters
    for name, value in fixed.items():
        check_value(value, f"training.hyperparameters.{name}")
    searched = () if isinstance(spec.space, SpaceFunction) else tuple(param.name for param in spec.space)
    for name in searched:
        if name in fixed:
            raise SpecError(f"training.hyperparameters.{name}: is also searched in space; remove one of them")
    if len(fixed) + len(searched) > _MAX_HYPERPARAMETERS:
        raise SpecError(
            f"training.hyperparameters: {len(fixed)} fixed and {len(searched)} searched ones are more than the "
            f"{_MAX_HYPERPARAMETERS} that a job takes; put the fixed ones into a file"
        )


def _environment(spec: StudySpec) -> None:
    own, secrets = spec.training.environment, spec.training.secrets
    for name in secrets:
        if name in own:
            raise SpecError(f"training.secrets.{name}: stands in training.environment, too; remove one of them")
    if len(own) + len(secrets) > _MAX_ENVIRONMENT:
        raise SpecError(
            f"training.environment: {len(own) + len(secrets)} entries with the secrets; at most {_MAX_ENVIRONMENT} fit"
        )


def _objectives(spec: StudySpec) -> None:
    if len(spec.objectives) > 1 and spec.search.pruner is not None:
        raise SpecError("search.pruner: cannot prune with several objectives; remove it, or keep one objective")
    for i, metric in enumerate(spec.training.metrics):
        if metric.name == COST_METRIC:
            raise SpecError(f"training.metrics[{i}].name: {COST_METRIC} is the tuner's own; give yours another name")


def _own_image(spec: StudySpec) -> None:
    """Without the bootstrap, only SageMaker reads the log, and it finds values by the regexes alone."""
    if not _starts_itself(spec):
        return
    known = [metric.name for metric in spec.training.metrics]
    for objective in spec.objectives:
        if objective.metric not in (*known, COST_METRIC):
            raise SpecError(
                f"objective.metric: {objective.metric} is not in training.metrics, which entrypoint: image needs "
                f"to find it in the log; add {{name: {objective.metric}, regex: '{objective.metric}=(…)'}} there"
            )


def _starts_itself(spec: StudySpec) -> bool:
    """Whether an image's own entrypoint runs the user's code."""
    return spec.training.algorithm is None and spec.training.entrypoint == "image"


def _backend(spec: StudySpec) -> None:
    if spec.backend == "sagemaker":
        for each in spec.training.inputs:
            if each.uri.startswith("file://"):
                raise SpecError(f"training.inputs.{each.channel}: file:// is for local studies; write an s3:// URI")
    elif spec.training.algorithm is not None:
        raise SpecError("training.algorithm: needs backend: sagemaker; locally write training.entry_point")
    elif spec.training.entrypoint == "image":
        raise SpecError("training.entrypoint: image needs backend: sagemaker; this machine has no image to start")
    elif spec.training.instance_count > 1:
        raise SpecError("training.instance_count: more than 1 needs backend: sagemaker; remove it to run locally")
    elif spec.training.framework is not None:
        raise SpecError("training.framework: needs backend: sagemaker; locally this machine's Python runs the script")


def _inputs(spec: StudySpec) -> None:
    own_start = spec.training.algorithm is not None or _starts_itself(spec)
    for each in spec.training.inputs:
        where = f"training.inputs.{each.channel}"
        if each.mode == "Pipe" and not own_start:
            raise SpecError(
                f"{where}.mode: Pipe is for algorithms and entrypoint: image, since it gives named pipes where a "
                "script is told of a folder; write mode: FastFile, which streams as well"
            )
        if each.data_type not in (None, "S3Prefix") and spec.backend == "local":
            raise SpecError(f"{where}.data_type: {each.data_type} needs backend: sagemaker; locally name a folder")


def _network(spec: StudySpec) -> None:
    cloud = spec.sagemaker
    if cloud.zones and not cloud.vpc.security_groups:
        raise SpecError("sagemaker.zones: are subnets, which need sagemaker.vpc.security_groups; add them")


def _request(spec: StudySpec) -> None:
    if not spec.sagemaker.request:
        return
    from tuner.sagemaker.rules import raw_faults  # noqa: PLC0415 - with it comes botocore

    own_entrypoint = spec.training.algorithm is None and spec.training.entrypoint == "bootstrap"
    for key, fault in raw_faults(spec.sagemaker.request, own_entrypoint=own_entrypoint):
        raise SpecError(f"sagemaker.request.{key}: {fault}")


def _budget(spec: StudySpec) -> None:
    if spec.budget.usd is None and spec.budget.per_trial_usd is None:
        return
    card = RateCard(spec.prices)
    try:
        rates = [card.rate(instance_type, spec.region) for instance_type in spec.training.instance_types]
    except PriceUnknown as error:
        if spec.backend == "sagemaker":
            return  # `launch` asks the Price List API, and refuses a type that it does not know
        raise SpecError(f"budget: {error}") from None
    if spec.budget.usd is not None:
        _check_affordable(spec, spec.budget.usd, rates[0])


def _check_affordable(spec: StudySpec, budget_usd: Decimal, rate: Rate) -> None:
    """The first attempt must fit into the budget; otherwise nothing would ever be submitted."""
    count, settings = spec.training.instance_count, spec.settings
    needed = cost_microusd(spec.reservation_s, count, rate.microusd_per_hour)
    if needed > budget_usd * MICROUSD:
        parts_s = (settings.poll_interval_s, settings.stop_within_s, settings.stop_grace_s, settings.upload_allowance_s)
        sums = " + ".join(duration_text(part_s) for part_s in (spec.training.max_run_s, *parts_s))
        raise SpecError(
            f"budget.usd: ${budget_usd:f} cannot pay for one trial, which reserves {usd(needed)} "
            f"(max_run, poll, stop_within, stop_grace and upload_allowance: {sums}) x {count} x "
            f"${rate.usd_per_hour:f}/h; raise it or lower training.max_run"
        )


def _warnings(spec: StudySpec) -> Iterator[str]:
    if spec.parallel > spec.trials:
        yield f"parallel: {spec.parallel} is more than the {spec.trials} trials"
    if spec.backend == "sagemaker" and spec.sagemaker.region is None:
        yield f"sagemaker.region: is not set; prices of {DEFAULT_REGION} are assumed"
    deadline_s = spec.budget.deadline_s
    if deadline_s is not None and deadline_s < spec.training.max_run_s:
        yield "budget.deadline: is shorter than training.max_run"
    total, per_trial = spec.budget.usd, spec.budget.per_trial_usd
    if total is not None and per_trial is not None and per_trial > total:
        yield "budget.per_trial_usd: is more than budget.usd"
    if spec.training.algorithm and spec.capacity.policy != "on-demand":
        yield from _algorithm_warnings(spec.training.max_run_s, spec.training.max_wait_s)
    yield from _trial_budget_warnings(spec)
    yield from _price_warnings(spec)
    yield from _metric_warnings(spec)
    yield from _step_warnings(spec)
    yield from _cloudwatch_warnings(spec)
    yield from _toolkit_warnings(spec)


def _toolkit_warnings(spec: StudySpec) -> Iterator[str]:
    """Warn about hyperparameters that SageMaker's toolkit changes, if the image starts the script with it."""
    if not _starts_itself(spec):
        return
    fixed = spec.training.hyperparameters
    space = () if isinstance(spec.space, SpaceFunction) else spec.space
    given = [(name, encoded(value)) for name, value in fixed.items()]
    given += [(each.name, encoded(one)) for each in space if isinstance(each, CategoricalParam) for one in each.choices]
    changed = [(name, text, read) for name, text in given if (read := toolkit_argument(text)) != text]
    toolkit = "an image that starts the script by SageMaker's toolkit, as framework images do,"
    file = "let the script read /opt/ml/input/config/hyperparameters.json"
    if changed:
        shown_ones = "; ".join(f"{name}: {shown(text)} as {shown(read)}" for name, text, read in changed[:_SHOWN])
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        yield f"training.hyperparameters: {toolkit} gives it other values ({shown_ones}{more}); write others, or {file}"
    short = [name for name in dict.fromkeys((*fixed, *(each.name for each in space))) if len(name) == 1]
    if short:
        yield f"training.hyperparameters: {toolkit} gives it -{short[0]} in place of --{short[0]}; rename it, or {file}"
    if spec.training.framework is not None and "sagemaker_program" not in fixed:
        yield (
            "training.hyperparameters: a framework image needs sagemaker_program (the script) and "
            f"sagemaker_submit_directory: {_CODE_FOLDER}"
        )


def _algorithm_warnings(max_run_s: int, max_wait_s: int) -> Iterator[str]:
    """Some algorithms save checkpoints, and only the service knows which ones."""
    if max_run_s > ALGORITHM_WAIT_S:
        yield (
            f"training.max_run: {duration_text(max_run_s)}, but SageMaker takes at most 1h, waiting included, from "
            "spot jobs of algorithms that do not checkpoint; lower it, or write capacity: {policy: on-demand}"
        )
    elif max_wait_s > ALGORITHM_WAIT_S:
        yield "training.max_wait: SageMaker takes at most 1h from algorithms that do not checkpoint"


def _cloudwatch_warnings(spec: StudySpec) -> Iterator[str]:
    """Warn about what does not work when metrics are averages of minutes that arrive some minutes late."""
    training = spec.training
    if training.algorithm is None and not _starts_itself(spec):
        return
    for i, metric in enumerate(training.metrics):
        if metric.step_regex is not None:
            yield f"training.metrics[{i}].step_regex: is not used without the bootstrap: a step is a minute"
    if training.stall_after_s is not None and training.stall_after_s < _CLOUDWATCH_LATE_S:
        yield (
            f"training.stall_after: metrics come from CloudWatch minutes late; below "
            f"{duration_text(_CLOUDWATCH_LATE_S)} a job may be taken for one that hangs"
        )


def _trial_budget_warnings(spec: StudySpec) -> Iterator[str]:
    """Warn if the limit of cost stops a trial before its limit of time: its cost is then lost."""
    allowed_usd, count = spec.budget.per_trial_usd, spec.training.instance_count
    if allowed_usd is None:
        return
    card = RateCard(spec.prices)
    try:
        rate = max(card.rate(kind, spec.region).microusd_per_hour for kind in spec.training.instance_types)
    except PriceUnknown:  # the rule of the budget reports it, or `launch` later
        return
    needed = cost_microusd(spec.reservation_s, count, rate)
    if needed <= allowed_usd * MICROUSD:
        return
    beside_s = spec.reservation_s - spec.training.max_run_s
    fits_s = int(allowed_usd * MICROUSD * 3600 / (count * rate)) - beside_s
    remedy = (
        f"training.max_run: {duration_text(fits_s)} would fit"
        if fits_s > 0
        else f"no max_run fits: stopping a job and its upload alone may take {duration_text(beside_s)}; raise it"
    )
    yield (
        f"budget.per_trial_usd: ${allowed_usd:f} stops a trial before it has used its max_run of "
        f"{duration_text(spec.training.max_run_s)}, which may cost {usd(needed)}; {remedy}"
    )


def _price_warnings(spec: StudySpec) -> Iterator[str]:
    for instance_type in spec.training.instance_types:
        try:
            RateCard(spec.prices).rate(instance_type, spec.region)
        except PriceUnknown as error:
            yield f"training.instance_types: {error}"
    for instance_type in spec.prices:
        if instance_type not in spec.training.instance_types:
            yield f"prices.{instance_type}: is not one of training.instance_types"


def _step_warnings(spec: StudySpec) -> Iterator[str]:
    """Only steps prove that a script resumed. Scripts that call `report()` give steps, which is not known here."""
    training = spec.training
    spot = spec.capacity.policy != "on-demand" and (spec.backend == "sagemaker" or spec.local is not None)
    if not spot or training.algorithm is not None or training.entrypoint != "bootstrap":
        return  # it is never interrupted, or the bootstrap does not read its output
    objectives = {objective.metric for objective in spec.objectives}
    for i, metric in enumerate(training.metrics):
        if metric.name in objectives and metric.step_regex is None:
            yield (
                f"training.metrics[{i}].step_regex: is not set, so that no interrupted run is proven to resume, and no "
                f"lost work is known; write one that finds the step of {metric.name} in the log"
            )


def _metric_warnings(spec: StudySpec) -> Iterator[str]:
    known = [metric.name for metric in spec.training.metrics]
    for objective in spec.objectives:
        if known and objective.metric not in (*known, COST_METRIC):
            near = get_close_matches(objective.metric, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield f"objective.metric: {objective.metric} is not in training.metrics{hint}; the script must report it"
