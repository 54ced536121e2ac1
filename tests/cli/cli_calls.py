"""How a test calls the command line."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tuner.operations.use_cases import UseCases


class Called(NamedTuple):
    code: int
    out: str
    err: str


class Call(Protocol):
    """Runs one command line, on other use cases where they are given."""

    def __call__(self, *words: object, use_cases: UseCases | None = None) -> Called: ...


class Faked(UseCases):
    """Use cases of which a test says some, by their names."""

    def __init__(self, **said: Callable[..., Any]) -> None:
        super().__init__()
        for name, does in said.items():
            assert hasattr(UseCases, name), name
            setattr(self, name, does)
