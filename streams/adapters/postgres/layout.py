"""What is in the schema: refold's own tables, and one of models for each build.

refold_generations  which build of each generation is current: what its state directory says, should it be lost
refold_builds       which table is of which build of which generation
refold_partitions   by table and partition: the ownership epoch, and the state (see `StoreState`)
refold_beside       what a fold keeps beside its models: dead letters that wait, offsets never to be folded
orders_v3           the models of build 1 of generation orders.v3; of build 2: orders_v3_b2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec
from psycopg import sql

from projections.table import Table
from streams.adapters.postgres.connecting import Address, Connection, failures_of, own_connection
from streams.data.store import StoreState
from streams.errors import ForeignStore

__all__ = [
    "BESIDE",
    "BUILDS",
    "GENERATIONS",
    "PARTITIONS",
    "Models",
    "alone",
    "exists",
    "lock_number",
    "make_own",
    "recall",
    "remember",
    "view_name",
]

GENERATIONS, BUILDS, PARTITIONS, BESIDE = "refold_generations", "refold_builds", "refold_partitions", "refold_beside"
_LONGEST = 63
"""Bytes of a name in PostgreSQL."""

_LAYOUT = "refold: layout 1"
"""Said of the first of refold's own tables: what they are like."""
_OWN = """
CREATE TABLE IF NOT EXISTS {generations} (
    generation text PRIMARY KEY,
    consumer_group text NOT NULL,
    current json NOT NULL,
    manifest json NOT NULL,
    changed timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {builds} (
    table_name text PRIMARY KEY,
    generation text NOT NULL,
    build integer NOT NULL,
    directory text NOT NULL,
    columns json NOT NULL,
    made timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {partitions} (
    table_name text NOT NULL,
    partition integer NOT NULL,
    epoch bigint NOT NULL,
    position bigint NOT NULL,
    state json NOT NULL,
    changed timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, partition)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {beside} (
    table_name text NOT NULL,
    partition integer NOT NULL,
    key bytea NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (table_name, partition, key)
)
"""


@dataclass(frozen=True, slots=True)
class Models:
    """The table with the models of one build. Plain data."""

    address: Address
    generation: str
    build: int
    table: Table

    @classmethod
    def of(cls, address: Address, path: Path, table: Table) -> Models:
        """Give that of a build, by the build's directory."""
        return cls(address, path.parent.parent.name, int(path.name), table)

    @property
    def name(self) -> str:
        """The table's name, without the schema."""
        return _name(self.generation if self.build == 1 else f"{self.generation}_b{self.build}")

    def index_name(self, number: int) -> str:
        """Give the name of one of its indexes, the first of which is 1."""
        return _name(f"{self.name}_index_{number}")

    @property
    def sql_name(self) -> sql.Identifier:
        """The table's name, with the schema."""
        return self.address.name(self.name)

    def own(self, name: str) -> sql.Identifier:
        """Give the name of one of refold's own tables."""
        return self.address.name(name)

    def make(self, connection: Connection, fresh: StoreState) -> None:
        """Make what is not there yet, in the transaction that is under way.

        Raises:
            ForeignStore: The table is another build's, or not refold's.
        """
        make_own(connection, self.address)
        self.check(connection, fresh)
        if self.exists(connection):
            return
        connection.execute(self._create())
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, generation, build, directory, columns) VALUES (%s, %s, %s, %s, %s)"
            ).format(self.own(BUILDS)),
            [self.name, self.generation, fresh.build, fresh.directory, msgspec.json.encode(self.table).decode()],
        )

    def check(self, connection: Connection, fresh: StoreState) -> None:
        """Make sure that the table, where there is one, is of this build.

        Raises:
            ForeignStore: It is not.
        """
        exists = self.exists(connection)
        row = connection.execute(
            sql.SQL("SELECT directory, build FROM {} WHERE table_name = %s").format(self.own(BUILDS)), [self.name]
        ).fetchone()
        if row is None and not exists:
            return
        where = f"{self.address.shown}: table {self.name}"
        hint = "Name another schema (REFOLD_PG_SCHEMA); nothing in it was touched."
        if row is None:
            raise ForeignStore(f"{where} is there, and refold did not make it. {hint}")
        if row != (fresh.directory, fresh.build):
            raise ForeignStore(
                f"{where} holds the models of state {row[0]}, build {row[1]}, and not of {fresh.directory}, build "
                f"{fresh.build}: another deployment has made it. {hint}"
            )

    def exists(self, connection: Connection) -> bool:
        """Say whether it is there."""
        return exists(connection, self.address, self.name)

    def _create(self) -> sql.Composed:
        """Give the statement that makes the table.

        Room is left on each page, so that a model that is written again stays on its own, and no index is touched.
        """
        columns = [sql.SQL('{} text COLLATE "C" PRIMARY KEY').format(sql.Identifier(self.table.key))]
        columns += [sql.SQL("{} {}").format(sql.Identifier(one.name), sql.SQL(one.type)) for one in self.table.columns]
        return sql.SQL(
            "CREATE TABLE {} ({}, partition integer NOT NULL, model json NOT NULL) WITH (fillfactor = 80)"
        ).format(self.sql_name, sql.SQL(", ").join(columns))

    @property
    def columns(self) -> sql.Composable:
        """All columns, in their order, as they are written."""
        names = [self.table.key, *(one.name for one in self.table.columns), "partition", "model"]
        return sql.SQL(", ").join(map(sql.Identifier, names))

    def values(self, partition: int) -> sql.Composable:
        """Give what is written to them, of a row with `id` and `model`."""
        values: list[sql.Composable] = [sql.SQL("s.id")]
        for one in self.table.columns:
            path = sql.Literal("{" + ",".join(_quoted(key) for key in one.keys) + "}")
            if one.type in ("json", "jsonb"):
                values.append(sql.SQL("(s.model #> {})::{}").format(path, sql.SQL(one.type)))
            else:
                values.append(sql.SQL("(s.model #>> {})::{}").format(path, sql.SQL(one.type)))
        values += [sql.Literal(partition), sql.SQL("s.model")]
        return sql.SQL(", ").join(values)

    @property
    def replaced(self) -> sql.Composable:
        """What is set where there is a model of that id already."""
        names = [*(one.name for one in self.table.columns), "model"]
        return sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names)


def view_name(projection: str) -> str:
    """Give the name of the view that a projection's readers use."""
    return _name(projection)


def exists(connection: Connection, address: Address, name: str) -> bool:
    """Say whether there is a table of that name."""
    return connection.execute("SELECT to_regclass(%s)", [address.name(name).as_string()]).fetchone() != (None,)


def make_own(connection: Connection, address: Address) -> None:
    """Make the schema and refold's own tables; until the end of the transaction nobody else does."""
    alone(connection, address)
    if exists(connection, address, GENERATIONS):
        said = connection.execute(
            "SELECT obj_description(to_regclass(%s), 'pg_class')", [address.name(GENERATIONS).as_string()]
        ).fetchone()
        if said != (_LAYOUT,):
            raise ForeignStore(
                f"{address.shown} says {said and said[0]!r}, and this version of refold knows {_LAYOUT!r}. Use the "
                "version that wrote it, or name another schema (REFOLD_PG_SCHEMA)."
            )
        return
    if connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [address.schema]).fetchone() is None:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(address.schema)))
    own = {name.removeprefix("refold_"): address.name(name) for name in (GENERATIONS, BUILDS, PARTITIONS, BESIDE)}
    connection.execute(sql.SQL(_OWN).format(**own))
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(address.name(GENERATIONS), sql.Literal(_LAYOUT)))


def remember(address: Address, generation: str, group: str, current: bytes, manifest: bytes) -> None:
    """Keep which build of a generation is current, and what it is of.

    Raises:
        ForeignStore: Another state's generation of that name is there.
        StoreAway, StorageError: The database.
    """
    connection = own_connection(address)
    with failures_of(address, "write"), connection.transaction():
        make_own(connection, address)
        table = address.name(GENERATIONS)
        row = connection.execute(
            sql.SQL("SELECT current ->> 'directory' FROM {} WHERE generation = %s").format(table), [generation]
        ).fetchone()
        state = msgspec.json.decode(current)["directory"]
        if row is not None and row[0] != state:
            raise ForeignStore(
                f"{address.shown} has generation {generation} of state {row[0]}, and this is {state}: another "
                "deployment's. Name another schema (REFOLD_PG_SCHEMA); nothing in it was touched."
            )
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (generation, consumer_group, current, manifest) VALUES (%s, %s, %s, %s) "
                "ON CONFLICT (generation) DO UPDATE SET current = excluded.current, manifest = excluded.manifest, "
                "changed = now()"
            ).format(table),
            [generation, group, current.decode(), manifest.decode()],
        )


def recall(address: Address, generation: str, group: str) -> tuple[bytes, bytes] | None:
    """Give what was kept so; None where nothing was.

    Raises:
        ForeignStore: It is another group's.
        StoreAway, StorageError: The database.
    """
    connection = own_connection(address)
    with failures_of(address, "read"):
        if not exists(connection, address, GENERATIONS):
            return None
        row = connection.execute(
            sql.SQL("SELECT current, manifest, consumer_group FROM {} WHERE generation = %s").format(
                address.name(GENERATIONS)
            ),
            [generation],
        ).fetchone()
    if row is None:
        return None
    if group and row[2] != group:
        raise ForeignStore(
            f"{address.shown} has generation {generation} of group {row[2]!r}, and this is {group!r}: another "
            "deployment's. Name another schema (REFOLD_PG_SCHEMA); nothing in it was touched."
        )
    return row[0], row[1]


def alone(connection: Connection, address: Address) -> None:
    """Have nobody else make or drop something in the schema until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_number(f"layout {address.schema}")])


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def lock_number(models: Models) -> int:
    """Give the number by which a build's table is locked, 31 bits; the partition is the other one."""
    return _number(f"{models.address.schema} {models.name}") & 0x7FFFFFFF


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(text: str) -> str:
    """Make a name of PostgreSQL's: what is no letter is _, and what is too long ends with its digest."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")
    if name[:1].isdigit():
        name = f"_{name}"
    if len(name) > _LONGEST or name != re.sub(r"[-.]", "_", text):
        digest = blake2b(text.encode(), digest_size=4).hexdigest()
        name = f"{name[: _LONGEST - 9]}_{digest}"
    return name
