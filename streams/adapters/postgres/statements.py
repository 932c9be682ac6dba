"""What is said to the server of one partition's rows."""

from __future__ import annotations

from psycopg import sql

from streams.adapters.postgres.layout import BESIDE, PARTITIONS, Models

__all__ = ["Statements"]


class Statements:
    """What is said to the server, of one partition."""

    def __init__(self, models: Models, partition: int) -> None:
        table, key, number = models.sql_name, sql.Identifier(models.table.key), sql.Literal(partition)
        stage = sql.Identifier("pg_temp", "refold_stage")
        self.open = sql.SQL(
            "INSERT INTO {} AS p (table_name, partition, epoch, position, state) VALUES (%s, %s, 1, %s, %s) "
            "ON CONFLICT (table_name, partition) DO UPDATE SET epoch = p.epoch + 1 RETURNING epoch, state"
        ).format(models.own(PARTITIONS))
        self.stage = sql.SQL(
            "CREATE TEMPORARY TABLE IF NOT EXISTS refold_stage (id text, model text) ON COMMIT DELETE ROWS"
        )
        self.copy = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(stage)
        merge = sql.SQL(
            "INSERT INTO {table} AS m ({columns}) SELECT {values} FROM {source} ON CONFLICT ({key}) DO UPDATE "
            "SET {replaced} WHERE m.partition = excluded.partition"
        )
        parts = {
            "table": table,
            "columns": models.columns,
            "values": models.values(partition),
            "key": key,
            "replaced": models.replaced,
        }
        # By the key's order: what is near in the index is near in time.
        self.merge = merge.format(
            source=sql.SQL('(SELECT id, model::json FROM {} ORDER BY id COLLATE "C") s').format(stage), **parts
        )
        self.put = merge.format(
            source=sql.SQL("(SELECT id, model::json FROM unnest(%s::text[], %s::text[]) AS u(id, model)) s"), **parts
        )
        self.delete = sql.SQL("DELETE FROM {} WHERE {} = ANY(%s) AND partition = {}").format(table, key, number)
        self.get = sql.SQL("SELECT {}, model FROM {} WHERE {} = ANY(%s) AND partition = {}").format(
            key, table, key, number
        )
        self.ids = sql.SQL("SELECT {} FROM {} WHERE partition = {} ORDER BY {}").format(key, table, number, key)
        self.elsewhere = sql.SQL("SELECT {}, partition FROM {} WHERE {} = ANY(%s) AND partition <> {} LIMIT 1").format(
            key, table, key, number
        )
        self.mark = sql.SQL(
            "UPDATE {} SET position = %s, state = %s, changed = now() "
            "WHERE table_name = %s AND partition = %s AND epoch = %s"
        ).format(models.own(PARTITIONS))
        beside = models.own(BESIDE)
        self.beside = sql.SQL("SELECT key, value FROM {} WHERE table_name = {} AND partition = {}").format(
            beside, sql.Literal(models.name), number
        )
        self.drop_beside = sql.SQL("DELETE FROM {} WHERE table_name = %s AND partition = %s AND key = ANY(%s)").format(
            beside
        )
        self.keep_beside = sql.SQL(
            "INSERT INTO {} (table_name, partition, key, value) "
            "SELECT %s, %s, u.key, u.value FROM unnest(%s::bytea[], %s::bytea[]) AS u(key, value) "
            "ON CONFLICT (table_name, partition, key) DO UPDATE SET value = excluded.value"
        ).format(beside)
