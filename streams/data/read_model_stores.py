"""Read models and positions in one place: in memory, and in a RocksDB. `RocksStore` is what services use."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from streams.data.read_models import AtomicReadModelStore, Position
from streams.data.rocks_partition import RocksPartition
from streams.data.serde import serde_for
from streams.data.store import StoreState
from streams.errors import StorageError, StoreCorrupt

__all__ = ["MemoryReadModelStore", "RocksReadModelStore"]

M = TypeVar("M")

_POSITION = b"p"
"""Positions, by partition; behind every model."""
_ALL = StoreState(directory="read-models", build=0, partition=0, start=0, position=0)


class MemoryReadModelStore(AtomicReadModelStore[M], Generic[M]):
    """Models in this process's memory, for tests."""

    def __init__(self) -> None:
        self._models: dict[str, M] = {}
        self._positions: dict[int, Position] = {}

    def upsert(self, model_id: str, model: M) -> None:
        """See ReadModelStore."""
        self._models[model_id] = deepcopy(model)

    def get(self, model_id: str) -> M | None:
        """See ReadModelStore."""
        return deepcopy(self._models.get(model_id))

    def delete(self, model_id: str) -> None:
        """See ReadModelStore."""
        self._models.pop(model_id, None)

    def clear(self) -> None:
        """See AtomicReadModelStore."""
        self._models, self._positions = {}, {}

    def iterate(self) -> Iterator[tuple[str, M]]:
        """Yield every (id, model) as of now, by id."""
        models = dict(self._models)
        return ((model_id, deepcopy(models[model_id])) for model_id in sorted(models))

    def exists(self, model_id: str) -> bool:
        """See ReadModelStore."""
        return model_id in self._models

    def count(self) -> int:
        """See ReadModelStore."""
        return len(self._models)

    def commit(self, mutations: Mapping[str, M | None], position: Position) -> None:
        """See AtomicReadModelStore."""
        models = self._models | {one: deepcopy(model) for one, model in mutations.items() if model is not None}
        for model_id in [one for one, model in mutations.items() if model is None]:
            models.pop(model_id, None)
        self._models, self._positions = models, self._positions | {position.partition: position}

    def positions(self) -> Mapping[int, Position]:
        """See AtomicReadModelStore."""
        return dict(self._positions)


class RocksReadModelStore(AtomicReadModelStore[M], Generic[M]):
    """Models of one type in a RocksDB, with the positions in the same batches. One process has it open at a time.

    It is the smallest store that survives its process: it has no generations, no snapshots, no dead letters, and
    nobody reads it beside its writer. `RocksStore` has all that.

    Args:
        directory: Where; made if missing.
        model: The models' type; see `CqrsProjection`.

    Raises:
        StoreLocked: Another process has it open.
        StorageError: It cannot be opened.
        ConfigError: Models of that type cannot be stored.
    """

    def __init__(self, directory: str | os.PathLike[str], model: type[M]) -> None:
        self.directory = Path(directory)
        self._serde = serde_for(model)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be made: {error.strerror}.") from error
        self._db = self._open()
        self._sweep()

    def _open(self) -> RocksPartition:
        return RocksPartition.open(self.directory / "models", _ALL)

    def _sweep(self) -> None:
        """Remove what was cleared by somebody who was killed in it."""
        for gone in self.directory.glob("gone-*"):
            shutil.rmtree(gone, ignore_errors=True)

    def upsert(self, model_id: str, model: M) -> None:
        """See ReadModelStore."""
        self.bulk_upsert({model_id: model})

    def bulk_upsert(self, models: Mapping[str, M]) -> None:
        """Put many models in place, in one batch."""
        self._write(models, {})

    def get(self, model_id: str) -> M | None:
        """See ReadModelStore."""
        raw = self._db.get(model_id)
        return None if raw is None else self._decode(model_id, raw)

    def exists(self, model_id: str) -> bool:
        """See ReadModelStore."""
        return self._db.get(model_id) is not None

    def delete(self, model_id: str) -> None:
        """See ReadModelStore."""
        self._write({model_id: None}, {})

    def clear(self) -> None:
        """Delete all models and positions: under the store's name there is all of it or nothing."""
        gone = self.directory / f"gone-{secrets.token_hex(4)}"
        self._db.close()
        try:
            self._db.path.rename(gone)
        except OSError as error:
            raise StorageError(f"{self._db.path} cannot be cleared: {error.strerror}.") from error
        finally:
            self._db = self._open()
        self._sweep()

    def iterate(self) -> Iterator[tuple[str, M]]:
        """Yield every (id, model), by id."""
        for key in self._db.ids():
            model_id = key.decode()
            raw = self._db.get(model_id)
            if raw is not None:  # it may have been deleted meanwhile
                yield model_id, self._decode(model_id, raw)

    def count(self) -> int:
        """See ReadModelStore."""
        return sum(1 for _ in self._db.ids())

    def commit(self, mutations: Mapping[str, M | None], position: Position) -> None:
        """See AtomicReadModelStore."""
        self._write(mutations, {_POSITION + position.partition.to_bytes(4, "big"): msgspec.json.encode(position)})

    def positions(self) -> Mapping[int, Position]:
        """See AtomicReadModelStore.

        Raises:
            StoreCorrupt: One cannot be understood.
        """
        try:
            found = [msgspec.json.decode(raw, type=Position) for _, raw in self._db.beside(_POSITION)]
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self.directory}: a position cannot be read: {error}.") from error
        return {one.partition: one for one in found}

    def close(self) -> None:
        """Let go of the files."""
        self._db.close()

    def _write(self, models: Mapping[str, M | None], beside: Mapping[bytes, bytes]) -> None:
        self._db.commit(self._encoded(models), self._db.state, beside)

    def _encoded(self, models: Mapping[str, M | None]) -> Iterable[tuple[str, bytes | None]]:
        for model_id, model in models.items():
            yield model_id, None if model is None else self._serde.encoded(model)

    def _decode(self, model_id: str, raw: bytes) -> M:
        try:
            model: M = self._serde.decode(raw)
        except Exception as error:
            raise StoreCorrupt(
                f"{self.directory}: model {model_id!r} cannot be read as {self._serde.model.__qualname__}: {error}."
            ) from error
        return model
