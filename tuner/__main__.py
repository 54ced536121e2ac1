"""`python -m tuner`, for where the console script is not on PATH."""

import sys

from tuner.cli.main import main

sys.exit(main())
