"""Conversion between records and rows, and the statements that read and guard them.

Rules: fields and columns have the same names. The exceptions (several objective values, NaN, the holder of a lease)
are converted here and nowhere else. Statements are built once, when the module is loaded, because building one costs
more than running it.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from tuner.core.records import Attempt, Event, Holder, Point, Request, Run, RunEnd, Study, Trial
from tuner.store.tables import attempts, events, points, requests, runs, studies, trials

_Plain = TypeVar("_Plain", Attempt, Run, Point, Event, Request)

# The key of a record within its study.
_KEYS: dict[type, tuple[str, ...]] = {Study: ("id",), Trial: ("number",), Attempt: ("trial", "number")}

# Written when a row is made and never changed; `dump_change` asserts it.
_FIXED: dict[type, tuple[str, ...]] = {
    Study: ("id", "name", "key", "owner", "backend", "created_at"),
    Trial: ("number", "params", "distributions", "prefix", "bundle_uri", "asked_seq", "created_at"),
    Attempt: ("trial", "number", "job_name", "digest", "created_at"),
}
_BY_LEASE = ("fence", "holder", "lease_expires_at", "last_tick_at")


def _names(record: type, *without: str) -> tuple[str, ...]:
    return tuple(f.name for f in fields(record) if f.name not in without)


_HOLDER = _names(Holder)
_STUDY = _names(Study, "holder")
_TRIAL = _names(Trial, "values")
_ALL: dict[type, tuple[str, ...]] = {
    Study: _STUDY,
    Trial: _TRIAL,
    Attempt: _names(Attempt),
    Run: _names(Run),
    Point: _names(Point),
    Event: _names(Event),
    Request: _names(Request),
}
_STUDY_COLUMNS = (*_STUDY, *(f"holder_{name}" for name in _HOLDER))
_TRIAL_COLUMNS = (*_TRIAL, "objective_values")
_CHANGING: dict[type, tuple[str, ...]] = {
    Study: _names(Study, *_FIXED[Study], *_BY_LEASE),
    Trial: _names(Trial, "values", *_FIXED[Trial]),
    Attempt: _names(Attempt, *_FIXED[Attempt]),
}


def dump(study_id: int, record: Trial | Attempt | Run | Point | Event) -> dict[str, Any]:
    """A new row of a study."""
    row = {name: getattr(record, name) for name in _ALL[type(record)]}
    row["study_id"] = study_id
    return row | _converted(record)


def dump_study(study: Study) -> dict[str, Any]:
    """A new row; the database assigns its id."""
    row = {name: getattr(study, name) for name in _STUDY if name != "id"}
    return row | dump_holder(study.holder)


def dump_holder(holder: Holder | None) -> dict[str, Any]:
    return {f"holder_{name}": None if holder is None else getattr(holder, name) for name in _HOLDER}


def dump_change(before: Study | Trial | Attempt, after: Study | Trial | Attempt) -> dict[str, Any]:
    """The parameters of a guarded update: new values, expected state and version, and the key without the study."""
    kind = type(after)
    for name in _FIXED[kind]:
        assert getattr(before, name) == getattr(after, name), f"{kind.__name__} {key_of(before)}: {name} is fixed"
    assert after.version == before.version + 1, f"{kind.__name__} {key_of(before)}: versions go up by one"
    row = {name: getattr(after, name) for name in _CHANGING[kind]}
    row |= {f"was_{name}": getattr(before, name) for name in (*_KEYS[kind], "state", "version")}
    return row | _converted(after)


def key_of(record: Study | Trial | Attempt) -> tuple[int, ...]:
    """The key of a record within its study: (id), (trial), or (trial, attempt)."""
    return tuple(getattr(record, name) for name in _KEYS[type(record)])


def load_study(row: Sequence[Any]) -> Study:
    known = dict(zip(_STUDY_COLUMNS, row, strict=True))
    holder = {name: known.pop(f"holder_{name}") for name in _HOLDER}
    known["warnings"] = tuple(known["warnings"])
    return Study(**known, holder=None if holder["host"] is None else Holder(**holder))


def load_trial(row: Sequence[Any]) -> Trial:
    known = dict(zip(_TRIAL_COLUMNS, row, strict=True))
    values = known.pop("objective_values")
    if known["last_step"] is not None and known["last_value"] is None:
        known["last_value"] = math.nan
    return Trial(values=None if values is None else tuple(values), **known)


def load(kind: type[_Plain], row: Sequence[Any]) -> _Plain:
    """A record of any other kind. By position, since names cost twice as much on thousands of rows."""
    return kind(**dict(zip(_ALL[kind], row, strict=True)))


def _converted(record: object) -> dict[str, Any]:
    if not isinstance(record, Trial):
        return {}
    assert (record.last_step is None) == (record.last_value is None), f"trial {record.number}: a step without its value"
    values = record.values
    return {"value": values[0] if values else None, "objective_values": list(values) if values else None}


def _select(table: sa.Table, names: Sequence[str], *order: str) -> sa.Select[Any]:
    return sa.select(*(table.c[name] for name in names)).order_by(*(table.c[name] for name in order))


SELECT_STUDY = _select(studies, _STUDY_COLUMNS, "id")
SELECT_TRIAL = _select(trials, _TRIAL_COLUMNS, "number")
SELECT_ATTEMPT = _select(attempts, _ALL[Attempt], "trial", "number")
SELECT_RUN = _select(runs, _ALL[Run], "trial", "attempt", "number")
SELECT_POINT = _select(points, _ALL[Point], "trial", "step", "name")
SELECT_EVENT = _select(events, _ALL[Event], "seq")
SELECT_REQUEST = _select(requests, _ALL[Request], "id")


def _guarded(table: sa.Table, *key: str) -> sa.Update:
    """UPDATE … WHERE key AND state AND version; its parameters say which columns it sets."""
    return sa.update(table).where(
        *(table.c[name] == sa.bindparam(f"was_{name}") for name in (*key, "state", "version"))
    )


UPDATE_STUDY = _guarded(studies, "id")
UPDATE_TRIAL = _guarded(trials, "study_id", "number")
UPDATE_ATTEMPT = _guarded(attempts, "study_id", "trial", "number")


def state_of(study_id: int, record: Study | Trial | Attempt) -> sa.Select[Any]:
    """The stored state and version, which a guard compares."""
    table = {Study: studies, Trial: trials, Attempt: attempts}[type(record)]
    where = [table.c[name] == value for name, value in zip(_KEYS[type(record)], key_of(record), strict=True)]
    if table is not studies:
        where.append(table.c.study_id == study_id)
    return sa.select(table.c.state, table.c.version).where(*where)


@cache
def insert_study(dialect: str) -> sa.Insert:
    """Insert and return the new id, or no row if the name is taken (maybe by another process just now)."""
    statement = (postgresql_insert if dialect == "postgresql" else sqlite_insert)(studies)
    return statement.on_conflict_do_nothing(index_elements=["name"]).returning(studies.c.id)


@cache
def upsert(table: sa.Table, dialect: str) -> sa.Insert:
    """Insert, or replace the row of the same primary key; both dialects have the same syntax for it."""
    key = [column.name for column in table.primary_key]
    statement = (postgresql_insert if dialect == "postgresql" else sqlite_insert)(table)
    rest = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=rest)


_study: sa.BindParameter[int] = sa.bindparam("study")
_no_final = attempts.c.spend_microusd.is_(None)
_earlier = runs.alias()

COUNT_TRIALS = sa.select(trials.c.state, sa.func.count()).where(trials.c.study_id == _study).group_by(trials.c.state)

SUM_ATTEMPTS = sa.select(
    sa.func.count().label("attempts"),
    sa.func.count().filter(attempts.c.ended_at.is_(None)).label("live_attempts"),
    sa.func.sum(attempts.c.interruptions).label("interruptions"),
    sa.func.sum(attempts.c.spend_microusd).label("spend_microusd"),
    sa.func.sum(attempts.c.on_demand_microusd).label("on_demand_microusd"),
    sa.func.sum(attempts.c.estimated_microusd).filter(_no_final).label("estimated_microusd"),
    sa.func.sum(attempts.c.reserved_microusd).filter(_no_final).label("reserved_microusd"),
).where(attempts.c.study_id == _study)

_pool = (attempts.c.instance_type, attempts.c.spot, attempts.c.zone)
# Only attempts that had a job: the others were refused before they had any capacity.
SUM_POOLS = (
    sa.select(
        *_pool,
        sa.func.count().label("attempts"),
        sa.func.count().filter(attempts.c.ended_at.is_(None)).label("live"),
        sa.func.sum(attempts.c.interruptions).label("interruptions"),
        sa.func.sum(attempts.c.run_s).label("up_s"),
        sa.func.sum(attempts.c.startup_s).label("wait_s"),
    )
    .where(attempts.c.submitted_at.is_not(None))
    .group_by(*_pool)
)

# The same rule as proof.went_back; unknown where a step is unknown.
_went_back = (runs.c.resumed_from_step != runs.c.resume_step) & (runs.c.first_step != runs.c.resume_step)
# A run left nothing to resume from if the trial's next run found nothing. Only that run can show it.
_left_nothing = runs.c.had_checkpoint.is_(False) & sa.exists().where(
    _earlier.c.study_id == runs.c.study_id,
    _earlier.c.trial == runs.c.trial,
    sa.or_(
        _earlier.c.attempt < runs.c.attempt,
        sa.and_(_earlier.c.attempt == runs.c.attempt, _earlier.c.number < runs.c.number),
    ),
)

_lost_unknown = runs.c.end.in_((RunEnd.INTERRUPTED, RunEnd.RESTARTED)) & runs.c.lost_work_s.is_(None)
_stepped = runs.alias()
# Not counted: a run that was cut before its first step in a trial whose script reports steps. A later run proves it.
_unproven = (
    runs.c.had_checkpoint.is_(True)
    & runs.c.restarted_from_zero.is_(None)
    & runs.c.ended_at.is_not(None)
    & ~sa.exists().where(
        _stepped.c.study_id == runs.c.study_id, _stepped.c.trial == runs.c.trial, _stepped.c.first_step.is_not(None)
    )
)

SUM_RUNS = sa.select(
    sa.func.count().label("runs"),
    sa.func.count().filter(runs.c.resumed_from_step.is_not(None)).label("resumed_runs"),
    sa.func.count().filter(_went_back).label("resumed_from_older"),
    sa.func.count().filter(runs.c.restarted_from_zero.is_(True)).label("restarted_from_zero"),
    sa.func.count().filter(_unproven).label("unproven_runs"),
    sa.func.count().filter(_left_nothing).label("never_checkpointed"),
    sa.func.sum(runs.c.lost_work_s).label("lost_work_s"),
    sa.func.count().filter(_lost_unknown).label("lost_work_unknown_runs"),
).where(runs.c.study_id == _study)
