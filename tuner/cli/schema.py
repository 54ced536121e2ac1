"""`tuner schema`: the JSON schema of the study file, for editors."""

import sys

from tuner.cli.arguments import Arguments
from tuner.core.errors import Exit
from tuner.spec.schema import schema_text


def schema(_: Arguments) -> int:
    """The output is always one JSON document, so there is no `--json`."""
    sys.stdout.write(schema_text())
    return Exit.DONE
