"""The state directory of one generation: a manifest, and one store for each partition.

    <directory>/refold.json   which projection, code, topic and epoch the stores below are of
    <directory>/rebuild.lock  held (flock) while a rebuild runs
    <directory>/0/ 1/ …       one RocksDB a partition

The manifest's epoch rules: a partition's store of an older epoch is never read again and is removed when it
is next opened. That makes "clear everything" one atomic step, the manifest's rename, however many partitions
there are and wherever they are opened next.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from projections.contract import CqrsProjection
from projections.registry import fingerprint
from streams.data.serde import serde_for
from streams.data.store import RocksPartition, StoreState, read_only
from streams.errors import CodeChanged, ForeignStore, RebuildError, StorageError, StoreCorrupt, TopicChanged
from streams.log import get_logger
from streams.types import TopicInfo

__all__ = ["Manifest", "ModelReader", "RocksStore"]

log = get_logger(__name__)

FORMAT = 1
MANIFEST = "refold.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a state directory is of."""

    format: int = FORMAT
    projection: str
    version: int
    fingerprint: str
    """Of the projection's code."""
    topic: str
    topic_id: str
    partitions: int
    epoch: int = 1
    """Raised by each rebuild from the beginning."""

    @classmethod
    def of(cls, projection: CqrsProjection[Any], topic: TopicInfo) -> Manifest:
        """Describe this projection's code folding this topic."""
        return cls(
            projection=projection.name,
            version=projection.version,
            fingerprint=fingerprint(projection),
            topic=topic.name,
            topic_id=topic.id,
            partitions=topic.partitions,
        )


class RocksStore:
    """Read models and positions in RocksDB, one store a partition, below one directory.

    Args:
        directory: This generation's own directory; made when first written to.
        wait_s: How long to wait for a store that another process is closing, in seconds.
    """

    def __init__(self, directory: str | os.PathLike[str], *, wait_s: float = 10.0) -> None:
        self.directory = Path(directory)
        self._wait_s = wait_s

    def manifest(self) -> Manifest | None:
        """Read what the directory is of; None where it is empty or does not exist.

        Raises:
            ForeignStore: Other files are in it, or its format is unknown.
            StoreCorrupt: The manifest cannot be read.
        """
        path = self.directory / MANIFEST
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            others = self._entries()
            if others:
                raise ForeignStore(
                    f"{self.directory} has no {MANIFEST} but holds {', '.join(others[:3])}: it is not a state "
                    "directory of refold. Name another one; nothing in it was touched."
                ) from None
            return None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            found = msgspec.json.decode(raw)
            if isinstance(found, dict) and found.get("format") != FORMAT:
                raise ForeignStore(
                    f"{path} has format {found.get('format')!r}; this version of refold knows {FORMAT}. "
                    "Use the version that wrote it, or name another state directory."
                )
            return msgspec.convert(found, Manifest)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(
                f"{path} cannot be read: {error}. The log is the truth: remove the directory and rebuild."
            ) from error

    def claim(self, wanted: Manifest, *, adopt: bool = False) -> Manifest:
        """Make sure that the directory is this projection's, of this topic and this code; found it if it is empty.

        Args:
            wanted: What the caller is about to fold; its epoch does not matter.
            adopt: State that the code changed but the fold did not: keep the state and take the new fingerprint.

        Raises:
            ForeignStore: It is another projection's, or another topic's.
            TopicChanged: The topic was made again or its partition count changed.
            CodeChanged: The projection's code is not the code that folded the state.
        """
        found = self.manifest()
        if found is None:
            self._write(wanted)
            return wanted
        self._check(found, wanted)
        if (found.fingerprint, found.version) == (wanted.fingerprint, wanted.version):
            return found
        if not adopt:
            raise CodeChanged(
                f"{self.directory} was folded by other code of {found.projection!r} (version {found.version}, "
                f"fingerprint {found.fingerprint}; now version {wanted.version}, {wanted.fingerprint}). Going on "
                "would mix two folds. Rebuild from the beginning, or adopt the state (`--adopt`) if the change "
                "does not alter what is folded.",
                projection=found.projection,
                topic=found.topic,
            )
        adopted = msgspec.structs.replace(found, version=wanted.version, fingerprint=wanted.fingerprint)
        self._write(adopted)
        log.warning("state.adopted", directory=str(self.directory), before=found.fingerprint, now=wanted.fingerprint)
        return adopted

    @contextmanager
    def rebuilding(self) -> Iterator[None]:
        """Hold the directory for one rebuild; the lock goes with the process.

        Raises:
            RebuildError: Another rebuild holds it.
        """
        self._mkdir()
        with (self.directory / "rebuild.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RebuildError(
                    f"A rebuild is running on {self.directory} already; let it end or cancel it first."
                ) from None
            yield

    def clear(self, wanted: Manifest, *, at_least: int = 0) -> Manifest:
        """Begin a new epoch: from here on every model and position below the directory is gone.

        1. Open every store once: a process that folds in one of them holds its lock, and nothing is changed.
        2. Write the manifest with the next epoch, durably. This is the instant at which the state is cleared.
        3. Remove the old stores, to give the space back. A crash before the end leaves them to be removed
           when their partition is next opened.

        Args:
            wanted: What is to be folded next; its epoch does not matter.
            at_least: The new epoch is greater than this too (an epoch seen in a committed offset).

        Raises:
            ForeignStore: The directory is another projection's or topic's.
            StoreLocked: Another process folds in it.
        """
        found = self._found_for_clear(wanted)
        # Step 1
        stores = [self.directory / entry for entry in self._entries() if entry.isdigit()]
        if found is not None:
            for path in stores:
                RocksPartition.check_unlocked(path, wait_s=self._wait_s)
        # Step 2
        epoch = max(found.epoch if found else 0, at_least) + 1
        manifest = msgspec.structs.replace(wanted, epoch=epoch)
        self._write(manifest)
        # Step 3
        for path in stores:
            RocksPartition.remove(path)
        log.info("state.cleared", directory=str(self.directory), epoch=epoch)
        return manifest

    def open(self, manifest: Manifest, partition: int, start: int) -> RocksPartition:
        """Open one partition's store for writing.

        Args:
            manifest: What the directory is of, as `claim` or `clear` gave it.
            partition: The partition.
            start: The position of a store that is new.

        Raises:
            StoreLocked, StoreCorrupt, ForeignStore: See RocksPartition.open.
        """
        fresh = StoreState(
            projection=manifest.projection,
            topic_id=manifest.topic_id,
            partition=partition,
            epoch=manifest.epoch,
            start=start,
            position=start,
        )
        return RocksPartition.open(self.directory / str(partition), fresh, wait_s=self._wait_s)

    def reader(self, projection: CqrsProjection[Any]) -> ModelReader:
        """Open the models for reading, beside whoever folds them. Close it, or use it in `with`.

        Raises:
            StorageError: There is no state in the directory.
        """
        manifest = self.manifest()
        if manifest is None:
            raise StorageError(f"{self.directory} holds no read models yet: fold the topic first (`refold run`).")
        return ModelReader(self.directory, manifest, projection)

    def _found_for_clear(self, wanted: Manifest) -> Manifest | None:
        try:
            found = self.manifest()
        except StoreCorrupt:
            log.warning("state.manifest_unreadable", directory=str(self.directory))
            return None
        if found is not None and found.projection != wanted.projection:
            raise _foreign(self.directory, "projection", found.projection, wanted.projection)
        if found is not None and found.topic != wanted.topic:
            raise _foreign(self.directory, "topic", found.topic, wanted.topic)
        return found

    def _check(self, found: Manifest, wanted: Manifest) -> None:
        if found.projection != wanted.projection:
            raise _foreign(self.directory, "projection", found.projection, wanted.projection)
        if found.topic != wanted.topic:
            raise _foreign(self.directory, "topic", found.topic, wanted.topic)
        if found.topic_id != wanted.topic_id:
            raise TopicChanged(
                f"{wanted.topic} was deleted and made again since {self.directory} was folded from it (topic id "
                f"{found.topic_id}, now {wanted.topic_id}). Its old events are gone: rebuild from the beginning.",
                topic=wanted.topic,
            )
        if found.partitions != wanted.partitions:
            raise TopicChanged(
                f"{wanted.topic} has {wanted.partitions} partitions, and {self.directory} was folded from "
                f"{found.partitions}: keys have moved between partitions. Rebuild from the beginning.",
                topic=wanted.topic,
            )

    def _entries(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self.directory.iterdir() if entry.name != "rebuild.lock")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be read: {error.strerror}.") from error

    def _mkdir(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be made: {error.strerror}.") from error

    def _write(self, manifest: Manifest) -> None:
        """Replace the manifest: the old or the new one is there after a crash, never a part."""
        self._mkdir()
        path = self.directory / MANIFEST
        try:
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix=".refold-", delete=False) as handle:
                handle.write(msgspec.json.encode(manifest))
                handle.flush()
                os.fsync(handle.fileno())
            Path(handle.name).replace(path)
            directory = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from error


class ModelReader:
    """The read models of a generation, as last committed by whoever folds them.

    Each partition is seen as of the instant at which the reader was opened.
    """

    def __init__(self, directory: Path, manifest: Manifest, projection: CqrsProjection[Any]) -> None:
        if manifest.projection != projection.name:
            raise _foreign(directory, "projection", manifest.projection, projection.name)
        self._decode = serde_for(projection.model_type()).decode
        self._scratch = tempfile.TemporaryDirectory(prefix="refold-reader-")
        self._partitions: dict[int, Any] = {}
        try:
            for number in range(manifest.partitions):
                if (directory / str(number)).is_dir():
                    reader = read_only(directory / str(number), Path(self._scratch.name) / str(number))
                    self._partitions[number] = reader
                    state = reader.state()
                    if state is None or state.epoch != manifest.epoch:
                        self._partitions.pop(number).close()
        except BaseException:
            self.close()
            raise

    def get(self, model_id: str) -> Any | None:
        """Give one model, or None. Every partition is asked: which one a key is in is the producer's choice."""
        raw = self.get_raw(model_id)
        return None if raw is None else self._decode(raw)

    def get_raw(self, model_id: str) -> bytes | None:
        """Give one model as stored."""
        return next((raw for p in self._partitions.values() if (raw := p.get(model_id)) is not None), None)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield every (id, model), by partition and then by id."""
        decode = self._decode
        for model_id, raw in self.raw_items():
            yield model_id, decode(raw)

    def raw_items(self) -> Iterator[tuple[str, bytes]]:
        """Yield every (id, model as stored), by partition and then by id."""
        for number in sorted(self._partitions):
            yield from self._partitions[number].items()

    def states(self) -> dict[int, StoreState]:
        """Give what each partition's store says of itself, by partition."""
        return {number: partition.state() for number, partition in self._partitions.items()}

    def count(self) -> int:
        """Give the number of models."""
        return sum(state.models for state in self.states().values())

    def close(self) -> None:
        """Let go of the files."""
        for partition in self._partitions.values():
            partition.close()
        self._partitions.clear()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _foreign(directory: Path, what: str, found: str, wanted: str) -> ForeignStore:
    return ForeignStore(
        f"{directory} holds the state of {what} {found!r}, not of {wanted!r}. Name another state directory; "
        "nothing in it was touched."
    )
