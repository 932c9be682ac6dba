"""Models in PostgreSQL, read as of one instant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from psycopg import errors, sql

from streams.adapters.postgres.connecting import Address, Connection, failures_of, readers
from streams.adapters.postgres.layout import BESIDE, PARTITIONS, Models
from streams.data.store import DROPPED, StoreState, decode_state
from streams.errors import StorageError, StoreAway, StoreCorrupt

__all__ = ["PostgresBuildReader", "PostgresReader", "Transaction"]

_AT_ONCE = 2000
_DIGESTS = sql.SQL(
    "SELECT run, min(id), count(*), sha256(string_agg(convert_to("
    "octet_length(id) || ':' || id || octet_length(model) || ':' || model, 'UTF8'), '' ORDER BY id)) "
    "FROM (SELECT {key} AS id, model::text AS model, {run} AS run FROM {table} "
    "WHERE partition = %s AND {key} >= %s {until}) m GROUP BY run ORDER BY run"
)
"""What `runs_of` makes of a run of models."""


class Transaction:
    """What is read in it is as of the instant at which it began. It begins when something is read.

    Args:
        address: Where.
        snapshot: The name of a snapshot of PostgreSQL's (`pg_export_snapshot`), whose instant it is to be.
    """

    def __init__(self, address: Address, snapshot: str | None = None) -> None:
        self.address = address
        self._snapshot = snapshot
        self._lent = ExitStack()
        self._connection: Connection | None = None
        self.number = 0
        """Which it is, of those that were begun one after the other."""

    @property
    def connection(self) -> Connection:
        """The connection, in the transaction."""
        if self._connection is None:
            try:
                self._connection = self._begin()
            except BaseException:
                self.close()
                raise
        return self._connection

    def _begin(self) -> Connection:
        with failures_of(self.address, "read"):
            connection = self._lent.enter_context(readers(self.address).connection())
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if self._snapshot is not None:
                self._go_to(connection, self._snapshot)
            return connection

    def _go_to(self, connection: Connection, snapshot: str) -> None:
        """Have the transaction be as of a snapshot's instant.

        Raises:
            StoreAway: Whoever has kept it is gone, and so is the snapshot.
        """
        try:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        except (errors.InvalidParameterValue, errors.UndefinedObject) as error:
            raise StoreAway(
                f"{self.address.shown}: the instant that was kept for a comparison is there no more, since whoever "
                "folds the partition has died or lost its connection. It is tried again."
            ) from error

    def rows(self, statement: sql.Composed, values: list[Any]) -> list[tuple[Any, ...]]:
        """Read."""
        with failures_of(self.address, "read"):
            return self.connection.execute(statement, values).fetchall()

    def end(self) -> None:
        """End it; others may have the connection. What is read next begins another one."""
        self._connection = None
        self.number += 1
        with failures_of(self.address, "read"):
            self._lent.close()

    def close(self) -> None:
        """End it, whatever becomes of that."""
        with contextlib.suppress(StorageError):
            self.end()


class PostgresBuildReader:
    """Partitions of a build, all as of one instant.

    Args:
        models: The table.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._transaction = Transaction(models.address)
        self._open: set[int] = set()

    def open(self, partition: int) -> PostgresReader:
        """See BuildReader."""
        opened = PostgresReader(self._models, partition, self._transaction)
        self._open.add(partition)
        return opened

    def find(self, model_id: str) -> list[tuple[int, bytes]]:
        """See BuildReader: an id is in one of them at most."""
        if "\0" in model_id:
            return []
        models = self._models
        rows = self._transaction.rows(
            sql.SQL("SELECT partition, model FROM {} WHERE {} = %s").format(
                models.sql_name, sql.Identifier(models.table.key)
            ),
            [model_id],
        )
        return [(number, raw) for number, raw in rows if number in self._open]

    def catch_up(self) -> None:
        """See BuildReader."""
        self._transaction.end()

    def rest(self) -> None:
        """See BuildReader."""
        self._transaction.end()

    def close(self) -> None:
        """See BuildReader."""
        self._transaction.close()


class PostgresReader:
    """One partition's rows, as of the instant of a transaction.

    Args:
        models: The table.
        partition: Which; it has a store.
        transaction: In which it is read.
    """

    def __init__(self, models: Models, partition: int, transaction: Transaction) -> None:
        self._models = models
        self._partition = partition
        self._transaction = transaction
        self._state: StoreState | None = None
        self._of = -1
        try:
            self.state()
        except BaseException:
            self.close()
            raise

    def state(self) -> StoreState:
        """See StoreReader."""
        if self._state is None or self._of != self._transaction.number:
            row = self._one(
                sql.SQL("SELECT state FROM {} WHERE table_name = %s AND partition = %s").format(
                    self._models.own(PARTITIONS)
                ),
                [self._models.name, self._partition],
            )
            if row is None:
                raise StoreCorrupt(
                    f"{self._models.address.shown} has no state of partition {self._partition} of "
                    f"{self._models.name}. The log is the truth: rebuild from the beginning."
                )
            self._state, self._of = decode_state(Path(self._models.name), row[0]), self._transaction.number
        return self._state

    def get(self, model_id: str) -> bytes | None:
        """See StoreReader."""
        if "\0" in model_id:
            return None
        models = self._models
        row = self._one(
            sql.SQL("SELECT model FROM {} WHERE {} = %s AND partition = %s").format(
                models.sql_name, sql.Identifier(models.table.key)
            ),
            [model_id, self._partition],
        )
        return None if row is None else row[0]

    def items(self) -> Iterator[tuple[str, bytes]]:
        """See StoreReader."""
        for key, value in self.raw_items():
            yield key.decode(), value

    def raw_items(self, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """See StoreReader."""
        for model_id, raw in self._from(first, sql.SQL("model")):
            key = model_id.encode()
            if key >= first:
                yield key, raw

    def ids(self) -> Iterator[bytes]:
        """See StoreReader."""
        for model_id, _ in self._from(b"", sql.SQL("NULL")):
            yield model_id.encode()

    def _from(self, first: bytes, what: sql.Composable) -> Iterator[tuple[str, Any]]:
        """Yield ids from one on, and something else of each; a page at a time, so that others may read in between.

        Where PostgreSQL has no text for that one, it is from its longest beginning on.
        """
        models, key = self._models, sql.Identifier(self._models.table.key)
        statement = sql.SQL(
            "SELECT {key}, {what} FROM {table} WHERE {key} {operator} %s AND partition = %s ORDER BY {key} LIMIT %s"
        )
        after, operator = _text_of(first), ">="
        while True:
            rows = self._transaction.rows(
                statement.format(key=key, what=what, table=models.sql_name, operator=sql.SQL(operator)),
                [after, self._partition, _AT_ONCE],
            )
            yield from rows
            if len(rows) < _AT_ONCE:
                return
            after, operator = rows[-1][0], ">"

    def digests(
        self, firsts: Sequence[bytes] | None, every: int, first: bytes, end: bytes | None
    ) -> list[tuple[bytes, int, bytes]]:
        """See StoreReader: by SQL."""
        models, key = self._models, sql.Identifier(self._models.table.key)
        values: list[Any] = [self._partition, first.decode()]
        if end is not None:
            values.append(end.decode())
        if firsts is None:
            run = sql.SQL("(row_number() OVER (ORDER BY {}) - 1) / {}").format(key, sql.Literal(every))
        else:
            run = sql.SQL("width_bucket({}, %s::text[])").format(key)
            values.insert(0, [one.decode() for one in firsts[1:]])
        statement = _DIGESTS.format(
            key=key, run=run, table=models.sql_name, until=sql.SQL("" if end is None else "AND {} < %s").format(key)
        )
        rows = self._transaction.rows(statement, values)
        return [
            (firsts[run] if firsts is not None else first if run == 0 else begin.encode(), count, digest)
            for run, begin, count, digest in rows
        ]

    def dropped(self) -> Iterator[int]:
        """See StoreReader."""
        rows = self._transaction.rows(
            sql.SQL("SELECT key FROM {} WHERE table_name = %s AND partition = %s AND key >= %s AND key < %s").format(
                self._models.own(BESIDE)
            ),
            [self._models.name, self._partition, DROPPED, DROPPED + b"\xff" * 16],
        )
        return (int.from_bytes(key[len(DROPPED) :], "big") for (key,) in rows)

    def catch_up(self) -> None:
        """See StoreReader: another transaction is begun."""
        self._transaction.end()
        self.state()

    def rest(self) -> None:
        """See StoreReader: its transaction is ended."""
        self._transaction.end()

    def memory_bytes(self) -> int:
        """See StoreReader: it is the server's."""
        return 0

    def close(self) -> None:
        """See StoreReader."""
        self._transaction.close()

    def _one(self, statement: sql.Composed, values: list[Any]) -> tuple[Any, ...] | None:
        return next(iter(self._transaction.rows(statement, values)), None)


def _text_of(raw: bytes) -> str:
    """Give what bytes begin with that is text to PostgreSQL, which has none with a NUL in it."""
    raw = raw.partition(b"\0")[0]
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start].decode()
