"""The study file: read, checked, stored, compared, changed.

Other rooms import this module. A study file is checked completely before anything else happens, and every refusal is a
`SpecError` of one line that names the file, the key, what is wrong and what to do.

Rules: a spec that was accepted is stored as JSON and can always be read back, even if the files and prices that it
names have changed. Secrets are references, never values. Settings that are understood but not built are refused in one
place.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tuner.core.records import Study
from tuner.spec.changes import SpecChange, changes
from tuner.spec.check import check, check_files, refuse_missing_secrets
from tuner.spec.document import flatten, setting_text, to_document
from tuner.spec.keys import flat
from tuner.spec.records import (
    COST_METRIC,
    Backend,
    Budget,
    Capacity,
    CategoricalParam,
    CheckpointSettings,
    Component,
    Direction,
    FloatParam,
    Framework,
    Input,
    IntParam,
    Json,
    LocalMarket,
    Metric,
    Objective,
    Param,
    RetryRule,
    SageMakerSettings,
    Scalar,
    Search,
    Settings,
    Space,
    SpaceFunction,
    StudySpec,
    Training,
)
from tuner.spec.sections import KEYS, parse
from tuner.spec.space import encoded
from tuner.spec.training import SHAPING
from tuner.spec.values import Form, SpecError, suggestion
from tuner.spec.yaml_text import assign, read_document

__all__ = [
    "COST_METRIC",
    "Backend",
    "Budget",
    "Capacity",
    "CategoricalParam",
    "CheckpointSettings",
    "Component",
    "Direction",
    "FloatParam",
    "Framework",
    "Input",
    "IntParam",
    "Json",
    "LocalMarket",
    "Metric",
    "Objective",
    "Param",
    "RetryRule",
    "SageMakerSettings",
    "Scalar",
    "Search",
    "Settings",
    "Space",
    "SpaceFunction",
    "SpecChange",
    "SpecError",
    "StudySpec",
    "Training",
    "apply_set",
    "as_begun",
    "changes",
    "completed",
    "describe",
    "encoded",
    "from_json",
    "live_settings",
    "load",
    "refuse_missing_secrets",
    "refuse_unbuilt",
    "spec_of",
    "to_json",
]

# 1: durations are text, as in the file; 2: they are seconds. Both are read for good.
_FORMATS: dict[int, Form] = {1: "file", 2: "stored"}
_FORMAT = 2

# What `tuner set` may change while a study runs: totals, which the engine recomputes anyway.
LIVE_KEYS = tuple(name for name, key in flat(KEYS) if key.settable)
# How many parsed specs are kept in memory: enough for the studies of one command.
_SPECS_KEPT = 64


def load(path: Path, overrides: Sequence[str] = ()) -> StudySpec:
    """The study file at `path`, with `dotted.key=value` overrides, checked against everything but the cloud.

    Its `warnings` are about what is allowed but odd. Raises `SpecError`.
    """
    file = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() leaves `..` in it
    try:
        document = read_document(file)
        for assignment in overrides:
            assign(document, assignment)
        spec = parse(document, file.parent, file)
        _refuse_two_images(spec)
        check_files(spec)
        return replace(spec, overrides=tuple(overrides), warnings=check(spec))
    except SpecError as error:
        raise SpecError(f"{_printable(path)}: {error}") from None


def _refuse_two_images(spec: StudySpec) -> None:
    """Not checked when a stored spec is read: it holds the framework and the image that was found for it."""
    if spec.training.framework is not None and spec.training.image_uri is not None:
        raise SpecError("training.framework: cannot stand beside image_uri; remove one of them")


def _printable(path: Path) -> str:
    return str(path) if str(path).isprintable() else ascii(str(path))


def completed(spec: StudySpec, *, region: str, role: str | None, root: str, image_uri: str | None) -> StudySpec:
    """The spec with what was looked up for it, checked again because prices depend on the region.

    Raises `SpecError`.
    """
    whole = replace(
        spec,
        sagemaker=replace(spec.sagemaker, region=region, role=role),
        checkpoints=replace(spec.checkpoints, root=root),
        training=replace(spec.training, image_uri=image_uri),
    )
    return replace(whole, warnings=check(whole))


def to_json(spec: StudySpec) -> str:
    """The spec as it is stored: complete, with absolute paths. The order of the parameters is kept."""
    stored = {
        "format": _FORMAT,
        "file": None if spec.file is None else str(spec.file),
        "overrides": list(spec.overrides),
        "study": to_document(spec, "stored"),
    }
    return json.dumps(stored, allow_nan=False)


def spec_of(study: Study) -> StudySpec:
    """The spec of a recorded study. Its text is parsed once, so all callers share one object."""
    return from_json(study.spec)


@lru_cache(maxsize=_SPECS_KEPT)
def from_json(text: str) -> StudySpec:
    """The spec that `to_json` stored, of this version or an earlier one. Files and prices are not checked."""
    stored = json.loads(text)
    form = _FORMATS.get(stored["format"])
    if form is None:
        raise SpecError(f"this study was stored in format {stored['format']}; upgrade this program to read it")
    spec = parse(stored["study"], Path("/"), None if stored["file"] is None else Path(stored["file"]), form)
    return replace(spec, overrides=tuple(stored["overrides"]))


def describe(spec: StudySpec) -> list[tuple[str, str]]:
    """Every effective setting, defaults included, as dotted key and text, in the order of the study file."""
    return [(key, setting_text(value)) for key, value in flatten(to_document(spec))]


def apply_set(spec: StudySpec, assignments: Sequence[str]) -> StudySpec:
    """The spec with live changes, as `tuner set` makes them. Raises `SpecError` for any other key or a bad value."""
    document = to_document(spec)
    for assignment in assignments:
        key = assignment.partition("=")[0]
        if key not in LIVE_KEYS:
            raise SpecError(f"{key[:60]!r}: cannot be changed while the study lives; {suggestion(key, LIVE_KEYS)}")
        assign(document, assignment)
    changed = parse(document, Path("/"), spec.file)
    return replace(changed, overrides=spec.overrides, warnings=check(changed))


def live_settings(spec: StudySpec) -> dict[str, Json]:
    """The current values of what `apply_set` may change; None stands for no limit."""
    settings = dict(flatten(to_document(spec)))
    return {key: settings.get(key) for key in LIVE_KEYS}


def as_begun(spec: StudySpec, former: str) -> StudySpec:
    """The spec for a trial that began with a former one (as `to_json` stored it): what shapes its result stays.

    Nothing is checked, because both were checked before.
    """
    begun = from_json(former).training
    return replace(spec, training=replace(spec.training, **{name: getattr(begun, name) for name in SHAPING}))


# -- what is understood, but not built --


def _promotes(spec: StudySpec) -> bool:
    return spec.search.pruner is not None and spec.search.pruner.name == "Promotion"


_UNBUILT: tuple[tuple[str, Callable[[StudySpec], bool]], ...] = (
    ("search.pruner.name: Promotion", _promotes),
    ("capacity.policy: auto", lambda spec: spec.capacity.policy == "auto"),
)


def refuse_unbuilt(spec: StudySpec) -> None:
    """Raise `SpecError` for the first setting that is understood but has no code yet."""
    for key, used in _UNBUILT:
        if used(spec):
            where = f"{_printable(spec.file)}: " if spec.file else ""
            raise SpecError(f"{where}{key} is not built yet; remove it")
