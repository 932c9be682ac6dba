"""One partition's models and its position in PostgreSQL, written together in one transaction."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import psycopg
from psycopg import errors

from streams.adapters.postgres.connecting import Address, Connection, Session, failures_of, own_session
from streams.adapters.postgres.layout import Models, lock_number
from streams.adapters.postgres.statements import Statements
from streams.data.cache import ModelCannotBeStored
from streams.data.serde import NotStorable
from streams.data.split import HeldElsewhere
from streams.data.store import StoreState, decode_state
from streams.data.stores import Closes
from streams.errors import ForeignStore, StorageError, StoreLocked
from streams.log import get_logger

__all__ = ["CUT", "PostgresPartition"]

log = get_logger(__name__)

CUT = "snapshot"
"""The file with the name of a cut's snapshot."""
_MANY = 500
"""From so many models on, COPY is faster than an array."""
_FETCHED = 2000
"""Models that are asked for at once."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_OPEN: set[tuple[Address, str, int]] = set()
"""What this process has open."""
_REFUSED_SINCE: dict[tuple[Address, str, int], float] = {}
_LET_GO_S = 2.0
"""For so long whoever holds a partition that the group has given to us is waited for: it is letting it go, or gone."""
_REFUSED = (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded)
"""What PostgreSQL says where it is a row that it does not take."""


class PostgresPartition:
    """One partition's rows, open for writing.

    Nobody else has it open: the connection holds an advisory lock on it. And nobody who once had it can write: opening
    raises the partition's epoch, and each commit is of the epoch that it was opened with, whatever became of the lock.

    1. Models go into a temporary table, and from there over those that there are.
    2. The state follows, where the epoch is still ours.
    3. Both become visible, and durable, with the transaction's end. Where that is not heard of, because the connection
       is lost, opening again tells by the position which it was.
    """

    def __init__(
        self,
        models: Models,
        partition: int,
        session: Session,
        epoch: int,
        state: StoreState,
        beside: dict[bytes, bytes],
    ) -> None:
        self._models = models
        self._partition = partition
        self._session = session  # held on to: another thread may go on with it, when the one that opened it has ended
        self._connection = session.connection
        self._epoch = epoch
        self._state = state
        self._beside = beside
        self._statements = Statements(models, partition)

    @classmethod
    def open(cls, models: Models, fresh: StoreState, *, owns: bool = False) -> PostgresPartition:
        """Open a partition's rows, or begin them.

        Args:
            models: The table.
            fresh: See `Stores.open`, as the next one.
            owns: Who has it open elsewhere is given a moment to let it go, and then has its session ended.

        Raises:
            StoreLocked: Somebody has it open.
            ForeignStore: The table is another build's.
            StoreAway, StorageError: The database.
        """
        partition = fresh.partition
        session = own_session(models.address)
        connection = session.connection
        key = (models.address, models.name, partition)
        if key in _OPEN:  # the lock is the session's, and this session has it
            raise _locked(models, partition)
        with failures_of(models.address, "open"):
            _lock(connection, models, partition, owns=owns)
            try:
                with connection.transaction():
                    models.make(connection, fresh)
                    statements = Statements(models, partition)
                    row = connection.execute(
                        statements.open, [models.name, partition, fresh.position, _json(fresh)]
                    ).fetchone()
                    beside = cast("list[tuple[bytes, bytes]]", connection.execute(statements.beside).fetchall())
                assert row is not None
                state = decode_state(Path(models.name), row[1])
                if (state.directory, state.build) != (fresh.directory, fresh.build):
                    raise ForeignStore(
                        f"{models.address.shown}: partition {partition} of {models.name} is of state "
                        f"{state.directory}, build {state.build}, and not of {fresh.directory}, build {fresh.build}. "
                        "Name another schema (REFOLD_PG_SCHEMA)."
                    )
            except BaseException:
                if not connection.closed:
                    connection.execute("SELECT pg_advisory_unlock(%s, %s)", [lock_number(models), partition])
                raise
        _OPEN.add(key)
        return cls(models, partition, session, row[0], state, dict(beside))

    @property
    def state(self) -> StoreState:
        """See PartitionStore."""
        return self._state

    def get(self, model_id: str) -> bytes | None:
        """See PartitionStore."""
        return self.fetch([model_id]).get(model_id)

    def fetch(self, model_ids: Iterable[str]) -> dict[str, bytes]:
        """See FarStore."""
        wanted = [one for one in model_ids if "\0" not in one]
        found: dict[str, bytes] = {}
        with failures_of(self._models.address, "read"):
            for first in range(0, len(wanted), _FETCHED):
                found.update(
                    cast(
                        "list[tuple[str, bytes]]",
                        self._connection.execute(
                            self._statements.get, [wanted[first : first + _FETCHED]], prepare=True, binary=True
                        ).fetchall(),
                    )
                )
        return found

    def ids(self) -> Iterator[bytes]:
        """See OpenStore."""
        with (
            failures_of(self._models.address, "read"),
            self._connection.transaction(),
            self._connection.cursor("refold_ids") as cursor,
        ):
            cursor.itersize = _FETCHED
            for (model_id,) in cursor.execute(self._statements.ids):
                yield model_id.encode()

    def beside(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See PartitionStore; it is little, and known here."""
        return iter(sorted((key, value) for key, value in self._beside.items() if key.startswith(prefix)))

    def commit(
        self,
        changes: Iterable[tuple[str, bytes | None]],
        state: StoreState,
        beside: Mapping[bytes, bytes | None] = {},
    ) -> None:
        """See PartitionStore.

        Raises:
            ModelCannotBeStored: PostgreSQL does not take one of the models; which, `check` tells.
            StoreLocked: Somebody else has opened the partition since.
        """
        puts: list[tuple[str, str]] = []
        gone: list[str] = []
        for model_id, raw in changes:
            if raw is None:
                gone.append(model_id)
            else:
                _check_text(model_id, raw)
                puts.append((model_id, raw.decode()))
        with failures_of(self._models.address, "write"), _refused():
            if len(puts) >= _MANY:
                with self._connection.transaction():
                    self._copy(puts)
                    written = self._connection.execute(self._statements.merge).rowcount
                    fenced = self._finish(gone, state, beside).rowcount
                    self._check(puts, written, fenced)
            else:
                with self._connection.pipeline() as pipeline, self._connection.transaction():
                    put = self._put(puts) if puts else None
                    mark = self._finish(gone, state, beside)
                    pipeline.sync()
                    self._check(puts, 0 if put is None else put.rowcount, mark.rowcount)
        self._state = state
        for key, value in beside.items():
            if value is None:
                self._beside.pop(key, None)
            else:
                self._beside[key] = value

    def _copy(self, puts: list[tuple[str, str]]) -> None:
        """Step 1, of many models."""
        self._connection.execute(self._statements.stage)
        with self._connection.cursor() as cursor, cursor.copy(self._statements.copy) as copy:
            copy.set_types(["text", "text"])
            for row in puts:
                copy.write_row(row)

    def _put(self, puts: list[tuple[str, str]]) -> psycopg.Cursor[tuple[Any, ...]]:
        """Step 1, of few."""
        return self._connection.execute(
            self._statements.put, [[model_id for model_id, _ in puts], [model for _, model in puts]], prepare=True
        )

    def _finish(
        self, gone: list[str], state: StoreState, beside: Mapping[bytes, bytes | None]
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Step 2, and what goes with it."""
        name, number = self._models.name, self._partition
        if gone:
            self._connection.execute(self._statements.delete, [gone])
        if beside:
            dropped = [key for key, value in beside.items() if value is None]
            kept = {key: value for key, value in beside.items() if value is not None}
            self._connection.execute(self._statements.drop_beside, [name, number, dropped])
            self._connection.execute(self._statements.keep_beside, [name, number, list(kept), list(kept.values())])
        return self._connection.execute(
            self._statements.mark, [state.position, _json(state), name, number, self._epoch], prepare=True
        )

    def _check(self, puts: list[tuple[str, str]], written: int, marked: int) -> None:
        """Have nothing be committed where a model is another partition's, or the partition somebody else's."""
        where = f"{self._models.address.shown}: partition {self._partition} of {self._models.name}"
        if marked != 1:
            raise StoreLocked(f"{where} was opened by another process since. Nothing of this one was written.")
        if written != len(puts):
            row = self._connection.execute(self._statements.elsewhere, [[model_id for model_id, _ in puts]]).fetchone()
            model_id, other = row or ("?", -1)
            raise HeldElsewhere(model_id, self._partition, other)

    def check(self, model_id: str, raw: bytes) -> None:
        """See FarStore: the row is written, and taken back."""
        try:
            _check_text(model_id, raw)
            with (
                failures_of(self._models.address, "write"),
                _refused(),
                self._connection.transaction(force_rollback=True),
            ):
                self._put([(model_id, raw.decode())])
        except ModelCannotBeStored as error:
            raise NotStorable(str(error)) from error

    def snapshot(self, path: Path) -> None:  # noqa: ARG002
        """See OpenStore.

        Raises:
            StorageError: There are none: the database keeps the positions with the models, and its backups both.
        """
        raise StorageError(
            f"{self._models.address.shown} has no snapshots: positions are in the database, and so in its backups."
        )

    def cut(self, path: Path) -> Closes:
        """See OpenStore: a snapshot of the database's, which is there as long as the session that has exported it."""
        address = self._models.address
        session = address.connect()
        try:
            with failures_of(address, "keep a snapshot"):
                session.execute("SET idle_in_transaction_session_timeout = 0")
                session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                row = session.execute("SELECT pg_export_snapshot()").fetchone()
            assert row is not None
            new = path.with_name(f"new-{path.name}-{secrets.token_hex(3)}")
            new.mkdir()
            (new / CUT).write_text(str(row[0]))
            try:
                new.rename(path)
            except OSError:  # where sessions ended, who folds and who asks may both have thought it theirs to copy
                if not path.is_dir():
                    raise
                shutil.rmtree(new, ignore_errors=True)
        except OSError as error:
            session.close()
            raise StorageError(f"{path} cannot be made: {error.strerror}.") from error
        except BaseException:
            session.close()
            raise
        return session

    def settle(self, within_s: float = 1.0) -> None:
        """See OpenStore: there is nothing to do."""

    def memory_bytes(self) -> int:
        """See OpenStore: it is the server's."""
        return 0

    def close(self) -> None:
        """Let the partition go, without writing."""
        _OPEN.discard((self._models.address, self._models.name, self._partition))
        if self._connection.closed:
            return
        try:
            self._connection.execute("SELECT pg_advisory_unlock(%s, %s)", [lock_number(self._models), self._partition])
        except psycopg.Error as error:
            log.debug("store.close_failed", table=self._models.name, why=str(error))
            self._connection.close()  # and so is the lock gone


def _lock(connection: Connection, models: Models, partition: int, *, owns: bool) -> None:
    """Have the session hold the partition's lock.

    Raises:
        StoreLocked: Another one holds it.
    """
    key, lock = (models.address, models.name, partition), [lock_number(models), partition]
    if connection.execute("SELECT pg_try_advisory_lock(%s, %s)", lock).fetchone() == (True,):
        _REFUSED_SINCE.pop(key, None)
        return
    now = time.monotonic()
    if owns and now - _REFUSED_SINCE.setdefault(key, now) > _LET_GO_S:
        del _REFUSED_SINCE[key]
        log.warning("partition.taken_over", table=models.name, partition=partition)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 "
            "AND classid = %s AND objid = %s AND pid <> pg_backend_pid() AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())",
            lock,
        )
    raise _locked(models, partition)


def _locked(models: Models, partition: int) -> StoreLocked:
    return StoreLocked(
        f"{models.address.shown}: partition {partition} of {models.name} is open in another session. One process folds "
        "a partition of a build at a time."
    )


@contextmanager
def _refused() -> Iterator[None]:
    """Say of a row that PostgreSQL does not take that its model cannot be stored."""
    try:
        yield
    except _REFUSED as error:
        raise ModelCannotBeStored(f"PostgreSQL does not take it: {' '.join(str(error).split())}") from error


def _check_text(model_id: str, raw: bytes) -> None:
    if "\0" in model_id:
        raise ModelCannotBeStored(f"the id {model_id!r:.80} has a NUL in it, which PostgreSQL's text cannot hold")
    if b"\\u0000" in raw and _NUL.search(raw):
        raise ModelCannotBeStored(f"model {model_id!r} has a text with a NUL in it, which PostgreSQL cannot hold")


def _json(state: StoreState) -> str:
    return msgspec.json.encode(state).decode()
