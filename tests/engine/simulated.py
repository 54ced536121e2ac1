"""Scripts for the simulated cloud."""

from collections.abc import Callable

from tuner.core.jobs import JobRequest
from tuner.simulator.parts import Script


def script_of(**options) -> Callable[[JobRequest], Script]:
    """Every job runs this script."""
    script = Script(**options)
    return lambda _request: script
