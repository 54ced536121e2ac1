"""The nine invariants of a sweep, each a named checker that trusts nothing but the cloud's own books.

1 events_replay_to_rows; 2 every_job_is_an_attempt, intent_before_money, one_live_job_per_trial; 3 terminal_stays,
view_is_the_rows; 4 submission_keeps_the_limits, spend_and_reservations_fit,
reservation_covers, quota_is_kept, on_demand_is_allowed, max_run_is_kept, spend_keeps_the_budget; 5 ledger_is_the_bill;
6 one_prefix_per_trial, and in `endings` runs_are_proven; 7 time_runs_forward; 8 in `endings` everything_ends;
9 same_seed_same_events, in `__main__`. In addition: interruptions_are_levels, one_writer, guarded (in `world`),
cancelling_stays, and what an engine must notice (in `noticed`).

Rules: 1 to 7 after every tick in which something was written, at every death, and at the moment of each commit, create
and stop; what was checked is not checked again, as far as it cannot change. The first finding ends the story.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from optuna.trial import TrialState as Seen

from tests.simulation.broken import Broken
from tuner.core.jobs import DIGEST_VARIABLE, JobRequest
from tuner.core.policy.history import read_rows
from tuner.core.policy.proof import NO_PROGRESS_RUNS_MAX
from tuner.core.prices import cost_microusd
from tuner.core.records import NO_STEP, Attempt, AttemptEnd, AttemptState, Change, Event, Intent, Trial, TrialState
from tuner.core.states import AttemptEvent, IllegalTransition, TrialEvent, next_attempt_state, next_trial_state
from tuner.operations import launch as launching
from tuner.spec import workload
from tuner.spec.records import MICROUSD
from tuner.spec.study_file import StudySpec, from_json

if TYPE_CHECKING:
    from tests.simulation.soak import Process, Soak

_SHOWN_AS = {
    TrialState.SUCCEEDED: Seen.COMPLETE,
    TrialState.PRUNED: Seen.PRUNED,
    TrialState.FAILED: Seen.FAIL,
    TrialState.CANCELLED: Seen.FAIL,
}
parsed = cache(from_json)


@cache
def printed(recorded: str, trials: int, further_jobs: int, *, per_run: bool) -> int:
    """What `launch` calls "at most" where there is no budget, for these trials and jobs beyond one a trial."""
    spec = replace(parsed(recorded), trials=trials)
    more = further_jobs * workload.ceiling(spec).further_job_microusd
    if per_run:
        return workload.worst_case_microusd(spec) + more
    at_most_usd = launching._planned(spec, {}).ceiling_usd
    assert at_most_usd is not None, "the types of a story have prices"
    return round(at_most_usd * MICROUSD) + more


class Invariants:
    """Checks one story as it goes on; remembers what it saw."""

    def __init__(self, soak: "Soak") -> None:
        self._soak = soak
        self._commits = self._checked = self._parallel_max = 0
        self.events: list[Event] = []
        self._trials: dict[int, TrialState] = {}  # as the events tell
        self._attempts: dict[tuple[int, int], AttemptState] = {}
        self._ended: dict[int, Trial] = {}
        self._finals: dict[tuple[int, int], int] = {}
        self._happened: dict[tuple[int | None, int | None], datetime] = {}
        self._cancelling = False
        self.transitions: Counter[tuple[str, str, str]] = Counter()
        self.rerouted: set[tuple[str, str]] = set()  # from which instance type to which

    # --- at the moment of a call

    def creating(self, process: "Process", request: JobRequest) -> None:
        """2, before a job exists: its attempt is recorded, and the caller is the one writer."""
        if process.fenced:
            raise Broken("one_writer", f"a fenced engine creates {request.name}")
        soak = self._soak
        found = [a for a in soak.store.attempts(soak.study.id) if a.job_name == request.name]
        if len(found) != 1 or not found[0].live:
            raise Broken("intent_before_money", f"{request.name} is created, recorded {len(found)} times as live")
        if found[0].digest != request.environment[DIGEST_VARIABLE]:
            raise Broken("intent_before_money", f"{request.name} is created with another digest than recorded")
        row, asked = found[0], (request.instance_type, request.spot, request.max_wait_s)
        if asked != (row.instance_type, row.spot, row.max_wait_s):
            raise Broken("intent_before_money", f"{request.name} is created as {asked}, recorded as {row.pool}")
        for line in self._quota_is_kept(process, request):
            raise Broken("quota_is_kept", line)

    def _quota_is_kept(self, process: "Process", request: JobRequest) -> Iterator[str]:
        """4: a quota that was told, and recorded, in the last minutes is not tried again while our own jobs fill it."""
        soak, kind = self._soak, (request.instance_type, request.spot)
        study = soak.store.study_by_id(soak.study.id)
        limits = {(limit[0], limit[1]): limit for limit in study.attrs.get("tuner:limits", [])}
        if kind not in limits or not limits[kind][2]:
            return
        # by the time at which its tick began: an engine decides by no other, and until it calls, it may stand still and
        # its clock be set back, so that what was told long ago seems new
        if datetime.fromisoformat(limits[kind][3]) + timedelta(minutes=20) < process.tick_at:
            return
        known = {a.job_name for a in soak.store.attempts(study.id) if a.live and a.arn is not None} | process.answered
        live = [job for job in soak.jobs.values() if job.name in known and not job.status.final]
        full = sum((job.request.instance_type, job.request.spot) == kind for job in live)
        if full >= limits[kind][2]:
            yield f"{request.name} is the {full + 1}th of {kind}, of which {limits[kind][2]} are allowed"

    def stopping(self, process: "Process", name: str) -> None:
        if process.fenced:
            raise Broken("one_writer", f"a fenced engine stops {name}")
        soak = self._soak
        wishes = [a.stop_reason for a in soak.store.attempts(soak.study.id) if a.job_name == name]
        if len(wishes) != 1 or wishes[0] is None:
            raise Broken("intent_before_money", f"{name} is stopped, and no row says why")

    def committed(self, process: "Process", change: Change, now: datetime) -> None:
        """What a commit must not do, looked at right after it."""
        self._commits += 1
        if process.fenced:
            raise Broken("one_writer", "a fenced engine wrote to the store")
        self._soak.noticed.committed(change)
        moved = [after for before, after in change.attempts if before.pool != after.pool]
        self.rerouted |= {(a.instance_type, b.instance_type) for a, b in change.attempts if a.pool != b.pool}
        findings = {
            "submission_keeps_the_limits": self._submission_keeps_the_limits(change, now),
            "spend_and_reservations_fit": self._spend_and_reservations_fit([*change.new_attempts, *moved]),
            "reservation_covers": self._reservation_covers([*change.new_attempts, *moved]),
            "on_demand_is_allowed": self._on_demand_is_allowed(change.new_attempts),
        }
        if change.new_attempts or moved:
            for name, lines in findings.items():
                for line in lines:
                    raise Broken(name, line)

    def _submission_keeps_the_limits(self, change: Change, now: datetime) -> Iterator[str]:
        """4: nothing new beyond `parallel`, the deadline or the user's wish."""
        soak = self._soak
        if not change.new_attempts:
            return
        study = soak.store.study_by_id(soak.study.id)
        spec, attempts = parsed(study.spec), soak.store.attempts(study.id)
        names = [attempt.job_name for attempt in change.new_attempts]
        live = [attempt for attempt in attempts if attempt.live]
        self._parallel_max = max(self._parallel_max, len(live))
        if len(live) > spec.parallel:
            yield f"{names} make {len(live)} in flight, {spec.parallel} are allowed"
        if study.intent is not Intent.RUN:
            yield f"{names} are submitted though the user said {study.intent}"
        deadline_s = spec.budget.deadline_s
        if deadline_s is not None and (now - study.created_at).total_seconds() >= deadline_s:
            yield f"{names} are submitted past the deadline"

    def _spend_and_reservations_fit(self, made: list[Attempt]) -> Iterator[str]:
        """4: with what was made, or given to another pool, now."""
        soak = self._soak
        attempts, limit = soak.store.attempts(soak.study.id), self._spec().budget.microusd
        bound = sum(a.spend_microusd or 0 for a in attempts) + sum(a.reserved_microusd for a in attempts if a.live)
        if limit is not None and bound > limit:
            yield f"{[a.job_name for a in made]} make {bound} spent and reserved of {limit}"

    def _on_demand_is_allowed(self, made: Sequence[Attempt]) -> Iterator[str]:
        """4: on demand at once, or after the allowed losses, or after three runs for nothing; and then for good."""
        soak, rules = self._soak, self._spec().capacity
        for attempt in made:
            earlier = soak.store.attempts(soak.study.id, trial=attempt.trial)[: attempt.number - 1]
            lost = sum(a.interruptions + (a.end in (AttemptEnd.CAPACITY, AttemptEnd.MAX_WAIT)) for a in earlier)
            after, restarts = rules.on_demand_after_losses, sum(a.restarts for a in earlier)
            if rules.policy == "on-demand":
                due = may = True
            else:
                due = after is not None and (lost >= after or not all(a.spot for a in earlier))
                may = due or (after is not None and lost + restarts >= NO_PROGRESS_RUNS_MAX)
            if (attempt.spot and due) or not (attempt.spot or may):
                yield f"{attempt.job_name} is {attempt.pool}, its trial lost {lost} of {after} before"

    def _reservation_covers(self, made: list[Attempt]) -> Iterator[str]:
        """4: an attempt reserves all that its job may bill."""
        settings = self._spec().settings
        extra_s = settings.poll_interval_s + settings.stop_within_s + settings.stop_grace_s
        for attempt in made:
            seconds = attempt.max_run_s + extra_s + settings.upload_allowance_s
            due = seconds * attempt.instance_count * attempt.rate_microusd_per_h / 3600
            if attempt.reserved_microusd < due:
                yield f"{attempt.job_name} reserves {attempt.reserved_microusd}, may bill {due}"

    def _spec(self) -> StudySpec:
        return parsed(self._soak.store.study_by_id(self._soak.study.id).spec)

    # --- after a tick or a death

    def check(self, process: "Process | None" = None) -> None:
        """1 to 7. `process` is the engine whose tick is over; None after a death."""
        soak = self._soak
        for line in self._one_live_job_per_trial():
            raise Broken("one_live_job_per_trial", line)
        for line in self._cancelling_stays():
            raise Broken("cancelling_stays", line)
        if self._checked == self._commits:
            return
        self._checked = self._commits
        trials, attempts = soak.store.trials(soak.study.id), soak.store.attempts(soak.study.id)
        fresh = soak.store.events(soak.study.id, after_seq=len(self.events))
        findings = {
            "events_replay_to_rows": self._events_replay_to_rows(fresh, trials, attempts),
            "time_runs_forward": self._time_runs_forward(fresh),
            "every_job_is_an_attempt": self._every_job_is_an_attempt(attempts),
            "terminal_stays": self._terminal_stays(trials),
            "max_run_is_kept": self._max_run_is_kept(attempts),
            "spend_keeps_the_budget": self._spend_keeps_the_budget(attempts),
            "ledger_is_the_bill": self._ledger_is_the_bill(attempts),
            "one_prefix_per_trial": self._one_prefix_per_trial(trials, attempts),
            "interruptions_are_levels": self._interruptions_are_levels(attempts),
        }
        for name, lines in findings.items():
            for line in lines:
                raise Broken(name, line)
        self.events += fresh
        if process is not None and not process.fenced:
            for line in self._view_is_the_rows(process, trials):
                raise Broken("view_is_the_rows", line)

    def _cancelling_stays(self) -> Iterator[str]:
        """Whatever is asked of a study once it was to be cancelled, it is cancelled."""
        intent = self._soak.recorded().intent
        if self._cancelling and intent is not Intent.CANCEL:
            yield f"the study was being cancelled, and now is to {intent}"
        self._cancelling = intent is Intent.CANCEL

    def _events_replay_to_rows(self, fresh: list[Event], trials: list[Trial], attempts: list[Attempt]) -> Iterator[str]:
        for due, event in enumerate(fresh, start=len(self.events) + 1):
            if event.seq != due:
                yield f"event {due} is missing, {event.seq} is there"
            try:
                self._replay(event)
            except (IllegalTransition, KeyError, ValueError) as error:
                yield f"event {event.seq} ({event.kind}): {error!r}"
        if {trial.number: trial.state for trial in trials} != self._trials:
            yield f"events tell of trials {self._trials}, rows of {[(t.number, t.state) for t in trials]}"
        if {(a.trial, a.number): a.state for a in attempts} != self._attempts:
            yield f"events tell of attempts {self._attempts}, rows say {[(a.job_name, a.state) for a in attempts]}"

    def _replay(self, event: Event) -> None:
        machine, _, name = event.kind.partition(".")
        if machine == "trial":
            if name == "propose":
                self._trials[event.trial] = TrialState.PROPOSED
                return
            was = self._trials[event.trial]
            after = next_trial_state(was, TrialEvent(name))
            self._trials[event.trial] = after
        elif machine == "attempt" or (machine == "history" and event.before is not None):
            if name == "submit":
                self._attempts[event.trial, event.attempt] = AttemptState.SUBMITTING
                return
            was = self._attempts[event.trial, event.attempt]
            machine, name = "attempt", name or self._meaning(event, was)
            after = next_attempt_state(was, AttemptEvent(name))
            self._attempts[event.trial, event.attempt] = after
        else:
            return
        self.transitions[machine, was, name] += 1
        if (event.before, event.after) != (was, after):
            raise ValueError(f"it says {event.before} to {event.after}, the table {was} to {after}")

    def _meaning(self, event: Event, was: AttemptState) -> str:
        """What a row of the history that changed no state meant, from the job's own history."""
        attempts = self._soak.store.attempts(self._soak.study.id, trial=event.trial)
        history = self._soak.history(attempts[event.attempt - 1].job_name)
        for row, meaning in read_rows(history):
            if (row.status, row.started_at) == (event.details["status"], event.happened_at) and meaning is not None:
                return meaning
        raise ValueError(f"the job's history has no {event.details['status']} at {event.happened_at}, {was}")

    def _time_runs_forward(self, fresh: list[Event]) -> Iterator[str]:
        """7: our time within a study, the source's within an attempt's history."""
        latest = self.events[-1].recorded_at if self.events else None
        for event in fresh:
            if latest is not None and event.recorded_at < latest:
                yield f"event {event.seq} was recorded at {event.recorded_at}, the one before at {latest}"
            latest = event.recorded_at
            if "status" not in event.details:
                continue
            whose = (event.trial, event.attempt)
            if event.happened_at < self._happened.get(whose, event.happened_at):
                yield f"event {event.seq}: the history of {whose} runs back"
            self._happened[whose] = event.happened_at

    def _every_job_is_an_attempt(self, attempts: list[Attempt]) -> Iterator[str]:
        """2: both ways."""
        soak = self._soak
        names = Counter(attempt.job_name for attempt in attempts)
        yield from (f"{name} is recorded {count} times" for name, count in names.items() if count > 1)
        yield from (f"job {name} belongs to no attempt" for name in soak.jobs if name not in names)
        for attempt in attempts:
            if attempt.arn is not None and attempt.job_name not in soak.jobs:
                yield f"{attempt.job_name} is recorded as submitted, and was never created"
            job = soak.jobs.get(attempt.job_name)
            if job is not None and attempt.arn is not None and job.request.instance_type != attempt.instance_type:
                yield f"{attempt.job_name} is recorded on {attempt.pool}, its job is on {job.request.instance_type}"
            if job is not None and not attempt.live and not job.status.final and attempt.end is not AttemptEnd.FOREIGN:
                yield f"{attempt.job_name} is recorded as ended, and is {job.secondary}"

    def _one_live_job_per_trial(self) -> Iterator[str]:
        live = Counter(job.request.checkpoint_uri for job in self._soak.jobs.values() if not job.status.final)
        yield from (f"{count} live jobs write to {prefix}" for prefix, count in live.items() if count > 1)

    def _terminal_stays(self, trials: list[Trial]) -> Iterator[str]:
        """3: not even a reason or a value of an ended trial changes."""
        for trial in trials:
            was = self._ended.get(trial.number)
            if was is not None and repr(was) != repr(trial):  # a NaN equals nothing, not even what it was
                yield f"trial {trial.number} had ended as {was}, and is {trial}"
            if trial.state.terminal:
                self._ended[trial.number] = trial
        gone = self._ended.keys() - {trial.number for trial in trials}
        yield from (f"trial {number} had ended, and is gone" for number in gone)

    def _view_is_the_rows(self, process: "Process", trials: list[Trial]) -> Iterator[str]:
        """3: what the sampler sees in memory is what the rows say."""
        live = process.engine.live
        objective = live.spec.objectives[0].metric
        points: dict[int, dict[int, float]] = {}
        for point in self._soak.store.points(self._soak.study.id, name=objective):
            # nobody but a pruner is shown steps
            if live.spec.judges_steps and point.step != NO_STEP and math.isfinite(point.value):
                points.setdefault(point.trial, {})[point.step] = point.value
        seen = live.proposer.study.get_trials(deepcopy=False)
        if len(seen) != len(trials):
            yield f"the view has {len(seen)} trials, the store {len(trials)}"
        for shown, trial in zip(seen, trials, strict=False):
            reported = points.get(trial.number, {})
            state = _SHOWN_AS.get(trial.state, Seen.RUNNING)
            value = trial.values[0] if trial.values else None
            if trial.state is TrialState.PRUNED and reported:
                value = reported[max(reported)]
            found = (shown.state, shown.params, shown.intermediate_values, shown.values[0] if shown.values else None)
            if found != (state, dict(trial.params), reported, value):
                yield f"trial {trial.number} is {(state, dict(trial.params), reported, value)}, the view shows {found}"

    def _max_run_is_kept(self, attempts: list[Attempt]) -> Iterator[str]:
        """4: what is seen to have used up its `max_run` is stopped, whichever way the service counts."""
        for attempt in attempts:
            if attempt.run_s > attempt.max_run_s and attempt.state not in (AttemptState.STOPPING, AttemptState.ENDED):
                yield f"{attempt.job_name} has run for {attempt.run_s} s of {attempt.max_run_s}, and is {attempt.state}"

    def _spend_keeps_the_budget(self, attempts: list[Attempt]) -> Iterator[str]:
        """4: what the cloud has billed so far, under the stated reading of MaxRuntime; else a ceiling.

        Without a budget: what `launch` prints as "at most", for as many trials as there are, and for further jobs.

        If an interruption sets the count for MaxRuntime back, the engine itself ends a job in time; while it is away
        MaxWait bounds an attempt alone. What has ended is known, so only those in flight at once can be dearer than
        they reserved.
        """
        soak, spec = self._soak, self._spec()
        limit, per_run = spec.budget.microusd, soak.cloud.settings.max_run_per_run and soak.was_away
        if limit is None:
            recorded, trials = soak.store.study_by_id(soak.study.id).spec, len({each.trial for each in attempts})
            limit = printed(recorded, trials, len(attempts) - trials, per_run=per_run)
        elif per_run:
            settings = spec.settings
            overrun_s = max(0.0, spec.training.max_wait_s - settings.poll_interval_s - settings.stop_within_s)
            limit += self._parallel_max * math.ceil(overrun_s * max(soak.rates.values()) / 3600)
        known = [a for a in attempts if a.job_name not in soak.deleted or not self._nobody_can_tell(a)]
        # without a budget it is a bound for any saving of spot: none is the hardest
        billed = sum(self._billed(attempt, saved=spec.budget.microusd is not None) for attempt in known)
        if billed > limit:
            yield f"{billed} were billed of {limit}"

    def _billed(self, attempt: Attempt, *, saved: bool = True) -> int:
        """What the job of an attempt has cost, by the cloud's own book; 0 for none of ours."""
        job = self._soak.jobs.get(attempt.job_name)
        if job is None:
            return 0
        bill = job.bill(self._soak.cloud.settings.saving)
        seconds = bill.billable_s if saved else bill.training_s
        return cost_microusd(seconds or 0, bill.instance_count, attempt.rate_microusd_per_h)

    def _ledger_is_the_bill(self, attempts: list[Attempt]) -> Iterator[str]:
        """5: to the micro-dollar; where the service lost the figures, never less."""
        for attempt in attempts:
            key = (attempt.trial, attempt.number)
            if attempt.spend_microusd is None:
                if key in self._finals or not attempt.live:
                    yield f"{attempt.job_name} has ended without a final figure"
                continue
            if self._finals.setdefault(key, attempt.spend_microusd) != attempt.spend_microusd:
                yield f"{attempt.job_name}: its final figure was {self._finals[key]}, is {attempt.spend_microusd}"
            billed, exact = self._billed(attempt), attempt.job_name not in self._soak.deleted
            if not exact and self._nobody_can_tell(attempt):
                continue
            if attempt.spend_microusd < billed or (exact and attempt.spend_microusd != billed):
                yield f"{attempt.job_name}: booked {attempt.spend_microusd}, billed {billed}"
            per_run = self._soak.cloud.settings.max_run_per_run
            if attempt.spend_microusd > attempt.reserved_microusd and not per_run:
                yield f"{attempt.job_name}: booked {attempt.spend_microusd}, reserved {attempt.reserved_microusd}"

    def _nobody_can_tell(self, attempt: Attempt) -> bool:
        """What a job has cost that was deleted before we ever saw it, or while our clock was set back."""
        return attempt.arn is None or self._soak.hits["clock:back"] > 0

    def _one_prefix_per_trial(self, trials: list[Trial], attempts: list[Attempt]) -> Iterator[str]:
        prefixes = {trial.number: trial.prefix for trial in trials}
        ordered = sorted(prefixes.values())
        for outer, inner in pairwise(ordered):
            if not outer.endswith("/") or inner.startswith(outer):
                yield f"{outer} and {inner} are not apart"
        for attempt in attempts:
            job = self._soak.jobs.get(attempt.job_name)
            if job is not None and job.request.checkpoint_uri != prefixes[attempt.trial]:
                yield f"{attempt.job_name} writes to {job.request.checkpoint_uri}, not {prefixes[attempt.trial]}"

    def _interruptions_are_levels(self, attempts: list[Attempt]) -> Iterator[str]:
        """What is counted is what the history, as far as it was read, shows."""
        for attempt in attempts:
            history = self._soak.history(attempt.job_name)[: attempt.history_rows]
            happened = sum(row.status == "Interrupted" for row in history)
            if attempt.interruptions != happened:
                yield f"{attempt.job_name}: {attempt.interruptions} counted, {happened} happened"
            if not attempt.live and attempt.arn and len(history) < len(self._soak.history(attempt.job_name)):
                deleted = attempt.job_name in self._soak.deleted
                if not deleted:
                    yield f"{attempt.job_name} has ended, and {len(history)} rows of its history were read"
