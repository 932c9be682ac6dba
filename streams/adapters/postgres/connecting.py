"""Connections to PostgreSQL, and what its errors mean."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import psycopg
from psycopg import errors, sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg_pool import ConnectionPool, PoolTimeout

from streams.adapters.postgres.waiting import CONNECT_S, Connection
from streams.errors import AccessDenied, ConfigError, CqrsError, DiskFull, StorageError, StoreAway
from streams.log import get_logger

__all__ = ["Address", "Connection", "failures_of", "Session", "own_connection", "own_session", "readers"]

log = get_logger(__name__)

for _logger in ("psycopg", "psycopg.pool"):
    logging.getLogger(_logger).setLevel(logging.ERROR)  # what is lost is told by whoever loses it

_AWAY_S = 1.0
"""For so long nobody of a thread asks again for a connection that it has waited for in vain."""
_READERS = 100
_IDLE_S = 30.0
_OURS = {
    "application_name": "refold",
    "connect_timeout": CONNECT_S,
    # A server that is gone without a word is noticed within half a minute, and not in two hours.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_AWAY = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.QueryCanceled,  # statement_timeout
    errors.LockNotAvailable,
    errors.IdleInTransactionSessionTimeout,
    errors.IdleSessionTimeout,
    errors.ReadOnlySqlTransaction,  # a replica, while another server takes over
)
_PASSING = ("08", "53", "57", "58")
"""Classes of errors that are the server's state and no fault of a statement."""


class _Raw(Loader):
    """Gives a value as the bytes that came."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class _RawBinary(_Raw):
    format = Format.BINARY


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is. Plain data; it is not shown, since it may hold a password."""

    conninfo: str = field(repr=False)
    """A connection string of libpq's; what it does not say, PGHOST, PGPASSWORD, PGSERVICE and their like do."""
    schema: str

    @property
    def shown(self) -> str:
        """The address without its secrets."""
        try:
            known = psycopg.conninfo.conninfo_to_dict(self.conninfo)
        except psycopg.Error:
            return "the database"
        where = " ".join(f"{name}={known[name]}" for name in ("service", "host", "port", "dbname") if known.get(name))
        return f"PostgreSQL ({where or 'by PGHOST and its like'}, schema {self.schema})"

    def name(self, table: str) -> sql.Identifier:
        """Give a table's name with its schema."""
        return sql.Identifier(self.schema, table)

    def connect(self) -> Connection:
        """Open a connection, on which each statement is a transaction unless one is begun.

        Raises:
            ConfigError: The string is none.
            AccessDenied: The server does not let us in.
            StoreAway: It does not answer.
        """
        with failures_of(self, "connect"):
            connection = Connection.connect(self.whole, autocommit=True)
            self.set_up(connection)
            return connection

    def set_up(self, connection: Connection) -> None:
        """Have a connection that was just opened be as ours are."""
        connection.conninfo = self.whole
        connection.adapters.register_loader("json", _Raw)
        connection.adapters.register_loader("json", _RawBinary)

    @property
    def whole(self) -> str:
        """The connection string with what it leaves out and we have set.

        Raises:
            ConfigError: It is none.
        """
        try:
            given = psycopg.conninfo.conninfo_to_dict(self.conninfo)
        except psycopg.ProgrammingError as error:
            raise ConfigError(
                f"REFOLD_DSN is no connection string of PostgreSQL's: {_line(error)}. Write postgresql://…, or "
                "host=… dbname=…"
            ) from error
        return psycopg.conninfo.make_conninfo("", **{**_OURS, **given})  # type: ignore[arg-type]


@contextmanager
def failures_of(address: Address, doing: str) -> Iterator[None]:
    """Raise psycopg's errors as ours.

    Args:
        address: Where.
        doing: "write", say; for the message.

    Raises:
        StoreAway: It may be over in a moment: no answer, a restart, a deadlock, a timeout.
        DiskFull: The server has no space.
        AccessDenied: It does not let us.
        StorageError: Anything else.
    """
    try:
        yield
    except CqrsError:
        raise
    except PoolTimeout as error:
        raise StoreAway(f"{address.shown} could not {doing}: no connection within {CONNECT_S} s.") from error
    except psycopg.Error as error:
        raise _failure(address, doing, error) from error


def _failure(address: Address, doing: str, error: psycopg.Error) -> CqrsError:
    could_not = f"{address.shown} could not {doing}: {_line(error).rstrip('.')}."
    said = f"{could_not} Nothing was committed by this step."
    if isinstance(error, errors.DiskFull):
        return DiskFull(f"{said} Its disk is full: make space.")
    if isinstance(error, (errors.InsufficientPrivilege, errors.InvalidAuthorizationSpecification)):
        return AccessDenied(f"{said} Grant it to the role, or connect as the one that owns the schema.")
    state = error.sqlstate or ""
    no_answer = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) and not state
    if isinstance(error, errors.InvalidCatalogName):
        return ConfigError(f"{said} Create the database first.")
    if isinstance(error, _AWAY) or no_answer or state[:2] in _PASSING:
        if no_answer and ("password" in str(error) or "authentication" in str(error)):
            return AccessDenied(said)
        if no_answer and "does not exist" in str(error):
            return ConfigError(f"{said} Create it first.")
        return StoreAway(f"{could_not} It is tried again, from what the database has.")
    return StorageError(said)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@cache
def readers(address: Address) -> ConnectionPool[Connection]:
    """Give the connections that this process reads by: as many as are needed at once; those that rest are closed."""
    pool = ConnectionPool(
        address.whole,
        connection_class=Connection,
        min_size=0,
        max_size=_READERS,
        max_idle=_IDLE_S,
        timeout=CONNECT_S,
        reconnect_timeout=CONNECT_S,
        kwargs={"autocommit": True},
        configure=address.set_up,
        check=ConnectionPool.check_connection,
        open=True,
        name="refold-readers",
    )
    atexit.register(pool.close, timeout=1.0)
    return pool


class Session:
    """A thread's connection, which ends with the thread, unless somebody holds on to it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class _Sessions(threading.local):
    """This thread's connections."""

    def __init__(self) -> None:
        self.open: dict[Address, Session] = {}
        self.away: dict[Address, tuple[float, str]] = {}
        """Since when a server has not let us in, and what was said of that."""


_SESSIONS = _Sessions()


def own_session(address: Address) -> Session:
    """Give this thread's connection, opened anew where it is broken; everything that the thread does is done on it.

    Raises:
        StoreAway, AccessDenied, ConfigError: See `Address.connect`.
    """
    found = _SESSIONS.open.get(address)
    if found is None or found.connection.closed:
        away_since, said = _SESSIONS.away.get(address, (0.0, ""))
        if said and time.monotonic() - away_since < _AWAY_S:
            raise StoreAway(said)  # a thread has many partitions, and is not to wait for each of them
        try:
            found = _SESSIONS.open[address] = Session(address.connect())
        except StoreAway as error:
            _SESSIONS.away[address] = time.monotonic(), str(error)
            raise
    return found


def own_connection(address: Address) -> Connection:
    """Give the connection of `own_session`."""
    return own_session(address).connection
