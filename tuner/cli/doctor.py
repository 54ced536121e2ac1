"""`tuner doctor` in its several forms, and `tuner audit --cur`: questions to an account and to its bill.

Rules: results go to standard output, everything else to standard error. Only `doctor --first-dollar` spends money,
and it asks first.
"""

import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict

from tuner.aws import cost_report, first_dollar, probe_plan
from tuner.aws import prepare as preparing
from tuner.aws.cost_report import CurAudit
from tuner.aws.hints import queue_of
from tuner.aws.iam_policy import UNKNOWN_ACCOUNT
from tuner.cli import events, printing
from tuner.cli.arguments import Arguments
from tuner.cli.read import out, out_json, reading, say, store_url
from tuner.cli.table import render as drawn
from tuner.cli.table import table
from tuner.core.clock import SystemClock
from tuner.core.commands import Command, Message, render
from tuner.core.errors import Exit, UserError
from tuner.core.text import counted, dollars, safe
from tuner.operations.context import operating_errors
from tuner.reports.views import iso, simulated
from tuner.spec import study_file as spec_file

_PACE = probe_plan.Pace()


def doctor(args: Arguments) -> int:
    """Check everything, or run one of the other forms."""
    if args.events is not None:
        return events.run(args)
    if args.first_dollar:
        return _first_dollar(args)
    if args.policy:
        policies = args.use_cases.policies(args.file)
        if args.file is not None and f":{UNKNOWN_ACCOUNT}:" in json.dumps(policies):
            say("warning: nobody is logged in, so put the account's number where ACCOUNT stands")
        out_json(policies)
        return Exit.DONE
    found = args.use_cases.doctor(args.file, store_url(args.store), SystemClock())
    facts = [] if args.file is None else args.use_cases.known_facts(args.file, store_url(args.store))
    bad = any(finding.level == "error" for finding in found)
    if args.json:
        known = [asdict(fact) | {"learned_at": iso(fact.learned_at)} for fact in facts]
        shown = [asdict(each) | {"remedy": render(each.remedy, args.options)} for each in found]
        out_json({"ok": not bad, "findings": shown, "facts": known})
    else:
        out(printing.findings(found, args.options))
        if facts:
            rows = [(fact.name, json.dumps(fact.value), iso(fact.learned_at), fact.source) for fact in facts]
            out(drawn(table([facts[0].scope, "KNOWN", "SINCE", "BY"], rows)))
    return Exit.CHECK_FAILED if bad else Exit.DONE


def _first_dollar(args: Arguments) -> int:
    """Ask, run the one job, and print its findings. The exit code says whether the job worked."""
    if args.file is None:
        raise UserError("doctor: --first-dollar needs a study FILE: it names role, image and bucket", Exit.USAGE)
    clock = SystemClock()
    with operating_errors(), reading(args.store) as store:
        spec = spec_file.load(args.file)
        if spec.backend == "local":
            raise UserError(f"doctor: study {spec.name} runs on this machine: set backend: sagemaker", Exit.USAGE)
        small = probe_plan.smallest(spec)
        ready = preparing.prepare(small, preparing.connection(small), store, clock.now())
        planned = probe_plan.plan(ready.spec, ready.rates, secrets.SystemRandom())
        place = args.use_cases.backends.on_aws(ready.spec)
        for line in (*planned.lines(spec), *ready.warnings):
            say(safe(line))
        if queue_of(store.facts(place.scope)) is None:
            create = Command("doctor", str(args.file), "--events", "create")
            say(safe(render(Message("to see which events come, first: ", create), args.options)))
        _agree(yes=args.yes)
        outcome = first_dollar.run(planned, place, store, clock, report=lambda line: say(safe(line)), pace=_PACE)
    if args.json:
        facts = {fact.name: fact.value for fact in outcome.facts}
        out_json({"scope": place.scope, "ok": outcome.fault is None, "fault": outcome.fault, "facts": facts})
    else:
        rows = [(fact.name.removeprefix("probe."), json.dumps(fact.value)) for fact in outcome.facts]
        out(drawn(table([place.scope, "FOUND"], rows)))
        out("\n".join(["not to be seen by one job:", *(f"  {line}" for line in first_dollar.BEYOND)]))
    if outcome.fault is None:
        return Exit.DONE
    say(f"tuner: {safe(outcome.fault)}")
    return Exit.CHECK_FAILED


def _agree(*, yes: bool) -> None:
    """Ask before money is spent. Raises UserError if nobody can answer, or if the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("doctor: it costs money and there is no terminal to ask on: pass -y", Exit.USAGE)
    sys.stderr.write("run it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("doctor: declined, nothing was started", Exit.USAGE)


def bill(args: Arguments) -> int:
    """`tuner audit STUDY --cur FILE`: compare the ledger with the bill of AWS."""
    if args.stop_orphans:
        raise UserError("audit: --cur reads a report and --stop-orphans stops jobs: choose one", Exit.USAGE)
    with reading(args.store) as store:
        study = store.study(args.study)
        if simulated(study):
            raise UserError(f"audit: study {study.name} runs on this machine, and nobody bills it", Exit.USAGE)
        attempts = store.attempts(study.id)
    found = cost_report.audit_bill(study, attempts, args.cur)
    if args.json:
        out_json(_bill_document(args.study, found))
    else:
        out(_bill_text(args.study, found))
    return Exit.DONE if found.ok else Exit.CHECK_FAILED


def _bill_document(name: str, found: CurAudit) -> dict[str, object]:
    report = found.report
    return {
        "study": name,
        "ok": found.ok,
        "report": {
            "lines": report.lines,
            "repeated": report.repeated,
            "other_ids": report.other_ids,
            "from": iso(report.starts_at),
            "to": iso(report.ends_at),
            "final": report.final,
        },
        "differences": list(found.lines),
        "jobs": [asdict(row) for row in found.rows],
        "ledger_usd": found.ledger_usd,
        "billed_usd": found.billed_usd,
        "other_usd": found.other_usd,
    }


def _bill_text(name: str, found: CurAudit) -> str:
    columns = ["JOB", "TRIAL", "ATTEMPT", "LEDGER", "BILLED", "HOURS", "OTHER", ""]
    rows = [
        (
            row.job,
            row.trial,
            row.attempt,
            dollars(row.ledger_usd),
            dollars(row.billed_usd),
            None if row.billed_h is None else f"{row.billed_h:.4f}",
            dollars(row.other_usd),
            row.difference or row.note,
        )
        for row in found.rows
    ]
    right: Sequence[str] = ("TRIAL", "ATTEMPT", "LEDGER", "BILLED", "HOURS", "OTHER")
    report, left_out = found.report, sum(1 for row in found.rows if row.note)
    period = f"{iso(report.starts_at)} to {iso(report.ends_at)}, {'final' if report.final else 'not final yet'}"
    agreed = "ledger and bill agree" if len(found.rows) > left_out else "nothing to compare yet"
    compared = counted(len(found.rows) - left_out, "job")
    totals = f"recorded {dollars(found.ledger_usd)}, billed {dollars(found.billed_usd)} for {compared}"
    other = f"storage, tax and discounts: {dollars(found.other_usd)}"
    again = f", {report.repeated} of them given again and counted once" if report.repeated else ""
    twice = (
        f"warning: {counted(report.other_ids, 'line')} of its jobs stood in an earlier file, too, under other ids: "
        "if the files are two deliveries of one month, give the newer one alone"
    )
    lines = [
        drawn(table(columns, rows, right=right)),
        f"report {period}: {counted(report.lines, 'line')}{again}",
        *([twice] if report.other_ids else []),
        f"{totals}; {counted(left_out, 'job')} left out; {other}",
        f"{safe(name)}: " + (agreed if found.ok else counted(len(found.lines), "difference")),
    ]
    return "\n".join([*lines, *(f"  {safe(line)}" for line in found.lines)])
