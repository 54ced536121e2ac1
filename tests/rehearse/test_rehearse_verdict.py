"""What is said of what was seen, and how often to save: without running anything."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.rehearse.advice import assumed_rate, interval_seconds, measures, overhead, step_seconds
from tuner.rehearse.compare import departures, difference, missing_steps, redone, resumed_from, went_back
from tuner.rehearse.records import Check, Ending, Evidence, Rehearsal, Result, RunSeen, SavesSeen, TornSeen
from tuner.rehearse.verdict import checks


def curve(first, last, offset=0.0):
    return {step: {"loss": 1.0 / step + offset} for step in range(first, last + 1)}


def run(first, last, ending=Ending.KILLED, *, started_at=0.0, offset=0.0, **more):
    """A run that starts, takes two seconds to come up, and then a second a step."""
    points = curve(first, last, offset)
    at = {step: started_at + 2.0 + (step - first + 1) for step in points}
    return RunSeen(ending=ending, started_at=started_at, points=points, reported_at=at, **more)


def nothing(ending, **more):
    return RunSeen(ending=ending, started_at=0.0, points={}, reported_at={}, **more)


GOOD = Evidence(
    objectives=("loss",),
    tolerance=1e-6,
    grace_s=15.0,
    isolated=True,
    reference=run(1, 20, Ending.COMPLETED),
    saves=SavesSeen(after_steps=tuple(range(1, 21)), size_bytes=2048, save_s=0.5, watched=True),
    interrupted=(
        run(1, 5, had_checkpoint=False),
        run(5, 9, Ending.STOPPED, had_checkpoint=True, resume_step=4, stopping_s=0.2),
        run(10, 20, Ending.COMPLETED, had_checkpoint=True),
    ),
    torn=(TornSeen(name="state", before_step=9, run=run(9, 11, Ending.CUT, had_checkpoint=True)),),
)


def judged(seen):
    return {check.name: check for check in checks(seen)}


def results(seen):
    return {name: str(check.result) for name, check in judged(seen).items()}


def test_a_script_that_resumes_passes_every_check():
    assert set(results(GOOD).values()) == {"passed"}
    text = judged(GOOD)["resumes"].text
    assert text == "2 of 2 times, from step 4, 9; 1 step done again"
    assert judged(GOOD)["saves"].text == "every step, 2.0 KiB, in 500 ms"


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (nothing(Ending.SILENT, had_checkpoint=True), "fell silent"),
        (
            nothing(Ending.FAILED, had_checkpoint=True, words="KeyError: 'step'"),
            "fails, which it did not before: KeyError",
        ),
        (nothing(Ending.COMPLETED, had_checkpoint=True), "ended without a report"),
        (run(10, 12, Ending.FAILED, had_checkpoint=True, words="killed"), "fails, which it did not before"),
        (run(1, 1, Ending.CUT, had_checkpoint=True), "began again at step 1"),
    ],
)
def test_a_run_that_is_lost_after_an_interruption_fails_the_resume(last, words):
    seen = replace(GOOD, interrupted=(*GOOD.interrupted[:2], last))
    check = judged(seen)["resumes"]
    assert check.result == "failed"
    assert words in check.text
    assert "same curve" not in judged(seen)


def test_a_run_that_finds_nothing_left_to_train_need_not_report_again():
    runs = (run(1, 20), nothing(Ending.COMPLETED, had_checkpoint=True))
    torn = (TornSeen(name="state", before_step=20, run=nothing(Ending.COMPLETED)),)
    assert set(results(replace(GOOD, interrupted=runs, torn=torn)).values()) == {"passed"}
    assert judged(replace(GOOD, interrupted=runs, torn=torn))["resumes"].text.startswith("1 of 1 time, from step 20")


def test_a_script_that_begins_before_its_newest_checkpoint_is_told_what_it_does_again():
    """It takes its best checkpoint, of step 2."""
    runs = (
        run(1, 9),
        run(3, 19, had_checkpoint=True, resume_step=9),
        run(3, 20, Ending.COMPLETED, had_checkpoint=True, resume_step=19),
    )
    found = judged(replace(GOOD, interrupted=runs))
    assert found["resumes"].text == "2 of 2 times, from step 2, 2; 24 steps done again"
    assert (found["newest"].result, found["newest"].text) == (
        "warning",
        "began at step 3, although a complete checkpoint of step 9 lay there: 24 steps done again in 2 resumes",
    )


@pytest.mark.parametrize(("first", "newest", "back"), [(9, 9, False), (10, 9, False), (8, 9, True), (9, 900, False)])
def test_what_may_be_another_way_to_count_is_not_called_an_older_checkpoint(first, newest, back):
    """Evaluated again, gone on from there, an older one; and checkpoints that are numbered by batches."""
    assert went_back([run(1, 9)], run(first, 12, had_checkpoint=True, resume_step=newest)) is back


def test_what_was_not_in_the_store_yet_is_no_defect_of_the_script():
    runs = (run(1, 2), run(1, 20, Ending.COMPLETED, had_checkpoint=False))
    assert results(replace(GOOD, interrupted=runs, torn=()))["resumes"] == "could not tell"


def test_a_script_that_is_too_fast_to_be_interrupted_proves_nothing():
    for runs in ((), (run(1, 20, Ending.COMPLETED),)):
        assert results(replace(GOOD, interrupted=runs, torn=()))["resumes"] == "could not tell"


def test_a_resumed_curve_that_departs_is_told_with_step_values_and_files_outside():
    runs = (
        replace(GOOD.interrupted[0], outside=("/tmp/momentum",)),
        run(6, 9, Ending.KILLED, had_checkpoint=True, offset=0.5),
        run(10, 20, Ending.COMPLETED, had_checkpoint=True),
    )
    found = judged(replace(GOOD, interrupted=runs))
    assert found["same curve"].result == "failed"
    assert found["same curve"].text.startswith("departs at step 6: loss is 0.666667, and 0.166667 without")
    assert "/tmp/momentum" in found["same curve"].remedy
    assert found["nothing outside"].result == "could not tell"


def test_what_differs_between_two_uninterrupted_runs_says_nothing_of_interruptions():
    runs = (GOOD.interrupted[0], run(6, 20, Ending.COMPLETED, had_checkpoint=True, offset=0.1))
    departing = replace(GOOD, interrupted=runs, torn=())
    assert results(departing)["same curve"] == "failed"
    by_chance = replace(departing, repeat=run(1, 6, Ending.CUT, offset=0.3))
    assert results(by_chance)["same curve"] == "could not tell"
    same_twice = replace(departing, repeat=run(1, 6, Ending.CUT))
    assert results(same_twice)["same curve"] == "failed"


def test_a_tolerance_is_stated_where_it_was_needed():
    near = (GOOD.interrupted[0], run(6, 20, Ending.COMPLETED, had_checkpoint=True, offset=1e-9))
    text = judged(replace(GOOD, interrupted=near, torn=()))["same curve"].text
    assert text.endswith("within 2e-08")


def test_a_step_that_was_saved_and_never_reported_lost_its_metric():
    runs = (run(1, 5), run(7, 20, Ending.COMPLETED, had_checkpoint=True))
    check = judged(replace(GOOD, interrupted=runs, torn=()))["same curve"]
    assert (check.result, check.text) == ("warning", "step 6 was saved, and lost its metric")


@pytest.mark.parametrize(
    ("torn", "in_place", "result"),
    [
        (nothing(Ending.FAILED, words="EOFError"), {"state"}, "failed"),
        (nothing(Ending.FAILED, words="EOFError"), set(), "warning"),
        (nothing(Ending.SILENT), {"state"}, "failed"),
        (nothing(Ending.COMPLETED), set(), "could not tell"),
        (run(1, 1, Ending.CUT), {"state"}, "failed"),
        (run(1, 1, Ending.CUT), set(), "warning"),
        (run(9, 11, Ending.CUT, offset=1.0), {"state"}, "failed"),
        (run(9, 11, Ending.CUT), {"state"}, "passed"),
        (run(9, 10, Ending.FAILED, words="EOFError"), {"state"}, "failed"),
    ],
)
def test_a_torn_checkpoint_must_be_survived(torn, in_place, result):
    saves = replace(GOOD.saves, in_place=frozenset(in_place))
    seen = replace(GOOD, saves=saves, torn=(TornSeen(name="state", before_step=9, run=torn),))
    assert results(seen)["torn file"] == result


def torn_file(name, run):
    return TornSeen(name=name, before_step=9, run=run)


def test_the_worst_of_several_torn_files_counts():
    log = torn_file("train.log", run(10, 11, Ending.CUT))
    saves = replace(GOOD.saves, in_place=frozenset({"state", "train.log"}))
    for lost in (nothing(Ending.FAILED, words="JSONDecodeError"), run(1, 1, Ending.CUT)):
        for torn in ((log, torn_file("state", lost)), (torn_file("state", lost), log)):
            check = judged(replace(GOOD, saves=saves, torn=torn))["torn file"]
            assert check.result == "failed"
            assert "half of state it" in check.text


def test_an_older_checkpoint_is_named_only_where_a_run_began_before_the_one_with_whole_files():
    older, same = torn_file("state", run(9, 11, Ending.CUT)), torn_file("train.log", run(10, 11, Ending.CUT))
    text = judged(replace(GOOD, torn=(older, same)))["torn file"].text
    assert text == (
        "with half of state it goes on from an older checkpoint, at step 9; half of train.log made no difference"
    )
    # Where reports are rare, the bootstrap's records of the step tell them apart.
    runs = (*GOOD.interrupted[:2], replace(GOOD.interrupted[2], resume_step=9))
    quiet = torn_file("state", run(10, 11, Ending.CUT, resume_step=8))
    assert "an older checkpoint" in judged(replace(GOOD, interrupted=runs, torn=(quiet,)))["torn file"].text


def test_who_had_saved_once_only_could_not_fall_back():
    saves = replace(GOOD.saves, after_steps=(9, 18), in_place=frozenset({"state"}))
    seen = replace(GOOD, saves=saves, torn=(torn_file("state", run(1, 1, Ending.CUT)),))
    check = judged(seen)["torn file"]
    assert (check.result, check.remedy.split(": ")[-1]) == ("could not tell", "--steps, --max-duration")


@pytest.mark.parametrize(
    ("ending", "points", "loose", "result", "words"),
    [
        (Ending.COMPLETED, {}, {}, "failed", "no loss was reported"),
        (
            Ending.COMPLETED,
            {1: {"accuracy": 0.5}},
            {"time": 1.0},
            "failed",
            "no loss was reported, only accuracy, time",
        ),
        (Ending.COMPLETED, {}, {"loss": 1.0}, "could not tell", "without a step"),
        (Ending.SILENT, {}, {}, "could not tell", "no loss was reported so far"),
        (Ending.CUT, {1: {"accuracy": 0.5}}, {}, "could not tell", "no loss was reported so far"),
        (Ending.FAILED, {1: {"loss": 0.5}}, {}, "failed", "the script fails: no memory"),
    ],
)
def test_a_script_that_does_not_report_its_objective_is_not_looked_at_further(ending, points, loose, result, words):
    at = dict.fromkeys(points, 1.0)
    run = RunSeen(ending=ending, started_at=0.0, points=points, reported_at=at, loose=loose, words="no memory")
    (check,) = checks(replace(GOOD, reference=run))
    assert (check.name, check.result) == ("runs", result)
    assert words in check.text


def test_a_first_run_that_was_cut_before_its_first_save_proves_nothing_against_it():
    seen = replace(GOOD, reference=run(1, 5, Ending.CUT), saves=SavesSeen(after_steps=()), interrupted=(), torn=())
    assert results(seen) == {"runs": "passed", "saves": "could not tell"}


def test_sigterm_that_is_ignored_is_a_warning():
    slow = replace(GOOD.interrupted[1], stopping_s=15.1)
    assert results(replace(GOOD, interrupted=(GOOD.interrupted[0], slow, GOOD.interrupted[2])))["stops"] == "warning"


@pytest.mark.parametrize(
    ("result", "fit"), [("passed", True), ("warning", True), ("could not tell", True), ("failed", False)]
)
def test_fit_is_what_resumed_and_failed_nothing(result, fit):
    made = checks(GOOD)
    torn = [replace(check, result=Result(result)) if check.name == "torn file" else check for check in made]
    assert rehearsal(torn).fit is fit
    assert not rehearsal([check for check in made if check.name != "resumes"]).fit


def rehearsal(made: list[Check]) -> Rehearsal:
    return Rehearsal(study="s", params={}, checks=tuple(made), evidence=GOOD, measures=measures(GOOD))


def test_measures_are_medians_of_what_was_seen():
    measured = measures(GOOD)
    assert (measured.step_s, measured.startup_s, measured.restart_s) == (1.0, 2.0, 2.0)
    assert (measured.steps, measured.steps_per_save, measured.checkpoint_bytes) == (20, 1, 2048)


def test_a_step_takes_the_mean_where_reports_come_in_bursts():
    moments = {step: 5.0 * (step // 5) + 0.001 * (step % 5) for step in range(5, 30)}
    bursts = replace(GOOD.reference, points=curve(5, 29), reported_at=moments)
    assert step_seconds(bursts) == pytest.approx(20 / 24, rel=0.01)
    assert step_seconds(replace(GOOD.reference, points=curve(1, 1))) is None


def test_steps_and_redone_work_are_counted_by_what_was_reported():
    reference = curve(1, 20)
    before, after = run(1, 8), run(7, 20, had_checkpoint=True)
    assert redone(before, after) == 2
    assert resumed_from(reference, [before], after) == 6
    assert resumed_from(reference, [before], replace(after, resume_step=5)) == 5
    assert resumed_from(reference, [before], run(1, 3)) is None
    assert missing_steps(reference, [curve(1, 4), curve(6, 9)]) == [5]


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(NUMBERS, NUMBERS)
def test_a_difference_is_symmetric_and_none_only_where_values_are_the_same(one, other):
    assert difference(one, other) == difference(other, one) >= 0
    same = one == other or (math.isnan(one) and math.isnan(other))
    assert (difference(one, other) == 0) == (same or abs(one - other) == 0)


def test_the_first_departure_of_each_metric_is_found_in_any_run():
    reference = {1: {"a": 1.0, "b": 1.0}, 2: {"a": 2.0, "b": 2.0}, 3: {"a": 3.0, "b": math.nan}}
    curves = [{2: {"a": 2.5, "b": 2.0}}, {1: {"a": 1.0}, 3: {"a": 0.0, "b": math.nan, "c": 1.0}}]
    assert [(each.metric, each.step) for each in departures(reference, curves, 0.0)] == [("a", 2)]
    assert departures(reference, curves, 0.5)[0].step == 3


@given(st.floats(0.01, 600), st.floats(0.01, 2), st.floats(0.2, 5))
def test_no_other_interval_wastes_less_than_the_one_advised(save_s, per_hour, factor):
    best = interval_seconds(save_s, per_hour)
    assert overhead(best, save_s, 30, per_hour) <= overhead(best * factor, save_s, 30, per_hour) * (1 + 1e-9)


def test_the_assumed_rate_follows_the_class_of_the_type_and_names_its_source():
    rare, often = assumed_rate("ml.m5.large", "us-east-1"), assumed_rate("ml.g5.xlarge", "us-east-1")
    assert rare[0] < often[0] == pytest.approx(1 / 3.4)
    assert "Spot Advisor class >20% of 2025-06-28" in often[1]
    assert assumed_rate("ml.none.such", "us-east-1")[0] is None
