"""`tuner schema`: the JSON schema of the study file, for editors."""

import sys

from tuner.cli.arguments import Arguments
from tuner.core.errors import Exit
from tuner.spec.schema import schema_text


def schema(_: Arguments) -> int:
    """A document of its own, so it needs no `--json`."""
    sys.stdout.write(schema_text())
    return Exit.DONE
