"""What a verb is given: the words that were typed, and the use cases that they are handed to."""

import argparse
from typing import TYPE_CHECKING

from tuner.core.commands import Options

if TYPE_CHECKING:
    from tuner.operations.use_cases import UseCases


class Arguments(argparse.Namespace):
    """The arguments of a verb, by the names of its options."""

    use_cases: "UseCases"
    options: Options  # what commands in texts repeat of this call
