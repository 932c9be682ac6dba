"""Stores in files: one RocksDB for each partition of a build, in the state directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from projections.table import Table
from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState
from streams.data.store_reader import PartitionReader, read_state
from streams.data.stores import Shown, Stores

__all__ = ["FILES", "Files", "RocksReader", "RocksStores"]


@dataclass(frozen=True, slots=True)
class RocksStores:
    """One RocksDB a partition, in the build's own directory."""

    path: Path

    def has(self, partition: int) -> bool:
        """See Stores."""
        return self._of(partition).is_dir()

    def open(self, partition: int, fresh: StoreState, *, owns: bool = False) -> RocksPartition:  # noqa: ARG002
        """See Stores; RocksDB's lock goes with its process."""
        return RocksPartition.open(self._of(partition), fresh)

    def read(self, partition: int, scratch: Path) -> PartitionReader:
        """See Stores."""
        return PartitionReader(self._of(partition), scratch)

    def reader(self, scratch: Path) -> RocksReader:
        """See Stores."""
        return RocksReader(self, scratch)

    def read_cut(self, partition: int, path: Path, scratch: Path) -> PartitionReader:  # noqa: ARG002
        """See Stores."""
        return PartitionReader(path, scratch)

    def state(self, partition: int) -> StoreState:
        """See Stores."""
        return read_state(self._of(partition))

    def carry(self, fresh: StoreState, into: Stores, becomes: Callable[[StoreState], StoreState]) -> None:
        """See Stores; by hard links where RocksDB can."""
        assert isinstance(into, RocksStores), "stores of one kind"
        opened = self.open(fresh.partition, fresh)
        try:
            opened.carry(into._of(fresh.partition), becomes(opened.state))
        finally:
            opened.close()

    def size_bytes(self) -> int:
        """See Stores; of all files that are still there."""
        total = 0
        for path in self.path.rglob("*"):
            try:
                if path.is_file():
                    total += path.stat().st_size
            except OSError:
                continue
        return total

    def version_of(self, partition: int) -> object:
        """See Stores."""
        try:
            return self._of(partition).stat().st_ino
        except OSError:
            return None

    def _of(self, partition: int) -> Path:
        return self.path / str(partition)


class RocksReader:
    """Partitions of a build, each as of an instant of its own.

    Args:
        stores: Where they are.
        scratch: A directory of the reader's own, which is there.
    """

    def __init__(self, stores: RocksStores, scratch: Path) -> None:
        self._stores = stores
        self._scratch = scratch
        self._open: dict[int, PartitionReader] = {}

    def open(self, partition: int) -> PartitionReader:
        """See BuildReader."""
        opened = self._open[partition] = self._stores.read(partition, self._scratch / str(partition))
        return opened

    def find(self, model_id: str) -> list[tuple[int, bytes]]:
        """See BuildReader: each is asked, since which one a key is in is the producer's choice."""
        return [(number, raw) for number, one in self._open.items() if (raw := one.get(model_id)) is not None]

    def catch_up(self) -> None:
        """See BuildReader: one after the other."""
        for one in self._open.values():
            one.catch_up()

    def rest(self) -> None:
        """See BuildReader."""

    def close(self) -> None:
        """See BuildReader."""
        for one in self._open.values():
            one.close()
        self._open.clear()


@dataclass(frozen=True, slots=True)
class Files:
    """Stores are files in the state directory: RocksDB, on this machine."""

    name = "files"

    def remember(self, directory: Path, group: str, current: bytes, manifest: bytes) -> None:
        """See Kind: the directory itself says it."""

    def recall(self, directory: Path, group: str) -> None:
        """See Kind."""

    def show(self, projection: str, choose: Callable[[], Shown | None]) -> None:
        """See Kind: who reads goes by the registry."""

    def finish(self, stores: Stores) -> None:
        """See Kind."""

    def forget(self, directory: Path, build: int | None = None) -> bool:  # noqa: ARG002
        """See Kind: they are in it."""
        return True

    def stores(self, path: Path, table: Table) -> RocksStores:  # noqa: ARG002
        """See Kind."""
        return RocksStores(path)

    def remove_all(self) -> None:
        """See Kind: all is in them."""


FILES = Files()
