"""What `set`, `stop` and `cancel` do to a study: the only place where a user's request is applied.

A request is a row, written from any process and outside the lease. The engine applies it at its next tick. Without a
live engine, the verb that wrote it takes the lease and applies it itself, through the same function.

Rules: every request is applied once. A request that no longer fits the study (two contradict each other, a budget is
below what is spent and reserved by now) changes nothing and is an event: it must not be lost silently, and not crash
the engine at every start. A cancellation is final: no later stop turns it into a rest.
"""

from dataclasses import replace
from typing import cast

from tuner.core.events import EventKind
from tuner.core.prices import PriceUnknown, usd
from tuner.core.records import REFUSED_REQUESTS, SET_LIVE, Intent, Json, Request, Study, StudyState
from tuner.engine.unit_of_work import UnitOfWork
from tuner.spec import workload
from tuner.spec.study_file import SpecError, apply_set, live_settings, spec_of, to_json


def apply(unit: UnitOfWork, request: Request, *, bound_microusd: int = 0) -> Study:
    """Apply one request, as one event; returns the study after it. A request that does not fit changes no setting.

    `bound_microusd` is spent and reserved: a budget below it can no longer be kept.
    """
    unit.applied(request)
    try:
        changed = _changed(unit, request, bound_microusd)
    except (SpecError, PriceUnknown) as error:
        seq = unit.event(
            EventKind.REQUEST_REFUSED,
            verb=request.verb,
            values=dict(request.values),
            who=request.who,
            message=str(error),
        )
        unit.set_study(_with_refusal(unit.study, request.verb, seq))
        return unit.study
    unit.event(EventKind.REQUEST, verb=request.verb, values=dict(request.values), who=request.who)
    unit.set_study(_with_refusal(changed, request.verb, None))
    return unit.study


def _with_refusal(study: Study, verb: str, seq: int | None) -> Study:
    """The study with the event that refused the last request of `verb`; None: that one was applied."""
    known = cast("dict[str, Json]", study.attrs.get(REFUSED_REQUESTS, {}))
    refusals = {key: value for key, value in known.items() if key != verb} | ({} if seq is None else {verb: seq})
    attrs = {key: value for key, value in study.attrs.items() if key != REFUSED_REQUESTS}
    return replace(study, attrs={**attrs, REFUSED_REQUESTS: refusals} if refusals else attrs)


def _changed(unit: UnitOfWork, request: Request, bound_microusd: int) -> Study:
    """The study as the request wants it. Raises SpecError, PriceUnknown."""
    study = unit.study
    if study.state is StudyState.CANCELLED or (study.state.ended and request.verb != "set"):
        # a finished study takes more trials, but has nothing left to stop
        raise SpecError(f"study {study.name} is {study.state} already")
    if request.verb != "set":
        if request.verb == "stop" and study.intent is Intent.CANCEL:
            raise SpecError(f"study {study.name} is being cancelled already")
        return replace(study, intent=Intent(str(request.values["intent"])), intent_at=unit.now)
    before = spec_of(study)
    spec = apply_set(before, [f"{key}={value}" for key, value in request.values.items()])
    limit = spec.budget.microusd
    if limit is not None and limit < bound_microusd and limit != before.budget.microusd:
        raise SpecError(f"budget.usd: {usd(limit)} is below the {usd(bound_microusd)} spent and reserved")
    workload.policy(spec, study)
    # the values of the file, so that a later change of the file is noticed
    in_file: dict[str, Json] = {key: value for key, value in live_settings(before).items() if key in request.values}
    known = cast("dict[str, Json]", study.attrs.get(SET_LIVE, {}))
    return replace(study, spec=to_json(spec), attrs={**study.attrs, SET_LIVE: {**in_file, **known}})
