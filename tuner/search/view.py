"""The Optuna study that proposes: a view of our rows, kept in memory.

A study in memory costs milliseconds a cycle; Optuna's own database costs hundreds. And Optuna has no word for two
things that we need: a proposal that is taken back, and a trial that is paused.

Rules: trials stand in order of their numbers and a trial's id is its number. Nothing is ever unpickled from a
database. The private names of `InMemoryStorage` are touched in this module only.
"""

import copy
from collections.abc import Container, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.core.records import Json, ParamValue


class ViewStorage(InMemoryStorage):
    """Optuna's storage in memory, which can also take back the newest trial and show trials as paused.

    `paused` holds the numbers of trials that rest at a rung. They stay unfinished inside, because Optuna
    reopens no trial. A reader of the list of trials sees them as `paused_as` with their last value. Otherwise the
    sampler would know nothing of the best trials.
    """

    def __init__(self, paused_as: TrialState) -> None:
        super().__init__()
        self.paused: set[int] = set()
        self._paused_as = paused_as

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if not self.paused or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        shown = [self._shown(trial) for trial in super().get_all_trials(study_id, deepcopy=False)]
        wanted = shown if states is None else [trial for trial in shown if trial.state in states]
        return copy.deepcopy(wanted) if deepcopy else wanted

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.number not in self.paused or trial.last_step is None:
            return trial
        shown = copy.copy(trial)
        shown.state = self._paused_as
        shown.values = [trial.intermediate_values[trial.last_step]]
        shown.datetime_complete = trial.datetime_start
        return shown

    def withdraw_value(self, trial_id: int, step: int) -> None:
        """Forget an intermediate value as if it had never been reported."""
        trial = copy.copy(self.get_trial(trial_id))
        trial.intermediate_values = {key: value for key, value in trial.intermediate_values.items() if key != step}
        self._set_trial(trial_id, trial)

    def take_back_newest(self, study_id: int) -> None:
        """Forget the newest trial as if it had never been asked for."""
        trial = self._studies[study_id].trials.pop()
        del self._trial_id_to_study_id_and_number[trial._trial_id]  # noqa: SLF001 - Optuna has no public id
        self._max_trial_id -= 1


class ViewStudy(optuna.Study):
    """A study whose end is decided by us.

    Grid and BruteForce call `stop` when they are told their last point, which raises outside of `optimize`; `ask` says
    by itself when nothing is left.
    """

    def stop(self) -> None:
        pass

    @property
    def storage(self) -> ViewStorage:
        storage = self._storage
        assert isinstance(storage, ViewStorage)
        return storage


def new_view(
    study_name: str, directions: Sequence[str], pruner: optuna.pruners.BasePruner, paused_as: TrialState
) -> ViewStudy:
    """An empty view. The sampler is set before each ask."""
    storage = ViewStorage(paused_as)
    storage.create_new_study([StudyDirection[direction.upper()] for direction in directions], study_name)
    return ViewStudy(study_name=study_name, storage=storage, sampler=optuna.samplers.RandomSampler(), pruner=pruner)


def earlier_trial(
    params: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
    points: Sequence[tuple[int, float]],
    state: TrialState,
    values: Sequence[float] | None,
) -> FrozenTrial:
    """A finished trial of another study; where a parameter is outside of today's range, one that taught nothing."""
    inside = all(is_inside(value, distributions[name]) for name, value in params.items())
    return optuna.trial.create_trial(
        state=state if inside else TrialState.FAIL,
        values=values if inside else None,
        params=dict(params) if inside else {},
        distributions=dict(distributions) if inside else {},
        intermediate_values=dict(points) if inside else {},
    )


def is_inside(value: object, distribution: BaseDistribution) -> bool:
    """Whether a distribution has this value; Optuna would use any with a warning."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))  # noqa: SLF001 - no public form
    except (TypeError, ValueError):
        return False


def running_trial(
    params: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
    attrs: Mapping[str, Json],
    points: Sequence[tuple[int, float]],
) -> FrozenTrial:
    """A trial in flight, to be added to a view. Its times are those of the view, not of the trial."""
    return optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=dict(params),
        distributions=dict(distributions),
        system_attrs=dict(attrs),
        intermediate_values=dict(points),
    )
