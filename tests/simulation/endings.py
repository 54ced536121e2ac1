"""What must hold once a story is over: everything has ended, and what is told of it is what happened.

8 everything_ends; 6 runs_are_proven, against what the cloud itself did; 3 view_is_the_rows, built again;
values_are_true; rest_for_budget_is_due; and `store_check`, which is what `tuner status --check` asks.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.simulation.broken import Broken
from tests.simulation.invariants import parsed
from tuner.core.records import NO_STEP, Attempt, Study, StudyState, Trial, TrialState
from tuner.operations.backend import make_proposer
from tuner.search.recorded import view_rows
from tuner.store.check import check as check_store

if TYPE_CHECKING:
    from tests.simulation.soak import Soak

# So much of a budget is spent by stories that come close to it.
_NEARLY = 0.75


def check(soak: "Soak") -> None:
    """Everything, once the story is over."""
    trials, attempts = soak.store.trials(soak.study.id), soak.store.attempts(soak.study.id)
    findings = {
        "store_check": iter(check_store(soak.store, soak.study.id)),
        "everything_ends": _everything_ends(soak, trials, attempts),
        "runs_are_proven": _runs_are_proven(soak, trials),
        "values_are_true": _values_are_true(soak, trials),
        "view_is_the_rows": _rebuilt_view_is_the_rows(soak),
    }
    for name, lines in findings.items():
        for line in lines:
            raise Broken(name, line)


def at_rest(soak: "Soak") -> None:
    """Whenever an engine leaves since the study rests."""
    study = soak.store.study_by_id(soak.study.id)
    if study.state in (StudyState.OUT_OF_BUDGET, StudyState.PAST_DEADLINE):
        soak.limits.add(f"limit:{study.state}")
    if study.state is StudyState.OUT_OF_BUDGET:
        for line in _rest_for_budget_is_due(soak, study):
            raise Broken("rest_for_budget_is_due", line)


def _everything_ends(soak: "Soak", trials: list[Trial], attempts: list[Attempt]) -> Iterator[str]:
    """8: every trial is terminal, or the study is at a limit; no job is left behind."""
    study = soak.store.study_by_id(soak.study.id)
    yield from (f"job {job.name} is left behind" for job in soak.jobs.values() if not job.status.final)
    yield from (f"{attempt.job_name} is still {attempt.state}" for attempt in attempts if attempt.live)
    if study.state.active:
        yield f"the study is still {study.state}"
    if study.state.ended:
        yield from (
            f"trial {t.number} is {t.state} in a study that is {study.state}" for t in trials if not t.state.terminal
        )
    if study.state == "finished" and not study.exhausted and len(trials) < parsed(study.spec).trials:
        yield f"finished after {len(trials)} trials of {parsed(study.spec).trials}"


def _runs_are_proven(soak: "Soak", trials: list[Trial]) -> Iterator[str]:
    """6: where each run started, against what the cloud itself did."""
    for trial in trials:
        lies = soak.cloud.prefixes[trial.prefix]
        records = {record.run: record for record in lies.records}
        firsts: dict[str, int] = {}
        for point in lies.points:
            if point.step is not None:
                firsts.setdefault(point.run, point.step)
        for run in soak.store.runs(soak.study.id, trial=trial.number):
            record = records.get(run.run_id or "")
            if record is None:
                if trial.state.terminal:
                    yield f"run {run.attempt}.{run.number} of trial {trial.number} has no record: {run}"
                continue
            earlier = [step for name, step in firsts.items() if name < record.run]
            first = firsts.get(record.run)
            told = (run.started_at, run.resume_step, run.first_step)
            if trial.state.terminal and told != (record.started_at, record.resume_step, first):
                yield f"trial {trial.number}: {run} is told, {record} with first step {first} is true"
            if run.resumed_from_step is not None and first is not None and run.resumed_from_step != first - 1:
                yield f"trial {trial.number}: {run} did not resume there, its first step is {first}"
            again = bool(record.own_files and earlier and first is not None and first <= min(earlier))
            if trial.state.terminal and bool(run.restarted_from_zero) != again:
                yield f"trial {trial.number}: {run}, restarted: {again}, {record}, {earlier}, {first}"


def _values_are_true(soak: "Soak", trials: list[Trial]) -> Iterator[str]:
    """A trial's value is its metric at the highest step, of the later run where there are several."""
    for trial in trials:
        if trial.state is not TrialState.SUCCEEDED:
            continue
        points = soak.cloud.prefixes[trial.prefix].points
        highest = max(NO_STEP if point.step is None else point.step for point in points)
        last = [p.value for p in points if (NO_STEP if p.step is None else p.step) == highest][-1]
        if trial.values != (last,):
            yield f"trial {trial.number} is worth {trial.values}, its last value is {last}"


def _rest_for_budget_is_due(soak: "Soak", study: Study) -> Iterator[str]:
    """What is left over when a study rests for lack of budget pays for no trial that waits, nor for a new one.

    This holds for every type of which the account allows an instance.
    """
    spec, attempts = parsed(study.spec), soak.store.attempts(study.id)
    if live := [attempt.job_name for attempt in attempts if attempt.live]:
        yield f"it rests, and {live} may still bill"
        return
    left = spec.budget.microusd - sum(attempt.spend_microusd for attempt in attempts)
    if left < (1 - _NEARLY) * spec.budget.microusd:
        soak.limits.add("limit:budget nearly used up")
    shut = {kind for kind, _, instances, _ in study.attrs.get("tuner:limits", []) if instances < 1}
    cheapest = min(rate for kind, rate in soak.rates.items() if kind not in shut or shut >= soak.rates.keys())
    trials = soak.store.trials(study.id)
    used_s = {trial.number: 0.0 for trial in trials if not trial.state.terminal}
    for attempt in attempts:
        if attempt.trial in used_s:
            used_s[attempt.trial] += attempt.run_s
    if not used_s and len(trials) < spec.trials:
        used_s[len(trials)] = 0.0  # a new one
    for number, seconds in used_s.items():
        due = math.ceil((spec.reservation_s - math.floor(seconds)) * cheapest / 3600)
        if left >= due:
            yield f"{left} are left over, trial {number} reserves {due}"


def _rebuilt_view_is_the_rows(soak: "Soak") -> Iterator[str]:
    """3: a restart would build what the rows say."""
    process = soak.last_process
    if process is None or process.fenced:
        return
    fresh = make_proposer(process.engine.live.spec)
    study = soak.store.study_by_id(soak.study.id)
    fresh.rebuild(view_rows(soak.store, study, parsed(study.spec)), study.attrs)
    shown = [
        [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in each.get_trials(deepcopy=False)]
        for each in (fresh.study, process.engine.live.proposer.study)
    ]
    if shown[0] != shown[1] and not process.died:
        yield "the view in memory differs from one built from the rows"
