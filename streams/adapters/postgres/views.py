"""What readers see: a view of the active generation's models, and one of how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import errors, sql

from streams.adapters.postgres.connecting import Address, Connection, failures_of, own_connection
from streams.adapters.postgres.layout import (
    BESIDE,
    BUILDS,
    GENERATIONS,
    PARTITIONS,
    Models,
    exists,
    lock_number,
    make_own,
    view_name,
)
from streams.data.store import StoreState
from streams.errors import StorageError
from streams.log import get_logger

__all__ = ["drop", "index", "show"]

log = get_logger(__name__)

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '3s'"
"""A reader in the middle of a long query is waited for, and whoever comes behind it waits with us: so not for long."""
_INDEXES = -1
"""Where partitions have their numbers in the keys of locks."""
_AGAIN_S = 1.0
_SAYS = "refold: {} build {}"


def show(
    address: Address, projection: str, reader: str, choose: Callable[[], tuple[Models, StoreState] | None]
) -> None:
    """Have a projection's views be of the models that are active.

    Who asks what is active does so once nobody else can change the views, so that the last one to change them has the
    newest answer. Views are replaced in one transaction: a reader sees the old ones or the new ones.

    Args:
        address: Where.
        projection: Its name.
        reader: The role that may read them; "" where that is not ours to say.
        choose: Gives which models; None where nothing is to be shown.

    Raises:
        StorageError: Something that is not refold's has the name, or depends on a view whose columns are others by now.
        StoreAway: The database; the views are as they were.
    """
    connection = own_connection(address)
    with failures_of(address, "replace the view"), connection.transaction():
        connection.execute(_LOCK_TIMEOUT)
        make_own(connection, address)
        name = view_name(projection)
        for one in (name, f"{name}_positions"):
            if exists(connection, address, one) and not (_said(connection, address, one) or "").startswith("refold: "):
                raise StorageError(
                    f"{address.shown}: {one} is there, and refold did not make it. Rename it, or name another schema "
                    "(REFOLD_PG_SCHEMA); nothing was changed."
                )
        chosen = choose()
        if chosen is None:
            for one in (name, f"{name}_positions"):
                connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(address.name(one)))
            return
        models, fresh = chosen
        says = _SAYS.format(models.generation, models.build)
        if _said(connection, address, name) == says:
            _grant(connection, address, name, reader)
            return
        models.make(connection, fresh)
        _replace(connection, address, name, _models(models))
        _replace(connection, address, f"{name}_positions", _positions(models))
        for one in (name, f"{name}_positions"):
            connection.execute(sql.SQL("COMMENT ON VIEW {} IS {}").format(address.name(one), sql.Literal(says)))
        _grant(connection, address, name, reader)
    log.info("view.replaced", view=name, generation=models.generation, build=models.build)
    drop(address, models.generation, before=models.build)


def _grant(connection: Connection, address: Address, name: str, reader: str) -> None:
    """Let a role read the views; where that cannot be, they are there all the same."""
    if not reader:
        return
    role, schema = sql.Identifier(reader), sql.Identifier(address.schema)
    views = sql.SQL(", ").join((address.name(name), address.name(f"{name}_positions")))
    try:
        with connection.transaction():
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, role))
            connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(views, role))
    except (errors.UndefinedObject, errors.InsufficientPrivilege) as error:
        log.warning("view.not_granted", view=name, role=reader, why=" ".join(str(error).split()))


def _said(connection: Connection, address: Address, name: str) -> str | None:
    row = connection.execute(
        "SELECT obj_description(to_regclass(%s), 'pg_class')", [address.name(name).as_string()]
    ).fetchone()
    return None if row is None else row[0]


def _models(models: Models) -> sql.Composed:
    columns = [models.table.key, "partition", *(one.name for one in models.table.columns)]
    return sql.SQL("SELECT {}, model::jsonb AS model FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), models.sql_name
    )


def _positions(models: Models) -> sql.Composed:
    return sql.SQL(
        "SELECT partition, position, {generation}::text AS generation, to_timestamp((state ->> 'record_ms')::bigint / "
        "1000.0) AS event_time, changed FROM {partitions} WHERE table_name = {name}"
    ).format(
        generation=sql.Literal(models.generation),
        partitions=models.own(PARTITIONS),
        name=sql.Literal(models.name),
    )


def _replace(connection: Connection, address: Address, name: str, query: sql.Composed) -> None:
    """Replace a view; where its columns are others, by another one that the same roles may read."""
    view = address.name(name)
    try:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(view, query))
    except errors.InvalidTableDefinition:
        _replace_columns(connection, address, name, query)


def _replace_columns(connection: Connection, address: Address, name: str, query: sql.Composed) -> None:
    view = address.name(name)
    granted = connection.execute(
        "SELECT DISTINCT grantee FROM information_schema.role_table_grants WHERE table_schema = %s AND table_name = %s "
        "AND privilege_type = 'SELECT' AND grantee <> current_user",
        [address.schema, name],
    ).fetchall()
    try:
        connection.execute(sql.SQL("DROP VIEW {}").format(view))
    except errors.DependentObjectsStillExist as error:
        raise StorageError(
            f"{address.shown}: the columns of view {name} change, and something depends on it: "
            f"{' '.join(str(error.diag.message_detail or error).split())}. Drop that, and make it again afterwards."
        ) from error
    connection.execute(sql.SQL("CREATE VIEW {} AS {}").format(view, query))
    for (role,) in granted:
        who = sql.SQL("PUBLIC") if role == "PUBLIC" else sql.Identifier(role)
        connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(view, who))


def index(models: Models) -> None:
    """Build those of the table's indexes that are not there, beside whoever reads and writes.

    One that was left half built is built anew. One process at a time does it, and its session for as long as the server
    is at it: also when the process has died meanwhile.

    Raises:
        StorageError: PostgreSQL refuses one: its declaration is wrong, or models break its uniqueness.
        StoreAway: The database; those that were built stay.
    """
    address = models.address
    connection = own_connection(address)
    with failures_of(address, "build an index"), _alone(connection, models):
        if not models.exists(connection):
            return
        for number, one in enumerate(models.table.indexes, 1):
            name = models.index_name(number)
            row = connection.execute(
                "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [address.name(name).as_string()]
            ).fetchone()
            if row == (True,):
                continue
            if row is not None:
                connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(address.name(name)))
            connection.execute(
                sql.SQL("CREATE {unique} INDEX CONCURRENTLY {name} ON {table} USING {method} ({on}) {where}").format(
                    unique=sql.SQL("UNIQUE" if one.unique else ""),
                    name=sql.Identifier(name),
                    table=models.sql_name,
                    method=sql.Identifier(one.method),
                    on=sql.SQL(one.on),
                    where=sql.SQL(f"WHERE {one.where}" if one.where else ""),
                )
            )
            log.info("index.built", index=name, on=one.on)
        connection.execute(sql.SQL("ANALYZE {}").format(models.sql_name))


@contextmanager
def _alone(connection: Connection, models: Models) -> Iterator[None]:
    """Hold the lock on a table's indexes.

    It is asked for again and again: a session that waits for it has a snapshot, for whose end whoever builds an index
    concurrently would wait.
    """
    lock, is_told = [lock_number(models), _INDEXES], False
    while connection.execute("SELECT pg_try_advisory_lock(%s, %s)", lock).fetchone() != (True,):
        if not is_told:
            log.info("index.built_elsewhere", table=models.name)
            is_told = True
        time.sleep(_AGAIN_S)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", lock)


def drop(address: Address, generation: str, build: int | None = None, *, before: int | None = None) -> bool:
    """Drop the tables of a generation; say whether nothing is left of what was to go.

    Args:
        address: Where.
        generation: Its id.
        build: Only those of this build.
        before: Only those of the builds before this one.

    Raises:
        StorageError: The database.
    """
    connection = own_connection(address)
    try:
        with failures_of(address, "drop a table"), connection.transaction():
            connection.execute(_LOCK_TIMEOUT)
            if not exists(connection, address, BESIDE):
                return True
            make_own(connection, address)
            where = sql.SQL("generation = {}").format(sql.Literal(generation))
            if build is not None:
                where = sql.SQL("{} AND build = {}").format(where, sql.Literal(build))
            if before is not None:
                where = sql.SQL("{} AND build < {}").format(where, sql.Literal(before))
            rows = connection.execute(
                sql.SQL("SELECT table_name FROM {} WHERE {}").format(address.name(BUILDS), where)
            ).fetchall()
            for (name,) in rows:
                for own in (PARTITIONS, BESIDE, BUILDS):
                    connection.execute(
                        sql.SQL("DELETE FROM {} WHERE table_name = %s").format(address.name(own)), [name]
                    )
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(address.name(name)))
            if build is None and before is None:
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE generation = %s").format(address.name(GENERATIONS)), [generation]
                )
    except StorageError as error:
        if isinstance(error.__cause__, (errors.LockNotAvailable, errors.DependentObjectsStillExist)):
            log.info("table.not_dropped", generation=generation, why=str(error))  # it is read, or still shown
            return False
        raise
    return True
