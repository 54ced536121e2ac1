"""Samplers, pruners and search spaces of Optuna, made from what a study file says.

Any sampler and pruner of Optuna can be named with its arguments. What cannot work is refused in one line before a job
costs money.

Rules: only names that Optuna publishes are looked up. Arguments are checked against the signature, then by making the
object. A new sampler is made for each trial, seeded by the trial's number, so that a resumed study draws what the
uninterrupted one would have drawn. Samplers that walk through a sequence keep one seed.
"""

import importlib.util
import inspect
import itertools
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuner.core.records import Json, ParamValue
from tuner.search.view import is_inside
from tuner.spec.records import CategoricalParam, Component, FloatParam, IntParam, Param, Space, SpaceFunction
from tuner.spec.study_file import SpecError


class ProposalError(SpecError):
    """The search as described cannot propose; the message is one line that says what to change."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class _Family:
    """A base class of Optuna: where its members are published, and what users call them."""

    word: str
    base: type
    home: ModuleType

    def members(self) -> dict[str, type]:
        published = {name: getattr(self.home, name) for name in self.home.__all__}
        return {
            name: member
            for name, member in published.items()
            if inspect.isclass(member) and issubclass(member, self.base) and not inspect.isabstract(member)
        }


_NSGA = optuna.samplers.nsgaii
# By the name under which signatures mention them.
_FAMILIES = {
    "BaseSampler": _Family("sampler", BaseSampler, optuna.samplers),
    "BasePruner": _Family("pruner", BasePruner, optuna.pruners),
    "BaseCrossover": _Family("crossover", _NSGA.BaseCrossover, _NSGA),
    "BaseMutation": _Family("mutation", _NSGA.BaseMutation, _NSGA),
}
_SCALARS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}
# What a file cannot hold: functions, arrays, trials of other studies.
_UNWRITABLE = {"Callable", "ndarray", "FrozenTrial"}
_GP = "install the extra gp: pip install 'spot-tuner[gp]'"
_SCIPY = "pip install scipy"
# Optuna imports these lazily, in the middle of a sweep.
_NEEDS = {
    "GPSampler": {"torch": _GP, "scipy": _GP},
    "CmaEsSampler": {"cmaes": "install the extra cma: pip install 'spot-tuner[cma]'"},
    "QMCSampler": {"scipy": _SCIPY},
    "WilcoxonPruner": {"scipy": _SCIPY},
}
# They walk through one sequence or one finite set: another seed per trial would tear it up.
_ONE_SEED = {"QMCSampler", "GridSampler", "BruteForceSampler"}
# Their points run out.
EXHAUSTIBLE = {"GridSampler", "BruteForceSampler"}
# They learn from COMPLETE trials only.
IGNORES_PRUNED = {"GPSampler", "CmaEsSampler", "NSGAIISampler", "NSGAIIISampler"}
# Arguments whose "auto" is guessed from the first finished trials and then kept in the object.
_GUESSED = {"SuccessiveHalvingPruner": "min_resource", "HyperbandPruner": "max_resource"}
_MAX_GRID_POINTS = 100_000

# Completes the arguments of an object: class name, what it accepts, what was given -> what to add or replace.
_Fill = Callable[[str, Mapping[str, str], Mapping[str, Any]], Mapping[str, Any]]


# --- objects by name --------------------------------------------------------------------------------------------------


def make_sampler(component: Component, space: Space, number: int, default_seed: int) -> BaseSampler:
    """The sampler that proposes trial `number`."""

    def fill(name: str, accepted: Mapping[str, str], given: Mapping[str, Any]) -> Mapping[str, Any]:
        if name in EXHAUSTIBLE and name != component.name:
            raise ProposalError(f"search.sampler: {name} cannot stand inside {component.name}; use it by itself")
        if given.get("avoid_premature_stop"):
            raise ProposalError(
                f"search.sampler: {name} needs no avoid_premature_stop here, nothing is left out; remove it"
            )
        seed = default_seed if given.get("seed") is None else given["seed"]
        drawn = zlib.crc32(f"{seed}:{number}".encode())
        more: dict[str, Any] = {}
        if "seed" in accepted:
            more["seed"] = seed if name in _ONE_SEED else drawn
        if name == "QMCSampler" and given.get("independent_sampler") is None:
            # else each trial would draw the same value for parameters outside the sequence
            more["independent_sampler"] = optuna.samplers.RandomSampler(seed=drawn)
        if name == "PartialFixedSampler":
            _require_known(space, given.get("fixed_params"))
        if name == "GridSampler":
            more["search_space"] = _grid(space, given.get("search_space"))
        return more

    sampler = _make("BaseSampler", component, "search.sampler", fill)
    assert isinstance(sampler, BaseSampler)
    return sampler


def _require_known(space: Space, fixed: object) -> None:
    """Optuna passes over names that the space does not have, and fixes nothing."""
    if isinstance(space, SpaceFunction) or not isinstance(fixed, Mapping):
        return
    names = [param.name for param in space]
    for name in fixed:
        if name not in names:
            where = "search.sampler.fixed_params"
            raise ProposalError(f"{where}: there is no parameter {name!r}; {_suggestion(str(name), names)}")


def make_pruner(component: Component | None, remembered: Mapping[str, Json]) -> BasePruner:
    """The pruner; `remembered` has what an earlier one of this study guessed (see `guesses`)."""

    def fill(name: str, _accepted: Mapping[str, str], given: Mapping[str, Any]) -> Mapping[str, Any]:
        guessed = _GUESSED.get(name, "")
        key = f"tuner:{name}.{guessed}"
        return {guessed: remembered[key]} if key in remembered and given.get(guessed, "auto") == "auto" else {}

    if component is None:
        return optuna.pruners.NopPruner()
    pruner = _make("BasePruner", component, "search.pruner", fill)
    assert isinstance(pruner, BasePruner)
    return pruner


def guesses(pruner: BasePruner) -> dict[str, int]:
    """What the pruner has settled on for `auto`, to be remembered with the study.

    A new guess after a restart could be another one, and rungs would no longer match.
    """
    found = {}
    inner: BasePruner | None = pruner
    while inner is not None:
        name = type(inner).__name__
        value = getattr(inner, f"_{_GUESSED.get(name, '')}", None)
        if isinstance(value, int):
            found[f"tuner:{name}.{_GUESSED[name]}"] = value
        inner = getattr(inner, "_wrapped_pruner", None)
    return found


def _make(family: str, component: Component, where: str, fill: _Fill) -> object:
    name = component.name
    cls = _lookup(_FAMILIES[family], name, where)
    for module, remedy in _NEEDS.get(name, {}).items():
        if importlib.util.find_spec(module) is None:
            raise ProposalError(f"{where}: {name} needs {module}, which is not installed; {remedy}")
    accepted = {key: _annotation(parameter) for key, parameter in inspect.signature(cls).parameters.items()}
    given = {}
    for key, value in component.arguments.items():
        if key not in accepted:
            raise ProposalError(f"{where}: {name} has no argument {key!r}; {_suggestion(key, accepted)}")
        given[key] = _argument(f"{where}.{key}", accepted[key], value, fill)
    arguments = {**given, **fill(name, accepted, given)}
    try:
        return cls(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ProposalError(f"{where}: {name}: {error}") from error


def _lookup(family: _Family, name: str, where: str) -> type:
    members = family.members()
    if name not in members:
        raise ProposalError(f"{where}: unknown {family.word} {name!r}; {_suggestion(name, members)}")
    return members[name]


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if near := get_close_matches(word, names, n=2, cutoff=0.4):
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(names)}" if names else "it takes none"


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _argument(where: str, annotation: str, value: object, fill: _Fill) -> object:
    """The value to pass: checked, and made if it is itself an object with a name."""
    words = set(re.findall(r"\w+", annotation))
    if words & _UNWRITABLE and value is not None:
        raise ProposalError(f"{where}: must be {annotation}, which a study file cannot hold; remove it")
    family = next(iter(words & _FAMILIES.keys()), None)
    if family is not None and value is not None:
        return _make(family, _nested(where, family, value), where, fill)
    if words <= _SCALARS.keys() and not any(_is(value, word) for word in words):
        raise ProposalError(f"{where}: must be {annotation}, not {value!r}")
    return value


def _is(value: object, word: str) -> bool:
    return isinstance(value, _SCALARS[word]) and (word == "bool" or not isinstance(value, bool))


def _nested(where: str, family: str, value: object) -> Component:
    if isinstance(value, str):
        return Component(value)
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return Component(value["name"], {key: argument for key, argument in value.items() if key != "name"})
    raise ProposalError(f"{where}: write the {_FAMILIES[family].word} as {{name: …, its arguments}}")


# --- spaces -----------------------------------------------------------------------------------------------------------


def make_space(space: Space) -> Callable[[optuna.Study], optuna.Trial]:
    """What asks a study for a trial with all its parameters, in the declared order or by the file's own function."""
    if isinstance(space, SpaceFunction):
        function = _load_function(space)

        def ask_by_run(study: optuna.Study) -> optuna.Trial:
            trial = study.ask()
            function(trial)
            return trial

        return ask_by_run
    distributions = {param.name: distribution(param) for param in space}
    return lambda study: study.ask(fixed_distributions=distributions)


def distribution(param: Param) -> BaseDistribution:
    try:
        match param:
            case FloatParam():
                return FloatDistribution(param.low, param.high, log=param.log, step=param.step)
            case IntParam():
                return IntDistribution(param.low, param.high, log=param.log, step=param.step)
            case CategoricalParam():
                return CategoricalDistribution(param.choices)
    except ValueError as error:
        raise ProposalError(f"space.{param.name}: {error}") from error


def _load_function(space: SpaceFunction) -> Callable[[optuna.Trial], object]:
    """Import the user's file under a name of ours, so that it neither shadows nor is shadowed by another module."""
    where = f"space: {space.path}"
    name = f"_tuner_space_{zlib.crc32(space.path.encode()):08x}"
    module_spec = importlib.util.spec_from_file_location(name, space.path)
    if module_spec is None or module_spec.loader is None:
        raise ProposalError(f"{where} is not a Python file; name it as file.py:function")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ProposalError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, space.function, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ProposalError(f"{where} has no function {space.function!r}; it has {', '.join(known) or 'none'}")
    return function  # type: ignore[no-any-return] # a user's function: what it returns is ignored


# --- grids ------------------------------------------------------------------------------------------------------------


def _grid(space: Space, given: object) -> dict[str, Sequence[ParamValue]]:
    """The values to combine: those given, checked against the space, or all of the space."""
    where = "search.sampler.search_space"
    if given is not None:
        grid = _checked(space, given)
    elif isinstance(space, SpaceFunction):
        raise ProposalError(f"{where}: GridSampler needs it, since {space.path} is a function")
    else:
        grid = {param.name: _values(param) for param in space}
    points = math.prod(len(values) for values in grid.values())
    if points > _MAX_GRID_POINTS:
        raise ProposalError(f"{where}: the grid has {points:,} points, at most {_MAX_GRID_POINTS:,} are possible")
    return grid


def _values(param: Param) -> Sequence[ParamValue]:
    match param:
        case CategoricalParam():
            return list(param.choices)
        case IntParam():
            steps = range(param.low, param.high + 1, param.step)
            return list(itertools.islice(steps, _MAX_GRID_POINTS + 1))
        case FloatParam(step=None):
            raise ProposalError(
                f"space.{param.name}: GridSampler needs a finite set; give it a step, or list its values in "
                f"search.sampler.search_space.{param.name}"
            )
        case FloatParam():
            low, high, step = (Decimal(str(number)) for number in (param.low, param.high, param.step))
            return [float(low + i * step) for i in range(min(int((high - low) / step), _MAX_GRID_POINTS) + 1)]


def _checked(space: Space, given: object) -> dict[str, Sequence[ParamValue]]:
    where = "search.sampler.search_space"
    if not isinstance(given, Mapping) or not all(
        isinstance(values, list | tuple) and values for values in given.values()
    ):
        raise ProposalError(f"{where}: must map each parameter to a list of its values")
    for name, values in given.items():
        if len({(type(value), value) for value in values}) < len(values):
            raise ProposalError(f"{where}.{name}: values must be distinct")
    if not isinstance(space, SpaceFunction):
        names = [param.name for param in space]
        if set(names) != set(given):
            raise ProposalError(f"{where}: must list the parameters of space: {', '.join(names)}")
        for param in space:
            for value in given[param.name]:
                require_inside(param.name, value, distribution(param))
    return {name: list(values) for name, values in given.items()}


def require_inside(name: str, value: object, distribution: BaseDistribution) -> None:
    """Refuse a value outside of the range: Optuna would use it with a warning."""
    if not is_inside(value, distribution):
        raise ProposalError(f"parameter {name}: the value {value!r} is outside of {distribution}")
