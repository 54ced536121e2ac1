"""`python -m tests.docs --write`: rewrite the generated parts of the documentation."""

import sys

from tests.docs import generate

if sys.argv[1:] != ["--write"]:
    sys.exit("usage: python -m tests.docs --write")
generate.write()
