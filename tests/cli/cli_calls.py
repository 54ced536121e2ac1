"""How a test calls the command line."""

from collections.abc import Callable
from typing import NamedTuple


class Called(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Called]
