"""The verdict of a rehearsal: one line for each check, with a remedy if it did not pass.

Rules: pure. If a check fails, the checks that depend on it are left out, not guessed. The script's own words are passed
on unchanged; the command line makes them safe to print. What did not happen here is never called impossible.
"""

from collections.abc import Iterable, Iterator, Sequence

from tuner.core.commands import Command, Message
from tuner.core.errors import gist
from tuner.core.text import counted, number, seconds, size, steps_text
from tuner.rehearse.advice import LEAST_SAVE_S, steps_per_save
from tuner.rehearse.compare import Departure, departures, missing_steps, redone, resumed_from, went_back, worst
from tuner.rehearse.records import RESUMES, Check, Ending, Evidence, Result, RunSeen, TornSeen

_MANY = 3
_TAKEN = (Ending.KILLED, Ending.STOPPED)
_LOST = (Ending.FAILED, Ending.SILENT)
_WORST_FIRST = (Result.FAILED, Result.WARNING, Result.UNCLEAR, Result.PASSED)
_SAVE = "save to /opt/ml/checkpoints (TUNER_CHECKPOINT_DIR) every few steps"
_LOAD = "load the newest checkpoint when the script starts, and go on with the step after it"
_EMPTIED = "working directory, HOME, model"
_KEEP_ONE = "keep the checkpoint before, and fall back to it"


def checks(seen: Evidence) -> tuple[Check, ...]:
    """The verdict, most basic check first."""
    return tuple(_checks(seen))


def _checks(seen: Evidence) -> Iterator[Check]:
    yield (runs := _runs(seen))
    if runs.result is not Result.PASSED:
        return
    yield (saves := _saves(seen))
    if saves.result is not Result.PASSED:
        return
    yield (resumes := _resumes(seen))
    if resumes.result is Result.PASSED:
        yield from _newest(seen)
        yield (curve := _same_curve(seen))
        yield _outside(seen, curve)
        if seen.torn:
            yield _worst_torn([_torn(seen, torn, curve) for torn in seen.torn])
    yield from _stops(seen)


def _passed(name: str, text: str) -> Check:
    return Check(name=name, result=Result.PASSED, text=text)


def _warns(name: str, text: str, remedy: str) -> Check:
    return Check(name=name, result=Result.WARNING, text=text, remedy=remedy)


def _failed(name: str, text: str, remedy: str) -> Check:
    return Check(name=name, result=Result.FAILED, text=text, remedy=remedy)


def _unclear(name: str, text: str, remedy: str | Message) -> Check:
    return Check(name=name, result=Result.UNCLEAR, text=text, remedy=remedy)


# --- does it run at all


def _runs(seen: Evidence) -> Check:
    run, wanted = seen.reference, set(seen.objectives)
    objectives = " and ".join(seen.objectives)
    if run.ending is Ending.FAILED:
        remedy = "run it by hand; what it needs must come with source_dir, training.inputs or the image"
        return _failed("runs", f"the script fails: {gist(run.words)}", remedy)
    stepped = {metric for values in run.points.values() for metric in values}
    if wanted <= stepped:
        ended = "to its end" if run.ending is Ending.COMPLETED else "then it was cut"
        which = f"{run.first_step} to {run.last_step}"
        return _passed("runs", f"reports {objectives} at {counted(len(run.points), 'step')} ({which}), {ended}")
    how = "print a line that a regex of training.metrics finds, or call tuner.training.report(step, name=value)"
    if wanted <= stepped | run.loose.keys():
        text = f"{objectives} is reported without a step: that it resumes cannot be proven"
        remedy = "give training.metrics a step_regex that finds the step in the log"
        return _unclear("runs", text, f"{remedy}, or call tuner.training.report(step, name=value)")
    if run.ending is not Ending.COMPLETED:
        return _unclear(
            "runs", f"no {objectives} was reported so far", f"{how} sooner, or give it a longer --max-duration"
        )
    others = ", ".join(sorted(stepped | run.loose.keys()))
    return _failed("runs", f"no {objectives} was reported" + (f", only {others}" if others else ""), how)


# --- does it save


def _saves(seen: Evidence) -> Check:
    run, saves = seen.reference, seen.saves
    if not saves.after_steps:
        ran_s = max(run.reported_at.values()) - run.started_at
        text = f"nothing was saved in {counted(len(run.points), 'step')}, {seconds(ran_s)}"
        if run.ending is Ending.COMPLETED:
            return _failed("saves", f"{text}: an interruption costs everything", _suspecting(_SAVE, [run]))
        return _unclear("saves", text, _suspecting(f"{_SAVE}, or look longer: --steps, --max-duration", [run]))
    first = max(saves.after_steps[0], run.first_step or 0)
    if run.ending is Ending.COMPLETED and first == run.last_step and len(run.points) > 1:
        text = f"saves only at its end, after step {first}: an interruption before costs everything"
        return _failed("saves", text, _SAVE)
    steps = steps_per_save(seen)
    each = ["once" if steps is None else "every step" if steps == 1 else f"every {steps} steps"]
    if first != run.first_step:
        each.append(f"first after step {first}")
    if saves.size_bytes is not None:
        each.append(size(saves.size_bytes))
    if saves.save_s is not None:
        each.append(f"in {save_text(saves.save_s)}")
    return _passed("saves", ", ".join(each))


# --- does it go on where it was


def _resumes(seen: Evidence) -> Check:
    runs, starts, again = seen.interrupted, [], 0
    taken = [run for run in runs if run.ending in _TAKEN]
    if not taken:
        remedy = "let it run longer: more steps in the study file or by --set, --steps, --max-duration"
        return _unclear(RESUMES, "it could not be interrupted between its first save and its end", remedy)
    for index, run in enumerate(runs[1:], start=1):
        if run.first_step is None:
            if not _was_done(seen, run, runs[index - 1].last_step):
                return _ended_early(run, runs[index - 1])
            starts.append(runs[index - 1].last_step)
            continue
        origin = resumed_from(seen.reference.points, runs[:index], run)
        if origin is not None:
            starts.append(origin)
            again += redone(runs[index - 1], run)
        elif run.had_checkpoint:
            return _from_zero(run, runs[index - 1])
    if runs[-1].ending in _LOST:
        return _ended_early(runs[-1], taken[-1])
    if not starts:
        text = f"nothing was in the store when it was interrupted, after step {steps_text(_last_steps(taken))}"
        return _unclear(RESUMES, text, "save sooner, or let it run longer: --steps, --max-duration")
    origins = ", ".join(map(str, starts))
    text = f"{len(starts)} of {counted(len(taken), 'time')}, from step {origins}; {counted(again, 'step')} done again"
    return _passed(RESUMES, text)


def _newest(seen: Evidence) -> Iterator[Check]:
    """What it costs that a script goes on from an older checkpoint than it might."""
    runs = seen.interrupted
    back = [(runs[index - 1], run) for index, run in enumerate(runs) if went_back(runs[:index], run)]
    if back:
        again = counted(sum(redone(before, run) for before, run in back), "step")
        text = (
            f"began at step {back[0][1].first_step}, although a complete checkpoint of step {back[0][1].resume_step} "
            f"lay there: {again} done again in {counted(len(back), 'resume')}"
        )
        yield _warns("newest", text, _LOAD)


def _was_done(seen: Evidence, run: RunSeen, step: int | None) -> bool:
    """Whether a run ended without a report since the one before it had reported the last step."""
    last = seen.reference.last_step
    return run.ending is Ending.COMPLETED and step is not None and last is not None and step >= last


def _ended_early(run: RunSeen, before: RunSeen) -> Check:
    after = f"interrupted after step {before.last_step} and started again,"
    if run.ending is Ending.COMPLETED:
        text = f"{after} it ended without a report"
        return _failed(RESUMES, text, "report the last metric again when there is nothing left to train")
    if run.ending is Ending.SILENT:
        text = f"{after} it fell silent"
    else:
        text = f"{after} it fails, which it did not before: {gist(run.words)}"
    return _failed(RESUMES, text, _suspecting("read the checkpoint folder and nothing else", [before]))


def _from_zero(run: RunSeen, before: RunSeen) -> Check:
    text = f"interrupted after step {before.last_step}, it began again at step {run.first_step}, not at its checkpoint"
    return _failed(RESUMES, text, _suspecting(_LOAD, [before]))


def _last_steps(runs: Iterable[RunSeen]) -> list[int]:
    return [run.last_step for run in runs if run.last_step is not None]


# --- is it the same training


def _same_curve(seen: Evidence) -> Check:
    name, curves = "same curve", [run.points for run in seen.interrupted]
    chance = _by_chance(seen)
    found = _departures(seen, seen.interrupted, chance)
    if found:
        return _failed(name, _departing(found[0]), _suspecting(_ALL_STATE, _taken(seen)))
    if chance & set(seen.objectives):
        text = f"two runs without interruptions differ in {' and '.join(sorted(chance))}"
        return _unclear(name, text, "seed everything that is random, and see again; or give a --tolerance")
    if missing := missing_steps(seen.reference.points, curves):
        text = f"step {steps_text(missing)} was saved, and lost its metric"
        return _warns(name, text, "report the metric of a step before saving its checkpoint")
    apart = worst(seen.reference.points, curves)
    if chance:
        return _passed(name, f"the same at every step, but {', '.join(sorted(chance))}, which differ in any two runs")
    exactly = "bit for bit" if apart == 0 else f"within {apart:.1g}"
    return _passed(name, f"every metric at every step as without interruptions, {exactly}")


_ALL_STATE = "save all that the next step depends on: optimizer, schedule, random state, place in the data"


def _by_chance(seen: Evidence) -> set[str]:
    """Metrics that differ between two runs before anything was interrupted."""
    undisturbed = [seen.repeat.points] if seen.repeat is not None else []
    undisturbed += [run.points for run in seen.interrupted[:1]]
    return {each.metric for each in departures(seen.reference.points, undisturbed, seen.tolerance)}


def _departures(seen: Evidence, runs: Sequence[RunSeen], chance: set[str]) -> list[Departure]:
    found = departures(seen.reference.points, [run.points for run in runs], seen.tolerance)
    return [departure for departure in found if departure.metric not in chance]


def _departing(first: Departure) -> str:
    return (
        f"departs at step {first.step}: {first.metric} is {number(first.found)}, and {number(first.expected)} "
        f"without interruptions ({first.relative:.2%} apart)"
    )


def _outside(seen: Evidence, curve: Check) -> Check:
    """Whether anything that it needs lay outside of the checkpoint folder."""
    name, files = "nothing outside", _outside_of(_taken(seen))
    if curve.result is Result.FAILED and files:
        text = f"it wrote {_names(files)}, which an interruption takes"
        return _unclear(name, text, "if the next step needs it, save it in the checkpoint folder")
    if not seen.isolated:
        text = f"resumed with {_EMPTIED} and output emptied; /tmp, /var/tmp and /dev/shm cannot be here"
        return _unclear(name, text, Message("see ", Command("doctor"), " on private mounts"))
    emptied = f"{_EMPTIED}, output, /tmp, /var/tmp and /dev/shm emptied"
    return _passed(name, f"resumed with {emptied}; other folders of this machine stayed")


# --- and when things go wrong


def _worst_torn(made: Sequence[Check]) -> Check:
    """The check of the worst file; if the script survived all, one line that names each."""
    worst_of_all = min(made, key=lambda check: _WORST_FIRST.index(check.result))
    if worst_of_all.result is not Result.PASSED:
        return worst_of_all
    return _passed(worst_of_all.name, "; ".join(dict.fromkeys(check.text for check in made)))


def _torn(seen: Evidence, torn: TornSeen, curve: Check) -> Check:
    name, half, run = "torn file", f"with half of {torn.name}", torn.run
    if run.ending in _LOST:
        after = "" if run.last_step is None else f" after step {run.last_step}"
        said = "it falls silent" if run.ending is Ending.SILENT else f"it fails{after}: {gist(run.words)}"
        return _not_survived(seen, torn, f"{half} {said}")
    if run.first_step is None:
        if _was_done(seen, run, torn.before_step):
            return _passed(name, f"{half} it ends well, with nothing left to train")
        return _unclear(name, f"{half} it ended without a report", _KEEP_ONE)
    known = curve.result is Result.FAILED  # a curve that departs does so here as well
    if not known and (found := _departures(seen, [run], _by_chance(seen))):
        return _failed(name, f"{half} it {_departing(found[0])}", f"check what is loaded; {_KEEP_ONE}")
    if seen.reference.first_step is not None and run.first_step <= seen.reference.first_step:
        if _can_tear(seen, torn) and not _had_an_older(seen, torn):
            text = f"{half} it starts over from zero, and no older checkpoint was there yet"
            return _unclear(name, text, "let it save more often before it is interrupted: --steps, --max-duration")
        return _not_survived(seen, torn, f"{half} it starts over from zero")
    if _goes_on_from_older(seen, run):
        return _passed(name, f"{half} it goes on from an older checkpoint, at step {run.first_step}")
    return _passed(name, f"half of {torn.name} made no difference")


def _not_survived(seen: Evidence, torn: TornSeen, text: str) -> Check:
    if _can_tear(seen, torn):
        return _failed("torn file", text, f"write to another name and rename; {_KEEP_ONE}")
    whole = "it is written whole, by a rename, so only a fault of the store could tear it"
    return _warns("torn file", f"{text}; but {whole}", _KEEP_ONE)


def _can_tear(seen: Evidence, torn: TornSeen) -> bool:
    """Whether an interruption can leave half of a file in the store: unless it was seen to be renamed."""
    return not seen.saves.watched or torn.name in seen.saves.in_place


def _had_an_older(seen: Evidence, torn: TornSeen) -> bool:
    """Whether more than one save lay before the interruption, so that there was something to fall back to."""
    first = seen.interrupted[-1].first_step
    return sum(step <= torn.before_step if first is None else step < first for step in seen.saves.after_steps) > 1


def _goes_on_from_older(seen: Evidence, run: RunSeen) -> bool:
    """Whether a run began before the one that resumed from the same files, all of them whole: the trial's last."""
    whole = seen.interrupted[-1]
    if run.resume_step is not None and whole.resume_step is not None:
        return run.resume_step < whole.resume_step
    return run.first_step is not None and (whole.first_step is None or run.first_step < whole.first_step)


def _stops(seen: Evidence) -> Iterator[Check]:
    for took_s in [run.stopping_s for run in seen.interrupted if run.ending is Ending.STOPPED]:
        if took_s is None:
            continue
        if took_s >= seen.grace_s:
            text = "SIGTERM is ignored: a job that is stopped or pruned bills up to 120s more"
            yield _warns("stops", text, "end when SIGTERM comes; nothing need be saved then")
        else:
            yield _passed("stops", f"ends {short(took_s)} after SIGTERM")


# --- words


def _taken(seen: Evidence) -> list[RunSeen]:
    return [run for run in seen.interrupted if run.ending in _TAKEN]


def _outside_of(runs: Iterable[RunSeen]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.outside))


def _suspecting(remedy: str, runs: Iterable[RunSeen]) -> str:
    """The remedy, with the files that a run wrote where an interruption takes them."""
    names = _outside_of(runs)
    return f"{remedy} (it wrote {_names(names)}, which an interruption takes)" if names else remedy


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")


def save_text(save_s: float) -> str:
    """How long a save takes, as far as it can be timed."""
    return short(save_s) if save_s >= LEAST_SAVE_S else f"less than {short(LEAST_SAVE_S)}"


def short(duration_s: float) -> str:
    """A duration that may be less than a second: `14 ms`, `2.5s`, `3h07m`."""
    return f"{duration_s * 1000:.0f} ms" if duration_s < 1 else seconds(duration_s)
