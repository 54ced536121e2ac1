"""`python -m tests.simulation.mutations`: what the soak is worth.

Each rule that guards lives or money is broken on purpose, one at a time, in memory; the soak has to find it, and the
table says by which invariant and after how many seeds. A rule whose removal nobody notices is not tested.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import sqlalchemy as sa

from tests.simulation.soak import Outcome, run
from tuner.core.jobs import JobError
from tuner.core.policy import budget, history, placement
from tuner.core.policy import stopping as stop_rules
from tuner.core.records import AttemptEnd, Lease
from tuner.engine import ending, engine, jobs, live_study, live_trial, liveness, observe, stopping, unit_of_work
from tuner.engine.dispatch import Dispatcher
from tuner.engine.engine import Engine
from tuner.operations import reconcile
from tuner.search import proposer
from tuner.search.proposer import Delta
from tuner.spec import workload
from tuner.store import rows, tables
from tuner.store.store import Store

SEEDS_MAX = 200


@dataclass(frozen=True, slots=True)
class Mutation:
    rule: str
    broken: str  # how
    patch: Callable[[], mock._patch]


@contextmanager
def _both(*patches: mock._patch) -> Iterator[None]:
    with patches[0], patches[1]:
        yield


# --- guarded transition


def _without_guard():
    table, key = tables.attempts, ("study_id", "trial", "number")
    statement = sa.update(table).where(*(table.c[name] == sa.bindparam(f"was_{name}") for name in key))
    return mock.patch.object(rows, "UPDATE_ATTEMPT", statement)


# --- budget


def _reserves_nothing():
    return mock.patch.object(live_study.LiveStudy, "fits", return_value=True)


def _rests_for_the_type_it_prefers():
    """Though another one fits."""

    def fits_budget(self, trial):
        on_demand = self.goes_on_demand(trial)
        attempts = [] if trial is None else trial.attempts
        pool = placement.choose_pool(attempts, self.policy, self.snapshot, on_demand=on_demand)
        return pool is None or self._pays(trial)(pool)

    return mock.patch.object(live_study.LiveStudy, "fits_budget", fits_budget)


def _forgets_what_is_in_flight():
    return mock.patch.object(live_study.LiveStudy, "reserved_in_flight_microusd", 0)


def _reserves_less():
    """Without what may pass between the wish to stop and the end of the upload."""

    def reservation(run_s, rate, policy):
        return int(run_s * policy.instance_count * rate // 3600)

    return mock.patch.object(budget, "reservation_microusd", reservation)


def _parallel_by_one_too_many():
    return mock.patch.object(live_study.LiveStudy, "in_flight", property(_one_fewer))


def _one_fewer(self) -> int:
    return sum(trial.attempt is not None for trial in self.trials.values()) - 1


def _keeps_the_reservation_of_the_first_type():
    return mock.patch.object(
        live_study.LiveStudy, "reservation_instead", lambda _self, trial, _pool: trial.attempts[-1].reserved_microusd
    )


def _lets_jobs_run_on():
    """Where the service counts each run separately, nobody ends them before `max_wait` does."""
    return mock.patch.object(stop_rules, "has_run_out", return_value=False)


# --- pools


def _ignores_quotas():
    return mock.patch.object(placement.CapacitySnapshot, "has_room", return_value=True)


def _changes_the_type_of_a_job_that_may_exist():
    # either rule alone is enough: who asks first seldom meets such a job, who meets one books it as it is
    as_recorded = mock.patch.object(Dispatcher, "_where_it_is", lambda _self, trial, _seen: trial.attempts[-1])
    return _both(mock.patch.object(Dispatcher, "_certainly_none", return_value=True), as_recorded)


def _stays_on_spot():
    return mock.patch.object(placement, "goes_on_demand", lambda _attempts, policy, **_: not policy.spot)


def _goes_on_demand_unasked():
    original = placement.goes_on_demand

    def goes(attempts, policy, **known):
        return placement.losses(attempts) > 1 or original(attempts, policy, **known)

    return mock.patch.object(placement, "goes_on_demand", goes)


# --- the name rule


def _random_names():
    numbers, original = itertools.count(), workload.job_request

    def request(*args):
        made = original(*args)
        return replace(made, name=f"{made.name}-{next(numbers)}")

    return mock.patch.object(workload, "job_request", request)


def _acts_before_it_records():
    original = Engine._commit

    def commit(self, unit, point):
        if point == "intended":
            Dispatcher(
                self.live, self._services.jobs, self._unit(unit.now), may_send=lambda: True, crash_point=lambda _: None
            ).act()
        original(self, unit, point)

    return mock.patch.object(Engine, "_commit", commit)


def _gives_up_on_unknown_outcomes():
    def postpone(self, trial, error):
        self._unit.end_unsubmitted(trial, AttemptEnd.CAPACITY, str(error))

    return mock.patch.object(Dispatcher, "_postpone", postpone)


def _adopts_whatever_has_the_name():
    original = Dispatcher._find

    def find(self, trial, end, reason):
        jobs = self._jobs
        digest = trial.attempts[-1].digest
        self._jobs = mock.Mock(describe=lambda name: replace(jobs.describe(name), digest=digest))
        try:
            original(self, trial, end, reason)
        finally:
            self._jobs = jobs

    return mock.patch.object(Dispatcher, "_find", find)


# --- the lease


def _ignores_the_fence():
    def renew(self, lease: Lease, *, now, period_s):
        return lease

    return _both(mock.patch.object(Store, "renew", renew), mock.patch.object(Store, "_check_lease", return_value=None))


def _takes_over_the_living():
    original = Store.acquire

    def acquire(self, study_id, holder, *, now, period_s, gone):
        return original(self, study_id, holder, now=now, period_s=period_s, gone=lambda _holder: True)

    return mock.patch.object(Store, "acquire", acquire)


def _lease_ends_between_polls():
    def renew(self):
        self.lease = self._services.store.renew(self.lease, now=self._services.clock.now(), period_s=20.0)

    return mock.patch.object(Engine, "_renew", renew)


# --- the once-only tell


def _tells_twice():
    original = ending.report_end

    def report_end(*args):
        original(*args)
        original(*args)

    return mock.patch.object(ending, "report_end", report_end)


def _tells_at_the_next_tick():
    """Not in the commit that says it."""
    original = ending.report_end

    def report_end(live, unit, trial):
        for each in getattr(live, "late", ()):
            original(*each)
        live.late = [(live, unit, trial)]

    return mock.patch.object(ending, "report_end", report_end)


def _tells_nothing():
    return mock.patch.object(proposer.Proposer, "tell", return_value=Delta({}, {}))


# --- levels, not edges


def _counts_edges():
    original = history.absorb

    def absorb(attempt, seen, now, *, billed_ratio):
        absorbed = original(attempt, seen, now, billed_ratio=billed_ratio)
        edge = seen.secondary == "Interrupted" or absorbed.attempt.state == "interrupted" != attempt.state
        return replace(absorbed, attempt=replace(absorbed.attempt, interruptions=attempt.interruptions + edge))

    return mock.patch.object(history, "absorb", absorb)


# --- what an engine notices


def _takes_every_job_for_stalled():
    return mock.patch.object(
        stop_rules, "RULES", _with_rule("stalled", lambda job: job.policy.stall_after_s is not None)
    )


def _never_finds_a_stall():
    return mock.patch.object(stop_rules, "RULES", _with_rule("stalled", lambda _job: False))


def _with_rule(name, applies):
    """The rules of stopping, with another test in the rule of this name."""
    assert name in {rule.name for rule in stop_rules.RULES}
    return tuple(replace(rule, applies=applies) if rule.name == name else rule for rule in stop_rules.RULES)


def _believes_the_clock():
    """Silence is the clock's time since the last sign, even if the engine was away or the clock was set."""

    def note_silence(trial, _policy, now, *, news):
        last = trial.silence
        sign = (len(trial.attempts), len(trial.runs), trial.checkpoint_step, trial.checkpoint_at)
        begins = news or last.looked_at is None or sign != last.sign
        passed_s = 0.0 if begins else last.lasted_s + (now - last.looked_at).total_seconds()
        trial.silence = live_trial.Silence(now, sign, passed_s)

    return mock.patch.object(liveness, "note_silence", note_silence)


def _never_finds_runs_for_nothing():
    return mock.patch.object(live_trial.LiveTrial, "no_progress", False)


def _never_stops_a_trial_for_its_limit():
    return mock.patch.object(budget, "passes_its_limit", return_value=False)


def _fails_a_trial_for_its_estimate():
    original = budget.has_cost_its_limit

    def reached(attempts, policy):
        return bool(attempts and attempts[-1].stop_reason == "trial_budget") or original(attempts, policy)

    return mock.patch.object(budget, "has_cost_its_limit", reached)


def _begins_again_beyond_the_limit():
    return mock.patch.object(budget, "has_cost_its_limit", return_value=False)


# --- others


def _stops_without_saying_so():
    original = stopping.stop_if_due

    def observe_and_stop(self):
        service = self._jobs._jobs

        def stop_if_due(live, unit, trial):
            original(live, unit, trial)
            attempt = trial.attempt
            if attempt is not None and attempt.stop_reason is not None and attempt.arn is not None:
                service.stop(attempt.job_name)

        with mock.patch.object(stopping, "stop_if_due", stop_if_due):
            observe_all(self)

    observe_all = observe.Observer.observe
    return mock.patch.object(observe.Observer, "observe", observe_and_stop)


def _shares_a_prefix():
    return mock.patch.object(workload, "prefix", lambda spec, key, trial: f"{workload.root(spec)}{key}/")


def _story_runs_back():
    original = unit_of_work.UnitOfWork.__init__

    def start(self, study, *, last_seq, now, recorded_after=None):
        original(self, study, last_seq=last_seq, now=now)

    return mock.patch.object(unit_of_work.UnitOfWork, "__init__", start)


def _fails_what_it_cannot_see():
    """A job whose description is refused is taken for lost."""

    def describe(self, trial):
        attempt = trial.attempts[-1]
        try:
            self._jobs.describe(attempt.job_name)
        except JobError:
            self._end_lost(trial)
            return
        original(self, trial)

    original = jobs.JobObserver._describe
    return mock.patch.object(jobs.JobObserver, "_describe", describe)


def _believes_a_rejection():
    """Though the call before it may have been accepted."""
    original = Dispatcher._find

    def find(self, trial, end, reason):
        if end is AttemptEnd.REJECTED:
            self._unit.end_unsubmitted(trial, end, reason)
        else:
            original(self, trial, end, reason)

    return mock.patch.object(Dispatcher, "_find", find)


def _books_what_was_seen():
    return mock.patch.object(budget, "dearest_s", lambda attempt, _now: round(attempt.run_s))


def _keeps_what_was_withdrawn():
    return mock.patch.object(proposer.Proposer, "withdraw", return_value=None)


def _keeps_its_memory_after_a_failed_commit():
    return mock.patch.object(engine.Engine, "_load", _load_once)


_first_load = Engine._load


def _load_once(self):
    if not hasattr(self, "live"):
        _first_load(self)


def _sends_on_an_old_lease():
    return mock.patch.object(Engine, "_lease_is_good", return_value=True)


def _resumes_what_is_being_cancelled():
    return mock.patch.object(reconcile, "may_go_on", return_value=True)


MUTATIONS = (
    Mutation("guarded transition", "no state, no version in the guard", _without_guard),
    Mutation("budget reservation", "it fits whatever it is", _reserves_nothing),
    Mutation("budget reservation", "what is in flight is forgotten", _forgets_what_is_in_flight),
    Mutation("budget reservation", "only max_run is reserved", _reserves_less),
    Mutation("budget reservation", "another type keeps the first one's", _keeps_the_reservation_of_the_first_type),
    Mutation(
        "budget reservation", "the dearer type that is preferred just now does not fit", _rests_for_the_type_it_prefers
    ),
    Mutation("max_run over all runs", "jobs run on", _lets_jobs_run_on),
    Mutation("quota", "a known one is ignored", _ignores_quotas),
    Mutation("quota", "a job that may exist is given to another type", _changes_the_type_of_a_job_that_may_exist),
    Mutation("on_demand_after", "it stays on spot", _stays_on_spot),
    Mutation("on_demand_after", "it goes without leave", _goes_on_demand_unasked),
    Mutation("parallel", "one too many", _parallel_by_one_too_many),
    Mutation("name rule", "a new name for each call", _random_names),
    Mutation("name rule", "acts before it records", _acts_before_it_records),
    Mutation("name rule", "an unknown outcome uses up the number", _gives_up_on_unknown_outcomes),
    Mutation("name rule", "whatever has the name is adopted", _adopts_whatever_has_the_name),
    Mutation("lease", "the fence is ignored", _ignores_the_fence),
    Mutation("lease", "a live holder is taken over", _takes_over_the_living),
    Mutation("lease", "it is shorter than a poll", _lease_ends_between_polls),
    Mutation("lease", "creates and stops do not look at it", _sends_on_an_old_lease),
    Mutation("once-only tell", "told twice", _tells_twice),
    Mutation("once-only tell", "told after the commit that says it", _tells_at_the_next_tick),
    Mutation("once-only tell", "not told", _tells_nothing),
    Mutation("levels, not edges", "interruptions are counted as they are seen", _counts_edges),
    Mutation("stall", "every job is taken for stalled", _takes_every_job_for_stalled),
    Mutation("stall", "none is found", _never_finds_a_stall),
    Mutation("stall", "a clock that was set is believed", _believes_the_clock),
    Mutation("no progress", "none is found", _never_finds_runs_for_nothing),
    Mutation("limit per trial", "nothing is stopped for it", _never_stops_a_trial_for_its_limit),
    Mutation("limit per trial", "an estimate fails a trial for good", _fails_a_trial_for_its_estimate),
    Mutation("limit per trial", "another job is begun beyond it", _begins_again_beyond_the_limit),
    Mutation("intent before money", "stops before it records", _stops_without_saying_so),
    Mutation("one prefix per trial", "all trials share one", _shares_a_prefix),
    Mutation("time", "a clock that was set back is believed", _story_runs_back),
    Mutation("healthy jobs are never failed", "what cannot be described is lost", _fails_what_it_cannot_see),
    Mutation("healthy jobs are never failed", "a rejection is believed after a lost answer", _believes_a_rejection),
    Mutation("ledger", "a deleted job has cost what was seen of it", _books_what_was_seen),
    Mutation("view", "a number that became none stays", _keeps_what_was_withdrawn),
    Mutation("a cancellation stays", "who resumes goes on", _resumes_what_is_being_cancelled),
    Mutation("memory is a copy", "kept after a commit that failed", _keeps_its_memory_after_a_failed_commit),
)


def find(mutation: Mutation, seeds: range) -> tuple[int, Outcome] | None:
    """How many seeds it took, and the story that failed; None if none did."""
    for count, seed in enumerate(seeds, start=1):
        with mutation.patch():
            outcome = run(seed)
        if outcome.broken is not None:
            whole = run(seed).broken
            assert whole is None, f"seed {seed} fails without any mutation: {whole}"
            return count, outcome
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="give up on a mutation after this number of seeds")
    parser.add_argument("--only", default="", help="mutations whose description contains this")
    chosen = parser.parse_args()
    survivors = 0
    for mutation in MUTATIONS:
        if chosen.only not in f"{mutation.rule}: {mutation.broken}":
            continue
        found = find(mutation, range(chosen.seeds))
        survivors += found is None
        caught = f"{found[1].broken:.110} | {found[0]} seeds" if found else f"NOT FOUND in {chosen.seeds} seeds"
        print(f"{mutation.rule}: {mutation.broken} | {caught}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
