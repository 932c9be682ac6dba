"""The stores of a build whose models are in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from psycopg import sql

from projections.table import Table
from streams.adapters.postgres.connecting import Address, failures_of, own_connection
from streams.adapters.postgres.layout import BESIDE, PARTITIONS, Models, recall, remember
from streams.adapters.postgres.partition import CUT, PostgresPartition
from streams.adapters.postgres.reading import PostgresBuildReader, PostgresReader, Transaction
from streams.adapters.postgres.views import drop, index, show
from streams.data.store import StoreState, decode_state
from streams.data.stores import Shown, Stores
from streams.errors import StorageError, StoreCorrupt

__all__ = ["Postgres", "PostgresStores"]

_CARRY = sql.SQL(
    "INSERT INTO {new} ({columns}) SELECT {values} "
    "FROM (SELECT {key} AS id, model FROM {old} WHERE partition = {partition}) s"
)
_CARRY_BESIDE = sql.SQL(
    "INSERT INTO {0} (table_name, partition, key, value) SELECT %s, partition, key, value FROM {0} "
    "WHERE table_name = %s AND partition = %s"
)
_CARRY_STATE = sql.SQL("INSERT INTO {} (table_name, partition, epoch, position, state) VALUES (%s, %s, 0, %s, %s)")


@dataclass(frozen=True, slots=True)
class Postgres:
    """Models are kept in tables of a PostgreSQL: one for each build of a generation. Plain data.

    Args:
        conninfo: A connection string of libpq's; what it leaves out, PGHOST, PGPASSWORD, PGSERVICE and their like say.
        schema: The schema that tables and views are in; made where it is missing.
        reader: A role that is to see the views; by default whoever you grant that to.
    """

    conninfo: str = field(default="", repr=False)
    schema: str = "refold"
    reader: str = ""

    @property
    def name(self) -> str:
        """See Kind."""
        return "postgres"

    @property
    def address(self) -> Address:
        """Where that is."""
        return Address(self.conninfo, self.schema)

    def __str__(self) -> str:
        return self.address.shown

    def remove_all(self) -> None:
        """See Kind: the schema is dropped, with whatever else is in it."""
        with failures_of(self.address, "drop the schema"):
            own_connection(self.address).execute(
                sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.schema))
            )

    def stores(self, path: Path, table: Table) -> PostgresStores:
        """See Kind."""
        return PostgresStores(Models.of(self.address, path, table))

    def remember(self, directory: Path, group: str, current: bytes, manifest: bytes) -> None:
        """See Kind."""
        remember(self.address, directory.name, group, current, manifest)

    def recall(self, directory: Path, group: str) -> tuple[bytes, bytes] | None:
        """See Kind."""
        return recall(self.address, directory.name, group)

    def show(self, projection: str, choose: Callable[[], Shown | None]) -> None:
        """See Kind: views are replaced."""

        def chosen() -> tuple[Models, StoreState] | None:
            shown = choose()
            if shown is None:
                return None
            assert isinstance(shown.stores, PostgresStores), "of this kind"
            return shown.stores.models, shown.fresh

        show(self.address, projection, self.reader, chosen)

    def finish(self, stores: Stores) -> None:
        """See Kind: its indexes are built."""
        assert isinstance(stores, PostgresStores), "of this kind"
        index(stores.models)

    def forget(self, directory: Path, build: int | None = None) -> bool:
        """See Kind: its tables are dropped; not while somebody is reading them."""
        return drop(self.address, directory.name, build)


@dataclass(frozen=True, slots=True)
class PostgresStores:
    """One table for all partitions of a build; each row says which it is of."""

    models: Models

    def has(self, partition: int) -> bool:
        """See Stores."""
        return self._state(partition) is not None

    def open(self, partition: int, fresh: StoreState, *, owns: bool = False) -> PostgresPartition:
        """See Stores."""
        assert partition == fresh.partition
        return PostgresPartition.open(self.models, fresh, owns=owns)

    def read(self, partition: int, scratch: Path) -> PostgresReader:  # noqa: ARG002
        """See Stores."""
        return PostgresReader(self.models, partition, Transaction(self.models.address))

    def reader(self, scratch: Path) -> PostgresBuildReader:  # noqa: ARG002
        """See Stores."""
        return PostgresBuildReader(self.models)

    def read_cut(self, partition: int, path: Path, scratch: Path) -> PostgresReader:  # noqa: ARG002
        """See Stores."""
        try:
            snapshot = (path / CUT).read_text()
        except OSError as error:
            raise StorageError(f"{path / CUT} cannot be read: {error.strerror}.") from error
        return PostgresReader(self.models, partition, Transaction(self.models.address, snapshot))

    def state(self, partition: int) -> StoreState:
        """See Stores."""
        raw = self._state(partition)
        if raw is None:
            raise StoreCorrupt(f"{self.models.address.shown} has no partition {partition} of {self.models.name}.")
        return decode_state(Path(self.models.name), raw)

    def carry(self, fresh: StoreState, into: Stores, becomes: Callable[[StoreState], StoreState]) -> None:
        """See Stores: in one transaction."""
        assert isinstance(into, PostgresStores), "stores of one kind"
        old, new, number = self.models, into.models, fresh.partition
        opened = self.open(number, fresh)
        try:
            state = becomes(opened.state)
            connection = own_connection(old.address)
            with failures_of(old.address, "write"), connection.transaction():
                new.make(connection, state)
                if into.has(number):
                    return  # another machine has done it, and may have folded on
                connection.execute(
                    _CARRY.format(
                        new=new.sql_name,
                        columns=new.columns,
                        values=new.values(number),
                        key=sql.Identifier(old.table.key),
                        old=old.sql_name,
                        partition=sql.Literal(number),
                    )
                )
                connection.execute(_CARRY_BESIDE.format(new.own(BESIDE)), [new.name, old.name, number])
                connection.execute(
                    _CARRY_STATE.format(new.own(PARTITIONS)),
                    [new.name, number, state.position, msgspec.json.encode(state).decode()],
                )
        finally:
            opened.close()

    def size_bytes(self) -> int:
        """See Stores."""
        connection = own_connection(self.models.address)
        with failures_of(self.models.address, "read"):
            row = connection.execute(
                "SELECT coalesce(pg_total_relation_size(to_regclass(%s)), 0)", [self.models.sql_name.as_string()]
            ).fetchone()
        assert row is not None
        return int(row[0])

    def version_of(self, partition: int) -> object:  # noqa: ARG002
        """See Stores: nothing takes its place."""
        return self.models.name

    def _state(self, partition: int) -> bytes | None:
        models = self.models
        connection = own_connection(models.address)
        with failures_of(models.address, "read"):
            if not models.exists(connection):
                return None
            row = connection.execute(
                sql.SQL("SELECT state FROM {} WHERE table_name = %s AND partition = %s").format(models.own(PARTITIONS)),
                [models.name, partition],
            ).fetchone()
        return None if row is None else row[0]
