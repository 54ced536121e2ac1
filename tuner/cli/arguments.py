"""The arguments of a verb, and the use cases that it calls."""

import argparse
from typing import TYPE_CHECKING

from tuner.core.commands import Options

if TYPE_CHECKING:
    from tuner.operations.use_cases import UseCases


class Arguments(argparse.Namespace):
    """The arguments of a verb, by the names of its options."""

    use_cases: "UseCases"
    options: Options  # the options that printed commands repeat
