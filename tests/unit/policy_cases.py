"""Records of one trial on one page: what the tests of the policy begin with."""

from tests import factories
from tests.factories import NOW, at, history, policy, trial
from tuner.core.records import AttemptState

__all__ = ["NOW", "at", "attempt", "history", "policy", "seen", "trial"]


def attempt(**changes):
    """One that has ended, on the first type of the policy."""
    of_policy = {"instance_type": "ml.a.large", "rate_microusd_per_h": 1_000_000, "reserved_microusd": 0}
    return factories.attempt(**{"state": AttemptState.ENDED, **of_policy, **changes})


def seen(status, rows, **changes):
    return factories.observation(status=status, history=rows, **changes)
