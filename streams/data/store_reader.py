"""A partition's store, read: beside its writer, or where nobody writes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rocksdict import AccessType, Rdict

from streams.data.rocks import WAY_OUT, failure, get_raw, memory_bytes, options
from streams.data.rocks_partition import SEQUENCE, STATE, dropped_of, ids_of
from streams.data.store import MODEL, StoreState, decode_state
from streams.errors import StorageError, StoreCorrupt
from streams.log import get_logger

__all__ = ["PartitionReader", "read_only", "read_state"]

log = get_logger(__name__)

_OLDER_LOGS = "rocksdb.num-immutable-mem-table"


class PartitionReader:
    """A partition's models as a RocksDB secondary instance sees them: no lock, beside a writer or without one.

    All of them, and the state, are as of one commit. By itself a secondary instance does not see to that, where the
    writer moves its log into tables meanwhile:

    - Between its look at what tables there are and its look at what logs there are, one log may have become a table:
      then it has what is behind that log, and not what was in it. At the next look it has.
    - What it had read of a log before the rest became a table hides what is newer there. Then it has to be opened anew.
      As long as nothing is written behind it, that is seen by what is the last of each batch, and tells its own
      sequence number: where all can be seen, none is behind it. Once something is, by what it keeps of an older log
      although there are other tables by now; after a writer that was opened anew it keeps it for good.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch
        self._db = self._open()
        self._tables = self._tables_now()
        try:
            self.catch_up()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Rdict:
        try:
            return Rdict(str(self.path), options(create=False), access_type=AccessType.secondary(str(self._scratch)))
        except Exception as error:
            raise failure(self.path, "open", error) from error

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

    def digests(self, *_: object) -> None:
        """See StoreReader: whoever compares goes through the models."""

    def dropped(self) -> Iterator[int]:
        """Yield the offsets of events that are never to be folded."""
        return dropped_of(self._db, self.path)

    def memory_bytes(self) -> int:
        """Give the memory that RocksDB takes for it."""
        return memory_bytes(self._db)

    def rest(self) -> None:
        """See StoreReader: it holds on to nothing that others need."""

    def catch_up(self) -> None:
        """See what the writer has committed by now.

        Raises:
            StorageError: It cannot be read.
        """
        self._look()
        if not self._is_whole():
            log.debug("reader.opened_anew", path=str(self.path))
            hiding, self._db = self._db, self._open()
            hiding.close()
            self._tables = self._tables_now()
            self._look()

    def _look(self) -> None:
        """Look until there is nothing new: then all tables were there before the newest log was."""
        seen = None
        try:
            while seen != (seen := self._db.latest_sequence_number()):
                self._db.try_catch_up_with_primary()
        except Exception as error:
            raise failure(self.path, "read", error) from error

    def _is_whole(self) -> bool:
        """Whether nothing is hidden."""
        sequence = get_raw(self._db, self.path, SEQUENCE)
        if sequence is not None and int.from_bytes(sequence, "big") != self._db.latest_sequence_number():
            return False
        return not self._db.property_int_value(_OLDER_LOGS) or self._tables == self._tables_now()

    def _tables_now(self) -> set[str]:
        return {one["name"] for one in self._db.live_files()}

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
