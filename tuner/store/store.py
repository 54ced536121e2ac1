"""The record of all studies, trials, attempts, runs, metrics, events and requests, in one SQL database.

Our rows are the only truth. The engine writes through `commit` alone. One commit holds everything that one step of the
engine decided, with its events, in one short transaction under the fencing number of the lease; it is written whole or
not at all.

Rules: a guarded row changes only from the state and version that the caller saw (`StoreConflict` otherwise). No clock
is read here; callers pass the time. A lease is taken by compare-and-set. A request (`set`, `stop`, `cancel`) is written
without the lease. A read is one transaction with a fixed number of statements, for any number of trials. A broken
constraint is a bug of ours and crashes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Self

import sqlalchemy as sa

from tuner.core.log import logger_of
from tuner.core.records import (
    Attempt,
    AttemptEnd,
    CallRate,
    Change,
    Draw,
    Event,
    Fact,
    Holder,
    Json,
    Lease,
    ListedPrice,
    Point,
    Pool,
    PoolTotals,
    Request,
    Run,
    Study,
    Summary,
    Trial,
    TrialState,
)
from tuner.store import account, rows, schema, tables
from tuner.store.schema import StoreError, StoreInUse, StoreTooNew, StoreUnreachable, current, masked, upgrade

__all__ = [
    "LONG_STEP_S",
    "LeaseHeld",
    "LeaseLost",
    "Store",
    "StoreConflict",
    "StoreError",
    "StoreInUse",
    "StoreTooNew",
    "StoreUnreachable",
    "StudyExists",
    "StudyNotFound",
    "current",
    "masked",
    "upgrade",
]

_LOG = logger_of("store")
# Lease period for work outside ticks, renewed before each step of it: copying one large object takes minutes.
LONG_STEP_S = 300.0

_S, _T, _A, _R = tables.studies.c, tables.trials.c, tables.attempts.c, tables.runs.c
_P, _E, _Q = tables.points.c, tables.events.c, tables.requests.c
_Guarded = Study | Trial | Attempt


class StoreConflict(StoreError):  # noqa: N818 - named by the decision
    """A row has changed since the caller read it: decisions based on it are void."""


class LeaseLost(StoreError):  # noqa: N818
    """Another engine has taken over the study: this one must stop writing and acting."""


class StudyExists(StoreError):  # noqa: N818
    """The name is taken."""


class StudyNotFound(StoreError):  # noqa: N818
    """No such study."""


class LeaseHeld(StoreError):  # noqa: N818
    """Another engine holds the study's lease."""

    def __init__(self, study: str, holder: Holder, expires_at: datetime) -> None:
        super().__init__(f"study {study} is driven by {holder}, whose lease runs until {expires_at:%H:%M:%S} UTC")
        self.holder = holder
        self.expires_at = expires_at


class Store:
    """One database. Threads may share it unless it is in memory; each process opens its own."""

    def __init__(self, url: str, engine: sa.Engine) -> None:
        self.url = url
        self.masked = masked(url)
        self._engine = engine
        self._reader = schema.for_reading(engine)
        self._writer = schema.for_writing(engine)

    @classmethod
    def open(cls, url: str, gone: Callable[[Holder], bool] = schema.not_known_gone) -> Self:
        """The store at `url`, created and migrated if necessary. Raises StoreUnreachable, StoreTooNew, StoreInUse.

        `gone` says that the holder of a lease is certainly dead.
        """
        engine = schema.connect(url)
        try:
            schema.migrate(engine, masked(url), gone)
        except BaseException:
            engine.dispose()
            raise
        return cls(url, engine)

    def close(self) -> None:
        self._engine.dispose()

    # studies

    def create_study(self, study: Study) -> Study:
        """Record a new study and assign its id. Raises StudyExists."""
        with self._writing() as connection:
            drawn = connection.scalar(rows.insert_study(connection.dialect.name), rows.dump_study(study))
        if drawn is None:
            raise StudyExists(f"study {study.name!r} exists in {self.masked}")
        return replace(study, id=drawn)

    def study(self, name: str) -> Study:
        """The study called `name`. Raises StudyNotFound, which names the most similar ones."""
        with self._reading() as connection:
            row = connection.execute(rows.SELECT_STUDY.where(_S.name == name)).one_or_none()
            if row is None:
                known = list(connection.scalars(sa.select(_S.name)))
                raise StudyNotFound(f"no study {name!r} in {self.masked}{schema.near(name, known)}")
            return rows.load_study(row)

    def study_by_id(self, study_id: int) -> Study:
        with self._reading() as connection:
            row = connection.execute(rows.SELECT_STUDY.where(_S.id == study_id)).one_or_none()
        if row is None:
            raise StudyNotFound(f"no study with id {study_id} in {self.masked}")
        return rows.load_study(row)

    def studies(self) -> list[Study]:
        """All studies, oldest first."""
        return [rows.load_study(row) for row in self._read(rows.SELECT_STUDY)]

    # the lease

    def acquire(
        self, study_id: int, holder: Holder, *, now: datetime, period_s: float, gone: Callable[[Holder], bool]
    ) -> Lease:
        """Become the writer of a study. The fence grows, so the former holder can no longer write.

        `gone` returns whether a holder (a process of this host) is certainly dead. Raises LeaseHeld.
        """
        while True:
            study = self.study_by_id(study_id)
            held, until = study.holder, study.lease_expires_at
            if held is not None and until is not None and held != holder and until > now and not gone(held):
                raise LeaseHeld(study.name, held, until)
            lease = Lease(study_id=study_id, fence=study.fence + 1, expires_at=now + timedelta(seconds=period_s))
            if self._take(study, lease, holder):
                _LOG.info("lease on study %s taken by %s, fence %d", study.name, holder, lease.fence)
                return lease

    def renew(self, lease: Lease, *, now: datetime, period_s: float) -> Lease:
        """Extend a lease, and record a sign of life. Raises LeaseLost."""
        renewed = replace(lease, expires_at=now + timedelta(seconds=period_s))
        mine = sa.update(tables.studies).where(
            _S.id == lease.study_id, _S.fence == lease.fence, _S.holder_pid.is_not(None)
        )
        with self._writing() as connection:
            statement = mine.values(lease_expires_at=renewed.expires_at, last_tick_at=now)
            if connection.execute(statement).rowcount != 1:
                raise self._lost(lease)
        return renewed

    def release(self, lease: Lease) -> None:
        """Give a lease back; the fence keeps its value. Does nothing if the lease was lost."""
        mine = sa.update(tables.studies).where(_S.id == lease.study_id, _S.fence == lease.fence)
        with self._writing() as connection:
            connection.execute(mine.values(lease_expires_at=None, **rows.dump_holder(None)))

    def _take(self, seen: Study, lease: Lease, holder: Holder) -> bool:
        """Compare and set; false if the lease was taken or renewed since it was read."""
        unchanged = (
            _S.id == seen.id,
            _S.fence == seen.fence,
            _S.lease_expires_at.is_not_distinct_from(seen.lease_expires_at),
        )
        values = rows.dump_holder(holder) | {"fence": lease.fence, "lease_expires_at": lease.expires_at}
        with self._writing() as connection:
            return connection.execute(sa.update(tables.studies).where(*unchanged).values(values)).rowcount == 1

    def _lost(self, lease: Lease) -> LeaseLost:
        return LeaseLost(
            f"the lease on study {lease.study_id} (fence {lease.fence}) was taken over or given back: "
            f"this engine stops writing, jobs in flight go on under the new one"
        )

    # requests

    def add_request(self, study_id: int, verb: str, values: Mapping[str, Json], who: str, now: datetime) -> Request:
        """Leave a request for the engine; needs no lease."""
        row = {"study_id": study_id, "verb": verb, "values": values, "who": who, "at": now}
        with self._writing() as connection:
            drawn = connection.execute(sa.insert(tables.requests).returning(_Q.id), row).scalar_one()
        return Request(id=drawn, verb=verb, values=values, who=who, at=now)

    def pending_requests(self, study_id: int) -> list[Request]:
        """Requests that no change has applied yet, oldest first."""
        statement = rows.SELECT_REQUEST.where(_Q.study_id == study_id, _Q.applied_at.is_(None))
        return [rows.load(Request, row) for row in self._read(statement)]

    # the engine's one way to write

    def commit(self, lease: Lease, change: Change, *, now: datetime) -> None:
        """Write a change whole or not at all. Raises LeaseLost, StoreConflict, StoreUnreachable."""
        study_id = lease.study_id
        with self._writing() as connection:
            self._check_lease(connection, lease, change.events)
            if change.study is not None:
                self._update(connection, study_id, (change.study,))
            self._insert(connection, study_id, tables.trials, change.new_trials)
            self._update(connection, study_id, change.trials)
            # updates before inserts: the end of an attempt and the next attempt may be in one change
            self._update(connection, study_id, change.attempts)
            self._insert(connection, study_id, tables.attempts, change.new_attempts)
            self._replace(connection, study_id, tables.runs, change.runs)
            self._replace(connection, study_id, tables.points, change.points)
            self._insert(connection, study_id, tables.events, change.events)
            self._applied(connection, study_id, change.requests, now)

    def _check_lease(self, connection: sa.Connection, lease: Lease, events: Sequence[Event]) -> None:
        """Check fence and event number; the row lock (on SQLite the write lock) keeps them valid until the commit.

        If we waited for the row lock, PostgreSQL re-reads the locked row but not the subquery, so `last` may be stale.
        That is harmless: only the holder of our fence could have written meanwhile, and that is this engine. The lock
        excludes the key, so that inserting a request does not wait for us.
        """
        last = sa.select(sa.func.max(_E.seq)).where(_E.study_id == lease.study_id).scalar_subquery()
        locked = sa.select(_S.fence, _S.holder_pid, last).where(_S.id == lease.study_id)
        statement = locked.with_for_update(key_share=True)
        row = connection.execute(statement).one_or_none()
        if row is None or row[0] != lease.fence or row[1] is None:
            raise self._lost(lease)
        due = (row[2] or 0) + 1
        if [event.seq for event in events] != list(range(due, due + len(events))):
            raise StoreConflict(f"study {lease.study_id}: its next event is {due}, not {events[0].seq}")

    def _update(self, connection: sa.Connection, study_id: int, pairs: Sequence[tuple[_Guarded, _Guarded]]) -> None:
        if not pairs:
            return
        kind = type(pairs[0][0])
        statement = {Study: rows.UPDATE_STUDY, Trial: rows.UPDATE_TRIAL, Attempt: rows.UPDATE_ATTEMPT}[kind]
        of_study = {} if kind is Study else {"was_study_id": study_id}
        if connection.execute(statement, [rows.dump_change(*pair) | of_study for pair in pairs]).rowcount != len(pairs):
            raise StoreConflict(self._culprit(connection, study_id, pairs))

    def _culprit(self, connection: sa.Connection, study_id: int, pairs: Sequence[tuple[_Guarded, _Guarded]]) -> str:
        """Describe the update that matched no row. It is slow, but runs only on a conflict."""
        for before, after in pairs:
            found = connection.execute(rows.state_of(study_id, before)).one_or_none()
            if found is None or tuple(found) != (after.state, after.version):
                what = f"{type(before).__name__.lower()} {'/'.join(map(str, rows.key_of(before)))} of study {study_id}"
                now = "is not there" if found is None else f"is {found[0]}, version {found[1]}"
                return (
                    f"{what} was {before.state}, version {before.version}, and {now}: decide again from what is stored"
                )
        return f"study {study_id} was changed by another writer: decide again from what is stored"

    def _insert(
        self, connection: sa.Connection, study_id: int, table: sa.Table, records: Sequence[Trial | Attempt | Event]
    ) -> None:
        if records:
            connection.execute(sa.insert(table), [rows.dump(study_id, record) for record in records])

    def _replace(
        self, connection: sa.Connection, study_id: int, table: sa.Table, records: Sequence[Run | Point]
    ) -> None:
        if records:
            statement = rows.upsert(table, connection.dialect.name)
            connection.execute(statement, [rows.dump(study_id, record) for record in records])

    def _applied(self, connection: sa.Connection, study_id: int, requests: Sequence[Request], now: datetime) -> None:
        if not requests:
            return
        pending = (_Q.study_id == study_id, _Q.id.in_([r.id for r in requests]), _Q.applied_at.is_(None))
        done = connection.execute(sa.update(tables.requests).where(*pending).values(applied_at=now))
        if done.rowcount != len(requests):
            raise StoreConflict(f"study {study_id}: a request was applied already: read the pending ones again")

    # reads

    def live(self, study_id: int) -> list[tuple[Trial, tuple[Attempt, ...], tuple[Run, ...]]]:
        """The trials that have not ended, with all their attempts and runs."""
        unfinished = sa.select(_T.number).where(_T.study_id == study_id, _T.finished_at.is_(None))
        with self._reading() as connection:
            found = connection.execute(rows.SELECT_TRIAL.where(_T.study_id == study_id, _T.finished_at.is_(None)))
            trials = [rows.load_trial(row) for row in found]
            found = connection.execute(rows.SELECT_ATTEMPT.where(_A.study_id == study_id, _A.trial.in_(unfinished)))
            attempts = _by_trial([rows.load(Attempt, row) for row in found])
            found = connection.execute(rows.SELECT_RUN.where(_R.study_id == study_id, _R.trial.in_(unfinished)))
            runs = _by_trial([rows.load(Run, row) for row in found])
        return [(trial, attempts.get(trial.number, ()), runs.get(trial.number, ())) for trial in trials]

    def trials(self, study_id: int, *, numbers: Sequence[int] | None = None) -> list[Trial]:
        """Trials by number."""
        statement = rows.SELECT_TRIAL.where(_T.study_id == study_id)
        if numbers is not None:
            statement = statement.where(_T.number.in_(numbers))
        return [rows.load_trial(row) for row in self._read(statement)]

    def attempts(self, study_id: int, *, trial: int | None = None) -> list[Attempt]:
        """Attempts by trial and number."""
        where = [_A.study_id == study_id] + ([] if trial is None else [_A.trial == trial])
        return [rows.load(Attempt, row) for row in self._read(rows.SELECT_ATTEMPT.where(*where))]

    def asked_last(self, study_id: int, *, limit: int) -> list[Attempt]:
        """The newest attempts that got a job or a final refusal, newest first."""
        asked = sa.or_(_A.arn.is_not(None), _A.end == AttemptEnd.REJECTED)
        newest = rows.SELECT_ATTEMPT.where(_A.study_id == study_id, asked).order_by(None)
        newest = newest.order_by(_A.created_at.desc(), _A.trial.desc()).limit(limit)
        return [rows.load(Attempt, row) for row in self._read(newest)]

    def runs(self, study_id: int, *, trial: int | None = None) -> list[Run]:
        """Runs by trial, attempt and number."""
        where = [_R.study_id == study_id] + ([] if trial is None else [_R.trial == trial])
        return [rows.load(Run, row) for row in self._read(rows.SELECT_RUN.where(*where))]

    def points(self, study_id: int, *, trial: int | None = None, name: str | None = None) -> list[Point]:
        """Metrics by trial, step and name."""
        where = [_P.study_id == study_id]
        where += [] if trial is None else [_P.trial == trial]
        where += [] if name is None else [_P.name == name]
        return [rows.load(Point, row) for row in self._read(rows.SELECT_POINT.where(*where))]

    def events(
        self, study_id: int, *, trial: int | None = None, after_seq: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Events in order; the first `limit` after `after_seq`."""
        where = [_E.study_id == study_id, _E.seq > after_seq] + ([] if trial is None else [_E.trial == trial])
        return [rows.load(Event, row) for row in self._read(rows.SELECT_EVENT.where(*where).limit(limit))]

    def last_seq(self, study_id: int) -> int:
        """The last event's number; 0 without events."""
        return self._scalar(sa.select(sa.func.max(_E.seq)).where(_E.study_id == study_id)) or 0

    def trial_count(self, study_id: int) -> int:
        return self._scalar(sa.select(sa.func.count()).where(_T.study_id == study_id)) or 0

    def best(self, study_id: int, *, maximize: bool, limit: int = 1) -> list[Trial]:
        """The succeeded trials with the best first value; of equal ones the earlier."""
        order = _T.value.desc() if maximize else _T.value
        succeeded = (_T.study_id == study_id, _T.state == TrialState.SUCCEEDED)
        statement = rows.SELECT_TRIAL.where(*succeeded).order_by(None).order_by(order, _T.number).limit(limit)
        return [rows.load_trial(row) for row in self._read(statement)]

    def summary(self, study_id: int) -> Summary:
        """The study in figures. A reservation counts until the attempt's final figure is there; so does an estimate."""
        with self._reading() as connection:
            counts = connection.execute(rows.COUNT_TRIALS, {"study": study_id}).all()
            attempts = connection.execute(rows.SUM_ATTEMPTS, {"study": study_id}).mappings().one()
            runs = connection.execute(rows.SUM_RUNS, {"study": study_id}).mappings().one()
        by_state = dict.fromkeys(TrialState, 0) | {row[0]: row[1] for row in counts}
        lost_work_s = None if runs["lost_work_s"] is None else float(runs["lost_work_s"])
        if lost_work_s is None and not runs["lost_work_unknown_runs"]:
            lost_work_s = 0.0  # nothing was cut
        whole = {k: int(v or 0) for k, v in (*attempts.items(), *runs.items()) if k != "lost_work_s"}
        return Summary(trials=by_state, lost_work_s=lost_work_s, **whole)

    # what studies of one account share (scope: "account/region")

    def take_calls(self, scope: str, operation: str, rate: CallRate, draw: Draw, *, now: datetime) -> int:
        """Take calls from a bucket before making them; returns how many it gave."""
        with self._writing() as connection:
            return account.TokenBucket(connection, scope, operation, rate).take(draw, now)

    def engines(self, backend: str, now: datetime) -> int:
        """How many studies of this backend have a live engine."""
        held = (_S.backend == backend, _S.lease_expires_at > now)
        return self._scalar(sa.select(sa.func.count()).where(*held)) or 0

    def facts(self, scope: str) -> list[Fact]:
        """The known facts of an account, by name."""
        with self._reading() as connection:
            return account.facts(connection, scope)

    def put_fact(self, fact: Fact) -> None:
        """Record a fact; it replaces the earlier one of its name."""
        with self._writing() as connection:
            account.put_fact(connection, fact)

    def forget_fact(self, scope: str, name: str) -> None:
        """Delete a fact; does nothing if it is not there."""
        with self._writing() as connection:
            account.forget_fact(connection, scope, name)

    def prices(self, region: str) -> list[ListedPrice]:
        """The stored prices of a region, by instance type."""
        with self._reading() as connection:
            return account.prices(connection, region)

    def put_prices(self, prices: Sequence[ListedPrice]) -> None:
        """Store prices; they replace earlier ones of the same type and region."""
        with self._writing() as connection:
            account.put_prices(connection, prices)

    def pool_totals(self, study_ids: Collection[int], *, ended: bool = False) -> dict[Pool, PoolTotals]:
        """Sums over the attempts of these studies by pool; with `ended`, over ended attempts only."""
        statement = rows.SUM_POOLS.where(_A.study_id.in_(study_ids))
        if ended:
            statement = statement.where(_A.ended_at.is_not(None))
        return {
            Pool(row.instance_type, row.spot, row.zone): PoolTotals(
                attempts=row.attempts,
                live=row.live,
                interruptions=int(row.interruptions),
                up_s=float(row.up_s),
                wait_s=float(row.wait_s),
            )
            for row in self._read(statement)
        }

    def largest_spot_ratio(self, study_id: int, *, trained_s: int) -> float | None:
        """The largest ratio of billed to training time among ended spot attempts; None without any.

        It counts attempts that trained for at least `trained_s` and were billed less than they trained.
        """
        ratio = sa.cast(_A.billable_s, sa.Float) / _A.training_s
        counted = (
            _A.study_id == study_id,
            _A.spot,
            _A.training_s >= trained_s,
            _A.billable_s.between(1, _A.training_s - 1),
        )
        found: float | None = self._scalar(sa.select(sa.func.max(ratio)).where(*counted))
        return found

    # transactions

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with schema.translated(self.masked), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with schema.translated(self.masked), self._writer.begin() as connection:
            yield connection

    def _read(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._reading() as connection:
            return connection.execute(statement).all()

    def _scalar(self, statement: sa.Select[Any]) -> Any:  # noqa: ANN401 - what the statement selects
        with self._reading() as connection:
            return connection.scalar(statement)


def _by_trial(records: Sequence[Any]) -> dict[int, tuple[Any, ...]]:
    """Records, ordered by trial, under their trials' numbers."""
    return {trial: tuple(group) for trial, group in groupby(records, key=attrgetter("trial"))}
