"""The RocksDB of one partition of one generation: its models and its position, written together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import rocksdict
from rocksdict import AccessType, BlockBasedOptions, Options, Rdict, WriteBatch, WriteOptions

from streams.errors import ForeignStore, StorageError, StoreCorrupt, StoreLocked

__all__ = ["PartitionStore", "RocksPartition", "StoreState", "read_only"]

FORMAT = 1
_STATE = b"!state"  # sorts before every model
_MODEL = b"m"
_LOCK_RETRY_S = 0.05


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition's store says of itself; written in the same batch as the models."""

    format: int = FORMAT
    projection: str
    topic_id: str
    partition: int
    epoch: int
    start: int
    """The position at which this fold began: the log's start offset then."""
    position: int
    """The next offset to fold: every event from `start` up to it is in the models, and none after it."""
    models: int = 0
    events: int = 0
    """Events read since `start`."""
    declined: int = 0
    last_event_id: str | None = None


class PartitionStore(Protocol):
    """Where a fold keeps the models and the position of one partition."""

    @property
    def state(self) -> StoreState:
        """The state as last committed."""
        ...

    def get(self, model_id: str) -> bytes | None:
        """Give the model as last committed."""
        ...

    def commit(self, changes: Iterable[tuple[str, bytes | None]], state: StoreState) -> None:
        """Write models (None deletes) and state in one atomic, durable step.

        Nothing is written where iterating `changes` raises.
        """
        ...

    def close(self) -> None:
        """Let go of the files, without writing."""
        ...


@dataclass(frozen=True, slots=True)
class RocksPartition:
    """One partition's RocksDB, opened for writing: RocksDB's own lock keeps every other process out."""

    path: Path
    _db: Rdict
    _sync: WriteOptions
    _state: list[StoreState]

    @classmethod
    def open(cls, path: Path, fresh: StoreState, *, wait_s: float) -> RocksPartition:
        """Open a partition's store, or make it.

        1. Move aside and remove what an interrupted removal left.
        2. Open, waiting up to `wait_s` for a process that is just letting go of it.
        3. Read its state; a store of an older epoch is removed and made anew.

        Args:
            path: The partition's own directory.
            fresh: What the state is to be where there is none yet; its identity must fit a store that exists.
            wait_s: Seconds to wait for the lock.

        Raises:
            StoreLocked: Another process has it open.
            StoreCorrupt: RocksDB cannot open it, or its state cannot be read.
            ForeignStore: It holds another projection's, topic's or partition's models.
        """
        # Step 1
        _remove_trash(path)
        # Step 2
        store = cls._open(path, fresh, wait_s)
        # Step 3
        if store.state.epoch < fresh.epoch:
            store.close()
            cls.remove(path)
            store = cls._open(path, fresh, wait_s)
        return store

    @classmethod
    def _open(cls, path: Path, fresh: StoreState, wait_s: float) -> RocksPartition:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = _open_db(path, wait_s)
        try:
            raw = db.get(_STATE)
            if raw is None and next(iter(db.keys()), None) is not None:
                raise ForeignStore(f"{path} is a RocksDB that refold did not write. Name another state directory.")
            state = fresh if raw is None else _decode_state(path, raw)
            _check_identity(path, state, fresh)
        except BaseException:
            db.close()
            raise
        sync = WriteOptions()
        sync.sync = True
        return cls(path, db, sync, [state])

    @staticmethod
    def check_unlocked(path: Path, *, wait_s: float) -> None:
        """Make sure that no process has a store open. A damaged store has nobody who could fold in it.

        Raises:
            StoreLocked: One has, and still had after `wait_s`.
        """
        try:
            _open_db(path, wait_s).close()
        except StoreCorrupt:
            return

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a store so that a crash in the middle leaves all of it, or nothing that is ever opened."""
        trash = path.with_name(f"{path.name}.removed-{time.time_ns()}")
        path.rename(trash)
        shutil.rmtree(trash)

    @property
    def state(self) -> StoreState:
        """The state as last committed; the fresh one where nothing was yet."""
        return self._state[0]

    def get(self, model_id: str) -> bytes | None:
        """Give the model as last committed."""
        try:
            value: bytes | None = self._db.get(_MODEL + model_id.encode())
        except Exception as error:
            raise _failure(self.path, "read", error) from error
        return value

    def commit(self, changes: Iterable[tuple[str, bytes | None]], state: StoreState) -> None:
        """Write models and state in one WriteBatch, synced to disk (see PartitionStore)."""
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for model_id, value in changes:
            if value is None:
                delete(_MODEL + model_id.encode())
            else:
                put(_MODEL + model_id.encode(), value)
        put(_STATE, msgspec.json.encode(state))
        try:
            self._db.write(batch, self._sync)
        except Exception as error:
            raise _failure(self.path, "write", error) from error
        self._state[0] = state

    def close(self) -> None:
        """Let go of the files. Nothing is written that was not committed."""
        self._db.close()


class _Reader:
    """A partition's models as a RocksDB secondary instance sees them: no lock, beside a writer or without one."""

    def __init__(self, path: Path, scratch: Path) -> None:
        try:
            self._db = Rdict(str(path), _options(create=False), access_type=AccessType.secondary(str(scratch)))
        except Exception as error:
            raise _failure(path, "open", error) from error
        self.path = path

    def state(self) -> StoreState | None:
        raw = self._db.get(_STATE)
        return None if raw is None else _decode_state(self.path, raw)

    def get(self, model_id: str) -> bytes | None:
        value: bytes | None = self._db.get(_MODEL + model_id.encode())
        return value

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield (model id, bytes) in the order of the ids' UTF-8 bytes."""
        pairs: Iterable[tuple[bytes, bytes]] = self._db.items(from_key=_MODEL)  # type: ignore[assignment]
        for key, value in pairs:
            if not key.startswith(_MODEL):
                return
            yield key[1:].decode(), value

    def close(self) -> None:
        self._db.close()


def read_only(path: Path, scratch: Path) -> _Reader:
    """Open a partition beside its writer.

    Args:
        path: The partition's directory.
        scratch: An empty directory for the secondary's own log files.
    """
    return _Reader(path, scratch)


def _remove_trash(path: Path) -> None:
    for trash in path.parent.glob(f"{path.name}.removed-*"):
        shutil.rmtree(trash, ignore_errors=True)


def _options(*, create: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_max_open_files(-1)  # a secondary instance must be able to hold what the writer deletes
    options.set_write_buffer_size(8 << 20)
    options.set_max_write_buffer_number(2)
    options.set_max_total_wal_size(32 << 20)
    options.set_keep_log_file_num(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_bloom_filter(10, block_based=False)
    options.set_block_based_table_factory(table)
    return options


def _open_db(path: Path, wait_s: float) -> Rdict:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return Rdict(str(path), _options(create=True))
        except Exception as error:
            if not _is_lock(error):
                raise _failure(path, "open", error) from error
            if time.monotonic() >= deadline:
                raise StoreLocked(
                    f"{path} is open in another process, and still was after {wait_s:g} s. One process folds a "
                    f"partition of a generation at a time: stop the other one (`fuser {path}/LOCK` tells its id), "
                    "or name another state directory."
                ) from error
            time.sleep(_LOCK_RETRY_S)


def _is_lock(error: Exception) -> bool:
    text = str(error)
    return "lock" in text.lower() and "LOCK" in text


def _failure(path: Path, doing: str, error: Exception) -> StorageError:
    text = str(error)
    if "orruption" in text or "checksum" in text or "does not exist" in text or "No such file" in text:
        return StoreCorrupt(
            f"{path} cannot be {'read' if doing == 'open' else doing + ('' if doing == 'read' else 'ten')}: {text}. "
            "The log is the truth: rebuild from the beginning, or remove this directory and the partition "
            "is folded again at the next start."
        )
    return StorageError(f"{path}: RocksDB could not {doing}: {text}. Nothing was committed by this step.")


def _decode_state(path: Path, raw: bytes) -> StoreState:
    try:
        found = msgspec.json.decode(raw)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise ForeignStore(
                f"{path} has store format {found.get('format')!r}; this version of refold knows {FORMAT}. "
                "Use the version that wrote it, or rebuild from the beginning."
            )
        return msgspec.convert(found, StoreState)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"{path}: its state record cannot be read: {error}; it holds {raw[:80]!r}.") from error


def _check_identity(path: Path, state: StoreState, expected: StoreState) -> None:
    for attribute, what in (
        ("projection", "projection"),
        ("topic_id", "topic id"),
        ("partition", "partition"),
    ):
        found, wanted = getattr(state, attribute), getattr(expected, attribute)
        if found != wanted:
            raise ForeignStore(
                f"{path} holds the models of {what} {found}, not of {wanted}. Name another state directory, "
                "or rebuild from the beginning."
            )
    if state.epoch > expected.epoch:
        raise ForeignStore(
            f"{path} is of epoch {state.epoch}, and its generation of epoch {expected.epoch}: the directory was "
            "put together from copies of different age. Rebuild from the beginning."
        )
