"""What a machine, its user or its CI has set must reach no test, nor what tests start.

Names are dropped where something of ours, or of what we import, reads them. What serves pip, and what a run asks of the
tests themselves (`TUNER_TEST_…`, `TEST_DB_URL`, `CHAOS_…`), stays, as does PYTHONPATH, by which the code may be found.
"""

import os
from collections.abc import MutableMapping

try:
    from hypothesis.internal.conjecture import providers
except ImportError:  # not where it was
    providers = None

_PREFIXES = ("TUNER_", "AWS_", "SM_", "SAGEMAKER_", "MOTO_", "JUPYTER_", "CLICOLOR", "TTY_")
_NAMES = frozenset((
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHON_COLORS", "COLORTERM", "IPYTHONDIR", "MPLBACKEND"),
    *("PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONDEVMODE"),
    *("PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONBREAKPOINT"),
))  # fmt: skip
_KEPT = "TUNER_TEST_"
_ON_AWS = "TUNER_TEST_AWS"
# What tests serve is on this machine; a proxy, by which alone CI may reach its package index, does not know it.
_HERE = "127.0.0.1,localhost"


def forget(environ: MutableMapping[str, str]) -> None:
    """Make an environment one that tells nothing of the machine."""
    on_aws = environ.get(_ON_AWS) == "1"
    for name in list(environ):
        wanted = name.startswith(_KEPT) or (on_aws and name.startswith("AWS_"))
        if not wanted and (name.startswith(_PREFIXES) or name in _NAMES):
            del environ[name]
    if not on_aws:
        # nor the user's files, and no look for the role of an instance, which waits for a network that is not there
        environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        environ["AWS_EC2_METADATA_DISABLED"] = "true"
    for name in ("NO_PROXY", "no_proxy"):
        environ[name] = ",".join(filter(None, (_HERE, environ.get(name))))


def draw_alike() -> None:
    """Have Hypothesis draw the same examples whatever else a worker has imported before.

    It mixes constants of all modules in, that are there at the moment and not installed: in a worker these depend on
    the tests that it ran before. There is no setting for it; versions that do not look have nothing to be kept from.
    """
    if providers is not None and hasattr(providers, "_get_local_constants"):
        none = providers.Constants()
        providers._get_local_constants = lambda: none
