"""The tables and lines of the command line: from the documents of `views` to text.

Rules: every function returns a string and prints nothing, so that one place handles a closed pipe and tests compare
text. Foreign text goes through `safe`, in lines as in cells.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import median_low
from typing import Any, TextIO, TypeAlias

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuner.cli.table import cell, render, state, table
from tuner.core.commands import Command, Message, Options
from tuner.core.commands import render as rendered
from tuner.core.errors import Finding, gist, how_to_go_on
from tuner.core.records import Intent
from tuner.core.text import (
    UNKNOWN,
    ago,
    clock_time,
    counted,
    dollars,
    lost_work,
    number,
    percent,
    safe,
    seconds,
    size,
    steps_text,
)
from tuner.operations.records import LaunchPlan
from tuner.reports.records import Audit, LocalJobRow

_STEPS_SHOWN = 12  # as many as `steps_text` lists

# Documents of `views`: their keys are the contract, their values are checked where they are made.
Doc: TypeAlias = Mapping[str, Any]


def params_text(params: Mapping[str, Any]) -> str:
    return " ".join(f"{safe(name)}={number(value)}" for name, value in params.items())


def plan(shown: LaunchPlan, stream: TextIO | None = None, *, every_setting: bool = False) -> str:
    """The plan of `launch` and its possible cost, formatted for `stream`."""
    grid = Table.grid(padding=(0, 2))
    for label, value in (*(shown.rows if every_setting else ()), *shown.headline):
        grid.add_row(cell(label), cell(value))
    note = simulated_note(shown.spec.backend == "local")
    grid.add_row(Text("estimated cost"), Text(f"{dollars(shown.estimated_usd)}{note}"))
    reading = "at most" if shown.spec.budget.usd is not None else "at most, with one job a trial"
    grid.add_row(Text(reading), Text(f"{dollars(shown.ceiling_usd)}{note}"))
    return "\n".join([render(grid, stream), *(f"warning: {safe(line)}" for line in shown.warnings)])


def status(doc: Doc, now: datetime, options: Options = ()) -> str:
    """The block of one study."""
    note = simulated_note(doc["simulated"])
    rows = [
        ("state", str(doc["state"])),
        ("engine", _engine_text(doc["engine"], now)),
        ("trials", trials_text(doc["trials"])),
        ("best", best_text(doc)),
        ("spend", f"{spend_text(doc)}{note}"),
        ("on demand", f"{dollars(doc['on_demand_usd'])}{note}, saved {percent(doc['saved_pct'])}"),
        ("interruptions", resumed_text(doc)),
        ("work lost", lost_text(doc)),
    ]
    rows += [("pool", pool_text(pool)) for pool in doc["pools"]]
    if doc["deadline"]:
        rows.append(("deadline", clock_time(doc["deadline"])))
    grid = Table.grid(padding=(0, 2))
    for label, value in rows:
        grid.add_row(Text(label), Text(safe(value)))
    title = f"{safe(doc['study'])} ({safe(doc['backend'])}, by {safe(doc['owner'])})"
    return "\n".join([title, render(grid), *warnings(doc, options)])


def pool_text(pool: Doc) -> str:
    """The waits, interruptions and time of one pool."""
    rate, wait_s = pool["interruptions_per_h"], pool["mean_wait_s"]
    parts = [
        " ".join(filter(None, (pool["instance"], pool["capacity"], pool["zone"])))
        + f": {counted(pool['attempts'], 'job')}",
        *([f"{pool['live']} live"] if pool["live"] else []),
        f"up {seconds(pool['up_h'] * 3600)}",
        *([] if rate is None else [f"{float(f'{rate:.2g}'):g} interruptions an hour"]),
        *([] if wait_s is None else [f"mean wait {seconds(wait_s)}"]),
    ]
    return ", ".join(parts)


def studies(docs: Sequence[Doc], now: datetime, options: Options = ()) -> str:
    """All studies of a store, one per line."""
    if not docs:
        return rendered(Message("no studies yet: ", Command("launch", "FILE")), options)
    columns = ["STUDY", "STATE", "ENDED", "TOTAL", "BEST", "SPENT", "INTERRUPTIONS", "LAST SIGN OF LIFE"]
    rows = [
        (
            doc["study"],
            state(doc["state"]),
            ended(doc["trials"]),
            doc["trials"]["total"],
            best_text(doc),
            f"{dollars(doc['spend_usd'])}{simulated_note(doc['simulated'])}",
            doc["interruptions"],
            ago(doc["engine"]["last_tick"], now),
        )
        for doc in docs
    ]
    return render(table(columns, rows, right=["ENDED", "TOTAL", "INTERRUPTIONS"]))


def trials(docs: Sequence[Doc], *, simulated: bool) -> str:
    """One row per trial."""
    if not docs:
        return "no trials yet"
    figures = ["VALUE", "STEP", "ATT", "INT", "RESUMED", "SPENT", "LOST"]
    places = [f"{doc['instance']} {doc['capacity']}" if doc["instance"] else UNKNOWN for doc in docs]
    differ = len({place for place in places if place != UNKNOWN}) > 1
    rows = [
        (
            doc["number"],
            state(doc["state"]),
            values_text(doc),
            doc["step"] if doc["step"] is not None and doc["step"] >= 0 else None,
            doc["attempts"],
            doc["interruptions"],
            resumed_steps(doc["runs"]),
            trial_cost(doc),
            lost_text(doc),
            *([place] if differ else []),
            params_text(doc["params"]) + (f"  [{safe(gist(doc['reason']))}]" if doc["reason"] else ""),
        )
        for doc, place in zip(docs, places, strict=True)
    ]
    columns = ["TRIAL", "STATE", *figures, *(["INSTANCE"] if differ else []), "PARAMETERS"]
    lines = [render(table(columns, rows, right=["TRIAL", *figures], fold=["PARAMETERS"]))]
    lines += [] if differ else [f"all on {safe(max(places))}"]  # a column with one value only becomes a line
    return "\n".join([*lines, simulated_line()] if simulated else lines)


def best(name: str, docs: Sequence[Doc], *, simulated: bool) -> str:
    """The best trials, one block each."""
    if not docs:
        return f"{safe(name)} has no trial that succeeded yet"
    note = simulated_note(simulated)
    blocks = [
        "\n".join(
            [
                f"trial {doc['number']}: {values_text(doc)}",
                f"  parameters   {params_text(doc['params'])}",
                f"  cost         {trial_cost(doc)}{note}, on demand {dollars(doc['on_demand_usd'])}",
                f"  checkpoints  {safe(doc['checkpoint_prefix'])}",
                f"  model        {safe(doc['model_uri'] or UNKNOWN)}",
            ]
        )
        for doc in docs
    ]
    return "\n\n".join(blocks)


def comparison(doc: Doc) -> str:
    """The studies side by side, then the trials, frontier first."""
    columns = ["STUDY", "ENDED", "BEST", "TRIAL", "SPENT", "ON_DEMAND", "TO WITHIN 1% OF THE BEST"]
    rows = [
        (
            s["study"],
            s["trials"],
            number(s["best"]),
            s["best_trial"],
            dollars(s["spend_usd"]),
            dollars(s["on_demand_usd"]),
            dollars(s["usd_to_target"]),
        )
        for s in doc["studies"]
    ]
    ranked = sorted(doc["trials"], key=lambda t: (not t["frontier"], t["spend_usd"] is None, t["spend_usd"] or 0.0))
    trial_rows = [
        (
            "*" if t["frontier"] else "",
            t["study"],
            t["number"],
            state(t["state"]),
            number(t["value"]),
            dollars(t["spend_usd"]),
            t["interruptions"],
            params_text(t["params"]),
        )
        for t in ranked
    ]
    heads = ["", "STUDY", "TRIAL", "STATE", "VALUE", "SPENT", "INT", "PARAMETERS"]
    return "\n".join(
        [
            f"{safe(doc['metric'])}, {safe(doc['direction'])}{simulated_note(doc['simulated'])}",
            render(table(columns, rows, right=columns[1:])),
            "",
            render(table(heads, trial_rows, right=["TRIAL", "VALUE", "SPENT", "INT"], fold=["PARAMETERS"])),
            "* on the frontier: no trial is as good for less",
        ]
    )


def final_summary(doc: Doc, options: Options = ()) -> str:
    """The result of a sweep, printed at the end of `launch` and `resume`."""
    note = simulated_note(doc["simulated"])
    lines = [
        f"{safe(doc['study'])} is {doc['state']}: {trials_text(doc['trials'])}",
        f"  best           {best_text(doc)}",
        f"  spend          {spend_text(doc)}{note}",
        f"  on demand      {dollars(doc['on_demand_usd'])}{note}, saved {percent(doc['saved_pct'])}",
        f"  interruptions  {resumed_text(doc)}{_resumed_from(doc, options)}",
        f"  work lost      {lost_text(doc)}",
        *warnings(doc, options),
        "next:",
        *(f"  {command.line(options)}" for command in next_commands(doc)),
    ]
    return "\n".join(lines)


def next_commands(doc: Doc) -> list[Command]:
    """Commands to continue with, by the state of the study."""
    name: str = doc["study"]
    resume, cancel = Command("resume", name), Command("cancel", name)
    best = doc["best"][0] if isinstance(doc["best"], list) and doc["best"] else doc["best"]
    match doc["state"]:
        case "finished" | "cancelled":
            if not best:
                return [Command("trials", name)]
            compare = [Command("compare", name)] if len(doc["objectives"]) == 1 else []
            return [Command("best", name), Command("show", name, str(best["number"])), *compare]
        case "out_of_budget":
            return [Command("set", name, "budget.usd=…"), resume, cancel]
        case "past_deadline":
            return [Command("set", name, "budget.deadline=…"), resume, cancel]
        case "stopped":
            return [resume, cancel]
        case _:  # continue the order: `resume` would take a stop back
            asked = how_to_go_on(name, Intent(doc["intent"]))
            return list(dict.fromkeys([asked, cancel]))


def warnings(doc: Doc, options: Options = ()) -> list[str]:
    """Warnings of a status document; work that was started over comes first, and loudly."""
    lines = [f"warning: {safe(line)}" for line in doc["warnings"]]
    see = rendered(Message(" See ", Command("trials", doc["study"]), ", and `show` of such a trial."), options)
    if doc["never_checkpointed"] > doc["resumed_runs"]:
        # one run that is lost before its first checkpoint is bad luck; many mean that the script saves too late
        runs = counted(doc["never_checkpointed"], "run")
        lines.insert(0, f"warning: {runs} ended before the first checkpoint: save earlier, or such work is lost")
    if doc["unproven_runs"]:
        runs = counted(doc["unproven_runs"], "run")
        lines.insert(
            0,
            f"warning: resume of {runs} unproven, and the work lost unknown: no step is known of them; give "
            "training.metrics a step_regex, or report(step, ...) in the script",
        )
    if doc["resumed_from_older"]:
        runs = counted(doc["resumed_from_older"], "run")
        lines.insert(
            0,
            f"WARNING: {runs} BEGAN BEFORE THE NEWEST CHECKPOINT that was there: the script does not load the newest, "
            f"and every interruption pays for the steps between again.{see}",
        )
    if doc["restarted_from_zero"]:
        runs = counted(doc["restarted_from_zero"], "run")
        lines.insert(
            0,
            f"WARNING: {runs} RESTARTED FROM ZERO although a checkpoint was there: the script does not resume, "
            f"and every interruption pays for the same work again.{see}",
        )
    return lines


def problems(doc: Doc) -> list[str]:
    """The findings of `status --check`."""
    if not doc["problems"]:
        return [f"{safe(doc['study'])}: every invariant holds"]
    return [f"{safe(doc['study'])}: problem: {safe(line)}" for line in doc["problems"]]


def findings(found: Sequence[Finding], options: Options = ()) -> str:
    """One finding per line, with its remedy below it: side by side they are wider than any terminal."""
    grid = Table.grid(padding=(0, 2))
    for f in found:
        remedy = [Text(f"remedy: {safe(rendered(f.remedy, options))}", style="dim")] if f.remedy else []
        grid.add_row(state(f.level), Group(Text(safe(f.what)), *remedy))
    return render(grid)


def audit(name: str, found: Audit, options: Options = ()) -> str:
    columns = ["JOB", "TRIAL", "ATTEMPT", "STATUS", "BILLED", "LEDGER", "DIFFERENCE"]
    rows = [
        (
            *(r.job, r.trial, r.attempt, r.status, dollars(r.billed_usd), dollars(r.ledger_usd)),
            rendered(r.difference or r.note, options),
        )
        for r in found.rows
    ]
    ours = sum(r.attempt is not None for r in found.rows)
    verdict = (
        f"{safe(name)}: the store and the job service agree on {counted(ours, 'attempt')}"
        if found.ok
        else f"{safe(name)}: {counted(len(found.lines), 'difference')}"
    )
    return "\n".join(
        [render(table(columns, rows, right=["TRIAL", "ATTEMPT", "BILLED", "LEDGER"])), verdict]
        + [f"  {safe(rendered(line, options))}" for line in found.lines]
    )


def gc(doc: Doc) -> str:
    """The files of each trial that are deleted, or would be."""
    name, done = safe(doc["study"]), "would delete" if doc["dry_run"] else "deleted"
    left = f"{size(doc['left_bytes'])} stay{_a_month(doc['left_usd_per_month'], doc)}"
    if not doc["trials"]:
        return f"{name}: nothing to delete, checkpoints.keep is {doc['keep']}; {left}"
    columns = ["TRIAL", "STATE", "KEPT_STEP", "OBJECTS", "SIZE", "$/MONTH"]
    rows = [
        (
            each["trial"],
            state(each["state"]),
            each["kept_step"],
            each["objects"],
            size(each["size_bytes"]),
            dollars(each["usd_per_month"]),
        )
        for each in doc["trials"]
    ]
    total = f"{size(doc['size_bytes'])}{_a_month(doc['usd_per_month'], doc)}"
    shown = render(table(columns, rows, right=["TRIAL", "KEPT_STEP", "OBJECTS", "SIZE", "$/MONTH"]))
    return f"{shown}\n{name}: {done} {total}, since checkpoints.keep is {doc['keep']}; {left}"


def _a_month(amount: float, doc: Doc) -> str:
    return f" ({dollars(amount)} a month at S3's list price{', simulated' if doc['simulated'] else ''})"


def local_jobs(rows: Sequence[LocalJobRow], now: datetime) -> str:
    if not rows:
        return "no local jobs"
    columns = ["JOB", "STATUS", "SECONDARY", "INSTANCE", "CREATED", "INT", "BILLABLE"]
    cells = [
        (
            r.name,
            r.status,
            r.secondary,
            r.instance_type,
            ago(r.created_at.isoformat(), now),
            r.interruptions,
            seconds(r.billable_s),
        )
        for r in rows
    ]
    return render(table(columns, cells, right=["INT", "BILLABLE"]))


def trials_text(counts: Mapping[str, int]) -> str:
    """`24 of 24 ended: 23 succeeded, 1 failed; 2 running`."""
    over = [f"{counts[name]} {name}" for name in _ENDS if counts.get(name)]
    open_ = [f"{counts[name]} {name.replace('_', ' ')}" for name in _OPEN if counts.get(name)]
    text = f"{ended(counts)} of {counts['total']} ended" + (f" ({', '.join(over)})" if over else "")
    return f"{text}; {', '.join(open_)}" if open_ else text


def ended(counts: Mapping[str, int]) -> int:
    return sum(counts.get(name, 0) for name in _ENDS)


def best_text(doc: Doc) -> str:
    best = doc["best"]
    if isinstance(best, list):
        return f"{counted(len(best), 'trial')} on the Pareto front" if best else UNKNOWN
    return f"{number(best['value'])} (trial {best['number']})" if best else UNKNOWN


def spend_text(doc: Doc) -> str:
    """`$0.12 + $0.03 estimated, $0.40 reserved, of $60.00`."""
    more = [f" + {dollars(doc['estimated_usd'])} estimated" if doc["estimated_usd"] else ""]
    more.append(f", {dollars(doc['reserved_usd'])} reserved" if doc["reserved_usd"] else "")
    more.append(f", of {dollars(doc['budget_usd'])}" if doc["budget_usd"] is not None else "")
    return dollars(doc["spend_usd"]) + "".join(more)


def lost_text(doc: Doc) -> str:
    return lost_work(doc["lost_work_s"], doc["lost_work_unknown_runs"])


def resumed_text(doc: Doc) -> str:
    zero = f", {doc['restarted_from_zero']} RESTARTED FROM ZERO" if doc["restarted_from_zero"] else ""
    unproven = f", {doc['unproven_runs']} unproven" if doc["unproven_runs"] else ""
    older = f", {doc['resumed_from_older']} FROM AN OLDER CHECKPOINT" if doc["resumed_from_older"] else ""
    return f"{doc['interruptions']}, {counted(doc['resumed_runs'], 'run')} resumed{older}{zero}{unproven}"


def resumed_steps(runs: Iterable[Doc]) -> str:
    """Where the runs of one trial resumed, in order."""
    steps = [str(run["resumed_from_step"]) for run in runs if run["resumed_from_step"] is not None]
    return ",".join(steps)


def trial_cost(doc: Doc) -> str:
    """The final cost; while jobs run, the final and the estimated cost together, marked with `~`."""
    if not doc["estimated"]:
        return dollars(doc["spend_usd"])
    return f"~{dollars((doc['spend_usd'] or 0.0) + (doc['estimated_usd'] or 0.0))}"


def values_text(doc: Doc) -> str:
    if doc["values"] is None:
        return f"({number(doc['last_value'])})" if doc["last_value"] is not None else UNKNOWN
    return ", ".join(number(value) for value in doc["values"])


def simulated_note(simulated: bool) -> str:  # noqa: FBT001 - reads well at its callers
    return " (simulated)" if simulated else ""


def simulated_line() -> str:
    return "dollars are simulated: list prices of a local study, which nobody pays"


def _resumed_from(doc: Doc, options: Options) -> str:
    """Every step, or a summary that says so: a list that is cut would look complete."""
    steps: list[int] = doc["resumed_from_steps"]
    if not steps:
        return ""
    several = len(set(steps))
    if several <= _STEPS_SHOWN:
        return f" (from {'step' if several == 1 else 'steps'} {steps_text(steps)})"
    each = Command("trials", doc["study"]).line(options)
    return f" (from steps {min(steps)} to {max(steps)}, in the median {median_low(steps)}; each: {each})"


def _engine_text(engine: Doc, now: datetime) -> str:
    last = f"last sign of life {ago(engine['last_tick'], now)}"
    if engine["alive"]:
        return f"pid {engine['pid']} on {safe(engine['host'])}, {last}"
    return f"none at work, {last}"


_ENDS = ("succeeded", "pruned", "failed", "cancelled")
_OPEN = ("running", "backing_off", "paused", "proposed")
