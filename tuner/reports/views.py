"""The JSON documents of the reading verbs, as pure functions of the store's contents.

They are made in one place so that the command line, the Python API and later the web show the same figures under the
same keys.

Rules: keys are a contract; new ones may be added. An unknown value is None, never 0; so is a number that JSON lacks
(NaN, infinity). Times are ISO 8601 in UTC. `spend_usd` sums final figures only; running jobs are in `estimated_usd`.
Each view costs a fixed number of statements, never one per trial.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias, cast

from tuner.core.commands import Options, from_stored, render
from tuner.core.errors import Exit, UserError
from tuner.core.policy.proof import went_back
from tuner.core.records import (
    HALTED,
    REFUSED_REQUESTS,
    Attempt,
    Event,
    Holder,
    Intent,
    Json,
    Pool,
    PoolTotals,
    Run,
    RunEnd,
    Study,
    Trial,
    TrialState,
)
from tuner.engine.quotas import kept_limits
from tuner.reports.events import sentence
from tuner.spec.study_file import StudySpec, spec_of

if TYPE_CHECKING:
    from tuner.store.store import Store

View: TypeAlias = dict[str, Json]

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A trial with its attempts and runs."""

    trial: Trial
    attempts: tuple[Attempt, ...]
    runs: tuple[Run, ...]


def status_view(
    store: "Store",
    study: Study,
    now: datetime,
    *,
    gone: Callable[[Holder], bool] | None = None,
    options: Options = (),
) -> View:
    """The document of `tuner status STUDY`; `gone` returns whether a holder on this host is certainly dead.

    Commands in its warnings repeat `options`.
    """
    spec, summary = spec_of(study), store.summary(study.id)
    counts = {state.value: summary.trials.get(state, 0) for state in TrialState}
    spend, on_demand = usd(summary.spend_microusd), usd(summary.on_demand_microusd)
    refused = [_request_view(event, options) for event in _refusals(store, study)]
    return {
        "study": study.name,
        "owner": study.owner,
        "state": study.state.value,
        "intent": study.intent.value,
        "backend": study.backend,
        "simulated": simulated(study),
        "created_at": iso(study.created_at),
        "engine": _engine(study, now, gone),
        "trials": {"total": spec.trials, **counts},
        "parallel": spec.parallel,
        "attempts": summary.attempts,
        "in_flight": summary.live_attempts,
        "interruptions": summary.interruptions,
        "runs": summary.runs,
        "resumed_runs": summary.resumed_runs,
        "resumed_from_older": summary.resumed_from_older,
        "restarted_from_zero": summary.restarted_from_zero,
        "unproven_runs": summary.unproven_runs,
        "never_checkpointed": summary.never_checkpointed,
        "objectives": [{"metric": goal.metric, "direction": goal.direction} for goal in spec.objectives],
        "best": _best(store, study, spec),
        "spend_usd": spend,
        "estimated_usd": usd(summary.estimated_microusd),
        "reserved_usd": usd(summary.reserved_microusd),
        "on_demand_usd": on_demand,
        "saved_pct": saved_pct(summary.spend_microusd, summary.on_demand_microusd),
        "lost_work_s": summary.lost_work_s,
        "lost_work_unknown_runs": summary.lost_work_unknown_runs,
        "pools": [_pool(pool, met) for pool, met in sorted(store.pool_totals([study.id]).items(), key=str)],
        "budget_usd": None if spec.budget.usd is None else float(spec.budget.usd),
        "deadline": _deadline(study, spec),
        "last_refused_request": refused[-1] if refused else None,
        "warnings": [
            *_halted(study, options),
            *study.warnings,
            *_too_small_quotas(study, spec),
            *(str(request["text"]) for request in refused if not study.state.ended),
        ],
    }


def _refusals(store: "Store", study: Study) -> list[Event]:
    """The events of refused requests, oldest first, that no later request of the same verb replaced."""
    numbers = cast("dict[str, int]", study.attrs.get(REFUSED_REQUESTS, {})).values()
    return [event for seq in sorted(numbers) for event in store.events(study.id, after_seq=seq - 1, limit=1)]


def _request_view(event: Event, options: Options) -> View:
    asked = {key: event.details.get(key) for key in ("verb", "values", "who", "message")}
    reported = sentence(event)
    return {**asked, "at": iso(event.recorded_at), "text": reported and render(reported[1], options)}


def _halted(study: Study, options: Options) -> Iterator[str]:
    """Why the engine starts no new jobs, unless the user asked for that."""
    if HALTED in study.attrs and not study.state.ended and study.intent is not Intent.CANCEL:
        yield render(from_stored(study.attrs[HALTED]), options)


def _too_small_quotas(study: Study, spec: StudySpec) -> Iterator[str]:
    """Quotas that are too small for one job: trials wait until somebody has them raised."""
    if study.state.ended:
        return
    needed = spec.training.instance_count
    for (instance_type, spot), limit in kept_limits(study).items():
        if limit.instances < needed:
            name = f"{instance_type} for {'spot ' if spot else ''}training job usage"
            yield f"the quota allows {limit.instances}, a job needs {needed}: ask Service Quotas for '{name}'"


def _pool(pool: Pool, met: PoolTotals) -> View:
    """Totals of the study's attempts in one pool; a rate is null if its divisor is zero."""
    return {
        "instance": pool.instance_type,
        "capacity": _capacity(pool),
        "zone": pool.zone,
        "attempts": met.attempts,
        "live": met.live,
        "up_h": met.up_s / 3600,
        "interruptions": met.interruptions,
        "interruptions_per_h": 3600 * met.interruptions / met.up_s if met.up_s else None,
        "mean_wait_s": met.wait_s / met.waits if met.waits else None,
    }


def summary_view(store: "Store", study: Study, now: datetime, *, options: Options = ()) -> View:
    """The document at the end of `launch` and `resume`: the status, and the steps from which runs resumed."""
    steps = sorted(run.resumed_from_step for run in store.runs(study.id) if run.resumed_from_step is not None)
    return {**status_view(store, study, now, options=options), "resumed_from_steps": list[Json](steps)}


def trials_view(store: "Store", study: Study) -> list[View]:
    """The document of `tuner trials STUDY`: one entry per trial, by number."""
    return [trial_row(record) for record in trial_records(store, study.id)]


def show_view(store: "Store", study: Study, number: int, *, options: Options = ()) -> View:
    """The document of `tuner show STUDY TRIAL`: the whole story. Raises UserError for a number never proposed."""
    found = store.trials(study.id, numbers=[number])
    if not found:
        count = store.trial_count(study.id)
        have = f"it has trials 0 to {count - 1}" if count else "nothing was proposed yet"
        raise UserError(f"study {study.name} has no trial {number}: {have}", Exit.USAGE)
    attempts, runs = store.attempts(study.id, trial=number), store.runs(study.id, trial=number)
    metrics: dict[str, list[Json]] = defaultdict(list)
    for point in store.points(study.id, trial=number):
        metrics[point.name].append({"step": point.step, "value": finite(point.value), "at": iso(point.at)})
    return {
        "study": study.name,
        "simulated": simulated(study),
        "trial": trial_row(TrialRecord(trial=found[0], attempts=tuple(attempts), runs=tuple(runs))),
        "attempts": [attempt_view(attempt, runs) for attempt in attempts],
        "metrics": dict(metrics),
        "events": [_event_view(event, options) for event in _events_of(store, study, found[0])],
    }


def _events_of(store: "Store", study: Study, trial: Trial) -> list[Event]:
    """The trial's own events, and the requests that were refused while it was unfinished: those concern it too."""
    own = store.events(study.id, trial=trial.number)
    refused = [
        event
        for event in _refusals(store, study)
        if event.seq > trial.asked_seq and (trial.told_seq is None or event.seq < trial.told_seq)
    ]
    return sorted([*own, *refused], key=lambda event: event.seq)


def best_view(store: "Store", study: Study, limit: int = 1) -> list[View]:
    """The document of `tuner best STUDY`: entries of `trials_view`, best first.

    With several objectives: the Pareto front, by number.
    """
    numbers = [trial.number for trial in best_trials(store, study, spec_of(study), limit)]
    if not numbers:
        return []
    records = {record.trial.number: record for record in trial_records(store, study.id, numbers)}
    return [trial_row(records[number]) for number in numbers]


def trial_records(store: "Store", study_id: int, numbers: Sequence[int] | None = None) -> list[TrialRecord]:
    """All trials, or those of `numbers`, with their attempts and runs: three statements."""
    attempts, runs = defaultdict(list), defaultdict(list)
    for attempt in store.attempts(study_id):
        attempts[attempt.trial].append(attempt)
    for run in store.runs(study_id):
        runs[run.trial].append(run)
    return [
        TrialRecord(trial=trial, attempts=tuple(attempts[trial.number]), runs=tuple(runs[trial.number]))
        for trial in store.trials(study_id, numbers=numbers)
    ]


def best_trials(store: "Store", study: Study, spec: StudySpec, limit: int) -> list[Trial]:
    """The best succeeded trials, or the Pareto front of a study with several objectives."""
    signs = [1 if goal.direction == "maximize" else -1 for goal in spec.objectives]
    if len(signs) == 1:
        return store.best(study.id, maximize=signs[0] > 0, limit=limit)
    succeeded = [trial for trial in store.trials(study.id) if trial.state is TrialState.SUCCEEDED and trial.values]
    gains = {trial.number: tuple(s * v for s, v in zip(signs, trial.values or (), strict=True)) for trial in succeeded}
    return [t for t in succeeded if not any(_dominates(gain, gains[t.number]) for gain in gains.values())][:limit]


def trial_row(record: TrialRecord) -> View:
    """One entry of `trials --json`."""
    trial, attempts = record.trial, record.attempts
    last = attempts[-1] if attempts else None
    values = [finite(value) for value in trial.values] if trial.values is not None else None
    return {
        "number": trial.number,
        "state": trial.state.value,
        "reason": trial.reason,
        "value": values[0] if values is not None and len(values) == 1 else None,
        "values": list(values) if values is not None else None,
        "last_value": finite(trial.last_value),
        "params": {name: _param(value) for name, value in trial.params.items()},
        "step": trial.last_step,
        "pruned_at_step": trial.pruned_at_step,
        "attempts": trial.attempts,
        "faults": trial.faults,
        "retry_of": trial.retry_of,
        "interruptions": sum(attempt.interruptions for attempt in attempts),
        "runs": [_run_view(run) for run in record.runs],
        "jobs": [_job_view(attempt) for attempt in attempts],
        "instance": last.instance_type if last else None,
        "capacity": _capacity(last) if last else None,
        "billable_s": total(attempt.billable_s for attempt in attempts),
        "training_s": total(attempt.training_s for attempt in attempts),
        "lost_work_s": lost_work_s(record.runs),
        "lost_work_unknown_runs": lost_work_unknown_runs(record.runs),
        "spend_usd": usd(total(attempt.spend_microusd for attempt in attempts)),
        "estimated": any(attempt.live for attempt in attempts),
        "estimated_usd": usd(sum(attempt.estimated_microusd for attempt in attempts if attempt.live)),
        "on_demand_usd": usd(total(attempt.on_demand_microusd for attempt in attempts)),
        "checkpoint_prefix": trial.prefix,
        "model_uri": next((a.model_uri for a in reversed(attempts) if a.model_uri), None),
        "bundle": trial.bundle_uri,
        "created_at": iso(trial.created_at),
        "finished_at": iso(trial.finished_at),
        "due_at": iso(trial.due_at),
    }


def lost_work_s(runs: Iterable[Run]) -> float | None:
    """Seconds of training that were lost when runs were cut. None if runs were cut and no loss is known yet."""
    every = list(runs)
    known = [run.lost_work_s for run in every if run.lost_work_s is not None]
    return None if lost_work_unknown_runs(every) and not known else math.fsum(known)


def lost_work_unknown_runs(runs: Iterable[Run]) -> int:
    """How many cut runs have an unknown loss; if there are any, more was lost than `lost_work_s` says."""
    return sum(run.end in (RunEnd.INTERRUPTED, RunEnd.RESTARTED) and run.lost_work_s is None for run in runs)


def total(amounts: Iterable[int | None]) -> int | None:
    """The sum of the known amounts; None if there are amounts and none is known yet."""
    items = list(amounts)
    known = [amount for amount in items if amount is not None]
    return None if items and not known else sum(known)


def simulated(study: Study) -> bool:
    """Whether dollars are simulated: those of a local study are list prices that nobody pays."""
    return study.backend == "local"


def saved_pct(spend_microusd: int, on_demand_microusd: int) -> float | None:
    """The share of the on-demand price that spot saved, in percent; None before anything was billed."""
    if on_demand_microusd <= 0:
        return None
    return round(100 * (1 - spend_microusd / on_demand_microusd), 2)


def usd(microusd: int | None) -> float | None:
    return None if microusd is None else microusd / _MICRO


def finite(value: float | None) -> float | None:
    """The value, or None if JSON cannot hold it."""
    return value if value is not None and math.isfinite(value) else None


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with a Z, as the job service writes it."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _engine(study: Study, now: datetime, gone: Callable[[Holder], bool] | None) -> View:
    holder = study.holder
    leased = holder is not None and study.lease_expires_at is not None and study.lease_expires_at > now
    dead = holder is not None and gone is not None and gone(holder)
    return {
        "host": holder.host if holder else None,
        "pid": holder.pid if holder else None,
        "last_tick": iso(study.last_tick_at),
        "alive": leased and not dead,
    }


def _best(store: "Store", study: Study, spec: StudySpec) -> Json:
    several = len(spec.objectives) > 1
    best = best_trials(store, study, spec, spec.trials if several else 1)
    entries: list[Json] = [_best_entry(trial, several=several) for trial in best]
    return entries if several else next(iter(entries), None)


def _best_entry(trial: Trial, *, several: bool) -> View:
    values = [finite(value) for value in trial.values or ()]
    shown: View = {"values": list(values)} if several else {"value": values[0]}
    return {"number": trial.number, **shown, "params": {k: _param(v) for k, v in trial.params.items()}}


def _deadline(study: Study, spec: StudySpec) -> str | None:
    if spec.budget.deadline_s is None:
        return None
    return iso(study.created_at + timedelta(seconds=spec.budget.deadline_s))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _param(value: Json) -> Json:
    return finite(value) if isinstance(value, float) else value


def _capacity(of: Attempt | Pool) -> str:
    return "spot" if of.spot else "on-demand"


def _run_view(run: Run) -> View:
    return {
        "attempt": run.attempt,
        "run": run.number,
        "resumed_from_step": run.resumed_from_step,
        "resumed_from_older": went_back(run),
        "resume_step": run.resume_step,
        "first_step": run.first_step,
        "last_step": run.last_step,
        "started": iso(run.started_at),
        "ended": iso(run.ended_at),
        "end": run.end.value if run.end else None,
        "restarted_from_zero": run.restarted_from_zero,
        "lost_work_s": run.lost_work_s,
    }


def _job_view(attempt: Attempt) -> View:
    return {
        "attempt": attempt.number,
        "name": attempt.job_name,
        "arn": attempt.arn,
        "state": attempt.state.value,
        "end": attempt.end.value if attempt.end else None,
        "billable_s": attempt.billable_s,
    }


def attempt_view(attempt: Attempt, runs: Sequence[Run]) -> View:
    own = [run for run in runs if run.attempt == attempt.number]
    return _job_view(attempt) | {
        "reason": attempt.reason,
        "stop_reason": attempt.stop_reason.value if attempt.stop_reason else None,
        "instance": attempt.instance_type,
        "instance_count": attempt.instance_count,
        "capacity": _capacity(attempt),
        "usd_per_hour": usd(attempt.rate_microusd_per_h),
        "created_at": iso(attempt.created_at),
        "submitted_at": iso(attempt.submitted_at),
        "ended_at": iso(attempt.ended_at),
        "interruptions": attempt.interruptions,
        "restarts": attempt.restarts,
        "refusals": attempt.refusals,
        "startup_s": attempt.startup_s,
        "training_s": attempt.training_s,
        "upload_s": attempt.upload_s,
        "lost_work_s": lost_work_s(own),
        "lost_work_unknown_runs": lost_work_unknown_runs(own),
        "reserved_usd": usd(attempt.reserved_microusd),
        "estimated_usd": usd(attempt.estimated_microusd) if attempt.live else None,
        "spend_usd": usd(attempt.spend_microusd),
        "on_demand_usd": usd(attempt.on_demand_microusd),
        "runs": [_run_view(run) for run in own],
    }


def _event_view(event: Event, options: Options) -> View:
    details: Mapping[str, Json] = event.details
    reported = sentence(event)
    return {
        "seq": event.seq,
        "kind": event.kind,
        "level": reported[0] if reported else None,
        "text": render(reported[1], options) if reported else None,
        "attempt": event.attempt,
        "before": event.before,
        "after": event.after,
        "recorded_at": iso(event.recorded_at),
        "happened_at": iso(event.happened_at),
        "details": dict(details),
    }
