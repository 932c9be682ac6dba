"""A partition's store, read: beside its writer, or where nobody writes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rocksdict import AccessType, Rdict

from streams.data.rocks import WAY_OUT, failure, get_raw, memory_bytes, options
from streams.data.store import MODEL, STATE, StoreState, decode_state, dropped_of, ids_of
from streams.errors import StorageError, StoreCorrupt

__all__ = ["PartitionReader", "read_only", "read_state"]


class PartitionReader:
    """A partition's models as a RocksDB secondary instance sees them: no lock, beside a writer or without one."""

    def __init__(self, path: Path, scratch: Path) -> None:
        try:
            self._db = Rdict(str(path), options(create=False), access_type=AccessType.secondary(str(scratch)))
        except Exception as error:
            raise failure(path, "open", error) from error
        self.path = path

    def state(self) -> StoreState:
        """Give what the store says of itself."""
        raw = get_raw(self._db, self.path, STATE)
        if raw is None:
            raise StoreCorrupt(f"{self.path} has no state record. {WAY_OUT}")
        return decode_state(self.path, raw)

    def get(self, model_id: str) -> bytes | None:
        """Give a model as stored; None where there is none."""
        return get_raw(self._db, self.path, MODEL + model_id.encode())

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield (model id, bytes) in the order of the ids' UTF-8 bytes."""
        for key, value in self.raw_items():
            yield key.decode(), value

    def raw_items(self, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (model id as UTF-8, bytes) in the order of the ids' bytes, from an id on."""
        try:
            pairs: Iterable[tuple[bytes, bytes]] = self._db.items(from_key=MODEL + first)  # type: ignore[assignment]
            for key, value in pairs:
                if not key.startswith(MODEL):
                    return
                yield key[1:], value
        except (GeneratorExit, StorageError):
            raise
        except Exception as error:
            raise failure(self.path, "read", error) from error

    def ids(self) -> Iterator[bytes]:
        """Yield every model's id, as UTF-8, in the order of the bytes."""
        return ids_of(self._db, self.path)

    def dropped(self) -> Iterator[int]:
        """Yield the offsets of events that are never to be folded."""
        return dropped_of(self._db, self.path)

    def memory_bytes(self) -> int:
        """Give the memory that RocksDB takes for it."""
        return memory_bytes(self._db)

    def catch_up(self) -> None:
        """See what the writer has committed by now."""
        try:
            self._db.try_catch_up_with_primary()
        except Exception as error:
            raise failure(self.path, "read", error) from error

    def close(self) -> None:
        """Let go of the files."""
        self._db.close()


def read_state(path: Path) -> StoreState:
    """Read what a store says of itself, where nobody writes to it.

    Raises:
        StoreCorrupt, StorageError: It cannot be read.
    """
    try:
        db = Rdict(str(path), options(create=False), access_type=AccessType.read_only())
    except Exception as error:
        raise failure(path, "open", error) from error
    try:
        raw = get_raw(db, path, STATE)
    finally:
        db.close()
    if raw is None:
        raise StoreCorrupt(f"{path} has no state record. {WAY_OUT}")
    return decode_state(path, raw)


def read_only(path: Path, scratch: Path) -> PartitionReader:
    """Open a partition beside its writer.

    Args:
        path: The partition's directory.
        scratch: An empty directory for the secondary's own log files.
    """
    return PartitionReader(path, scratch)
