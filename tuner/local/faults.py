"""Faults of the service itself, as switches of the state directory: what AWS does to its callers now and then.

Rules: drawn from a seed and the number of the call, so that the same calls in the same order meet the same faults. A
throttled call and one with expired credentials have no effect; one whose answer is lost has had it.
"""

import itertools
import random
from collections.abc import Iterator

from tuner.local.settings import LocalSettings
from tuner.local.validate import Refused


class AnswerLost(Exception):  # noqa: N818 - named for what happened
    """The call was carried out; the transport must drop its answer."""


class ForcedErrors:
    """The faults that calls to one service meet, in their order."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = itertools.count()

    def meet(self, settings: LocalSettings) -> bool:
        """What the next call meets: raises `Refused`, else says whether its answer will be lost."""
        number = next(self._numbers)
        if settings.credentials_expired:
            raise Refused("ExpiredTokenException", "The security token included in the request is expired")
        if drawn(settings, "throttled", number) < settings.throttled_share:
            raise Refused("ThrottlingException", "Rate exceeded")
        return drawn(settings, "lost", number) < settings.lost_share


def drawn(settings: LocalSettings, what: str, number: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed, the kind of fault and how often it was drawn."""
    return random.Random(f"{settings.fault_seed}:{what}:{number}").random()  # noqa: S311 - a fault, not a secret
