"""Checkpoints by name: in memory, and in a RocksDB. Those of a consumer group are `KafkaCheckpointStore`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rocksdict import Options, Rdict, WriteOptions

from streams.errors import ForeignStore, StorageError, StoreCorrupt, StoreLocked
from streams.prepared import prepared
from streams.types import ProjectionCheckpoint

__all__ = ["MemoryCheckpointStore", "RocksCheckpointStore"]

FORMAT = 1
_PATIENCE_S = 5.0
_RETRY_S = 0.02


class MemoryCheckpointStore:
    """Checkpoints in this process's memory, for tests."""

    def __init__(self) -> None:
        self._saved: dict[str, ProjectionCheckpoint] = {}

    def load(self, name: str) -> ProjectionCheckpoint | None:
        """Give the last checkpoint; None where there is none."""
        return self._saved.get(name)

    def save(self, name: str, checkpoint: ProjectionCheckpoint) -> None:
        """Replace the checkpoint."""
        self._saved[name] = checkpoint

    def delete(self, name: str) -> None:
        """Delete it; a missing one is as good as deleted."""
        self._saved.pop(name, None)


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    format: int = FORMAT
    checkpoint: ProjectionCheckpoint


prepared(_Record)


class RocksCheckpointStore:
    """Checkpoints in a RocksDB of their own, which survives this process.

    Opened for each call, so several processes may use it in turns. A save is on the disk when it returns.

    Args:
        directory: Where; made at the first save.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def load(self, name: str) -> ProjectionCheckpoint | None:
        """Give the last checkpoint; None where there is none.

        Raises:
            ForeignStore: It is of an unknown format.
            StoreCorrupt, StorageError: It cannot be read.
        """
        if not self.directory.is_dir():
            return None
        with self._open() as db:
            raw = db.get(name.encode())
        if raw is None:
            return None
        try:
            found = msgspec.json.decode(raw)
            if isinstance(found, dict) and found.get("format") != FORMAT:
                raise ForeignStore(
                    f"{self.directory}: the checkpoint of {name!r} has format {found.get('format')!r}; this version of "
                    f"refold knows {FORMAT}."
                )
            return msgspec.convert(found, _Record, str_keys=True).checkpoint
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self.directory}: the checkpoint of {name!r} cannot be read: {error}.") from error

    def save(self, name: str, checkpoint: ProjectionCheckpoint) -> None:
        """Replace the checkpoint, durably.

        Raises:
            StorageError: The disk; the old one is as it was.
        """
        with self._open() as db:
            db.put(name.encode(), msgspec.json.encode(_Record(checkpoint=checkpoint)), write_opt=_synced())

    def delete(self, name: str) -> None:
        """Delete it, durably; a missing one is as good as deleted.

        Raises:
            StorageError: The disk.
        """
        if self.directory.is_dir():
            with self._open() as db:
                db.delete(name.encode(), write_opt=_synced())

    @contextmanager
    def _open(self) -> Iterator[Rdict]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.directory.parent.mkdir(parents=True, exist_ok=True)
                db = Rdict(str(self.directory), Options(raw_mode=True))
                break
            except Exception as error:
                text = str(error)
                if "LOCK" not in text:
                    raise StorageError(f"{self.directory} cannot be opened: {text}.") from error
                if time.monotonic() > deadline:
                    raise StoreLocked(f"{self.directory} is open in another process.") from error
                time.sleep(_RETRY_S)
        try:
            yield db
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"{self.directory}: RocksDB failed: {error}.") from error
        finally:
            db.close()


def _synced() -> WriteOptions:
    options = WriteOptions()
    options.sync = True
    return options
