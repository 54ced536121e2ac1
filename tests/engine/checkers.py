"""The invariants of a sweep, each a named checker that looks from outside: cloud, store and view side by side."""

from sweeps import Sweep

from tuner.core.prices import cost_microusd
from tuner.core.records import AttemptState, TrialState
from tuner.operations.backend import make_proposer
from tuner.search.recorded import earlier_rows, view_rows
from tuner.store.check import check as check_store


def store_holds(sweep: Sweep) -> list[str]:
    return list(check_store(sweep.store, sweep.study.id))


def every_job_is_an_attempt(sweep: Sweep) -> list[str]:
    names = {attempt.job_name for attempt in sweep.attempts()}
    return [f"job {name} belongs to no attempt" for name in sweep.cloud.jobs if name not in names]


def one_live_job_per_trial(sweep: Sweep) -> list[str]:
    live: dict[str, int] = {}
    for job in sweep.cloud.jobs.values():
        if not job.status.final:
            live[job.request.checkpoint_uri] = live.get(job.request.checkpoint_uri, 0) + 1
    return [f"{count} live jobs write to {prefix}" for prefix, count in live.items() if count > 1]


def parallel_is_kept(sweep: Sweep) -> list[str]:
    live = sum(attempt.live for attempt in sweep.attempts())
    jobs = sum(not job.status.final for job in sweep.cloud.jobs.values())
    return [
        f"{count} in flight, {sweep.spec.parallel} allowed" for count in (live, jobs) if count > sweep.spec.parallel
    ]


def ledger_is_the_bill(sweep: Sweep) -> list[str]:
    """Every ended attempt that had a job is booked with exactly what the cloud bills."""
    found = []
    for attempt in sweep.attempts():
        if attempt.state is not AttemptState.ENDED or attempt.job_name not in sweep.cloud.jobs:
            continue
        bill = sweep.cloud.bill(attempt.job_name)
        billed = cost_microusd(bill.billable_s or 0, bill.instance_count, attempt.rate_microusd_per_h)
        if attempt.spend_microusd != billed:
            found.append(f"{attempt.job_name}: booked {attempt.spend_microusd}, billed {billed}")
    return found


def budget_is_kept(sweep: Sweep) -> list[str]:
    if sweep.spec.budget.microusd is None:
        return []
    spent = sum(
        cost_microusd(sweep.cloud.bill(attempt.job_name).billable_s or 0, 1, attempt.rate_microusd_per_h)
        for attempt in sweep.attempts()
        if attempt.job_name in sweep.cloud.jobs
    )
    return [f"spent {spent} of {sweep.spec.budget.microusd}"] if spent > sweep.spec.budget.microusd else []


def interruptions_are_counted(sweep: Sweep) -> list[str]:
    found = []
    for attempt in sweep.attempts():
        job = sweep.cloud.jobs.get(attempt.job_name)
        if attempt.live or job is None:
            continue
        happened = sum(row.status == "Interrupted" for row in job.history)
        if attempt.interruptions != happened:
            found.append(f"{attempt.job_name}: {attempt.interruptions} counted, {happened} happened")
    return found


def view_is_the_rows(sweep: Sweep, engine) -> list[str]:
    """What the sampler sees in memory is what it would see after a restart."""
    fresh = make_proposer(sweep.spec)
    study = sweep.store.study_by_id(sweep.study.id)
    fresh.rebuild(view_rows(sweep.store, study, sweep.spec), study.attrs, earlier_rows(sweep.store, study))

    def shown(proposer):
        return [
            (trial.number, trial.state, trial.params, trial.values, trial.intermediate_values)
            for trial in proposer.study.get_trials(deepcopy=False)
        ]

    return [] if shown(fresh) == shown(engine.live.proposer) else ["the view in memory differs from the rows"]


OUTSIDE = (
    store_holds,
    every_job_is_an_attempt,
    one_live_job_per_trial,
    parallel_is_kept,
    ledger_is_the_bill,
    budget_is_kept,
    interruptions_are_counted,
)


def broken(sweep: Sweep) -> list[str]:
    """Everything that does not hold now."""
    return [f"{checker.__name__}: {line}" for checker in OUTSIDE for line in checker(sweep)]


def terminal(sweep: Sweep) -> bool:
    return all(trial.state.terminal for trial in sweep.trials())


def succeeded(sweep: Sweep) -> list[int]:
    return [trial.number for trial in sweep.trials() if trial.state is TrialState.SUCCEEDED]
