"""The acting half of a tick: which trial gets a job next, and sending to the service what the rows intend.

Rules: intent before money: `submit_due` only writes rows, `act` sends what committed rows intend, and a lost command is
derived again at the next tick. Unfinished trials come before new proposals. A refusal keeps the attempt under its name.
A taken name is ours only if the digest is equal. Nothing is sent when the lease is about to run out.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from tuner.core.calls import UNMETERED, Call, Calls, OutOfCalls
from tuner.core.events import EventKind
from tuner.core.jobs import (
    CapacityUnavailable,
    CredentialsRefused,
    JobError,
    JobNameTaken,
    JobNotFound,
    JobService,
    Observation,
    RequestRejected,
    RoleNotReady,
    SecretMissing,
    job_name,
)
from tuner.core.policy import budget, ending, resting
from tuner.core.policy.placement import Kind, kind_of, listed
from tuner.core.records import Attempt, AttemptEnd, AttemptState, Pool, Trial, TrialState
from tuner.core.states import TrialEvent
from tuner.engine import alarms
from tuner.engine.live_study import LiveStudy
from tuner.engine.live_trial import LiveTrial
from tuner.engine.unit_of_work import UnitOfWork
from tuner.search.proposer import Proposal, ProposalError
from tuner.spec import workload

# A stop without an effect after this many polls is sent again.
_RESEND_POLLS = 10
# A role that was just made cannot be assumed at first. After this many refusals only the user can help.
_ROLE_TRIES = 4


def submit_due(live: LiveStudy, unit: UnitOfWork) -> None:
    """Fill the free slots: unfinished trials first, then new proposals, as far as budget and deadline allow."""
    if not resting.begins_attempts(unit.study.intent, past_deadline=live.past_deadline(unit.now)):
        return
    if live.in_flight >= live.policy.parallel:
        return
    live.refresh_capacity(unit.now)
    for trial in live.waiting():
        if live.in_flight >= live.policy.parallel:
            return
        due = trial.record.due_at is None or trial.record.due_at <= unit.now
        pool = live.choose_pool(trial) if due else None
        if pool is not None:
            _begin_attempt(live, unit, trial, pool)
    while live.in_flight < live.policy.parallel and live.wants_more(unit.study):
        pool = live.choose_pool(None)
        if pool is None:
            return
        try:
            proposal = live.proposer.ask(live.trial_count)
        except ProposalError as error:  # a space function of the user failed; it does not concern running jobs
            alarms.halt(live, unit, f"no trial can be proposed: {error}")
            return
        if proposal is None:
            unit.set_study(replace(unit.study, exhausted=True))
            unit.event(EventKind.EXHAUSTED)
            return
        _begin_attempt(live, unit, _add_trial(live, unit, proposal), pool)


def _add_trial(live: LiveStudy, unit: UnitOfWork, proposal: Proposal) -> LiveTrial:
    trial = LiveTrial(
        Trial(
            number=proposal.number,
            state=TrialState.PROPOSED,
            version=0,
            params=proposal.params,
            distributions=proposal.distributions,
            attrs=proposal.attrs,
            prefix=workload.prefix(live.spec, unit.study.key, proposal.number),
            bundle_uri=unit.study.bundle_uri,
            asked_seq=0,  # filled in with its event
            created_at=unit.now,
        )
    )
    live.trials[proposal.number] = trial
    live.trial_count += 1
    unit.remember(proposal.study_attrs)
    unit.add_trial(trial)
    return trial


def _begin_attempt(live: LiveStudy, unit: UnitOfWork, trial: LiveTrial, pool: Pool) -> None:
    record, policy = trial.record, live.policy
    number = record.attempts + 1
    attempt = Attempt(
        trial=record.number,
        number=number,
        state=AttemptState.SUBMITTING,
        version=0,
        job_name=job_name(unit.study.key, record.number, number),
        digest=workload.job_digest(live.spec, record),
        instance_type=pool.instance_type,
        instance_count=policy.instance_count,
        spot=pool.spot,
        rate_microusd_per_h=policy.rate_microusd_per_h(pool.instance_type),
        max_run_s=budget.max_run_left_s(trial.attempts, policy),
        max_wait_s=policy.max_wait_s if pool.spot else None,
        reserved_microusd=live.reservation(trial, pool),
        created_at=unit.now,
        zone=pool.zone,
    )
    trial.presence = None
    live.snapshot.attempts[kind_of(pool)] += 1
    unit.move_trial(trial, TrialEvent.SUBMIT)
    unit.add_attempt(trial, attempt)


class Dispatcher:
    """Sends creates and stops, for one tick."""

    def __init__(
        self,
        live: LiveStudy,
        jobs: JobService,
        unit: UnitOfWork,
        *,
        may_send: Callable[[], bool],
        crash_point: Callable[[str], None],
        calls: Calls = UNMETERED,
    ) -> None:
        self._live = live
        self._jobs = jobs
        self._calls = calls
        self._unit = unit
        self._may_send = may_send
        self._crash_point = crash_point
        self._unsure = False  # a job was created, and could not be compared with its request

    def act(self) -> None:
        """Send what the rows intend; the rest waits for the next tick."""
        stops, creates = self._to_stop(), self._to_create()
        if creates:
            self._live.refresh_capacity(self._unit.now)
        self._calls.may(Call.STOP, len(stops))
        self._calls.may(Call.CREATE, len(creates))
        for trial in (*stops, *creates):
            if not self._may_send():
                return
            ends = trial.attempts[-1].state is AttemptState.STOPPING
            if not ends and (self._unsure or self._live.halted):
                return
            try:
                if ends:
                    self._stop(trial)
                else:
                    self._create(trial)
            except OutOfCalls:
                continue  # nothing was sent: the next tick has new ones
            except (CredentialsRefused, SecretMissing) as error:
                # every other call would fail, too; jobs go on, and the engine waits for new credentials
                alarms.trouble(self._live, self._unit, "stops" if ends else "creates", error)
                return

    def _to_stop(self) -> list[LiveTrial]:
        """Jobs whose stop is due. First stops come before repeated ones, which must not use up the calls."""
        resend_s = _RESEND_POLLS * self._live.policy.poll_s
        due: list[tuple[float, LiveTrial]] = []
        for trial in self._live.trials.values():
            attempt = trial.attempt
            if attempt is None or attempt.state is not AttemptState.STOPPING or attempt.stop_reason is None:
                continue
            sent_at = attempt.stop_sent_at
            ago_s = math.inf if sent_at is None else (self._unit.now - sent_at).total_seconds()
            if ago_s >= resend_s:
                due.append((ago_s, trial))
        due.sort(key=lambda pair: -pair[0])
        return [trial for _, trial in due]

    def _to_create(self) -> list[LiveTrial]:
        """Attempts that want a job now, in the order of their trials."""
        return [
            trial
            for trial in self._live.trials.values()
            if (attempt := trial.attempt) is not None
            and attempt.state is AttemptState.SUBMITTING
            and attempt.arn is None
            and (attempt.next_try_at is None or attempt.next_try_at <= self._unit.now)
        ]

    # --- create

    def _create(self, trial: LiveTrial) -> None:
        attempt, unit = trial.attempts[-1], self._unit
        kind = kind_of(attempt.pool)
        snapshot = self._live.snapshot
        closed = snapshot.closed(kind)
        if (closed or not snapshot.has_room(kind, snapshot.jobs)) and (self._reroute(trial) or not closed):
            return  # it would be refused; if it stays, it waits for a job of ours to end
        request = workload.job_request(self._live.spec, unit.study, trial.record, attempt)
        try:
            self._crash_point("before create")
            arn = self._jobs.create(request)
            self._crash_point("after create")
        except JobNameTaken:
            self._find(
                trial, AttemptEnd.FOREIGN, f"the name {attempt.job_name} belongs to a job that was deleted since"
            )
        except RequestRejected as error:
            # an earlier call may have been accepted and its answer lost: that job would run unseen
            self._find(trial, AttemptEnd.REJECTED, str(error))
        except CapacityUnavailable as error:
            self._learn(kind, error)
            if not self._reroute(trial, refused=error):
                self._postpone(trial, error)
        except JobError as error:
            self._postpone(trial, error)
        else:
            unit.set_attempt(trial, replace(attempt, arn=arn, submitted_at=unit.now))
            self._count_job(kind)
            self._live.uncompared.add(attempt.job_name)
            self._live.rejections.clear()
            alarms.over(self._live, unit, "creates")
            if not self._live.compared:
                self._look_at_first(trial)

    def _look_at_first(self, trial: LiveTrial) -> None:
        """Compare the first job of this process with its request at once: the others would have the same difference.

        The others are compared when they are first described.
        """
        try:
            seen = self._jobs.describe(trial.attempts[-1].job_name)
        except JobError:
            self._unsure = True  # no other job before the next tick, which looks again
        else:
            alarms.compare(self._live, self._unit, trial, seen)

    # --- quotas

    def _learn(self, kind: Kind, error: CapacityUnavailable) -> None:
        """Remember the quota if a refusal names it."""
        if error.limit is not None:
            self._unit.remember(self._live.learn_limit(kind, error.limit, self._unit.now))

    def _count_job(self, kind: Kind) -> None:
        snapshot, limit = self._live.snapshot, self._live.limits.get(kind)
        snapshot.jobs[kind] += 1
        if limit is not None and snapshot.jobs[kind] * snapshot.instance_count > limit.instances:
            self._unit.remember(self._live.forget_limit(kind))

    def _reroute(self, trial: LiveTrial, refused: CapacityUnavailable | None = None) -> bool:
        """Give an attempt that a quota keeps waiting to another pool, if no job of its name exists; false: not now.

        Its row changes before its job is requested again, as it was recorded before its first request.
        """
        live, unit, attempt = self._live, self._unit, trial.attempts[-1]
        pool = live.choose_other_pool(trial)
        if pool is None:
            return False
        if not self._certainly_none(trial):
            return trial.attempts[-1] is not attempt  # adopted, or ended
        # the first time at once; then with a back-off, since it may be refused everywhere
        later = unit.now + ending.back_off(attempt.refusals, live.policy.poll_s) if attempt.refusals else None
        refusals = attempt.refusals + (refused is not None)
        unit.set_attempt(trial, replace(self._in_pool(trial, pool), refusals=refusals, next_try_at=later))
        why = "its quota is used up" if refused is None else str(refused)
        unit.event(
            EventKind.REROUTED, trial=trial, attempt=attempt.number, left=str(attempt.pool), to=str(pool), why=why
        )
        return True

    def _certainly_none(self, trial: LiveTrial) -> bool:
        """Whether no job has the attempt's name: an earlier call may have made one, and its answer may be lost."""
        try:
            seen = self._jobs.describe(trial.attempts[-1].job_name)
        except JobNotFound:
            return True
        except CredentialsRefused:
            raise
        except JobError:
            return False
        self._adopt(trial, seen)
        return False

    # --- refusals and foreign jobs

    def _postpone(self, trial: LiveTrial, error: JobError) -> None:
        """Try again later under the same name: no job exists, or that is not known."""
        if isinstance(error, OutOfCalls):
            raise error  # nothing was sent, so nothing was refused
        attempt, unit = trial.attempts[-1], self._unit
        later = unit.now + ending.back_off(attempt.refusals + 1, self._live.policy.poll_s)
        unit.set_attempt(trial, replace(attempt, refusals=attempt.refusals + 1, next_try_at=later))
        if attempt.refusals == 0:
            kind = EventKind.REFUSED_CAPACITY if isinstance(error, CapacityUnavailable) else EventKind.REFUSED
            unit.event(kind, trial=trial, attempt=attempt.number, error=type(error).__name__, message=str(error))
        if isinstance(error, RoleNotReady) and attempt.refusals >= _ROLE_TRIES:
            raise CredentialsRefused(str(error))
        if isinstance(error, CredentialsRefused | SecretMissing):
            raise error

    def _find(self, trial: LiveTrial, end: AttemptEnd, reason: str) -> None:
        """Describe the job that has our name: adopt our own; leave a foreign one alone and use the next number.

        Without such a job the attempt ends as `end`, for `reason`.
        """
        attempt, unit = trial.attempts[-1], self._unit
        try:
            seen = self._jobs.describe(attempt.job_name)
        except JobNotFound:
            unit.end_unsubmitted(trial, end, reason)
            if end is AttemptEnd.REJECTED:
                alarms.rejected(self._live, unit, attempt.job_name, reason)
        except JobError as error:
            self._postpone(trial, error)
        else:
            self._adopt(trial, seen)

    def _adopt(self, trial: LiveTrial, seen: Observation) -> bool:
        """Adopt a job of our name if its digest is ours, and only then."""
        attempt, unit = trial.attempts[-1], self._unit
        if seen.digest == attempt.digest:
            attempt = self._where_it_is(trial, seen)
            unit.set_attempt(trial, replace(attempt, arn=seen.arn, submitted_at=seen.created_at))
            unit.event(EventKind.ADOPTED, trial=trial, attempt=attempt.number, job=attempt.job_name)
            return True
        unit.event(EventKind.FOREIGN, trial=trial, attempt=attempt.number, job=attempt.job_name)
        unit.end_unsubmitted(trial, AttemptEnd.FOREIGN, f"a foreign job has the name {attempt.job_name}")
        return False

    def _where_it_is(self, trial: LiveTrial, seen: Observation) -> Attempt:
        """The attempt with the pool of its job: after a change of pool it may find the job that it requested first.

        The cost of that job is booked even if the budget has no room for it.
        """
        attempt, live = trial.attempts[-1], self._live
        if seen.asked is None or (seen.asked.instance_type, seen.asked.spot) == kind_of(attempt.pool):
            return attempt
        asked = (pool for spot in (True, False) for pool in listed(live.policy, spot=spot))
        pool = next((each for each in asked if kind_of(each) == (seen.asked.instance_type, seen.asked.spot)), None)
        if pool is None:
            return attempt  # not a pool of this study
        return replace(self._in_pool(trial, pool), max_wait_s=seen.asked.max_wait_s)

    def _in_pool(self, trial: LiveTrial, pool: Pool) -> Attempt:
        """The last attempt in another pool, where it is counted from now on."""
        attempt, live = trial.attempts[-1], self._live
        live.snapshot.attempts[kind_of(attempt.pool)] -= 1
        live.snapshot.attempts[kind_of(pool)] += 1
        return replace(
            attempt,
            instance_type=pool.instance_type,
            spot=pool.spot,
            zone=pool.zone,
            max_wait_s=live.policy.max_wait_s if pool.spot else None,
            rate_microusd_per_h=live.policy.rate_microusd_per_h(pool.instance_type),
            reserved_microusd=live.reservation_instead(trial, pool),
        )

    # --- stop

    def _stop(self, trial: LiveTrial) -> None:
        attempt, unit = trial.attempts[-1], self._unit
        if attempt.arn is None and not self._exists(trial):
            return
        try:
            self._crash_point("before stop")
            self._jobs.stop(attempt.job_name)
            self._crash_point("after stop")
        except (CredentialsRefused, OutOfCalls):
            raise
        except JobError as error:
            # the attempt stays `stopping`: the stop is sent again, and a job that is gone is noticed by describing it
            unit.trouble(error, trial)
        else:
            unit.set_attempt(trial, replace(trial.attempts[-1], stop_sent_at=unit.now))
            alarms.over(self._live, unit, "stops")

    def _exists(self, trial: LiveTrial) -> bool:
        """Whether a job of unknown creation exists and is ours; ends the attempt if there is none."""
        attempt, unit = trial.attempts[-1], self._unit
        try:
            seen = self._jobs.describe(attempt.job_name)
        except JobNotFound:
            # a creation of unknown outcome may still show: wait as long as a slow request could take
            if unit.now >= (attempt.next_try_at or attempt.created_at):
                unit.end_unsubmitted(trial, AttemptEnd.STOPPED, "stopped before it was submitted")
            return False
        except JobError as error:
            unit.trouble(error, trial)
            return False
        return self._adopt(trial, seen)
