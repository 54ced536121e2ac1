"""The fault menu: every kind of misfortune that can be planned, by name.

Each is a function of the story and a random source that only it draws from. It either happens at once, or is armed
and happens when its moment comes; `Soak.hit` is called when it really happened. What a script or a setting does wrong
is no entry here: it is drawn with the scenario, and counted by `stats_of`.
"""

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.factories import job_request
from tests.simulation.world import answer_lost
from tuner.core.jobs import (
    DIGEST_VARIABLE,
    CapacityUnavailable,
    CredentialsRefused,
    JobRequest,
    RequestRejected,
    ServiceUnavailable,
    Throttled,
    job_name,
)
from tuner.core.records import Intent, StopReason
from tuner.simulator.parts import SimulatedFaults, SimulatedJob

if TYPE_CHECKING:
    from tests.simulation.soak import Soak

_Fault = Callable[["Soak", random.Random], None]

COMMITS = ("before observed", "after observed", "before intended", "after intended", "before acted", "after acted")
CRASH_POINTS = (*COMMITS, "before create", "after create", "before stop", "after stop")
_EVERYWHERE = (Throttled, ServiceUnavailable, CredentialsRefused)
_ERRORS = {
    "create": (*_EVERYWHERE, CapacityUnavailable, RequestRejected),
    "describe": _EVERYWHERE,
    "list": _EVERYWHERE,
    "stop": _EVERYWHERE,
    "read": (OSError,),
}


def _refusal(kind: str, call: str, error: type[Exception]) -> _Fault:
    def plan(soak: "Soak", rng: random.Random) -> None:
        for _ in range(rng.choice((1, 1, 2, 5))):
            soak.refusals.plan(kind, call, error(f"{call}: refused by the simulation"))

    return plan


def _lost(kind: str, call: str) -> _Fault:
    return lambda soak, _rng: soak.refusals.plan(kind, call, answer_lost(call), lost=True)


def _lost_then_rejected(soak: "Soak", _rng: random.Random) -> None:
    """What is refused the second time was accepted the first."""
    soak.refusals.plan("lost:create then rejected", "create", answer_lost("create"), lost=True)
    soak.refusals.plan("lost:create then rejected", "create", RequestRejected("create: refused by the simulation"))


def _lost_then_at_quota(soak: "Soak", _rng: random.Random) -> None:
    """The job exists, and uses up the quota for which the second call is refused."""
    soak.refusals.plan("lost:create then at quota", "create", answer_lost("create"), lost=True)
    full = CapacityUnavailable("create: refused by the simulation", limit=1)
    soak.refusals.plan("lost:create then at quota", "create", full)


def _lists(kind: str) -> _Fault:
    def plan(soak: "Soak", rng: random.Random) -> None:
        if kind == "list:lags":
            soak.cloud.faults = SimulatedFaults(lagging=1.0, lag_s=rng.choice((60.0, 600.0)))
        else:
            soak.cloud.faults = SimulatedFaults(repeated=1.0)
        soak.list_fault = kind
        soak.after(rng.uniform(120, 900), soak.lists_recover)

    return plan


# --- capacity


def _live(soak: "Soak", rng: random.Random, *, up: bool = False) -> SimulatedJob | None:
    found = [j for j in soak.jobs.values() if not j.status.final and j.request.spot and (j.up_since or not up)]
    return rng.choice(found) if found else None


def _interrupt_one(soak: "Soak", rng: random.Random) -> None:
    job = _live(soak, rng, up=True)
    if job is not None and job.up_since is not None:
        soak.cloud.interrupt(job.name)
        soak.hit("interrupt:one")


def _interrupt_pool(soak: "Soak", _rng: random.Random) -> None:
    up = [job for job in soak.jobs.values() if job.up_since is not None and not job.status.final and job.request.spot]
    soak.cloud.interrupt()
    if up:
        soak.hit("interrupt:pool")


def _interrupt_in(kind: str, status: str, within_s: float) -> _Fault:
    """A job that is alive, or one that is yet to come, is interrupted soon after it enters `status`."""

    def plan(soak: "Soak", rng: random.Random) -> None:
        job = _live(soak, rng)
        name = job.name if job else _next_name(soak, rng)
        soak.trap(kind, name, status, rng.uniform(0, within_s))

    return plan


def _interrupt_checkpointing(soak: "Soak", rng: random.Random) -> None:
    """Between the metric of a step and its checkpoint being complete."""
    job = _live(soak, rng)
    if job is not None and job.script.save_s and job.script.checkpoint_every == 1:
        soak.trap("interrupt:checkpointing", job.name, "Training", job.script.step_s + job.script.save_s / 2)


def _next_name(soak: "Soak", rng: random.Random) -> str:
    """The name of a job that may come: of a new trial, or of the next attempt of one."""
    trials = soak.store.trials(soak.study.id)
    names = [job_name(soak.study.key, len(trials), 1)]
    names += [job_name(soak.study.key, t.number, t.attempts + 1) for t in trials if not t.state.terminal]
    return rng.choice(names)


# --- engine, store, clock


def _death(kind: str, point: str) -> _Fault:
    return lambda soak, rng: soak.arm(point, kind, skip=rng.choice((0, 0, 1, 5)))


def _death_in_wait(soak: "Soak", _rng: random.Random) -> None:
    soak.die("death:waiting")


def _suspension(kind: str, point: str) -> _Fault:
    return lambda soak, _rng: soak.arm(point, kind)


def _suspended_in_wait(soak: "Soak", rng: random.Random) -> None:
    soak.suspend("suspended:waiting", takes_over=rng.random() < 0.7)


def _second_engine(soak: "Soak", _rng: random.Random) -> None:
    soak.second_engine()


def _store_down(soak: "Soak", rng: random.Random) -> None:
    soak.store_down_until = soak.clock.now() + timedelta(seconds=rng.choice((20, 60, 60, 300)))


def _commit_fault(kind: str) -> _Fault:
    def plan(soak: "Soak", _rng: random.Random) -> None:
        soak.commit_fault = kind

    return plan


def _clock_jump(sign: int) -> _Fault:
    def plan(soak: "Soak", rng: random.Random) -> None:
        # half of them longer than any `stall_after`
        soak.skew += sign * timedelta(seconds=rng.choice((1, 45, 150, 400, 1500, 1500, 1500, 1500)))
        soak.hit("clock:forward" if sign > 0 else "clock:back")

    return plan


# --- the user


def _set(kind: str) -> _Fault:
    def plan(soak: "Soak", rng: random.Random) -> None:
        spec = soak.spec()
        dollars = round(rng.uniform(0.2, 4.0), 2)
        values = {
            "set:parallel": {"parallel": str(rng.randint(1, 4))},
            "set:trials": {"trials": str(rng.randint(1, 8))},
            "set:budget": {"budget.usd": str(dollars)},
            "set:trial_budget": {"budget.per_trial_usd": str(rng.choice((0.05, 0.3, 2)))},
            "set:deadline": {"budget.deadline": rng.choice(("30m", "2h", "9h"))},
            # what a verb of another version, or one that raced with a changed study, may have left
            "set:impossible": {"budget.usd": "0.0001"} if spec.budget.usd else {"training.max_run": "1h"},
        }[kind]
        soak.request("set", values, kind, unchecked=kind == "set:impossible")

    return plan


def _intent(verb: str, intent: Intent) -> _Fault:
    return lambda soak, _rng: soak.request(verb, {"intent": intent.value}, f"user:{intent}")


def _cancel(soak: "Soak", rng: random.Random) -> None:
    if rng.random() < 0.5:  # or too few stories would go on
        soak.request("cancel", {"intent": "cancel"}, "user:cancel")


# --- others who have a hand in the account


def _on_job(kind: str, act: Callable[["Soak", SimulatedJob, random.Random], None]) -> _Fault:
    def plan(soak: "Soak", rng: random.Random) -> None:
        alive = [job for job in soak.jobs.values() if not job.status.final]
        if alive:
            act(soak, rng.choice(alive), rng)
            soak.hit(kind)

    return plan


def _unforeseen(soak: "Soak", job: SimulatedJob, rng: random.Random) -> None:
    soak.cloud.show(job.name, rng.choice(("Pondering", "Levitating", job.secondary)))  # or once more what it is


def _restarted(soak: "Soak", rng: random.Random) -> None:
    up = [job for job in soak.jobs.values() if job.up_since is not None and job.secondary == "Training"]
    if up:
        soak.cloud.restart(rng.choice(up).name)
        soak.hit("job:restarted")


def _deleted(soak: "Soak", job: SimulatedJob, rng: random.Random) -> None:
    """Only a job that has ended can be deleted: it ends by itself, or somebody ends it, and the engine sees neither."""
    if rng.random() < 0.5:
        soak.cloud.fail(job.name, "InternalServerError: before it was deleted")
        soak.delete(job.name)
    else:
        soak.cloud._stop(job, "Stopped")
        soak.after(rng.choice((125.0, 300.0)), lambda: soak.delete(job.name))


def _fails(reason: str) -> Callable[["Soak", SimulatedJob, random.Random], None]:
    return lambda soak, job, _rng: soak.cloud.fail(job.name, reason)


def _foreign(soak: "Soak", rng: random.Random) -> None:
    name = _next_name(soak, rng)
    if name in soak.cloud.jobs:
        return
    soak.foreign.add(name)
    soak.cloud.jobs[name] = SimulatedJob(
        request=_foreign_request(name),
        script=soak.scenario.scripts(_foreign_request(name)),
        arn=f"arn:aws:sagemaker:us-east-1:000000000000:training-job/{name}",
        created_at=soak.clock.now(),
    )
    soak.cloud._row(soak.cloud.jobs[name], "Starting")


def _foreign_request(name: str) -> JobRequest:
    return job_request(
        name,
        environment={DIGEST_VARIABLE: "somebody else's"},
        checkpoint_uri="s3://elsewhere/",
        output_uri="s3://elsewhere/",
        instance_type="ml.m5.xlarge",
        spot=False,
        max_run_s=60,
    )


def _menu() -> Iterator[tuple[str, _Fault]]:
    for call, errors in _ERRORS.items():
        for error in errors:
            kind = f"api:{call}:{error.__name__}"
            yield kind, _refusal(kind, call, error)
    yield "lost:create", _lost("lost:create", "create")
    yield "lost:create then rejected", _lost_then_rejected
    yield "lost:create then at quota", _lost_then_at_quota
    yield "lost:stop", _lost("lost:stop", "stop")
    yield "list:lags", _lists("list:lags")
    yield "list:repeats", _lists("list:repeats")
    yield "interrupt:one", _interrupt_one
    yield "interrupt:pool", _interrupt_pool
    yield "interrupt:starting", _interrupt_in("interrupt:starting", "Downloading", 10.0)
    yield "interrupt:training", _interrupt_in("interrupt:training", "Training", 60.0)
    yield "interrupt:uploading", _interrupt_in("interrupt:uploading", "Uploading", 1.0)
    yield "interrupt:stopping", _interrupt_in("interrupt:stopping", "Stopping", 0.9)
    yield "interrupt:checkpointing", _interrupt_checkpointing
    for point in CRASH_POINTS:
        yield f"death:{point}", _death(f"death:{point}", point)
    yield "death:waiting", _death_in_wait
    for point in COMMITS:
        yield f"suspended:{point}", _suspension(f"suspended:{point}", point)
        yield f"late:{point}", _suspension(f"late:{point}", point)
    yield "suspended:waiting", _suspended_in_wait
    yield "second engine", _second_engine
    yield "store:down", _store_down
    yield "store:lost before commit", _commit_fault("store:lost before commit")
    yield "store:lost after commit", _commit_fault("store:lost after commit")
    yield "store:sent twice", _commit_fault("store:sent twice")
    yield "clock:forward", _clock_jump(1)
    yield "clock:back", _clock_jump(-1)
    for key in ("parallel", "trials", "budget", "trial_budget", "deadline", "impossible"):
        yield f"set:{key}", _set(f"set:{key}")
    for intent in (Intent.STOP, Intent.STOP_NOW, Intent.DRAIN):
        yield f"user:{intent}", _intent("stop", intent)
    yield "user:cancel", _cancel
    yield "user:resume", lambda soak, _rng: soak.resume()
    yield "job:unforeseen", _on_job("job:unforeseen", _unforeseen)
    yield "job:restarted", _restarted
    yield "job:stopped", _on_job("job:stopped", lambda soak, job, _rng: soak.cloud._stop(job, "Stopped"))
    yield "job:deleted", _on_job("job:deleted", _deleted)
    yield "job:foreign", _foreign
    for reason in ("CapacityError", "InternalServerError", "AlgorithmError"):
        yield f"job:{reason}", _on_job(f"job:{reason}", _fails(f"{reason}: by the simulation"))


MENU: dict[str, _Fault] = dict(_menu())

# The faults that a seed draws from, by the number of the menu. A story depends on all of them: a new fault comes with a
# new menu, so that the seeds of the old ones keep their stories and verdicts.
MENUS: dict[int, tuple[str, ...]] = {1: tuple(MENU)}

# What comes with the scenario, not at a moment.
STANDING = (
    "cycle",
    "drought:long",
    "drought:often",
    "drought:storm",
    "drought:trace",
    "drought:one pool",
    "script:torn",
    "script:sync stops",
    "script:hangs",
    "script:ignores SIGTERM",
    "script:fails",
    "script:starts over",
    "script:goes back",
    "script:no metric",
    "script:no steps",
    "script:no manifests",
    "script:never saves",
    "port:refused",
    "port:lost",
    "switch:max_run_per_run=False",
    "switch:max_run_per_run=True",
    "switch:starting_after_interruption=False",
    "switch:starting_after_interruption=True",
    "switch:quota",
    "switch:quota of one type",
    "switch:no quota for one type",
    "switch:on-demand",
    "pool:on demand after losses",
    "pool:moved",
    "pool:rerouted",
    "limit:out_of_budget",
    "limit:past_deadline",
    "limit:budget nearly used up",
)


def stats_of(soak: "Soak") -> Iterator[str]:
    """Which misfortunes of the scenario some job has met."""
    jobs, settings = list(soak.jobs.values()), soak.cloud.settings
    for job in jobs:
        yield from _of_script(job)
        if any("Insufficient capacity" in row.message for row in job.history) and soak.scenario.drought:
            yield soak.scenario.drought
            if job.request.instance_type in soak.scenario.pools:
                yield "drought:one pool"
    if any(job.runs > 1 for job in jobs):
        yield f"switch:max_run_per_run={settings.max_run_per_run}"
        yield f"switch:starting_after_interruption={settings.starting_after_interruption}"
    yield from _of_pools(soak)
    yield from soak.limits
    if soak.scenario.background.refused:
        yield "port:refused"
    if soak.scenario.background.lost:
        yield "port:lost"


def _of_pools(soak: "Soak") -> Iterator[str]:
    spec, attempts = soak.spec(), soak.store.attempts(soak.study.id)
    refused = {attempt.instance_type for attempt in attempts if attempt.refusals}
    refused |= {kind for kind, _ in soak.invariants.rerouted}
    told = soak.scenario.settings
    met = {
        "switch:quota": told.quota is not None and bool(refused),
        "switch:quota of one type": any(told.quotas.get(each) for each in refused),
        "switch:no quota for one type": any(told.quotas.get(each) == 0 for each in refused),
        "switch:on-demand": spec.capacity.policy == "on-demand" and bool(attempts),
        "pool:on demand after losses": spec.capacity.policy == "spot" and not all(each.spot for each in attempts),
        "pool:moved": any(
            before.stop_reason is StopReason.MOVE and after.spot and before.trial == after.trial
            for before, after in pairwise(attempts)
        ),
        "pool:rerouted": bool(soak.invariants.rerouted),
    }
    return (kind for kind, yes in met.items() if yes)


def _of_script(job: SimulatedJob) -> Iterator[str]:
    script, trained = job.script, job.runs > 0
    lost_some = any(row.status == "Interrupted" for row in job.history)
    met = {
        "script:torn": script.torn and lost_some,
        "script:sync stops": script.sync_stops_after is not None and job.step > script.sync_stops_after,
        "script:hangs": script.hangs_after is not None and job.step == script.hangs_after,
        "script:ignores SIGTERM": script.ignores_sigterm and any(row.status == "Stopping" for row in job.history),
        "script:fails": bool(script.failure) and job.failure == script.failure,
        "script:starts over": not script.resumes and job.runs > 1,
        "script:goes back": script.resumes and script.behind > 0 and job.runs > 1,
        "script:no metric": script.metric is None and trained,
        "script:no steps": not script.numbered and trained,
        "script:no manifests": not script.manifests and trained,
        "script:never saves": script.checkpoint_every == 0 and trained,
    }
    return (kind for kind, yes in met.items() if yes)
