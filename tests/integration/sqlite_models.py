"""A read model store of a user's own: one SQLite file, with the positions in the same transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import orjson

from streams import AtomicReadModelStore, Position


class SqliteModels(AtomicReadModelStore[dict[str, Any]]):
    """JSON in a table; a connection for each call, since a rebuild may call from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self._connect()) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE IF NOT EXISTS models (id TEXT PRIMARY KEY, model BLOB NOT NULL)")
            db.execute("CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, position BLOB NOT NULL)")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def upsert(self, model_id: str, model: dict[str, Any]) -> None:
        with closing(self._connect()) as db, db:
            db.execute("REPLACE INTO models VALUES (?, ?)", (model_id, orjson.dumps(model)))

    def get(self, model_id: str) -> dict[str, Any] | None:
        with closing(self._connect()) as db:
            row = db.execute("SELECT model FROM models WHERE id = ?", (model_id,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def delete(self, model_id: str) -> None:
        with closing(self._connect()) as db, db:
            db.execute("DELETE FROM models WHERE id = ?", (model_id,))

    def clear(self) -> None:
        with closing(self._connect()) as db, db:
            db.execute("DELETE FROM models")
            db.execute("DELETE FROM positions")

    def iterate(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with closing(self._connect()) as db:
            for model_id, raw in db.execute("SELECT id, model FROM models ORDER BY id"):
                yield model_id, orjson.loads(raw)

    def commit(self, mutations: Mapping[str, dict[str, Any] | None], position: Position) -> None:
        with closing(self._connect()) as db, db:
            for model_id, model in mutations.items():
                if model is None:
                    db.execute("DELETE FROM models WHERE id = ?", (model_id,))
                else:
                    db.execute("REPLACE INTO models VALUES (?, ?)", (model_id, orjson.dumps(model)))
            db.execute("REPLACE INTO positions VALUES (?, ?)", (position.partition, msgspec.json.encode(position)))

    def positions(self) -> Mapping[int, Position]:
        with closing(self._connect()) as db:
            rows = db.execute("SELECT position FROM positions").fetchall()
        found = [msgspec.json.decode(raw, type=Position) for (raw,) in rows]
        return {one.partition: one for one in found}
