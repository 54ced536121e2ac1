"""Our rows as the sampler's view is rebuilt from them: by the engine, and by whoever wants the Optuna study to plot it.

Rules: only what the sampler may see: steps in order, finite values, of the objective alone, and none at all where
several objectives leave nothing to prune by.
"""

import math

from tuner.model import NO_STEP, Study, Trial
from tuner.proposals import ViewTrial
from tuner.spec import StudySpec
from tuner.store import Store


def view_rows(store: Store, study: Study, spec: StudySpec) -> list[ViewTrial]:
    """Every recorded trial of a study; two statements."""
    points: dict[int, list[tuple[int, float]]] = {}
    if len(spec.objectives) == 1:
        for point in store.points(study.id, name=spec.objectives[0].metric):
            if point.step != NO_STEP and math.isfinite(point.value):
                points.setdefault(point.trial, []).append((point.step, point.value))
    return [_view_trial(trial, points.get(trial.number, [])) for trial in store.trials(study.id)]


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
