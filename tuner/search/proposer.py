"""The boundary to Optuna: our rows go in, proposals and verdicts come out.

Only this room imports Optuna. A sweep that was killed and resumed proposes what it would have proposed without that.

Theory of operation. A real Optuna study is kept in memory and rebuilt from our rows; it holds nothing that the rows do
not. Each call returns its changes as JSON, and the caller commits them. If that commit fails, the view is ahead of the
rows, and the caller calls `rebuild`, as after any exception. Each trial gets a new sampler, seeded by its number.

Rules:
- Rows are the truth: attributes of the sampler (of trials and of the study) are stored and given back, except the
  optimizer that CMA-ES pickles; that is computed again, by asking again at the same point of the same order of events.
- The pruner is asked once per step, in order, and its verdict is stored: ASHA asked twice says the opposite.
- Values that are not finite never enter; the caller decides what they mean.
- Times of trials in the view are those of the view. Ours are in the store.
"""

import json
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Seen

from tuner.core.records import Json, ParamValue, TrialState
from tuner.search.parts import (
    EXHAUSTIBLE,
    IGNORES_PRUNED,
    ProposalError,
    distribution,
    guesses,
    make_pruner,
    make_sampler,
    make_space,
    require_inside,
)
from tuner.search.view import ViewStorage, ViewStudy, earlier_trial, new_view, running_trial
from tuner.spec.records import Component, Objective, Space, SpaceFunction

__all__ = ["Delta", "Proposal", "ProposalError", "Proposer", "PrunerVerdict", "ViewTrial"]

_END = {
    TrialState.SUCCEEDED: Seen.COMPLETE,
    TrialState.PRUNED: Seen.PRUNED,
    TrialState.FAILED: Seen.FAIL,
    TrialState.CANCELLED: Seen.FAIL,
}
# Steps of one trial that a pruner is shown; a script that reports more is judged by its first ones.
STEPS_MAX = 10_000
# Stands in a trial's attributes where CMA-ES left a pickled optimizer, which is not stored.
_OPTIMIZER_MARK = "tuner:optimizer"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to be recorded; it exists once its row is committed. The attributes are only what is new."""

    number: int
    params: Mapping[str, ParamValue]
    distributions: str
    attrs: Mapping[str, Json]
    study_attrs: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Delta:
    """Attributes of a trial and of the study that a call added or replaced."""

    attrs: Mapping[str, Json]
    study_attrs: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class PrunerVerdict:
    """The pruner's answer for one step, and what it remembered while giving it."""

    prune: bool
    attrs: Mapping[str, Json]
    study_attrs: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class ViewTrial:
    """A recorded trial, as the view is rebuilt from it."""

    number: int
    state: TrialState
    params: Mapping[str, ParamValue]
    distributions: str
    attrs: Mapping[str, Json]
    points: tuple[tuple[int, float], ...]  # (step, value) of the objective
    values: Sequence[float] | None
    asked_seq: int
    told_seq: int | None  # given exactly for terminal states


class Proposer:
    """Asks Optuna what to try, and whether to go on. Not for use by several threads."""

    def __init__(
        self,
        *,
        study_name: str,
        objectives: Sequence[Objective],
        space: Space,
        sampler: Component,
        pruner: Component | None,
    ) -> None:
        """Build everything once and try it on two trials in memory; raises ProposalError for what cannot work."""
        if len(objectives) > 1 and pruner is not None:
            raise ProposalError(f"search.pruner: {pruner.name} cannot compare several objectives; remove it")
        self._study_name = study_name
        self._directions = [objective.direction for objective in objectives]
        self._space = space
        self._sampler = sampler
        self._pruner = pruner
        # Without a seed of the user's, the study's name is one: it is the same after a restart.
        self._default_seed = zlib.crc32(study_name.encode())
        self._exhaustible = sampler.name in EXHAUSTIBLE
        self._paused_as = _paused_as(sampler)
        self._ask_trial = make_space(space)
        # None for a define-by-run space
        self._distributions = None if isinstance(space, SpaceFunction) else {p.name: distribution(p) for p in space}
        self._earlier = 0  # trials of other studies, before ours
        self._study: ViewStudy
        self._log_level = optuna.logging.WARNING
        self._try_out()
        self._log_level = optuna.logging.ERROR
        self.rebuild((), {})

    @property
    def study(self) -> optuna.Study:
        """The view as Optuna's own study, for plots and importances; to be read only."""
        return self._study

    def check_earlier(self, study: str, trials: Sequence[ViewTrial]) -> None:
        """Raise ProposalError if finished trials of another study have other kinds of parameters than ours."""
        if self._distributions is None:
            return  # a define-by-run space says what it has only when it is asked
        for text in dict.fromkeys(trial.distributions for trial in trials):
            theirs = _distributions_from_json(text)
            for name in sorted(theirs.keys() | self._distributions.keys()):
                if not _same_kind(theirs.get(name), self._distributions.get(name)):
                    raise ProposalError(
                        f"search.warm_start: parameter {name} of study {study} is not of the same kind as here "
                        f"({_kind_text(theirs.get(name))} there, {_kind_text(self._distributions.get(name))} here); "
                        "remove the study, or give the parameter another name"
                    )

    def rebuild(
        self, rows: Sequence[ViewTrial], study_attrs: Mapping[str, Json], earlier: Sequence[ViewTrial] = ()
    ) -> None:
        """Rebuild the view from all recorded trials, in the order in which they were asked for and told.

        `earlier` are finished trials of other studies. They stand before ours, so their count must never change.
        """
        with _quiet(self._log_level):
            pruner = make_pruner(self._pruner, study_attrs)
            self._study = new_view(self._study_name, self._directions, pruner, self._paused_as)
            for key, value in study_attrs.items():
                self._storage.set_study_system_attr(self._study_id, key, value)
            self._earlier = len(earlier)
            for row in earlier:
                self._add_earlier(row)
            for row, told in _in_order(rows):
                if told:
                    values = _told_values(row, len(self._directions))
                    self._storage.set_trial_state_values(self._id(row.number), _END[row.state], values)
                else:
                    self._restore(row)
            self._storage.paused = {self._id(row.number) for row in rows if row.state is TrialState.PAUSED}

    def ask(self, number: int) -> Proposal | None:
        """Propose trial `number`, the one after the newest; None when the space is exhausted (Grid, BruteForce)."""
        study, storage = self._study, self._storage
        before = storage.get_study_system_attrs(self._study_id)
        with _quiet(self._log_level):
            study.sampler = self._make_sampler(number)
            try:
                newest = self._ask_trial(study).number
            except Exception as error:
                raise ProposalError(f"{self._culprit()} failed: {type(error).__name__}: {error}") from error
        assert newest == self._id(number), f"asked for trial {number}, the view is at {newest} with {self._earlier}"
        frozen = storage.get_trial(newest)
        self._check(frozen)
        if self._exhaustible and self._repeats(frozen):
            storage.take_back_newest(self._study_id)
            return None
        self._mark_optimizer(frozen)
        return Proposal(
            number=number,
            params={name: _plain(value) for name, value in frozen.params.items()},
            distributions=_distributions_to_json(frozen.distributions),
            attrs=self._stored_attrs(number, {}),
            study_attrs=_added(before, storage.get_study_system_attrs(self._study_id)),
        )

    def report(self, number: int, step: int, value: float) -> PrunerVerdict:
        """Add the value of one step and ask the pruner about it: once per step, in order."""
        if self._is_full(number, step):
            return PrunerVerdict(False, {}, {})
        attrs, study_attrs = self._attrs(number)
        self.replay(number, step, value)
        with _quiet(self._log_level):
            prune = bool(self._study.pruner.prune(self._study, self._storage.get_trial(self._id(number))))
        self._remember_guesses()
        delta = self._delta(number, attrs, study_attrs)
        return PrunerVerdict(prune, delta.attrs, delta.study_attrs)

    def replay(self, number: int, step: int, value: float) -> None:
        """Add or replace the value of a step whose verdict is already stored: the pruner is not asked."""
        assert math.isfinite(value), f"trial {number} step {step}: {value} must not reach the sampler"
        if self._is_full(number, step):
            return
        self._storage.set_trial_intermediate_value(self._id(number), step, float(value))

    def _is_full(self, number: int, step: int) -> bool:
        """Whether this would be one step too many: each costs Optuna a copy of all before it."""
        values = self._storage.get_trial(self._id(number)).intermediate_values
        return len(values) >= STEPS_MAX and step not in values

    def withdraw(self, number: int, step: int) -> None:
        """Forget the value of a step: what a later run reported for it is no finite number."""
        self._storage.withdraw_value(self._id(number), step)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> Delta:
        """End a trial; `values`, one per objective and finite, exactly if it succeeded."""
        assert (values is not None) == (state is TrialState.SUCCEEDED), f"trial {number}: {state} with {values}"
        assert all(math.isfinite(value) for value in values or ()), f"trial {number}: {values} must be told as failed"
        attrs, study_attrs = self._attrs(number)
        self._storage.paused.discard(self._id(number))
        with _quiet(self._log_level):
            self._study.tell(self._id(number), None if values is None else list(values), _END[state])
        return self._delta(number, attrs, study_attrs)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _storage(self) -> ViewStorage:
        return self._study.storage

    @property
    def _study_id(self) -> int:
        return 0  # the only study of its storage

    def _id(self, number: int) -> int:
        """Where a trial of ours stands in the view."""
        return self._earlier + number

    def _add_earlier(self, row: ViewTrial) -> None:
        ours = self._distributions or _distributions_from_json(row.distributions)
        values = _told_values(row, len(self._directions))
        trial = earlier_trial(row.params, ours, row.points, _END[row.state], values)
        self._storage.create_new_trial(self._study_id, trial)

    def _make_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return make_sampler(self._sampler, self._space, number, self._default_seed)

    def _try_out(self) -> None:
        """Two whole trials, so that a sampler that does not fit the space is found now and not in mid-sweep."""
        culprit = "search"
        try:
            self.rebuild((), {})
            for number in range(2):
                if self.ask(number) is None:
                    return
                culprit = f"search.pruner: {self._pruner.name if self._pruner else 'none'}"
                self.report(number, 1, 0.0)
                culprit = f"search.sampler: {self._sampler.name}"
                self.tell(number, TrialState.SUCCEEDED, [0.0] * len(self._directions))
        except ProposalError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ProposalError(f"{culprit}: fails on a trial ({said}); correct its arguments") from error

    def _culprit(self) -> str:
        if isinstance(self._space, tuple):
            return f"search.sampler: {self._sampler.name} on this space"
        return f"space: {self._space.function} of {self._space.path}"

    def _check(self, trial: FrozenTrial) -> None:
        if not trial.params:
            raise ProposalError(f"{self._culprit()} suggested no parameter")
        for name, value in trial.params.items():
            require_inside(name, value, trial.distributions[name])

    def _repeats(self, trial: FrozenTrial) -> bool:
        """What Grid and BruteForce propose when nothing new is left: points that were proposed before."""
        # BruteForce never proposes what an earlier study tried; Grid knows only of its own
        first = 0 if self._sampler.name == "BruteForceSampler" else self._earlier
        before = self._storage.get_all_trials(self._study_id, deepcopy=False)[first:-1]
        return any(other.params == trial.params for other in before)

    def _mark_optimizer(self, trial: FrozenTrial) -> None:
        if any(map(_is_optimizer, trial.system_attrs)):
            self._storage.set_trial_system_attr(trial.number, _OPTIMIZER_MARK, True)

    def _restore(self, row: ViewTrial) -> None:
        attrs = dict(row.attrs)
        if _OPTIMIZER_MARK in attrs:
            attrs |= self._optimizer_again(row.number)
        distributions = _distributions_from_json(row.distributions)
        trial = running_trial(row.params, distributions, attrs, row.points[:STEPS_MAX])
        number = self._storage.create_new_trial(self._study_id, trial)
        assert number == self._id(row.number), f"trial {row.number} is recorded, trial {number} is missing"

    def _optimizer_again(self, number: int) -> dict[str, Json]:
        """The pickled optimizer that this ask left behind, from the view as it was at that moment."""
        self._study.sampler = self._make_sampler(number)
        _ = self._study.ask().relative_params  # it is drawn when first read
        attrs = self._storage.get_trial(self._id(number)).system_attrs
        self._storage.take_back_newest(self._study_id)
        return {key: value for key, value in attrs.items() if _is_optimizer(key)}

    def _remember_guesses(self) -> None:
        known = self._storage.get_study_system_attrs(self._study_id)
        for key, value in guesses(self._study.pruner).items():
            if known.get(key) != value:
                self._storage.set_study_system_attr(self._study_id, key, value)

    def _attrs(self, number: int) -> tuple[Mapping[str, Json], Mapping[str, Json]]:
        # The storage replaces these dicts and never changes them, so holding on to them is a snapshot.
        return self._storage.get_trial(self._id(number)).system_attrs, self._storage.get_study_system_attrs(
            self._study_id
        )

    def _stored_attrs(self, number: int, before: Mapping[str, Json]) -> dict[str, Json]:
        added = _added(before, self._storage.get_trial(self._id(number)).system_attrs)
        return {key: value for key, value in added.items() if not _is_optimizer(key)}

    def _delta(self, number: int, attrs: Mapping[str, Json], study_attrs: Mapping[str, Json]) -> Delta:
        study_now = self._storage.get_study_system_attrs(self._study_id)
        return Delta(self._stored_attrs(number, attrs), _added(study_attrs, study_now))


def _paused_as(sampler: Component) -> Seen:
    """How a trial that rests at a rung is shown: to those who skip PRUNED trials it would be unknown."""
    inner = sampler.arguments.get("base_sampler", {})
    names = (sampler.name, inner.get("name") if isinstance(inner, dict) else inner)
    return Seen.COMPLETE if any(name in names for name in IGNORES_PRUNED) else Seen.PRUNED


def _in_order(rows: Sequence[ViewTrial]) -> list[tuple[ViewTrial, bool]]:
    """Asks and tells as they happened: (row, whether this is its tell)."""
    moments = []
    for row in rows:
        assert row.state.terminal == (row.told_seq is not None), f"trial {row.number}: {row.state}, told {row.told_seq}"
        moments.append((row.asked_seq, row.number, False, row))
        if row.told_seq is not None:
            moments.append((row.told_seq, row.number, True, row))
    moments.sort(key=lambda moment: moment[:3])
    return [(row, told) for _, _, told, row in moments]


def _told_values(row: ViewTrial, objectives: int) -> list[float] | None:
    """As `tell` leaves them: a pruned trial has its last reported value."""
    match row.state:
        case TrialState.SUCCEEDED:
            assert row.values is not None, f"trial {row.number} succeeded without a value"
            return [float(value) for value in row.values]
        case TrialState.PRUNED if row.points and objectives == 1:
            return [float(max(row.points)[1])]
        case _:
            return None


def _same_kind(one: BaseDistribution | None, other: BaseDistribution | None) -> bool:
    """Whether values of one can be told to a sampler of the other; ranges may differ."""
    if one is None or other is None or type(one) is not type(other):
        return False
    if isinstance(one, CategoricalDistribution):
        return one == other
    return getattr(one, "log", None) == getattr(other, "log", None)


def _kind_text(found: BaseDistribution | None) -> str:
    if found is None:
        return "absent"
    log = "log " if getattr(found, "log", False) else ""
    return log + type(found).__name__.removesuffix("Distribution").lower()


def _plain(value: ParamValue) -> ParamValue:
    return float(value) if isinstance(value, float) else value  # numpy's float is one too


def _is_optimizer(key: str) -> bool:
    return ":optimizer:" in key


def _added(before: Mapping[str, Json], after: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _distributions_to_json(distributions: Mapping[str, BaseDistribution]) -> str:
    return json.dumps({name: json.loads(distribution_to_json(it)) for name, it in distributions.items()})


@lru_cache(maxsize=256)
def _distributions_from_json(text: str) -> dict[str, BaseDistribution]:
    return {name: json_to_distribution(json.dumps(it)) for name, it in json.loads(text).items()}


@contextmanager
def _quiet(level: int) -> Iterator[None]:
    """Keep Optuna from repeating itself: a new sampler is made for each trial and would warn each time.

    Its log is shown once, when the proposer is made. Experimental samplers are chosen by name, so their warnings, which
    are exceptions to users of `-W error`, say nothing new.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
