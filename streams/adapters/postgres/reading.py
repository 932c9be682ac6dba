"""One partition's models in PostgreSQL, read as of one instant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from psycopg import errors, sql

from streams.adapters.postgres.connecting import Connection, failures_of, readers
from streams.adapters.postgres.layout import BESIDE, PARTITIONS, Models
from streams.data.store import DROPPED, StoreState, decode_state
from streams.errors import StorageError, StoreAway, StoreCorrupt

__all__ = ["PostgresReader"]

_AT_ONCE = 2000
_DIGESTS = sql.SQL(
    "SELECT run, min(id), count(*), sha256(string_agg(convert_to("
    "octet_length(id) || ':' || id || octet_length(model) || ':' || model, 'UTF8'), '' ORDER BY id)) "
    "FROM (SELECT {key} AS id, model::text AS model, {run} AS run FROM {table} "
    "WHERE partition = %s AND {key} >= %s {until}) m GROUP BY run ORDER BY run"
)
"""What `runs_of` makes of a run of models."""


class PostgresReader:
    """One partition's rows, in a transaction of its own: all that is read is as of the instant at which that began.

    Args:
        models: The table.
        partition: Which; it has a store.
        snapshot: The name of a snapshot of PostgreSQL's (`pg_export_snapshot`), whose instant it is to be.
    """

    def __init__(self, models: Models, partition: int, snapshot: str | None = None) -> None:
        self._models = models
        self._partition = partition
        self._snapshot = snapshot
        self._lent = ExitStack()
        self._connection: Connection | None = None
        self._state = self._begin()

    @property
    def _session(self) -> Connection:
        """The connection, in a transaction."""
        if self._connection is None:
            self._state = self._begin()
        assert self._connection is not None
        return self._connection

    def _begin(self) -> StoreState:
        try:
            return self._began()
        except BaseException:
            self.close()
            raise

    def _began(self) -> StoreState:
        with failures_of(self._models.address, "read"):
            self._connection = self._lent.enter_context(readers(self._models.address).connection())
            self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if self._snapshot is not None:
                self._go_to(self._connection, self._snapshot)
            row = self._one(
                sql.SQL("SELECT state FROM {} WHERE table_name = %s AND partition = %s").format(
                    self._models.own(PARTITIONS)
                ),
                [self._models.name, self._partition],
            )
        if row is None:
            raise StoreCorrupt(
                f"{self._models.address.shown} has no state of partition {self._partition} of {self._models.name}. "
                "The log is the truth: rebuild from the beginning."
            )
        return decode_state(Path(self._models.name), row[0])

    def _go_to(self, connection: Connection, snapshot: str) -> None:
        """Have the transaction be as of a snapshot's instant.

        Raises:
            StoreAway: Whoever has kept it is gone, and so is the snapshot.
        """
        try:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        except (errors.InvalidParameterValue, errors.UndefinedObject) as error:
            raise StoreAway(
                f"{self._models.address.shown}: what was kept of partition {self._partition} of {self._models.name} is "
                "there no more, since whoever folds it has died or lost its connection. It is tried again."
            ) from error

    def state(self) -> StoreState:
        """See StoreReader."""
        assert self._session is not None
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
            "SELECT {key}, {what} FROM {table} WHERE {key} {{}} %s AND partition = %s ORDER BY {key} LIMIT %s"
        ).format(key=key, what=what, table=models.sql_name)
        after, operator = _text_of(first), ">="
        while True:
            with failures_of(models.address, "read"):
                rows = self._session.execute(
                    sql.SQL(statement.as_string().replace("{}", operator)), [after, self._partition, _AT_ONCE]
                ).fetchall()
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
        with failures_of(models.address, "read"):
            rows = self._session.execute(statement, values).fetchall()
        return [
            (firsts[run] if firsts is not None else first if run == 0 else begin.encode(), count, digest)
            for run, begin, count, digest in rows
        ]

    def dropped(self) -> Iterator[int]:
        """See StoreReader."""
        with failures_of(self._models.address, "read"):
            rows = self._session.execute(
                sql.SQL(
                    "SELECT key FROM {} WHERE table_name = %s AND partition = %s AND key >= %s AND key < %s"
                ).format(self._models.own(BESIDE)),
                [self._models.name, self._partition, DROPPED, DROPPED + b"\xff" * 16],
            ).fetchall()
        return (int.from_bytes(key[len(DROPPED) :], "big") for (key,) in rows)

    def catch_up(self) -> None:
        """See StoreReader: another transaction is begun."""
        self.rest()
        self._state = self._begin()

    def rest(self) -> None:
        """See StoreReader: its transaction is ended, and others may have the connection."""
        self._connection = None
        with failures_of(self._models.address, "read"):
            self._lent.close()

    def memory_bytes(self) -> int:
        """See StoreReader: it is the server's."""
        return 0

    def close(self) -> None:
        """See StoreReader."""
        with contextlib.suppress(StorageError):
            self.rest()

    def _one(self, statement: sql.Composed, values: list[Any]) -> tuple[Any, ...] | None:
        with failures_of(self._models.address, "read"):
            return self._session.execute(statement, values).fetchone()


def _text_of(raw: bytes) -> str:
    """Give what bytes begin with that is text to PostgreSQL, which has none with a NUL in it."""
    raw = raw.partition(b"\0")[0]
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start].decode()
