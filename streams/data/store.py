"""The RocksDB of one partition of one build: its models and its position, written together."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import msgspec
import rocksdict
from rocksdict import AccessType, BlockBasedOptions, Checkpoint, Options, Rdict, WriteBatch, WriteOptions

from streams.errors import ForeignStore, StorageError, StoreCorrupt, StoreLocked
from streams.log import get_logger

__all__ = ["PartitionReader", "PartitionStore", "RocksPartition", "StoreState", "read_only", "read_state"]

log = get_logger(__name__)

FORMAT = 2
_STATE = b"!state"  # sorts before every model
_MODEL = b"m"


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition's store says of itself; written in the same batch as the models."""

    format: int = FORMAT
    directory: str
    """The id of the state directory."""
    build: int
    partition: int
    start: int
    """The position at which this fold began: the log's start offset then."""
    position: int
    """The next offset to fold: every event from `start` up to it is in the models, and none after it."""
    models: int = 0
    events: int = 0
    """Events read since `start`."""
    declined: int = 0
    deleted: int = 0
    """Events at which `apply_to_model` gave None."""
    last_event_id: str | None = None
    last_event_time: str | int | None = None
    """When the event folded last happened, as it says."""
    record_ms: int | None = None
    """Kafka's timestamp of the record folded last, in milliseconds since 1970."""

    @property
    def gave_nothing(self) -> bool:
        """Whether there were events to fold, and every one of them gave None."""
        return 0 < self.deleted == self.events - self.declined


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
        db = _open_db(path)
        try:
            raw = _get(db, path, _STATE)
            if raw is None:
                raise ForeignStore(f"{path} is a RocksDB that refold did not write. Name another state directory.")
            state = _decode_state(path, raw)
            _check_identity(path, state, fresh)
        except BaseException:
            db.close()
            raise
        sync = WriteOptions()
        sync.sync = True
        return cls(path, db, sync, [state])

    @staticmethod
    def _make(path: Path, fresh: StoreState) -> None:
        for leftover in path.parent.glob(f"{path.name}.new-*"):
            if _is_unlocked(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        new = path.with_name(f"{path.name}.new-{secrets.token_hex(4)}")
        try:
            db = Rdict(str(new), _options(create=True))
            try:
                db.put(_STATE, msgspec.json.encode(fresh))
                db.flush(True)
            finally:
                db.close()
            new.rename(path)
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            if path.is_dir():  # another process of ours was faster
                return
            raise _failure(path, "open", error) from error

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
            db = Rdict(str(path), _options(create=False))
            try:
                db.put(_STATE, msgspec.json.encode(state))
                db.flush(True)
            finally:
                db.close()
        except Exception as error:
            raise _failure(path, "write", error) from error

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
            raise _failure(path, "write", error) from error

    @staticmethod
    def stamp(path: Path, state: StoreState) -> None:
        """Say of a copy, that nobody has open, what it is now.

        Raises:
            StoreCorrupt, StorageError: It cannot be.
        """
        db = _open_db(path)
        try:
            db.put(_STATE, msgspec.json.encode(state))
            db.flush(True)
        except Exception as error:
            raise _failure(path, "write", error) from error
        finally:
            db.close()

    @property
    def state(self) -> StoreState:
        """The state as last committed; the fresh one where nothing was yet."""
        return self._state[0]

    def get(self, model_id: str) -> bytes | None:
        """Give the model as last committed."""
        return _get(self._db, self.path, _MODEL + model_id.encode())

    def ids(self) -> Iterator[bytes]:
        """Yield every model's id as committed, as UTF-8, in the order of the bytes."""
        return _ids(self._db, self.path)

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
        try:
            self._db.close()
        except Exception as error:  # noqa: BLE001  (after a failed write RocksDB says so again; the files are let go)
            log.debug("store.close_failed", path=str(self.path), why=str(error))


class PartitionReader:
    """A partition's models as a RocksDB secondary instance sees them: no lock, beside a writer or without one."""

    def __init__(self, path: Path, scratch: Path) -> None:
        try:
            self._db = Rdict(str(path), _options(create=False), access_type=AccessType.secondary(str(scratch)))
        except Exception as error:
            raise _failure(path, "open", error) from error
        self.path = path

    def state(self) -> StoreState:
        """Give what the store says of itself."""
        raw = _get(self._db, self.path, _STATE)
        if raw is None:
            raise StoreCorrupt(f"{self.path} has no state record. {_WAY_OUT}")
        return _decode_state(self.path, raw)

    def get(self, model_id: str) -> bytes | None:
        """Give a model as stored; None where there is none."""
        return _get(self._db, self.path, _MODEL + model_id.encode())

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield (model id, bytes) in the order of the ids' UTF-8 bytes."""
        try:
            pairs: Iterable[tuple[bytes, bytes]] = self._db.items(from_key=_MODEL)  # type: ignore[assignment]
            for key, value in pairs:
                if not key.startswith(_MODEL):
                    return
                yield key[1:].decode(), value
        except (GeneratorExit, StorageError):
            raise
        except Exception as error:
            raise _failure(self.path, "read", error) from error

    def ids(self) -> Iterator[bytes]:
        """Yield every model's id, as UTF-8, in the order of the bytes."""
        return _ids(self._db, self.path)

    def close(self) -> None:
        """Let go of the files."""
        self._db.close()


def _ids(db: Rdict, path: Path) -> Iterator[bytes]:
    try:
        for key in cast(Iterable[bytes], db.keys(from_key=_MODEL)):
            if not key.startswith(_MODEL):
                return
            yield key[1:]
    except GeneratorExit:
        raise
    except Exception as error:
        raise _failure(path, "read", error) from error


def read_state(path: Path) -> StoreState:
    """Read what a store says of itself, where nobody writes to it.

    Raises:
        StoreCorrupt, StorageError: It cannot be read.
    """
    try:
        db = Rdict(str(path), _options(create=False), access_type=AccessType.read_only())
    except Exception as error:
        raise _failure(path, "open", error) from error
    try:
        raw = _get(db, path, _STATE)
    finally:
        db.close()
    if raw is None:
        raise StoreCorrupt(f"{path} has no state record. {_WAY_OUT}")
    return _decode_state(path, raw)


def read_only(path: Path, scratch: Path) -> PartitionReader:
    """Open a partition beside its writer.

    Args:
        path: The partition's directory.
        scratch: An empty directory for the secondary's own log files.
    """
    return PartitionReader(path, scratch)


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


def _open_db(path: Path) -> Rdict:
    try:
        return Rdict(str(path), _options(create=False))
    except Exception as error:
        if not _is_lock(error):
            raise _failure(path, "open", error) from error
        raise StoreLocked(
            f"{path} is open in another process. One process folds a partition of a build at a time: stop the "
            "other one "
            f"(`fuser {path}/LOCK` tells its id), or name another state directory."
        ) from error


def _is_unlocked(path: Path) -> bool:
    """Say whether no process has a store open; a damaged one, or a part of one, has nobody."""
    try:
        Rdict(str(path), _options(create=True)).close()
    except Exception as error:  # noqa: BLE001  (it is to be removed: only a lock speaks against that)
        return not _is_lock(error)
    return True


def _is_lock(error: Exception) -> bool:
    text = str(error)
    return "lock" in text.lower() and "LOCK" in text


def _get(db: Rdict, path: Path, key: bytes) -> bytes | None:
    try:
        value: bytes | None = db.get(key)
    except Exception as error:
        raise _failure(path, "read", error) from error
    return value


_WAY_OUT = (
    "The log is the truth: rebuild from the beginning, or remove this directory and the partition is folded again at "
    "the next start."
)
_CORRUPT = ("orruption", "checksum", "does not exist", "No such file", "ad table magic", "truncated")
_FULL = "No space left"


def _failure(path: Path, doing: str, error: Exception) -> StorageError:
    text = str(error)
    if any(sign in text for sign in _CORRUPT):
        tried = {"open": "opened", "read": "read"}.get(doing, f"{doing}ten")
        return StoreCorrupt(f"{path} cannot be {tried}: {text}. {_WAY_OUT}")
    advice = " The disk is full: make space and start again." if _FULL in text else ""
    return StorageError(f"{path}: RocksDB could not {doing}: {text}. Nothing was committed by this step.{advice}")


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
    for attribute, what in (("directory", "state directory"), ("build", "build"), ("partition", "partition")):
        found, wanted = getattr(state, attribute), getattr(expected, attribute)
        if found != wanted:
            raise ForeignStore(
                f"{path} holds the models of {what} {found}, not of {wanted}: the directory was put together from "
                "others. Name another state directory, or rebuild from the beginning."
            )
