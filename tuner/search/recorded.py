"""Our rows, in the form from which the sampler's view is rebuilt: by the engine, and by callers that plot the study.

Rules: only what the sampler may see: steps in order, finite values, of the objective alone, and none at all where
nobody prunes by them.
"""

import math

from tuner.core.records import NO_STEP, Json, Study, Trial, TrialState
from tuner.search.proposer import Proposer, ViewTrial
from tuner.spec.study_file import SpecError, StudySpec, spec_of
from tuner.store.store import Store

# Attribute of a study: the earlier ones it started from.
_EARLIER = "tuner:warm_start"


def view_rows(store: Store, study: Study, spec: StudySpec, *, every_step: bool = False) -> list[ViewTrial]:
    """Every recorded trial of a study; two statements. `every_step` is for plots, which want them without a pruner."""
    points: dict[int, list[tuple[int, float]]] = {}
    if spec.judges_steps or (every_step and len(spec.objectives) == 1):
        for point in store.points(study.id, name=spec.objectives[0].metric):
            if point.step != NO_STEP and math.isfinite(point.value):
                points.setdefault(point.trial, []).append((point.step, point.value))
    return [_view_trial(trial, points.get(trial.number, [])) for trial in store.trials(study.id)]


def choose_earlier(store: Store, spec: StudySpec, proposer: Proposer) -> dict[str, Json]:
    """What `search.warm_start` means for a study that is launched now: attributes that keep it for life.

    Each study is named with the event up to which its finished trials count, so that their number never changes.
    Raises StudyNotFound, and SpecError for a study that measured something else or searched another space.
    """
    bounds: dict[str, Json] = {}
    for name in spec.search.warm_start:
        other = store.study(name)
        goals = [(goal.metric, goal.direction) for goal in spec_of(other).objectives]
        if goals != [(goal.metric, goal.direction) for goal in spec.objectives]:
            raise SpecError(f"search.warm_start: study {name} has another objective, {goals}; remove it")
        bounds[name] = store.last_seq(other.id)
        trials = _finished(store, other, store.last_seq(other.id))
        if not trials:
            raise SpecError(f"search.warm_start: study {name} has no finished trial to start from; remove it")
        proposer.check_earlier(name, trials)
    return {_EARLIER: bounds} if bounds else {}


def earlier_rows(store: Store, study: Study) -> list[ViewTrial]:
    """The finished trials of earlier studies that stand before those of `study`."""
    bounds = study.attrs.get(_EARLIER, {})
    assert isinstance(bounds, dict), "written by choose_earlier"
    return [row for name, seq in bounds.items() for row in _finished(store, store.study(name), seq)]


def _finished(store: Store, study: Study, until: Json) -> list[ViewTrial]:
    assert isinstance(until, int), "the number of an event"
    rows = view_rows(store, study, spec_of(study))
    ends = (TrialState.SUCCEEDED, TrialState.PRUNED)
    return [row for row in rows if row.state in ends and row.told_seq is not None and row.told_seq <= until]


def _view_trial(trial: Trial, points: list[tuple[int, float]]) -> ViewTrial:
    return ViewTrial(
        number=trial.number,
        state=trial.state,
        params=trial.params,
        distributions=trial.distributions,
        attrs=trial.attrs,
        points=tuple(sorted(points)),
        values=trial.values,
        asked_seq=trial.asked_seq,
        told_seq=trial.told_seq,
    )
