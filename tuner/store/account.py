"""What the studies of one account in one region share: its budget of calls, facts about it, and its prices.

AWS limits the calls of an account, not of an engine. Engines that do not know of each other would each spend the whole
limit. So each kind of call has a bucket: a row that fills at a rate up to a burst. An engine takes calls out of it
before it makes them.

Rules: a bucket is read and written under its lock. All engines fill it by one clock: the server's on PostgreSQL, where
engines may run on many hosts; the host's on SQLite, where all engines share a host. A clock that was set back fills
nothing and blocks nobody, because the bucket continues from there. A clock that was set forward fills a bucket at most
once.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from tuner.core.records import CallRate, Draw, Fact, ListedPrice
from tuner.store.rows import upsert
from tuner.store.tables import buckets
from tuner.store.tables import facts as _facts
from tuner.store.tables import prices as _prices

_B, _F, _P = buckets.c, _facts.c, _prices.c


class TokenBucket:
    """One kind of call of one account. It lives in the caller's transaction; keep that short, since others wait."""

    def __init__(self, connection: sa.Connection, scope: str, operation: str, rate: CallRate) -> None:
        self._connection = connection
        self._key = {"scope": scope, "operation": operation}
        self._rate = rate

    def take(self, draw: Draw, now: datetime) -> int:
        """Take calls; returns how many the bucket gave. `now` is used where the database has no clock of its own."""
        tokens, now = self._filled(now)
        tokens = min(self._rate.burst, tokens + draw.back)
        taken = self._given(draw, tokens)
        where = (_B.scope == self._key["scope"], _B.operation == self._key["operation"])
        self._connection.execute(sa.update(buckets).where(*where).values(tokens=tokens - taken, updated_at=now))
        return taken

    def _given(self, draw: Draw, tokens: float) -> int:
        part = math.ceil(tokens / max(1, draw.engines))
        needed = max(0, min(draw.wanted, int(tokens) - draw.spare, part))
        idle = max(0, min(draw.idle, int(tokens - self._rate.burst / 2) - needed, part - needed))
        return needed + idle if needed >= draw.at_least else 0

    def _filled(self, now: datetime) -> tuple[float, datetime]:
        """How many calls it holds, and at which moment; a new bucket is full."""
        dialect, row = self._connection.dialect.name, {**self._key, "tokens": self._rate.burst, "updated_at": now}
        self._connection.execute(_insert_bucket(dialect), row)
        tokens, filled_at = self._connection.execute(_LOCKED, self._key).one()
        if dialect == "postgresql":
            # read under the lock, because others may have changed the bucket while we waited for it
            now = self._connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        passed_s = max(0.0, (now - filled_at).total_seconds())
        return min(self._rate.burst, tokens + passed_s * self._rate.per_s), now


_LOCKED = (
    sa.select(_B.tokens, _B.updated_at)
    .where(_B.scope == sa.bindparam("scope"), _B.operation == sa.bindparam("operation"))
    .with_for_update()
)


@cache
def _insert_bucket(dialect: str) -> sa.Insert:
    return (postgresql_insert if dialect == "postgresql" else sqlite_insert)(buckets).on_conflict_do_nothing()


def facts(connection: sa.Connection, scope: str) -> list[Fact]:
    columns = (_F.scope, _F.name, _F.value, _F.learned_at, _F.source)
    found = connection.execute(sa.select(*columns).where(_F.scope == scope).order_by(_F.name))
    return [Fact(**row) for row in found.mappings()]


def put_fact(connection: sa.Connection, fact: Fact) -> None:
    row = {name: getattr(fact, name) for name in ("scope", "name", "value", "learned_at", "source")}
    connection.execute(upsert(_facts, connection.dialect.name), row)


def forget_fact(connection: sa.Connection, scope: str, name: str) -> None:
    connection.execute(sa.delete(_facts).where(_F.scope == scope, _F.name == name))


def prices(connection: sa.Connection, region: str) -> list[ListedPrice]:
    columns = (_P.region, _P.instance_type, _P.usd_per_hour, _P.as_of, _P.fetched_at)
    found = connection.execute(sa.select(*columns).where(_P.region == region).order_by(_P.instance_type))
    return [ListedPrice(**{**row, "usd_per_hour": Decimal(row["usd_per_hour"])}) for row in found.mappings()]


def put_prices(connection: sa.Connection, listed: Sequence[ListedPrice]) -> None:
    if not listed:
        return
    rows = [
        {
            "region": price.region,
            "instance_type": price.instance_type,
            "usd_per_hour": f"{price.usd_per_hour:f}",
            "as_of": price.as_of,
            "fetched_at": price.fetched_at,
        }
        for price in listed
    ]
    connection.execute(upsert(_prices, connection.dialect.name), rows)
