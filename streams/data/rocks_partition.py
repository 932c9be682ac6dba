"""The RocksDB of one partition of one build: its models and its position, written together."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
from rocksdict import Checkpoint, Rdict, WriteBatch, WriteOptions

from streams.data.rocks import failure, get_raw, is_unlocked, memory_bytes, open_db, options
from streams.data.store import DROPPED, MODEL, NOTHING, StoreState, check_identity, decode_state
from streams.errors import ForeignStore
from streams.log import get_logger

__all__ = ["SEQUENCE", "STATE", "RocksPartition", "dropped_of", "ids_of"]

log = get_logger(__name__)

SEQUENCE = b"!sequence"
"""RocksDB's own sequence number of this record, which is the last of each batch; both sort before every model."""
STATE = b"!state"
_UNWRITTEN = "rocksdb.num-immutable-mem-table"


@dataclass(frozen=True, slots=True)
class RocksPartition:
    """One partition's RocksDB, opened for writing: RocksDB's own lock keeps every other process out."""

    path: Path
    _db: Rdict
    _sync: WriteOptions
    _state: list[StoreState]

    @classmethod
    def open(cls, path: Path, fresh: StoreState) -> RocksPartition:
        """Open a partition's store, or make it.

        A new store is made under another name and then renamed, so that under its own name there is a whole one or
        none, wherever a crash comes in.

        Args:
            path: The partition's own directory.
            fresh: What the state is to be where there is none yet; its identity must fit a store that exists.

        Raises:
            StoreLocked: Another process has it open.
            StoreCorrupt: RocksDB cannot open it, or its state cannot be read.
            ForeignStore: It holds another build's or partition's models.
            StorageError: The disk.
        """
        if not path.is_dir():
            cls._make(path, fresh)
        db = open_db(path)
        try:
            raw = get_raw(db, path, STATE)
            if raw is None:
                raise ForeignStore(f"{path} is a RocksDB that refold did not write. Name another state directory.")
            state = decode_state(path, raw)
            check_identity(path, state, fresh)
        except BaseException:
            db.close()
            raise
        sync = WriteOptions()
        sync.sync = True
        return cls(path, db, sync, [state])

    @staticmethod
    def _make(path: Path, fresh: StoreState) -> None:
        for leftover in path.parent.glob(f"{path.name}.new-*"):
            if is_unlocked(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        new = path.with_name(f"{path.name}.new-{secrets.token_hex(4)}")
        try:
            db = Rdict(str(new), options(create=True))
            try:
                _write(db, fresh)
                db.flush(True)
            finally:
                db.close()
            new.rename(path)
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            if path.is_dir():  # another process of ours was faster
                return
            raise failure(path, "open", error) from error

    def carry(self, path: Path, state: StoreState) -> None:
        """Make a store of another build from this one's models as committed; hard links where RocksDB can.

        Args:
            path: Where; its directory must exist and it must not.
            state: What the new store is to say of itself.

        Raises:
            StorageError: The disk. A part may be there.
        """
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
            db = Rdict(str(path), options(create=False))
            try:
                _write(db, state)
                db.flush(True)
            finally:
                db.close()
        except Exception as error:
            raise failure(path, "write", error) from error

    def snapshot(self, path: Path) -> None:
        """Copy the store as committed, by hard links where RocksDB can; under its name there is all of it or nothing.

        Args:
            path: Where; its directory must exist and it must not.

        Raises:
            StorageError: The disk.
        """
        new = path.with_name(f"new-{path.name}")
        try:
            shutil.rmtree(new, ignore_errors=True)
            Checkpoint(self._db).create_checkpoint(str(new))
            new.rename(path)
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            raise failure(path, "write", error) from error

    def cut(self, path: Path) -> ExitStack:
        """See OpenStore: a copy, that needs nobody."""
        self.snapshot(path)
        return ExitStack()

    @staticmethod
    def stamp(path: Path, state: StoreState) -> None:
        """Say of a copy, that nobody has open, what it is now.

        Raises:
            StoreCorrupt, StorageError: It cannot be.
        """
        db = open_db(path)
        try:
            _write(db, state)
            db.flush(True)
        except Exception as error:
            raise failure(path, "write", error) from error
        finally:
            db.close()

    @property
    def state(self) -> StoreState:
        """The state as last committed; the fresh one where nothing was yet."""
        return self._state[0]

    def get(self, model_id: str) -> bytes | None:
        """Give the model as last committed."""
        return get_raw(self._db, self.path, MODEL + model_id.encode())

    def ids(self) -> Iterator[bytes]:
        """Yield every model's id as committed, as UTF-8, in the order of the bytes."""
        return ids_of(self._db, self.path)

    def beside(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See PartitionStore."""
        return beside_of(self._db, self.path, prefix)

    def commit(
        self,
        changes: Iterable[tuple[str, bytes | None]],
        state: StoreState,
        beside: Mapping[bytes, bytes | None] = NOTHING,
    ) -> None:
        """Write models and state in one WriteBatch, synced to disk (see PartitionStore)."""
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for model_id, value in changes:
            if value is None:
                delete(MODEL + model_id.encode())
            else:
                put(MODEL + model_id.encode(), value)
        for key, value in beside.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        try:
            _write(self._db, state, batch, self._sync)
        except Exception as error:
            raise failure(self.path, "write", error) from error
        self._state[0] = state

    def settle(self, within_s: float = 1.0) -> None:
        """Write to tables what only the log has: whoever opens the store need not read that again.

        The state is written once more, into the next log: a secondary instance lets go of what it has read of a log
        once there is something in the next one, and would hide the tables behind it else.

        Args:
            within_s: How long to wait; RocksDB goes on by itself.

        Raises:
            StorageError: The disk.
        """
        try:
            self._db.flush(False)
            _write(self._db, self.state)
            deadline = time.monotonic() + within_s
            while self._db.property_int_value(_UNWRITTEN) and time.monotonic() < deadline:
                time.sleep(0.002)
        except Exception as error:
            raise failure(self.path, "write", error) from error

    def memory_bytes(self) -> int:
        """Give the memory that RocksDB takes for it."""
        return memory_bytes(self._db)

    def close(self) -> None:
        """Let go of the files. Nothing is written that was not committed."""
        try:
            self._db.close()
        except Exception as error:  # noqa: BLE001  (after a failed write RocksDB says so again; the files are let go)
            log.debug("store.close_failed", path=str(self.path), why=str(error))


def _write(db: Rdict, state: StoreState, batch: WriteBatch | None = None, how: WriteOptions | None = None) -> None:
    """Write a state, behind what else there is to write."""
    batch = WriteBatch(raw_mode=True) if batch is None else batch
    batch.put(STATE, msgspec.json.encode(state))
    batch.put(SEQUENCE, (db.latest_sequence_number() + len(batch) + 1).to_bytes(8, "big"))
    db.write(batch, how)


def ids_of(db: Rdict, path: Path) -> Iterator[bytes]:
    """Yield every model's id, as UTF-8, in the order of the bytes."""
    try:
        for key in cast(Iterable[bytes], db.keys(from_key=MODEL)):
            if not key.startswith(MODEL):
                return
            yield key[1:]
    except GeneratorExit:
        raise
    except Exception as error:
        raise failure(path, "read", error) from error


def beside_of(db: Rdict, path: Path, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield what is kept beside the models under keys that begin so, in the order of keys."""
    try:
        for key, value in cast(Iterable[tuple[bytes, bytes]], db.items(from_key=prefix)):
            if not key.startswith(prefix):
                return
            yield key, value
    except GeneratorExit:
        raise
    except Exception as error:
        raise failure(path, "read", error) from error


def dropped_of(db: Rdict, path: Path) -> Iterator[int]:
    """Yield the offsets of events that are never to be folded."""
    return (int.from_bytes(key[len(DROPPED) :], "big") for key, _ in beside_of(db, path, DROPPED))
