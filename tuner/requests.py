"""What `set`, `stop` and `cancel` do to a study: the one place where a user's request is applied.

A request is a row, written from any process and outside the lease. The engine applies it at its next tick; with no
live engine the verb that wrote it takes the lease and applies it itself, through the same function.
"""

from dataclasses import replace

from tuner import workload
from tuner.model import Intent, Request, Study
from tuner.spec import apply_set, from_json, to_json
from tuner.unit import UnitOfWork


def apply(unit: UnitOfWork, request: Request) -> Study:
    """Apply one request, as one event; returns the study after it."""
    unit.event("request", verb=request.verb, values=dict(request.values), who=request.who)
    if request.verb == "set":
        spec = apply_set(from_json(unit.study.spec), [f"{key}={value}" for key, value in request.values.items()])
        workload.policy(spec, unit.study)  # raises for what could not be planned with, before anything is written
        unit.set_study(replace(unit.study, spec=to_json(spec)))
    else:
        unit.set_study(replace(unit.study, intent=Intent(str(request.values["intent"])), intent_at=unit.now))
    unit.applied(request)
    return unit.study
