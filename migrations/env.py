"""Alembic's environment. It runs on the connection and in the transaction that `tuner.store.schema` hands over.

Rule: only tables of ours are looked at, since the database may be shared with Optuna's. A new revision is begun with

    python -c "from alembic import command; from tuner import store_schema as s; e = s.connect('sqlite://'); \
    c = e.connect(); command.upgrade(s.config(c), 'head'); \
    command.revision(s.config(c), 'what changes', rev_id='0002', autogenerate=True)"

and then read: Alembic sees neither CHECKs nor the conditions of partial indexes (a test does). `SCHEMA` moves with it.
"""

from alembic import context

from tuner.store.tables import PREFIX, VERSION_TABLE, metadata


def ours(name: str | None, kind: str, _parents: object) -> bool:
    """Whether a database object is one of ours."""
    return kind != "table" or (name is not None and name.startswith(PREFIX))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=ours,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
