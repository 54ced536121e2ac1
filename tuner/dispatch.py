"""The acting half of a tick: who gets a job next, and sending to the service what the rows intend.

Rules: intent before money: `submit_due` only writes rows, `act` sends what committed rows say, and a command that was
lost is derived again at the next tick. Unfinished trials come before new proposals. A refusal keeps the attempt under
its name; a taken name is ours only if the digest is equal. Nothing is sent when the lease is about to run out.
"""

from collections.abc import Callable
from dataclasses import replace

from tuner import decide, workload
from tuner.jobs import (
    CapacityUnavailable,
    CredentialsRefused,
    JobError,
    JobNameTaken,
    JobNotFound,
    JobService,
    Observation,
    RequestRejected,
    job_name,
)
from tuner.memory import Memory, Work
from tuner.model import Attempt, AttemptEnd, AttemptState, Intent, Trial, TrialState
from tuner.proposals import Proposal
from tuner.states import TrialEvent
from tuner.unit import UnitOfWork

# A stop that has not shown after so many polls is sent again.
_RESEND_POLLS = 10


def submit_due(memory: Memory, unit: UnitOfWork) -> None:
    """Fill the free slots: unfinished trials first, then new proposals, as far as budget and deadline allow."""
    if unit.study.intent is not Intent.RUN or memory.past_deadline(unit.now):
        return
    for work in memory.waiting():
        if memory.in_flight >= memory.policy.parallel:
            return
        due = work.trial.due_at is None or work.trial.due_at <= unit.now
        if due and memory.affordable(work):
            _begin_attempt(memory, unit, work)
    while memory.in_flight < memory.policy.parallel and memory.wants_more(unit.study) and memory.affordable(None):
        proposal = memory.proposer.ask(memory.trial_count)
        if proposal is None:
            unit.set_study(replace(unit.study, exhausted=True))
            unit.event("exhausted")
            return
        _begin_attempt(memory, unit, _add_trial(memory, unit, proposal))


def _add_trial(memory: Memory, unit: UnitOfWork, proposal: Proposal) -> Work:
    work = Work(
        Trial(
            number=proposal.number,
            state=TrialState.PROPOSED,
            version=0,
            params=proposal.params,
            distributions=proposal.distributions,
            attrs=proposal.attrs,
            prefix=workload.prefix(memory.spec, unit.study.key, proposal.number),
            bundle_uri=unit.study.bundle_uri,
            asked_seq=0,  # filled in with its event
            created_at=unit.now,
        )
    )
    memory.live[proposal.number] = work
    memory.trial_count += 1
    unit.remember(proposal.study_attrs)
    unit.add_trial(work)
    return work


def _begin_attempt(memory: Memory, unit: UnitOfWork, work: Work) -> None:
    trial, policy = work.trial, memory.policy
    number = trial.attempts + 1
    choice = decide.instance_choice(work.attempts, policy)
    attempt = Attempt(
        trial=trial.number,
        number=number,
        state=AttemptState.SUBMITTING,
        version=0,
        job_name=job_name(unit.study.key, trial.number, number),
        digest=workload.job_digest(memory.spec, trial),
        instance_type=policy.instance_types[choice],
        instance_count=policy.instance_count,
        spot=policy.spot,
        rate_microusd_per_h=policy.rates_microusd_per_h[choice],
        max_run_s=decide.max_run_left_s(work.attempts, policy),
        max_wait_s=policy.max_wait_s,
        reserved_microusd=memory.next_allowance(work),
        created_at=unit.now,
    )
    unit.move_trial(work, TrialEvent.SUBMIT)
    unit.add_attempt(work, attempt)


class Dispatcher:
    """Sends creates and stops, for one tick."""

    def __init__(
        self,
        memory: Memory,
        jobs: JobService,
        unit: UnitOfWork,
        *,
        may_send: Callable[[], bool],
        crash_point: Callable[[str], None],
    ) -> None:
        self._memory = memory
        self._jobs = jobs
        self._unit = unit
        self._may_send = may_send
        self._crash_point = crash_point

    def act(self) -> None:
        """Send what the rows intend; what was not sent waits for the next tick."""
        for work in self._memory.live.values():
            attempt = work.attempt
            if attempt is None:
                continue
            if not self._may_send():
                return
            try:
                if attempt.state is AttemptState.SUBMITTING and attempt.arn is None:
                    self._create(work)
                elif attempt.state is AttemptState.STOPPING and attempt.stop_reason is not None:
                    self._stop(work)
            except CredentialsRefused as error:
                # nothing else would fare better; jobs go on, and the engine waits for new credentials
                self._unit.trouble(error)
                return

    # --- create

    def _create(self, work: Work) -> None:
        attempt, unit = work.attempts[-1], self._unit
        if attempt.next_try_at is not None and unit.now < attempt.next_try_at:
            return
        request = workload.job_request(self._memory.spec, unit.study, work.trial, attempt)
        try:
            self._crash_point("before create")
            arn = self._jobs.create(request)
            self._crash_point("after create")
        except JobNameTaken:
            self._find(work, AttemptEnd.FOREIGN, f"the name {attempt.job_name} belongs to a job that was deleted since")
        except RequestRejected as error:
            # what is refused now may have been accepted before, and the answer lost: that job would run unseen
            self._find(work, AttemptEnd.REJECTED, str(error))
        except JobError as error:
            self._postpone(work, error)
        else:
            unit.set_attempt(work, replace(attempt, arn=arn, submitted_at=unit.now))

    def _postpone(self, work: Work, error: JobError) -> None:
        """No job exists, or nobody knows: the attempt keeps its name and is tried again."""
        attempt, unit = work.attempts[-1], self._unit
        later = unit.now + decide.back_off(attempt.refusals + 1, self._memory.policy.poll_s)
        unit.set_attempt(work, replace(attempt, refusals=attempt.refusals + 1, next_try_at=later))
        if attempt.refusals == 0:
            kind = "refused.capacity" if isinstance(error, CapacityUnavailable) else "refused"
            unit.event(kind, work=work, attempt=attempt.number, error=type(error).__name__, message=str(error))
        if isinstance(error, CredentialsRefused):
            raise error

    def _find(self, work: Work, end: AttemptEnd, reason: str) -> None:
        """Look whose job has our name: adopt our own, leave a foreign one alone and use the next number.

        If there is none, the attempt ends as `end`, for `reason`.
        """
        attempt, unit = work.attempts[-1], self._unit
        try:
            seen = self._jobs.describe(attempt.job_name)
        except JobNotFound:
            unit.end_unsubmitted(work, end, reason)
        except JobError as error:
            self._postpone(work, error)
        else:
            self._adopt(work, seen)

    def _adopt(self, work: Work, seen: Observation) -> bool:
        """Take a job of our name for ours exactly if its digest is."""
        attempt, unit = work.attempts[-1], self._unit
        if seen.digest == attempt.digest:
            unit.set_attempt(work, replace(attempt, arn=seen.arn, submitted_at=seen.created_at))
            unit.event("adopted", work=work, attempt=attempt.number, job=attempt.job_name)
            return True
        unit.event("foreign", work=work, attempt=attempt.number, job=attempt.job_name)
        unit.end_unsubmitted(work, AttemptEnd.FOREIGN, f"a foreign job has the name {attempt.job_name}")
        return False

    # --- stop

    def _stop(self, work: Work) -> None:
        attempt, unit = work.attempts[-1], self._unit
        resend_s = _RESEND_POLLS * self._memory.policy.poll_s
        if attempt.stop_sent_at is not None and (unit.now - attempt.stop_sent_at).total_seconds() < resend_s:
            return
        if attempt.arn is None and not self._exists(work):
            return
        try:
            self._crash_point("before stop")
            self._jobs.stop(attempt.job_name)
            self._crash_point("after stop")
        except CredentialsRefused:
            raise
        except JobError as error:
            # the attempt stays `stopping`: the stop is sent again, and a job that is gone is noticed by describing it
            unit.trouble(error, work)
        else:
            unit.set_attempt(work, replace(work.attempts[-1], stop_sent_at=unit.now))

    def _exists(self, work: Work) -> bool:
        """Whether a job whose creation we did not hear of is there, and ours; ends the attempt if there is none."""
        attempt, unit = work.attempts[-1], self._unit
        try:
            seen = self._jobs.describe(attempt.job_name)
        except JobNotFound:
            # a creation of unknown outcome may still show itself: wait out what a slow request could take
            if unit.now >= (attempt.next_try_at or attempt.created_at):
                unit.end_unsubmitted(work, AttemptEnd.STOPPED, "stopped before it was submitted")
            return False
        except JobError as error:
            unit.trouble(error, work)
            return False
        return self._adopt(work, seen)
