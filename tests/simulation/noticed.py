"""What an engine must notice, and what it must not imagine: stalls, trials without progress, limits per trial.

steady_jobs_go_on, stall_is_noticed; no_progress_is_due, no_progress_is_noticed; trial_budget_is_used_up,
trial_budget_is_kept, trial_budget_is_noticed.

Rules: the truth is the cloud's own, by its own time. What is true at the end of a tick must be noticed at the next one:
an engine may have been suspended in mid-tick. An engine that reads nothing, or was loaded again, starts over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from tests.simulation.broken import Broken
from tuner.core.policy.proof import NO_PROGRESS_RUNS_MAX
from tuner.core.records import Attempt, AttemptEnd, AttemptState, Change, RunEnd, StopReason, TrialState
from tuner.engine.live_trial import LiveTrial

if TYPE_CHECKING:
    from tests.simulation.soak import Process, Soak

_WHOLE = (RunEnd.INTERRUPTED, RunEnd.RESTARTED)


@dataclass
class _Silence:
    trial: LiveTrial
    sign: tuple
    looked_at: datetime
    lasted_s: float = 0.0


@dataclass
class Noticed:
    soak: "Soak"
    _silences: dict[int, _Silence] = field(default_factory=dict)
    _seen: dict[tuple[str, int], LiveTrial] = field(default_factory=dict)  # what was true at the end of the last tick

    # --- what is written

    def committed(self, change: Change) -> None:
        """A stop or an end that nothing in the cloud speaks for."""
        for before, after in change.attempts:
            if after.stop_reason is StopReason.STALL is not before.stop_reason:
                self._was_silent(after)
        for _, record in change.trials:
            if record.state is TrialState.FAILED and record.reason == StopReason.TRIAL_BUDGET:
                self._was_dear(record.number)
            if record.state is TrialState.FAILED and record.reason == StopReason.NO_PROGRESS:
                self._was_lost(record.number)
        for attempt in change.new_attempts:
            limit = self.soak.spec().budget.per_trial_microusd
            if limit is not None and self._finals(attempt.trial) >= limit:
                raise Broken("trial_budget_is_kept", f"{attempt.job_name} is begun, {limit} are spent already")

    def _was_silent(self, attempt: Attempt) -> None:
        soak = self.soak
        rows = [row.started_at for row in soak.history(attempt.job_name) if row.status == "Training"]
        lies = soak.cloud.prefixes.get(soak.jobs[attempt.job_name].request.checkpoint_uri)
        signs = [
            *rows[-1:],
            *([] if lies is None else [*(point.at for point in lies.points[-1:]), *lies.saved.values()]),
        ]
        silent_s = (soak.clock.now() - max(signs)).total_seconds()
        if silent_s < (soak.spec().training.stall_after_s or 0.0) / 2:
            raise Broken("steady_jobs_go_on", f"{attempt.job_name} is stopped as stalled after {silent_s} s of silence")

    def _was_dear(self, trial: int) -> None:
        limit, finals = self.soak.spec().budget.per_trial_microusd, self._finals(trial)
        if limit is None or finals < 0.9 * limit:
            raise Broken("trial_budget_is_used_up", f"trial {trial} has failed for it with {finals} of {limit}")

    def _was_lost(self, trial: int) -> None:
        attempts = self.soak.store.attempts(self.soak.study.id, trial=trial)
        lost = sum(
            a.interruptions + a.restarts + (a.end in (AttemptEnd.MAX_WAIT, AttemptEnd.CAPACITY)) for a in attempts
        )
        if lost < NO_PROGRESS_RUNS_MAX:
            raise Broken("no_progress_is_due", f"trial {trial} has failed for it, and lost {lost} runs")

    def _finals(self, trial: int) -> int:
        return sum(a.spend_microusd or 0 for a in self.soak.store.attempts(self.soak.study.id, trial=trial))

    # --- what should have been written

    def ticked(self, process: "Process") -> None:
        """The engine has looked: what was true when it began to must have been noticed."""
        trials = () if process.fenced else tuple(process.engine.live.trials.values())
        trains = [w for w in trials if (a := w.attempt) and a.state is AttemptState.TRAINING and a.stop_reason is None]
        findings = {
            (name, trial.record.number): (trial, line)
            for trial in trains
            for name, line in self._unnoticed(process, trial)
            if not trial.unread
        }
        for key, (trial, line) in findings.items():
            if self._seen.get(key) is trial:
                raise Broken(key[0], line)
        self._seen = {key: trial for key, (trial, _) in findings.items()}

    def _unnoticed(self, process: "Process", trial: LiveTrial) -> Iterator[tuple[str, str]]:
        policy, name = process.engine.live.policy, trial.attempts[-1].job_name
        steady = not self.soak.hits["clock:back"]  # else time that has passed may not be there for the engine
        silent_s = self._silent_s(process, trial)
        if steady and policy.stall_after_s is not None and silent_s > policy.stall_after_s + policy.poll_s:
            yield "stall_is_noticed", f"{name} is silent for {silent_s} s, and goes on"
        cost, limit = self._cost(trial), policy.trial_budget_microusd
        if steady and limit is not None and trial.presence is not None and cost > limit:
            yield "trial_budget_is_noticed", f"{name} goes on, its trial has cost {cost} of {limit}"
        if policy.on_demand_after is None and self._is_lost(trial):
            yield "no_progress_is_noticed", f"{name} goes on, and nothing came of the last {NO_PROGRESS_RUNS_MAX} runs"

    def _silent_s(self, process: "Process", trial: LiveTrial) -> float:
        lies, now = self.soak.cloud.prefixes[trial.record.prefix], self.soak.clock.now()
        sign = (len(lies.points), len(lies.records), tuple(lies.saved.items()), len(trial.runs))
        last = self._silences.get(trial.record.number)
        if last is None or last.trial is not trial or last.sign != sign or trial.unread:
            last = self._silences[trial.record.number] = _Silence(trial, sign, now)
        last.lasted_s += min((now - last.looked_at).total_seconds(), process.engine.live.policy.poll_s)
        last.looked_at = now
        return last.lasted_s

    def _cost(self, trial: LiveTrial) -> float:
        """Final figures, and what the job has been billed so far."""
        soak, attempt = self.soak, trial.attempts[-1]
        job = soak.jobs.get(attempt.job_name)
        if job is None:
            return 0.0
        now_s = (soak.clock.now() - soak.study.created_at).total_seconds()
        up_s = sum(end - start for start, end in job.up) + (0.0 if job.up_since is None else now_s - job.up_since)
        share = 1 - soak.cloud.settings.saving if attempt.spot else 1.0
        rate = attempt.instance_count * attempt.rate_microusd_per_h
        return self._finals(trial.record.number) + (up_s - 1) * rate * share / 3600

    def _is_lost(self, trial: LiveTrial) -> bool:
        whole = [run for run in trial.runs if run.end in _WHOLE][-NO_PROGRESS_RUNS_MAX:]
        if len(whole) < NO_PROGRESS_RUNS_MAX:
            return False
        saved = self.soak.cloud.prefixes[trial.record.prefix].saved.values()
        if all(at <= whole[0].started_at for at in saved):
            return True
        script = self.soak.jobs[trial.attempts[-1].job_name].script
        return not script.resumes and all(run.restarted_from_zero for run in whole)
