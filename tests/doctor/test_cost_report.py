"""The ledger against a bill: reports of both column styles, what is compared, and what is not yet billed."""

import csv
import gzip
import io
import itertools
import json
import tracemalloc
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from tests.store import store_records as records
from tuner.aws.cost_report import audit_bill, read
from tuner.cli import main
from tuner.cli.doctor import _bill_text
from tuner.core.errors import UserError
from tuner.core.records import AttemptEnd, AttemptState, Change
from tuner.store.store import Store

LEGACY = {
    "id": "identity/LineItemId",
    "resource": "lineItem/ResourceId",
    "type": "lineItem/LineItemType",
    "usage": "lineItem/UsageType",
    "start": "lineItem/UsageStartDate",
    "end": "lineItem/UsageEndDate",
    "amount": "lineItem/UsageAmount",
    "cost": "lineItem/UnblendedCost",
    "unit": "pricing/unit",
    "currency": "lineItem/CurrencyCode",
    "invoice": "bill/InvoiceId",
}
NEW = {name: column.replace("lineItem/", "line_item_").replace("/", "_") for name, column in LEGACY.items()} | {
    "id": "identity_line_item_id",
    "resource": "line_item_resource_id",
    "type": "line_item_line_item_type",
    "usage": "line_item_usage_type",
    "start": "line_item_usage_start_date",
    "end": "line_item_usage_end_date",
    "amount": "line_item_usage_amount",
    "cost": "line_item_unblended_cost",
    "currency": "line_item_currency_code",
    "invoice": "bill_invoice_id",
}
ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/{}"
STUDY = records.study(backend="sagemaker")
EC2 = {
    "resource": "i-0123456789abcdef0",
    "type": "Usage",
    "usage": "BoxUsage:m5.large",
    "start": "2026-03-01T00:00:00Z",
    "end": "2026-04-01T00:00:00Z",
    "amount": "1",
    "cost": "0.096",
    "unit": "Hrs",
    "currency": "USD",
    "invoice": "",
}


def name_of(trial, number=1):
    return f"{STUDY.key}-{trial:05d}-{number:03d}"


def attempt(trial=0, number=1, **changes):
    """Billed for 600 s at 1.408 $/h."""
    name = name_of(trial, number)
    given = {"job_name": name, "arn": ARN.format(name), "submitted_at": records.NOW}
    return records.ended(trial, number, **given | changes)


def line(trial=0, number=1, **changes):
    """What AWS writes for that attempt: one hour's line is enough here."""
    return {
        **EC2,
        "resource": ARN.format(name_of(trial, number)),
        "usage": "USE1-Train:ml.g5.xlarge",
        "start": "2026-03-01T12:00:00Z",
        "end": "2026-03-01T13:00:00Z",
        "amount": "0.1666666667",
        "cost": "0.2346666667",
    } | changes


CUT = ",".join(LEGACY.values()) + "\n" + "".join(f"{n}," * 9 + "x\n" for n in range(3000))


@pytest.fixture
def report(tmp_path):
    """Write a report of these lines; each has an id of its own unless it names one."""
    ids = itertools.count()

    def write(*lines, columns=LEGACY, name="report.csv", zipped=False, **left_out):
        text = io.StringIO()
        kept = [name for name in columns if name not in left_out]
        writer = csv.writer(text)
        writer.writerow([*(columns[name] for name in kept), "resourceTags/user:cost-center"])
        whole = [{"id": f"x{next(ids)}"} | each for each in lines]
        writer.writerows([[*(each[name] for name in kept), "ml, 42"] for each in whole])
        path = tmp_path / name
        data = text.getvalue().encode("utf-8-sig")
        path.write_bytes(gzip.compress(data) if zipped else data)
        return path

    return write


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("columns", [LEGACY, NEW], ids=["legacy", "cur2"])
def test_a_bill_that_agrees(report, columns, zipped):
    found = audit_bill(STUDY, [attempt()], [report(EC2, line(), columns=columns, zipped=zipped)])
    assert found.ok
    [row] = found.rows
    assert (row.job, row.trial, row.attempt, row.difference, row.note) == (name_of(0), 0, 1, None, "")
    assert row.billed_usd == pytest.approx(0.2346666667)
    assert row.ledger_usd == pytest.approx(0.234667)
    assert row.billed_h == pytest.approx(row.ledger_h)
    assert (found.report.lines, found.report.final) == (2, False)


def test_lines_of_one_job_are_added_up_over_files(report):
    first = report(line(amount="0.1", cost="0.1408"), EC2, name="one.csv")
    second = report(line(amount="0.0666666667", cost="0.0938666667"), name="two.csv.gz", zipped=True)
    assert audit_bill(STUDY, [attempt()], [first, second]).ok
    assert not audit_bill(STUDY, [attempt()], [first]).ok


@pytest.mark.parametrize("columns", [LEGACY, NEW], ids=["legacy", "cur2"])
def test_a_report_that_is_given_twice_is_counted_once(report, columns):
    """Else the bill would seem twice as high, and a right ledger wrong."""
    once = report(EC2, line(), line(1), columns=columns)
    attempts = [attempt(0), attempt(1)]
    found = audit_bill(STUDY, attempts, [once, once])
    assert found.ok
    assert found.billed_usd == pytest.approx(2 * 0.2346666667)
    assert (found.report.lines, found.report.repeated) == (6, 2)
    assert audit_bill(STUDY, attempts, [once]).report.repeated == 0


def test_reports_that_overlap_are_counted_once(report):
    first, second, third = (line(number, id=f"line-{number}") for number in range(3))
    found = audit_bill(
        STUDY,
        [attempt(number) for number in range(3)],
        [report(EC2, first, second, name="one.csv"), report(second, third, name="two.csv.gz", zipped=True)],
    )
    assert found.ok
    assert found.report.repeated == 1


def test_the_same_id_of_another_hour_or_kind_is_another_line(report):
    """Ids are unique within one part of a report, no further."""
    hour = {"start": "2026-03-01T13:00:00Z", "end": "2026-03-01T14:00:00Z"}
    half = {"id": "x", "amount": "0.08333333335", "cost": "0.11733333335"}
    tax = line(type="Tax", cost="0.05", id="x")
    found = audit_bill(STUDY, [attempt()], [report(EC2, line(**half), line(**half, **hour), tax)])
    assert found.ok
    assert found.report.repeated == 0


def test_two_versions_of_a_report_are_refused(report):
    old, new = report(line(id="x", cost="0.1"), name="old.csv"), report(line(id="x"), name="new.csv")
    with pytest.raises(UserError, match=r"new.csv: its line x .* two versions of one report; give the newer one alone"):
        audit_bill(STUDY, [attempt()], [old, new])


@pytest.mark.parametrize("without", [{}, {"id": True}], ids=["ids", "no ids"])
def test_another_delivery_of_the_same_month_is_said(report, without):
    """Its lines have other ids: the bill seems twice as high, and the reader must learn why."""
    old = report(EC2, line(), line(1), name="old.csv", **without)
    new = report(EC2, line(), line(1), line(2), name="new.csv", **without)
    found = audit_bill(STUDY, [attempt(0), attempt(1)], [old, new])
    assert (found.report.repeated, found.report.other_ids) == (0, 2)
    assert "2 lines of its jobs stood in an earlier file, too" in _bill_text("digits", found)
    alone = audit_bill(STUDY, [attempt(0), attempt(1)], [new])
    assert alone.report.other_ids == 0
    assert "earlier file" not in _bill_text("digits", alone)


def test_reports_without_ids_are_refused_when_they_are_equal(report):
    first, second = (report(EC2, line(number), name=f"{number}.csv", id=True) for number in range(2))
    attempts = [attempt(0), attempt(1)]
    empty = [report(name=f"empty{number}.csv", id=True) for number in range(2)]
    assert audit_bill(STUDY, attempts, [first, *empty, second]).ok
    again = report(EC2, line(1), name="again.csv.gz", zipped=True, id=True)
    with pytest.raises(UserError, match=r"again.csv.gz: the same report as .*1.csv; give it once"):
        audit_bill(STUDY, attempts, [first, second, again])


def test_sums_are_exact(report):
    hours = [line(amount="0.0001", cost="0.1") for _ in range(1000)]
    assert read([report(*hours)], name_of(0)).jobs[ARN.format(name_of(0))].cost_usd == Decimal(100)


def test_storage_tax_discounts_and_negations_stand_beside(report):
    others = [
        line(usage="USE1-Train:VolumeUsage.gp2", unit="GB-Mo", cost="0.02", amount="0.2"),
        line(type="Tax", cost="0.05", amount="1"),
        line(type="SavingsPlanNegation", cost="-0.2346666667"),
        line(type="EdpDiscount", cost="-0.01"),
    ]
    found = audit_bill(STUDY, [attempt()], [report(EC2, line(type="SavingsPlanCoveredUsage"), *others)])
    assert found.ok
    assert found.rows[0].other_usd == found.other_usd == pytest.approx(0.02 + 0.05 - 0.2346666667 - 0.01)


def test_a_price_that_differs_is_told_from_time_that_differs(report):
    dearer = audit_bill(STUDY, [attempt()], [report(EC2, line(cost="0.25"))])
    assert len(dearer.lines) == 1
    assert dearer.lines[0].startswith(
        f"{name_of(0)}: billed $0.2500, recorded $0.2347; billed at $1.5000/h, recorded at"
    )
    longer = audit_bill(STUDY, [attempt()], [report(EC2, line(cost="0.352", amount="0.25"))])
    assert longer.lines == (f"{name_of(0)}: billed $0.3520, recorded $0.2347; billed for 900 s, recorded 600 s",)


@pytest.mark.parametrize(("cost", "agrees"), [("0.2369", True), ("0.2324", True), ("0.2372", False), ("0.2321", False)])
def test_one_percent_is_rounding_and_more_is_not(report, cost, agrees):
    assert audit_bill(STUDY, [attempt()], [report(EC2, line(cost=cost))]).ok is agrees


def test_small_deviations_all_in_one_direction_are_a_difference(report):
    """Each job is within a tenth of a cent, and all of them are billed at one and a half times the rate."""
    cheap = {"billable_s": 4, "spend_microusd": 1564}
    attempts = [attempt(number, **cheap) for number in range(20)]
    lines = [line(number, amount="0.0011111111", cost="0.0023466667") for number in range(20)]
    found = audit_bill(STUDY, attempts, [report(EC2, *lines)])
    assert found.lines == ("all together: billed $0.0469, recorded $0.0313",)


def test_a_job_without_a_line_is_a_difference(report):
    found = audit_bill(STUDY, [attempt(0), attempt(1)], [report(EC2, line(0))])
    assert found.lines == (f"{name_of(1)}: recorded $0.2347, and the report has no line of it",)


def test_a_job_that_cost_nothing_needs_no_line(report):
    free = attempt(1, end=AttemptEnd.MAX_WAIT, billable_s=None, spend_microusd=0, on_demand_microusd=0)
    assert audit_bill(STUDY, [attempt(0), free], [report(EC2, line(0))]).ok


def test_a_line_of_a_job_that_nobody_recorded_is_a_difference(report):
    found = audit_bill(STUDY, [attempt()], [report(EC2, line(), line(7))])
    assert found.lines == (f"{name_of(7)}: billed $0.2347 for a job that this store does not know",)


def test_the_same_name_in_another_account_is_another_job(report):
    other = line(resource=ARN.format(name_of(0)).replace("123456789012", "999999999999"))
    found = audit_bill(STUDY, [attempt()], [report(EC2, line(), other)])
    assert len(found.lines) == 1


def test_other_jobs_are_not_ours(report):
    others = ("k-digits2-00000-001", "xk-digits-00000-001", "k-digits")
    mine = STUDY.key
    assert mine == "k-digits"
    found = audit_bill(STUDY, [attempt()], [report(EC2, line(), *(line(resource=ARN.format(each)) for each in others))])
    assert found.ok
    assert len(found.rows) == 1


@pytest.mark.parametrize(
    ("ended_s", "cost", "note"),
    [
        (3 * 86400, None, "not billed yet: the report ends too early"),
        (3 * 86400, "0.1", "not billed yet: the report ends too early"),
        (3 * 86400, "0.9", ""),  # more than recorded cannot become less
        (86400 + 3600, None, "not billed yet: the report ends too early"),  # within a day of the report's end
        (3600, None, ""),
    ],
)
def test_what_the_report_cannot_know_is_no_difference(report, ended_s, cost, note):
    young = attempt(1, ended_at=records.later(ended_s))
    last = EC2 | {"end": "2026-03-03T12:00:00Z"}
    lines = [] if cost is None else [line(1, cost=cost)]
    found = audit_bill(STUDY, [attempt(0), young], [report(last, line(0), *lines)])
    assert found.rows[1].note == note
    assert found.ok is bool(note)


def test_on_a_final_bill_a_day_is_no_excuse(report):
    last_hour = attempt(ended_at=records.later(3600))
    lines = [EC2 | {"end": "2026-03-02T00:00:00Z", "invoice": "2000123"}]
    assert not audit_bill(STUDY, [last_hour], [report(*lines)]).ok
    assert audit_bill(STUDY, [last_hour], [report(EC2 | {"end": "2026-03-02T00:00:00Z"})]).ok


def test_jobs_before_the_report_and_jobs_that_run_are_left_out(report):
    early = attempt(0, submitted_at=records.later(-9000), ended_at=records.later(-5000))
    across = attempt(1, submitted_at=records.later(-9000))
    running = replace(attempt(2), state=AttemptState.TRAINING, end=None, ended_at=None, spend_microusd=None)
    found = audit_bill(STUDY, [early, across, running], [report(EC2 | {"start": "2026-03-01T11:00:00Z"})])
    assert [row.note.partition(":")[0] for row in found.rows] == [
        "ended before the report begins",
        "began before the report does",
        "still running",
    ]
    assert found.ok


def test_an_attempt_that_never_became_a_job_is_not_asked_about(report):
    refused = records.ended(0, 1, job_name=name_of(0), arn=None, end=AttemptEnd.REJECTED, spend_microusd=0)
    assert audit_bill(STUDY, [refused], [report(EC2)]).rows == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PAR1\x15\x04", "parquet is not read"),
        (b"", "a Cost and Usage Report has a column"),
        (b"a,b,c\n1,2,3\n", "a Cost and Usage Report has a column lineItem/ResourceId or line_item_resource_id"),
        (gzip.compress(CUT.encode())[:-30], "is the file whole?"),
        (b"\x1f\x8b rubbish that only begins like gzip", "cannot be read"),
        (b"\xff\xfe\x00rubbish", "cannot be read"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, content, says):
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        audit_bill(STUDY, [attempt()], [file])
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_report_without_resource_ids_says_how_to_get_them(report):
    with pytest.raises(UserError, match="include resource ids in the report"):
        audit_bill(STUDY, [], [report(EC2, resource=True)])


def test_a_missing_file_and_a_report_without_lines(report, tmp_path):
    with pytest.raises(UserError, match="No such file"):
        audit_bill(STUDY, [], [tmp_path / "none.csv"])
    with pytest.raises(UserError, match="no line in it"):
        audit_bill(STUDY, [], [report()])


@pytest.mark.parametrize("bad", [{"cost": "much"}, {"amount": "NaN"}, {"currency": "EUR"}, {"start": "yesterday"}])
def test_a_line_that_makes_no_sense_is_refused(report, bad):
    with pytest.raises(UserError):
        audit_bill(STUDY, [attempt()], [report(line(**bad))])


def test_a_large_report_is_read_as_a_stream(tmp_path):
    """Many lines of other services, some 3 MB, in the memory of a few."""
    row = ",".join(EC2.values()) + "," + "x" * 60 + "\n"
    path = tmp_path / "large.csv"
    path.write_text(",".join([*(LEGACY[name] for name in EC2), "padding"]) + "\n" + row * 20_000)
    tracemalloc.start()
    try:
        report = read([path], "training-job/")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.lines == 20_000
    assert peak < 1_000_000


# --- the command


@pytest.fixture
def recorded(sqlite_url, monkeypatch):
    """A store with this attempt of a study on this back end."""
    monkeypatch.setenv("TUNER_STORE", sqlite_url)

    def record(backend):
        store = Store.open(sqlite_url)
        study = store.create_study(replace(STUDY, backend=backend))
        lease = store.acquire(study.id, records.ME, now=records.NOW, period_s=60, gone=lambda _: False)
        change = Change(new_trials=(records.trial(0),), new_attempts=(attempt(),))
        store.commit(lease, change, now=records.NOW)
        store.close()

    return record


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def test_the_command_prints_and_exits_by_what_it_found(recorded, call, report):
    recorded("sagemaker")
    good, bad = report(EC2, line()), report(EC2, line(cost="0.5"), name="bad.csv")
    code, out, err = call("audit", "digits", "--cur", good)
    assert (code, err) == (0, "")
    assert "digits: ledger and bill agree" in out
    early = report(EC2 | {"start": "2026-02-28T12:00:00Z", "end": "2026-02-28T13:00:00Z"}, name="early.csv")
    assert "digits: nothing to compare yet" in call("audit", "digits", "--cur", early)[1]
    code, out, err = call("audit", "digits", "--cur", bad)
    assert (code, err) == (1, "")
    assert "digits: 1 difference" in out
    code, out, err = call("audit", "digits", "--cur", good, "--stop-orphans")
    assert (code, out) == (2, "")
    assert "choose one" in err


def test_the_document_of_the_command(recorded, call, report):
    recorded("sagemaker")
    code, out, _ = call("audit", "digits", "--cur", report(EC2, line(cost="0.5")), "--json")
    doc = json.loads(out)
    assert (code, doc["ok"], len(doc["differences"]), doc["report"]["lines"]) == (1, False, 1, 2)
    assert doc["jobs"][0]["billed_usd"] == doc["billed_usd"] == 0.5
    assert doc["report"]["from"] == "2026-03-01T00:00:00Z"


def test_nobody_bills_a_local_study(recorded, call, report):
    recorded("local")
    code, out, err = call("audit", "digits", "--cur", report(EC2))
    assert (code, out) == (2, "")
    assert "runs on this machine, and nobody bills it" in err


def test_an_hour_of_slack_is_not_read_into_times(report):
    """Times with offsets and with fractions are moments, too."""
    found = read([report(EC2 | {"start": "2026-03-01 00:00:00.000", "end": "2026-03-02T00:00:00.000Z"})], "x")
    assert found.ends_at - found.starts_at == timedelta(days=1)


def test_jobs_of_a_study_that_is_named_as_our_key_are_none_of_ours(report):
    theirs = line(resource=ARN.format(f"{STUDY.key}-bcdfgh-00000-001"))
    found = audit_bill(STUDY, [attempt()], [report(line(), theirs)])
    assert found.ok
    assert len(found.rows) == 1
