"""The story of one trial for `tuner show`: its attempts, interruptions, resumes and cost.

Rules: every function returns text and prints nothing. The order is that of the events, attempt by
attempt and run by run.
"""

from typing import Any

from tuner.cli.printing import Doc, lost_text, params_text, simulated_line, trial_cost, values_text
from tuner.cli.table import render, state, table
from tuner.core.errors import gist
from tuner.core.text import UNKNOWN, clock_time, counted, dollars, number, safe, seconds

_LAST_EVENTS = 12


def story(doc: Doc) -> str:
    """The document of `views.show_view` as text."""
    trial = doc["trial"]
    parts = [_head(doc["study"], trial)]
    parts.extend(_attempt(attempt, first=position == 0) for position, attempt in enumerate(doc["attempts"]))
    if doc["metrics"]:
        parts.append(_metrics(doc["metrics"]))
    if doc["events"]:
        parts.append(_events(doc["events"]))
    if doc["simulated"]:
        parts.append(simulated_line())
    return "\n\n".join(parts)


def _head(study: str, trial: Doc) -> str:
    reason = f", {safe(gist(trial['reason']))}" if trial["reason"] else ""
    lines = [
        f"{safe(study)} trial {trial['number']}: {trial['state']}{reason}",
        f"  value        {values_text(trial)}",
        f"  parameters   {params_text(trial['params'])}",
        f"  cost         {trial_cost(trial)}, on demand {dollars(trial['on_demand_usd'])}",
        f"  work lost    {lost_text(trial)} in {counted(trial['interruptions'], 'interruption')}",
        f"  checkpoints  {safe(trial['checkpoint_prefix'])}",
    ]
    if trial["model_uri"]:
        lines.append(f"  model        {safe(trial['model_uri'])}")
    return "\n".join(lines)


def _attempt(attempt: Doc, *, first: bool) -> str:
    end = attempt["end"] or attempt["state"]
    why = ", ".join(safe(gist(text)) for text in (attempt["stop_reason"], attempt["reason"]) if text)
    lines = [
        f"attempt {attempt['attempt']}: {end}" + (f" ({why})" if why else ""),
        f"  job {safe(attempt['name'])} on {safe(attempt['instance'])}, {attempt['capacity']}",
        f"  {clock_time(attempt['submitted_at'])} to {clock_time(attempt['ended_at'])}",
        f"  start-up {seconds(attempt['startup_s'])}, training {seconds(attempt['training_s'])}",
        f"  billed {seconds(attempt['billable_s'])} = {dollars(attempt['spend_usd'])}",
    ]
    for position, run in enumerate(attempt["runs"]):
        lines.append(f"  run {run['run']}: {_run(run, first=first and position == 0)}")
    whole = (attempt["reason"] or "").splitlines()
    if len(whole) > 1:  # a traceback, as the script printed it
        lines += [f"  | {safe(line)}" for line in whole]
    return "\n".join(lines)


def _run(run: Doc, *, first: bool) -> str:
    reached = f"reached step {run['last_step']}" if run["last_step"] is not None else "no step known"
    known = run["lost_work_s"] is not None
    lost = f", {seconds(run['lost_work_s'])} of work lost" if known else ", work lost not known"
    cut = run["end"] in ("interrupted", "restarted")
    return f"{_start(run, first=first)}, {reached}, {run['end'] or 'training'}{lost if cut else ''}"


def _start(run: Doc, *, first: bool) -> str:
    if run["restarted_from_zero"]:
        return "RESTARTED FROM ZERO although a checkpoint was there"
    if run["resumed_from_step"] is not None:
        if run["resumed_from_older"]:
            return f"resumed from step {run['resumed_from_step']} at best, NOT FROM {run['resume_step']}, the newest"
        return f"resumed from step {run['resumed_from_step']}"
    if first or run["restarted_from_zero"] is False:
        return "started"
    return "started, resume unproven"


def _metrics(metrics: dict[str, list[Any]]) -> str:
    rows = [
        (name, len(points), points[-1]["step"] if points[-1]["step"] >= 0 else None, number(points[-1]["value"]))
        for name, points in metrics.items()
    ]
    return render(table(["METRIC", "POINTS", "LAST_STEP", "LAST"], rows, right=["POINTS", "LAST_STEP", "LAST"]))


def _events(events: list[Any]) -> str:
    rows = [
        (
            clock_time(event["happened_at"]),
            event["kind"],
            event["attempt"],
            state(event["after"]) if event["after"] else UNKNOWN,
            event["text"] or " ".join(f"{key}={gist(str(value))}" for key, value in event["details"].items()),
        )
        for event in events[-_LAST_EVENTS:]
    ]
    shown = render(table(["AT", "EVENT", "ATTEMPT", "STATE", "DETAILS"], rows, right=["ATTEMPT"], fold=["DETAILS"]))
    return shown if len(events) <= _LAST_EVENTS else f"last {_LAST_EVENTS} of {len(events)} events\n{shown}"
