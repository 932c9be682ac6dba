"""RocksDB as every store here opens it, reads it and says what went wrong."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import rocksdict
from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBufferManager

from streams.errors import DiskFull, StorageError, StoreCorrupt, StoreLocked

__all__ = [
    "WAY_OUT",
    "blocks_bytes",
    "failure",
    "get_raw",
    "held_still",
    "is_unlocked",
    "memory_bytes",
    "open_db",
    "options",
]


_TABLES_BYTES = 32 << 20
_BLOCKS_BYTES = 32 << 20


@cache
def _shared() -> tuple[WriteBufferManager, Cache]:
    """Give what all stores of a process share: room for what is not yet in tables, and for blocks that were read.

    So a process takes as much for one partition as for fifty.
    """
    return WriteBufferManager(_TABLES_BYTES, False), Cache(_BLOCKS_BYTES)


def options(*, create: bool) -> Options:
    """Give how a store is set up; whoever opens it, opens it so."""
    tables, blocks = _shared()
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_max_open_files(-1)  # a secondary instance must be able to hold what the writer deletes
    options.set_write_buffer_size(4 << 20)
    options.set_max_write_buffer_number(2)
    options.set_write_buffer_manager(tables)
    options.set_max_total_wal_size(32 << 20)
    options.set_keep_log_file_num(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_block_cache(blocks)
    table.set_bloom_filter(10, block_based=False)
    options.set_block_based_table_factory(table)
    return options


def open_db(path: Path) -> Rdict:
    """Open a store that is there for writing.

    Raises:
        StoreLocked: Another process has it open.
        StoreCorrupt, StorageError: It cannot be opened.
    """
    try:
        return Rdict(str(path), options(create=False))
    except Exception as error:
        if not _is_lock(error):
            raise failure(path, "open", error) from error
        raise _locked(path) from error


def is_unlocked(path: Path) -> bool:
    """Say whether no process has a store open; a damaged one, or a part of one, has nobody."""
    try:
        Rdict(str(path), options(create=True)).close()
    except Exception as error:  # noqa: BLE001  (it is to be removed: only a lock speaks against that)
        return not _is_lock(error)
    return True


@contextmanager
def held_still(path: Path) -> Iterator[None]:
    """Keep all other processes from opening a store that is not open, by RocksDB's own lock.

    Raises:
        StoreLocked: One of them has it open.
        OSError: It has no lock to be held.
    """
    with (path / "LOCK").open("r+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _locked(path) from error
        yield


def _locked(path: Path) -> StoreLocked:
    return StoreLocked(
        f"{path} is open in another process. One process folds a partition of a build at a time: stop the other one "
        f"(`fuser {path}/LOCK` tells its id), or name another state directory."
    )


def _is_lock(error: Exception) -> bool:
    text = str(error)
    return "lock" in text.lower() and "LOCK" in text


def get_raw(db: Rdict, path: Path, key: bytes) -> bytes | None:
    """Read one value; None where there is none.

    Raises:
        StoreCorrupt, StorageError: It cannot be read.
    """
    try:
        value: bytes | None = db.get(key)
    except Exception as error:
        raise failure(path, "read", error) from error
    return value


_MEMORY = ("rocksdb.cur-size-all-mem-tables", "rocksdb.estimate-table-readers-mem")
"""Of the memory that RocksDB takes, its own names: https://github.com/facebook/rocksdb/wiki/Memory-usage-in-RocksDB."""


def memory_bytes(db: Rdict) -> int:
    """Give the memory that an open store takes by itself: tables not yet written, and what is known of its files."""
    return sum(db.property_int_value(name) or 0 for name in _MEMORY)


def blocks_bytes() -> int:
    """Give the memory that blocks take which were read from any store of this process."""
    return int(_shared()[1].get_usage())


WAY_OUT = (
    "The log is the truth: rebuild from the beginning, or remove this directory and the partition is folded again at "
    "the next start."
)
_CORRUPT = ("orruption", "checksum", "does not exist", "No such file", "ad table magic", "truncated")
_FULL = "No space left"


def failure(path: Path, doing: str, error: Exception) -> StorageError:
    """Give what RocksDB's error is, by its words: it has no kinds.

    Args:
        path: The store.
        doing: "open", "read" or "write".
        error: What it raised.
    """
    text = str(error)
    if any(sign in text for sign in _CORRUPT):
        tried = {"open": "opened", "read": "read"}.get(doing, f"{doing}ten")
        return StoreCorrupt(f"{path} cannot be {tried}: {text}. {WAY_OUT}")
    said = f"{path}: RocksDB could not {doing}: {text}. Nothing was committed by this step."
    return DiskFull(f"{said} The disk is full: make space.") if _FULL in text else StorageError(said)
