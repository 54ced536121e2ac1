"""Quotas that a study has learned, as they are kept with it.

Service Quotas names them at launch, and refusals name them later. They are kept in an attribute of the study, so that a
new engine does not ask for jobs that would be refused.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import cast

from tuner.core.policy.placement import Kind, Limit
from tuner.core.records import Json, Study

# Attribute of a study: the quotas that it has learned.
_LIMITS = "tuner:limits"


def limits_to_keep(quotas: Mapping[Kind, int], now: datetime) -> dict[str, Json]:
    """The attribute to store with a study for quotas, in instances, that Service Quotas named; empty without any."""
    limits = {kind: Limit(instances=instances, learned_at=now) for kind, instances in quotas.items()}
    return as_kept(limits) if limits else {}


def as_kept(limits: Mapping[Kind, Limit]) -> dict[str, Json]:
    """As an attribute of the study."""
    return {
        _LIMITS: [
            [instance_type, spot, limit.instances, limit.learned_at.isoformat()]
            for (instance_type, spot), limit in limits.items()
        ]
    }


def kept_limits(study: Study) -> dict[Kind, Limit]:
    """The quotas that are stored with a study."""
    kept = cast("list[tuple[str, bool, int, str]]", study.attrs.get(_LIMITS, []))
    return {
        (instance_type, spot): Limit(instances=instances, learned_at=datetime.fromisoformat(learned_at))
        for instance_type, spot, instances, learned_at in kept
    }
