"""A build: one fold of a generation from its beginning. What it is of is written once and never changed.

builds/3/manifest.json   what the stores below are of, written once; readers hold it (flock) while they read
builds/3/rebuild.json    how the rebuild went that made it, if one did
builds/3/folding/        one file (flock) for each process that folds in it
builds/3/0/ 1/ …         one RocksDB a partition
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from projections.table import Table
from streams.data.codec import EventCodec, describe
from streams.data.files import FILES
from streams.data.store import StoreState
from streams.data.stores import Kind, OpenStore, Stores
from streams.data.tables import table_of
from streams.errors import BuildChanged, ForeignStore, StorageError, StoreCorrupt
from streams.log import get_logger
from streams.prepared import prepared
from streams.types import Counts, TopicInfo

__all__ = ["Build", "Current", "Manifest", "RebuildRecord", "current_build", "read_record", "write_record"]

log = get_logger(__name__)

FORMAT = 2
CURRENT = "current.json"
MANIFEST = "manifest.json"
REBUILD = "rebuild.json"
CLAIM_LOCK = "claim.lock"
REBUILD_LOCK = "rebuild.lock"
UNFINISHED = ".refold-"
_OURS = (CLAIM_LOCK, REBUILD_LOCK, "builds", "snapshots", "refolds", "cuts")

R = TypeVar("R", bound=msgspec.Struct)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a build is of."""

    format: int = FORMAT
    projection: str
    version: int
    fingerprint: str
    """Of the projection's code."""
    codec: str
    """How records are read as events, with all options; see `codec.describe`."""
    topic: str
    topic_id: str
    partitions: int
    build: int = 0
    """Numbered from 1; 0 in the description of one that is not made yet."""
    directory: str = ""
    """The random id of the state directory that it was made in."""
    origin: int = 0
    """The build in which this fold began: another one where a rebuild went on from that one's models."""
    table: Table | None = None
    """The table of its models, where they are kept in a database; None where it is older than that."""
    incomplete: bool = False
    """The topic lacked events when this began, and that was allowed."""
    made: str = ""
    """UTC, to the second."""

    @classmethod
    def of(
        cls, projection: CqrsProjection[Any], topic: TopicInfo, codec: EventCodec, *, incomplete: bool = False
    ) -> Manifest:
        """Describe this projection's code folding this topic, read with this codec."""
        return cls(
            projection=projection.name,
            version=projection.version,
            fingerprint=fingerprint(projection),
            codec=describe(codec),
            topic=topic.name,
            topic_id=topic.id,
            partitions=topic.partitions,
            table=table_of(projection),
            incomplete=incomplete,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
        )


class RebuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The rebuild that a build was made by: kept beside its manifest, and replaced when the rebuild ends.

    One that says that it runs, while no process holds the rebuild's lock, was killed.
    """

    format: int = FORMAT
    strategy: str
    starts: dict[int, int]
    """By partition, where its fold begins."""
    targets: dict[int, int]
    """By partition, the end as pinned when the rebuild began."""
    before: Counts = Counts()
    """What the models had been folded of before it began."""
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Literal["running", "completed", "cancelled", "failed"] = "running"
    error: str | None = None
    """What ended it before its end."""
    events: int = 0
    models: int | None = None
    deleted: int = 0
    declined: int = 0
    dead_letters: int = 0
    """Events that waited as dead letters in the end."""
    skipped: int = 0
    """Events that were left out because they could not be folded."""
    seconds: float = 0.0
    """How long the process took that ended it."""
    events_per_second: float = 0.0
    """The rate of that process."""

    def is_unfinished(self, states: Mapping[int, StoreState]) -> bool:
        """Say whether it ended before its end, and there is still something of it to do.

        Args:
            states: Where the build's stores are.
        """
        return self.outcome != "completed" and any(
            partition not in states or states[partition].position < target for partition, target in self.targets.items()
        )


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """Which build is current, and the code that its state counts as the fold of. Replaced as a whole, atomically."""

    format: int = FORMAT
    directory: str
    build: int
    revision: int
    """How often this record has been replaced."""
    version: int
    fingerprint: str
    """Of the code that may go on: the manifest's, or another that was adopted since."""
    codec: str


prepared(Manifest, RebuildRecord, Current)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build as it was current when this process looked. Plain data: it can be given to another process."""

    root: Path
    """The state directory."""
    current: Current
    manifest: Manifest
    kind: Kind = FILES
    """What its stores are kept in."""

    @property
    def stores(self) -> Stores:
        """Where its partitions' stores are."""
        return self.kind.stores(self.path, self.manifest.table or Table())

    @property
    def counts_as(self) -> Manifest:
        """What it is of, with the code and the codec whose fold it counts as."""
        current = self.current
        return msgspec.structs.replace(
            self.manifest, version=current.version, fingerprint=current.fingerprint, codec=current.codec
        )

    @property
    def path(self) -> Path:
        """The build's own directory."""
        return self.root / "builds" / str(self.manifest.build)

    @property
    def is_in_files(self) -> bool:
        """Whether its stores are files on this machine, which can be copied, sent and fetched."""
        return self.kind == FILES

    def open(self, partition: int, start: int, *, owns: bool = False) -> OpenStore:
        """Open one partition's store for writing.

        Args:
            partition: The partition.
            start: The position of a store that is new.
            owns: See `Stores.open`.

        Raises:
            StoreLocked, StoreCorrupt, ForeignStore, StorageError: See `Stores.open`.
        """
        return self.stores.open(partition, self.fresh(partition, start), owns=owns)

    def fresh(self, partition: int, start: int) -> StoreState:
        """Give the state of a store that has folded nothing."""
        return StoreState(
            directory=self.manifest.directory,
            build=self.manifest.build,
            partition=partition,
            start=start,
            position=start,
        )

    def rebuild(self) -> RebuildRecord | None:
        """Give the record of the rebuild that made this build; None where none did, or it cannot be understood.

        Raises:
            ForeignStore, StorageError: It cannot be read.
        """
        try:
            return read_record(self.path / REBUILD, RebuildRecord)
        except StoreCorrupt as error:
            log.warning("rebuild.record_unreadable", path=str(self.path / REBUILD), why=str(error))
            return None

    def write_rebuild(self, record: RebuildRecord) -> None:
        """Keep the record of the rebuild that makes this build.

        Raises:
            StorageError: The disk.
        """
        write_record(self.path / REBUILD, record)

    def has(self, partition: int) -> bool:
        """Say whether a partition has a store."""
        return self.stores.has(partition)

    def partitions(self) -> Iterator[int]:
        """Yield the partitions that have a store."""
        return filter(self.has, range(self.manifest.partitions))

    def check_current(self) -> None:
        """Make sure that nobody has made another build, or other code, the current one.

        Raises:
            BuildChanged: Somebody has.
            StorageError: The record cannot be read.
        """
        found = read_record(self.root / CURRENT, Current)
        if found != self.current:
            what = "nothing" if found is None else f"build {found.build}, revision {found.revision}"
            raise BuildChanged(
                f"{self.root} is now {what}, and this process folds build {self.current.build}, revision "
                f"{self.current.revision}: somebody rebuilt it, adopted it for other code or removed it "
                "meanwhile. What "
                "this process had committed before is kept in its build; start it again to go on from what is current.",
                projection=self.manifest.projection,
                topic=self.manifest.topic,
            )


def current_build(directory: Path, kind: Kind = FILES) -> Build | None:
    """Give the build that is current in a state directory; see `StateStore.current`."""
    current = read_record(directory / CURRENT, Current)
    if current is None:
        _check_ours(directory)
        return None
    manifest = read_record(directory / "builds" / str(current.build) / MANIFEST, Manifest)
    if manifest is None:
        # Replaced since the record was read? Then it names another one now.
        if read_record(directory / CURRENT, Current) != current:
            return current_build(directory, kind)
        raise StoreCorrupt(
            f"{directory} names build {current.build} as current, and that is not there. The log is the truth: "
            "rebuild from the beginning."
        )
    return Build(root=directory, current=current, manifest=manifest, kind=kind)


def _check_ours(directory: Path) -> None:
    try:
        others = sorted(
            entry.name for entry in directory.iterdir() if entry.name not in _OURS and not entry.name.startswith(".re")
        )
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{directory} cannot be read: {error.strerror}.") from error
    if others:
        hint = " It was written by refold 0.1." if "refold.json" in others else ""
        raise ForeignStore(
            f"{directory} has no {CURRENT} but holds {', '.join(others[:3])}: it is not a state directory of "
            f"this refold.{hint} Name another one; nothing in it was touched."
        )


def restore_current(directory: Path, kind: Kind, group: str) -> bool:
    """Write down again what a database knows of a generation, where it is not what is here; say whether that was so.

    Args:
        directory: The generation's state directory.
        kind: What its stores are kept in.
        group: Its consumer group, "" where it is not known.

    Raises:
        ForeignStore: What it knows is another group's.
        StorageError: It cannot be read, or written.
    """
    known = kind.recall(directory, group)
    if known is None:
        return False
    current = msgspec.json.decode(known[0], type=Current)
    if read_record(directory / CURRENT, Current) == current:
        return False
    path = directory / "builds" / str(current.build)
    (path / "folding").mkdir(parents=True, exist_ok=True)
    write_record(path / MANIFEST, msgspec.json.decode(known[1], type=Manifest))
    write_record(directory / CURRENT, current)
    log.warning("state.recalled", directory=str(directory), build=current.build, kept_in=kind.name)
    return True


def read_record(path: Path, kind: type[R]) -> R | None:
    """Read a durable record; None where there is none.

    Raises:
        ForeignStore: Its format is unknown.
        StoreCorrupt: It cannot be understood.
        StorageError: It cannot be read.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
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
        return msgspec.convert(found, kind, str_keys=True)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(
            f"{path} cannot be read: {error}. The log is the truth: remove {path.parent} and rebuild."
        ) from error


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Write a record durably: the old or the new one is there after a crash, never a part.

    Raises:
        StorageError: It cannot be written; the old one is as it was.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=UNFINISHED, delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(msgspec.json.encode(record))
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error


def sync_directory(path: Path) -> None:
    """Make what was renamed or made in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def trash_name(path: Path) -> Path:
    """Give a name that nothing is ever opened under."""
    return path.with_name(f".removed-{path.name}-{time.time_ns()}")
