"""Hyperparameter tuning on spot capacity: interrupted trials resume, and every dollar is accounted for.

`import tuner` costs nothing: training scripts import `tuner.training` in containers that hold no library of ours. The
names of the Python API are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import Study, launch, load, resume

__all__ = ["Study", "launch", "load", "resume"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - each name has a type of its own
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tuner import api  # noqa: PLC0415 - see the docstring

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
