"""Where the stores of a build's partitions are: the seam between what is folded and what it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from projections.table import Table
from streams.data.store import PartitionStore, StoreState

__all__ = ["BuildReader", "Closes", "Kind", "OpenStore", "Shown", "StoreReader", "Stores"]


class OpenStore(PartitionStore, Protocol):
    """One partition's store, open for writing: nobody else writes to it."""

    def ids(self) -> Iterator[bytes]:
        """Yield every model's id as committed, as UTF-8, in the order of the bytes."""
        ...

    def snapshot(self, path: Path) -> None:
        """Copy the store as committed; under its name there is all of it or nothing.

        Args:
            path: Where; its directory must exist and it must not.

        Raises:
            StorageError: It cannot be.
        """
        ...

    def cut(self, path: Path) -> Closes:
        """Keep what the store has now, as committed, to be read by `Stores.read_cut` as long as this is not closed.

        Args:
            path: What that is asked for by: a directory, which is there once it can be read.

        Raises:
            StorageError: It cannot be.
        """
        ...

    def settle(self, within_s: float = 1.0) -> None:
        """Make the store quick to read after a long fold.

        Args:
            within_s: How long to wait for it.
        """
        ...

    def memory_bytes(self) -> int:
        """Give the memory that it takes in this process."""
        ...


class Closes(Protocol):
    """What is let go in the end."""

    def close(self) -> None:
        """Let it go; nothing is raised."""
        ...


class StoreReader(Protocol):
    """One partition's models as of one commit, beside whoever writes them."""

    def state(self) -> StoreState:
        """Give what the store says of itself."""
        ...

    def get(self, model_id: str) -> bytes | None:
        """Give a model as stored; None where there is none."""
        ...

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Yield (model id, bytes) in the order of the ids' UTF-8 bytes."""
        ...

    def raw_items(self, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (model id as UTF-8, bytes) in the order of the ids' bytes, from an id on."""
        ...

    def ids(self) -> Iterator[bytes]:
        """Yield every model's id, as UTF-8, in the order of the bytes."""
        ...

    def digests(
        self, firsts: Sequence[bytes] | None, every: int, first: bytes, end: bytes | None
    ) -> Iterable[tuple[bytes, int, bytes]] | None:
        """Give (first id, models, SHA-256) of runs of models, made where they are; see `runs_of`.

        Args:
            firsts: Where runs begin; None: one after so many models.
            every: How many that are.
            first: The id that the first one begins with.
            end: The id in front of which the last one ends; None for the last.

        Returns:
            Those runs that have models, in their order; None where this is not done here.
        """
        ...

    def dropped(self) -> Iterable[int]:
        """Yield the offsets of events that are never to be folded."""
        ...

    def rest(self) -> None:
        """Hold on to nothing until it is caught up again: nothing is read meanwhile."""
        ...

    def catch_up(self) -> None:
        """See what is committed by now.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def memory_bytes(self) -> int:
        """Give the memory that it takes in this process."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class BuildReader(Protocol):
    """Partitions of a build, read together: those of a database as of one instant."""

    def open(self, partition: int) -> StoreReader:
        """Open a partition that has a store; this closes it.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def find(self, model_id: str) -> list[tuple[int, bytes]]:
        """Give the partitions, of those that are open, that have a model, and it as stored."""
        ...

    def catch_up(self) -> None:
        """See what is committed by now.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def rest(self) -> None:
        """Hold on to nothing that others need, while nothing is read; what is read next is as of then."""
        ...

    def close(self) -> None:
        """Let go of them."""
        ...


class Stores(Protocol):
    """The stores of one build. Plain data: it can be given to another process."""

    def has(self, partition: int) -> bool:
        """Say whether a partition has a store."""
        ...

    def open(self, partition: int, fresh: StoreState, *, owns: bool = False) -> OpenStore:
        """Open a partition's store for writing, or make it.

        Args:
            partition: The partition.
            fresh: What its state is to be where there is none yet; its identity must fit a store that exists.
            owns: The group has given us the partition. Where a database can, whoever still has it open elsewhere loses
                it after a moment.

        Raises:
            StoreLocked: Somebody else has it open.
            StoreCorrupt, ForeignStore, StorageError: It cannot be opened.
        """
        ...

    def read(self, partition: int, scratch: Path) -> StoreReader:
        """Open a partition's store beside whoever writes to it.

        Args:
            partition: The partition; it has a store.
            scratch: A directory of the reader's own, that need not be there.

        Raises:
            StorageError: It cannot be read.
        """
        ...

    def reader(self, scratch: Path) -> BuildReader:
        """Give what reads several partitions; see `read`.

        Args:
            scratch: A directory of its own, which is there.
        """
        ...

    def read_cut(self, partition: int, path: Path, scratch: Path) -> StoreReader:
        """Open what `OpenStore.cut` has kept.

        Args:
            partition: The partition.
            path: What it was asked for by.
            scratch: See `read`.

        Raises:
            StorageError: It cannot be read, or is not kept any more.
        """
        ...

    def state(self, partition: int) -> StoreState:
        """Read what a store says of itself, where nobody writes to it.

        Raises:
            StoreCorrupt, StorageError: It cannot be read.
        """
        ...

    def carry(self, fresh: StoreState, into: Stores, becomes: Callable[[StoreState], StoreState]) -> None:
        """Take one partition's models over into the stores of another build of the same kind.

        Args:
            fresh: What a new store would say of itself here: it names the partition.
            into: Where to.
            becomes: Gives what the copy is to say of itself, by what the store says.

        Raises:
            StoreLocked, StoreCorrupt, StorageError: It cannot be; a part may be there.
        """
        ...

    def size_bytes(self) -> int:
        """Give what they take, with what is kept for finding them.

        Raises:
            StorageError: It cannot be told.
        """
        ...

    def version_of(self, partition: int) -> object:
        """Give what changes where another store has taken the place of the one that a reader has open."""
        ...


class Shown(NamedTuple):
    """A build whose models are to be seen."""

    stores: Stores
    fresh: StoreState
    """What a new store of it would say of itself."""


class Kind(Protocol):
    """What stores are kept in. Plain data; its text says where that is, without secrets."""

    @property
    def name(self) -> str:
        """What the registry and people call it: files, or postgres."""
        ...

    def remember(self, directory: Path, group: str, current: bytes, manifest: bytes) -> None:
        """Keep which build of a generation is current, where the state directory may be lost and the stores are not.

        Args:
            directory: The generation's state directory, whose name is the generation's.
            group: Its consumer group.
            current: The record of which build is current, as in `current.json`.
            manifest: What that build is of, as in its `manifest.json`.

        Raises:
            ForeignStore: Another deployment's generation of that name is there.
            StorageError: It cannot be kept.
        """
        ...

    def recall(self, directory: Path, group: str) -> tuple[bytes, bytes] | None:
        """Give what was kept so; None where nothing was.

        Args:
            directory: See `remember`.
            group: The group, "" where it is not known.

        Raises:
            ForeignStore: It is another group's: of another deployment.
            StorageError: It cannot be read.
        """
        ...

    def show(self, projection: str, choose: Callable[[], Shown | None]) -> None:
        """Have those who read models where they are kept see those that are active.

        Args:
            projection: Its name.
            choose: Gives which; None where none of this kind are. Called once nobody else shows any.

        Raises:
            StorageError: They see what they saw before.
        """
        ...

    def finish(self, stores: Stores) -> None:
        """Make a build ready to be read, once a rebuild has written it.

        Raises:
            StorageError: It cannot be, or not whole.
        """
        ...

    def forget(self, directory: Path, build: int | None = None) -> bool:
        """Remove the stores of a generation, or of one build of it, that are not in its directory; say whether nothing
        is left.

        Raises:
            StorageError: They cannot be removed.
        """
        ...

    def stores(self, path: Path, table: Table) -> Stores:
        """Give the stores of a build.

        Args:
            path: The build's own directory, which names it: GENERATION/builds/NUMBER.
            table: The table of its models.
        """
        ...

    def remove_all(self) -> None:
        """Remove all that is kept in it, of whichever generation, that is not in their directories.

        Raises:
            StorageError: It cannot be removed.
        """
        ...
