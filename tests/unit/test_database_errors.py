"""What PostgreSQL's errors are to refold: waited for, or told."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolTimeout

from streams.adapters.postgres.connecting import Address, failures_of
from streams.errors import AccessDenied, CqrsError, DiskFull, StorageError, StoreAway

ADDRESS = Address("host=db.example password=secret dbname=app", "refold")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (errors.DiskFull("no space"), DiskFull, "make space"),
        (errors.DeadlockDetected("deadlock"), StoreAway, "tried again"),
        (errors.SerializationFailure("concurrent update"), StoreAway, "tried again"),
        (errors.AdminShutdown("terminating"), StoreAway, "tried again"),
        (errors.CannotConnectNow("starting up"), StoreAway, "tried again"),
        (errors.TooManyConnections("too many"), StoreAway, "tried again"),
        (errors.QueryCanceled("statement timeout"), StoreAway, "tried again"),
        (errors.LockNotAvailable("lock timeout"), StoreAway, "tried again"),
        (errors.ReadOnlySqlTransaction("read-only"), StoreAway, "tried again"),
        (errors.OutOfMemory("out of memory"), StoreAway, "tried again"),
        (psycopg.OperationalError("server closed the connection"), StoreAway, "tried again"),
        (PoolTimeout("none came"), StoreAway, "no connection"),
        (errors.InsufficientPrivilege("denied"), AccessDenied, "Grant it"),
        (psycopg.OperationalError("password authentication failed for user u"), AccessDenied, "password"),
        (errors.UndefinedTable("no such table"), StorageError, "Nothing was committed"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
def test_each_is_waited_for_or_told(error: Exception, kind: type[CqrsError], said: str) -> None:
    with pytest.raises(CqrsError, match=said) as raised, failures_of(ADDRESS, "write"):
        raise error
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error
    assert "host=db.example dbname=app, schema refold" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_what_is_ours_already_stays_as_it_is() -> None:
    ours = StorageError("ours")
    with pytest.raises(StorageError) as raised, failures_of(ADDRESS, "write"):
        raise ours
    assert raised.value is ours
