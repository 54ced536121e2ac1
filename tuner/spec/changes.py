"""What differs between two versions of a study file, and what each difference means when the study is resumed.

The meaning is declared with each key (`keys.Key.change`); this module finds the key that a setting belongs to.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tuner.spec.document import flatten, setting_text, to_document
from tuner.spec.keys import ChangeKind, Key, flat
from tuner.spec.records import Json, SpaceFunction, StudySpec
from tuner.spec.sections import KEYS

_ORDER = "space (order)"
_DECLARED = dict(flat(KEYS))
_WITH_NAMES = tuple(name for name in _DECLARED if "*" in name)


@dataclass(frozen=True, slots=True)
class SpecChange:
    """One setting that differs, by dotted key; None stands for absent."""

    key: str
    old: Json
    new: Json
    kind: ChangeKind

    def __str__(self) -> str:
        return f"{self.key}: {setting_text(self.old)} -> {setting_text(self.new)}"

    @property
    def for_new_trials(self) -> bool:
        """Whether trials that exist keep the old setting."""
        return declared(self.key).shapes


def declared(setting: str) -> Key:
    """The declaration of a setting: its own, else that of the nearest key around it.

    Names of the user's may hold dots, so `space.my.rate.low` is `space.*.low`.
    """
    name = "space" if setting == _ORDER else setting
    while name:
        if name in _DECLARED:
            return _DECLARED[name]
        for pattern in _WITH_NAMES:
            if fnmatchcase(name, pattern):
                return _DECLARED[pattern]
        name = name.rpartition(".")[0]
    raise KeyError(setting)


def changes(old: StudySpec, new: StudySpec) -> list[SpecChange]:
    """What differs between a stored spec and the study file as it is now, in the order of the file."""
    before, after = _settings_of(old), _settings_of(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [
        SpecChange(key, before.get(key), after.get(key), declared(key).change or "needs_accept")
        for key in keys
        # as JSON, since 1 and true are equal to Python
        if json.dumps(before.get(key)) != json.dumps(after.get(key))
    ]


def _settings_of(spec: StudySpec) -> dict[str, Json]:
    settings = dict(flatten(to_document(spec)))
    if not isinstance(spec.space, SpaceFunction):
        # samplers draw in this order
        settings[_ORDER] = [param.name for param in spec.space]
    return settings
