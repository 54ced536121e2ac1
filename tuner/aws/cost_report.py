"""What AWS billed for a study's jobs, read from Cost and Usage Reports and joined to the ledger on the job's ARN.

The ledger rests on one formula: billed seconds times the on-demand rate. Only the bill of an account can prove it. No
service is called: the store and the files are enough.

Rules: reports are read as they stream, column names old and new (`lineItem/ResourceId`, `line_item_resource_id`); of a
report nothing is kept but the sums of this study's jobs. Only compute is compared: storage, tax, discounts and the
negation of savings plans are shown separately. What the report cannot know yet is "not billed yet", not a difference.
Files of one delivery may overlap: a line is counted once, wherever its id and its interval come again; of reports
without ids, one that was given before is refused. Another delivery of the same month gives its lines other ids (AWS:
"can't be used to identify the same line item across different reports"), which nothing tells from a job whose hour is
split over two files: that is said, and counted. Of each line of this study's jobs two digests are kept, of others none.
"""

import csv
import gzip
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO

from tuner.core.errors import UserError
from tuner.core.jobs import trial_and_attempt
from tuner.core.records import Attempt, Study
from tuner.spec.records import MICROUSD

# What one attempt, or all together, may be off: the report rounds each of its hours.
TOLERANCE = Decimal("0.01")
_LEAST_MICROUSD = 1_000
# A report is brought up to date once a day at least, and lags by up to a day.
_LAG = timedelta(hours=24)
_COMPUTE_TYPES = frozenset(("Usage", "DiscountedUsage", "SavingsPlanCoveredUsage"))
_COLUMNS = {
    "resource": ("lineItem/ResourceId", "line_item_resource_id"),
    "type": ("lineItem/LineItemType", "line_item_line_item_type"),
    "usage": ("lineItem/UsageType", "line_item_usage_type"),
    "start": ("lineItem/UsageStartDate", "line_item_usage_start_date"),
    "end": ("lineItem/UsageEndDate", "line_item_usage_end_date"),
    "amount": ("lineItem/UsageAmount", "line_item_usage_amount"),
    "cost": ("lineItem/UnblendedCost", "line_item_unblended_cost"),
}
# Reports may leave these out.
_OPTIONAL = {
    "id": ("identity/LineItemId", "identity_line_item_id"),
    "unit": ("pricing/unit", "pricing_unit"),
    "currency": ("lineItem/CurrencyCode", "line_item_currency_code"),
    "invoice": ("bill/InvoiceId", "bill_invoice_id"),
}
_MAGIC_GZIP, _MAGIC_PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(slots=True)
class Billed:
    """The sums of one job, exact. `usage` are hours of instances."""

    cost_usd: Decimal = Decimal(0)
    usage_h: Decimal = Decimal(0)
    other_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What some files say of one study. `final`: every line of them stands on an invoice."""

    jobs: Mapping[str, Billed]  # by ARN
    lines: int
    repeated: int  # lines of this study's jobs that came more than once, and were counted once
    other_ids: int  # lines of this study's jobs that differ from one of another file in the id only: counted
    starts_at: datetime
    ends_at: datetime
    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CurRow:
    """One job, ours against the bill; a side that is missing is None."""

    job: str
    trial: int | None
    attempt: int | None
    ledger_usd: float | None
    billed_usd: float | None
    ledger_h: float | None
    billed_h: float | None
    other_usd: float  # storage, tax, discounts: in the bill, outside of the ledger
    note: str  # why it is not compared
    difference: str | None  # None: they agree, or there is nothing to compare


@dataclass(frozen=True, slots=True, kw_only=True)
class CurAudit:
    rows: tuple[CurRow, ...]
    lines: tuple[str, ...]  # differences
    report: Report
    ledger_usd: float  # of the rows that were compared
    billed_usd: float
    other_usd: float

    @property
    def ok(self) -> bool:
        return not self.lines


def audit_bill(study: Study, attempts: Sequence[Attempt], files: Sequence[Path]) -> CurAudit:
    """Join the ledger to the bill. Raises UserError for a file that is no such report."""
    report = read(files, f":training-job/{study.key}-")
    ours_alone = {arn: billed for arn, billed in report.jobs.items() if trial_and_attempt(_name(arn), study.key)}
    report = replace(report, jobs=ours_alone)
    asked = [attempt for attempt in attempts if attempt.arn is not None]
    rows = [_compare(attempt, report) for attempt in asked]
    known = {attempt.arn for attempt in asked}
    rows += [_unasked(arn, billed) for arn, billed in sorted(report.jobs.items()) if arn not in known]
    compared = [row for row in rows if not row.note]
    ours, theirs = (sum(row.ledger_usd or 0 for row in compared), sum(row.billed_usd or 0 for row in compared))
    lines = [f"{row.job}: {row.difference}" for row in rows if row.difference is not None]
    if not lines and abs(ours - theirs) > max(float(TOLERANCE) * ours, _LEAST_MICROUSD / MICROUSD):
        lines.append(f"all together: billed ${theirs:.4f}, recorded ${ours:.4f}")
    return CurAudit(
        rows=tuple(rows),
        lines=tuple(lines),
        report=report,
        ledger_usd=ours,
        billed_usd=theirs,
        other_usd=sum(row.other_usd for row in rows),
    )


def read(files: Sequence[Path], marker: str) -> Report:
    """Sum up the lines whose resource holds `marker`. Raises UserError for a file that is no such report."""
    jobs: dict[str, Billed] = {}
    seen = _BillSeen()
    count, final = 0, True
    starts_at = ends_at = ""
    for file in files:
        for line in seen.whole(file, _lines(file)):
            count += 1
            final = final and bool(line.get("invoice"))
            # ISO times of one form: text compares as they do
            starts_at = min(starts_at or line["start"], line["start"] or starts_at)
            ends_at = max(ends_at, line["end"])
            if marker in line["resource"] and seen.is_new(line, file):
                _add(jobs.setdefault(line["resource"], Billed()), line, file)
    if not count:
        raise UserError(f"{', '.join(map(str, files))}: no line in it: a report of the time of the study is needed")
    return Report(
        jobs=jobs,
        lines=count,
        repeated=seen.repeated,
        other_ids=seen.other_ids,
        starts_at=_moment(starts_at, files[0]),
        ends_at=_moment(ends_at, files[0]),
        final=final,
    )


class _BillSeen:
    """What was counted already, by digests: a report that is given twice would make every bill twice as high."""

    def __init__(self) -> None:
        self.repeated = 0
        self.other_ids = 0
        self._amounts: dict[bytes, bytes] = {}  # by what names a line
        self._places: dict[bytes, Path] = {}  # by all that names a line but its id
        self._files: dict[bytes, Path] = {}  # those without ids

    def is_new(self, line: Mapping[str, str], file: Path) -> bool:
        """Whether a line was not met before. Raises UserError where it was, and said something else."""
        place = _digest(line[key] for key in ("resource", "type", "usage", "start", "end"))
        elsewhere = self._places.setdefault(place, file) != file
        if not line.get("id"):
            self.other_ids += elsewhere
            return True  # see `whole`
        # ids are promised to be unique within a part of a report alone, so they name a line together with the rest
        name = _digest((line["id"], place.hex()))
        amount = _digest(line[key] for key in ("amount", "cost"))
        known = self._amounts.setdefault(name, amount)  # this very one where none was known
        if known != amount:
            raise UserError(
                f"{file}: its line {line['id']} of {line['start']} was read before with another amount or cost: these "
                "are two versions of one report; give the newer one alone"
            )
        self.repeated += known is not amount
        self.other_ids += elsewhere and known is amount
        return known is amount

    def whole(self, file: Path, lines: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
        """All lines of a file. Raises UserError at the end of one without ids that equals one before."""
        content, line = hashlib.blake2b(digest_size=16), dict[str, str]()
        for line in lines:
            if not line.get("id"):
                content.update(_digest(line.values()))
            yield line
        if not line or line.get("id"):
            return
        digest = content.digest()
        if digest in self._files:
            raise UserError(f"{file}: the same report as {self._files[digest]}; give it once")
        self._files[digest] = file


def _digest(texts: Iterable[str]) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()


def _compare(attempt: Attempt, report: Report) -> CurRow:
    billed = report.jobs.get(attempt.arn or "")
    note = _not_compared(attempt, billed, report)
    hours = None if attempt.billable_s is None else attempt.billable_s * attempt.instance_count / 3600
    return CurRow(
        job=attempt.job_name,
        trial=attempt.trial,
        attempt=attempt.number,
        ledger_usd=None if attempt.spend_microusd is None else attempt.spend_microusd / MICROUSD,
        billed_usd=None if billed is None else float(billed.cost_usd),
        ledger_h=hours,
        billed_h=None if billed is None else float(billed.usage_h),
        other_usd=0.0 if billed is None else float(billed.other_usd),
        note=note,
        difference=None if note else _difference(attempt, billed),
    )


def _not_compared(attempt: Attempt, billed: Billed | None, report: Report) -> str:
    if attempt.live or attempt.spend_microusd is None or attempt.ended_at is None:
        return "still running: no final figure yet"
    if attempt.ended_at <= report.starts_at:
        return "ended before the report begins"
    if (attempt.submitted_at or attempt.created_at) < report.starts_at:
        return "began before the report does: give the report of that time, too"
    settled = timedelta(0) if report.final else _LAG
    missing = billed is None or billed.cost_usd * MICROUSD < attempt.spend_microusd
    if missing and attempt.ended_at > report.ends_at - settled:
        return "not billed yet: the report ends too early"
    return ""


def _difference(attempt: Attempt, billed: Billed | None) -> str | None:
    ours = attempt.spend_microusd or 0
    theirs = 0 if billed is None else round(billed.cost_usd * MICROUSD)
    if billed is None:
        return f"recorded ${ours / MICROUSD:.4f}, and the report has no line of it" if ours else None
    if abs(ours - theirs) <= max(int(TOLERANCE * ours), _LEAST_MICROUSD):
        return None
    return f"billed ${theirs / MICROUSD:.4f}, recorded ${ours / MICROUSD:.4f}; {_why(attempt, billed)}"


def _why(attempt: Attempt, billed: Billed) -> str:
    """Whether it is the time or the price that differs."""
    rate = attempt.rate_microusd_per_h / MICROUSD
    if not billed.usage_h:
        return "it has no hours"
    theirs = float(billed.cost_usd / billed.usage_h)
    if abs(theirs - rate) > float(TOLERANCE) * rate:
        return f"billed at ${theirs:.4f}/h, recorded at ${rate:.4f}/h: write it in the study file's prices"
    recorded_s = (attempt.billable_s or 0) * attempt.instance_count
    return f"billed for {float(billed.usage_h) * 3600:.0f} s, recorded {recorded_s} s"


def _unasked(arn: str, billed: Billed) -> CurRow:
    cost = float(billed.cost_usd)
    return CurRow(
        job=_name(arn),
        trial=None,
        attempt=None,
        ledger_usd=None,
        billed_usd=cost,
        ledger_h=None,
        billed_h=float(billed.usage_h),
        other_usd=float(billed.other_usd),
        note="",
        difference=f"billed ${cost:.4f} for a job that this store does not know",
    )


def _name(arn: str) -> str:
    return arn.rpartition("/")[2]


def _add(billed: Billed, line: Mapping[str, str], file: Path) -> None:
    if line.get("currency", "USD") not in ("", "USD"):
        raise UserError(f"{file}: it is in {line['currency']}; the ledger is in US dollars")
    cost = _number(line["cost"], file)
    if line["type"] in _COMPUTE_TYPES and not _is_storage(line):
        billed.cost_usd += cost
        billed.usage_h += _number(line["amount"], file)
    else:
        billed.other_usd += cost


def _is_storage(line: Mapping[str, str]) -> bool:
    """The volume of a job is billed apart, under the job's ARN too, in gigabyte-months."""
    return "GB" in line.get("unit", "") or "Volume" in line["usage"]


def _lines(file: Path) -> Iterator[dict[str, str]]:
    """The columns that count, under one set of names."""
    with _opened(file) as stream:
        reader = csv.reader(stream)
        try:
            columns = _positions(next(reader, []), file)
            for fields in reader:
                if fields:
                    yield {name: fields[position] for name, position in columns.items()}
        except (IndexError, csv.Error, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise UserError(f"{file}: line {reader.line_num} cannot be read: {error}; is the file whole?") from error


def _positions(header: Sequence[str], file: Path) -> dict[str, int]:
    at = {name: position for position, name in enumerate(header)}
    found = {
        ours: at[name]
        for ours, names in itertools.chain(_COLUMNS.items(), _OPTIONAL.items())
        for name in names
        if name in at
    }
    missing = [names for ours, names in _COLUMNS.items() if ours not in found]
    if missing:
        advice = "; include resource ids in the report" if missing[0] == _COLUMNS["resource"] else ""
        raise UserError(
            f"{file}: a Cost and Usage Report has a column {' or '.join(missing[0])}, this has none{advice}"
        )
    return found


@contextmanager
def _opened(file: Path) -> Iterator[IO[str]]:
    try:
        with file.open("rb") as head:
            magic = head.read(4)
        if magic == _MAGIC_PARQUET:
            raise UserError(f"{file}: parquet is not read; export the report as CSV (gzip is fine)")
        opener = gzip.open if magic[:2] == _MAGIC_GZIP else open
        with opener(file, "rt", encoding="utf-8-sig", newline="") as stream:
            yield stream
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


def _number(text: str, file: Path) -> Decimal:
    try:
        value = Decimal(text or 0)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise UserError(f"{file}: {text!r} stands where a number is expected")
    return value


def _moment(text: str, file: Path) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{file}: {text!r} stands where a time is expected") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
