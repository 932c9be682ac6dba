"""Snapshots: every partition's models as of one position each, beside the builds, to go on from later.

    <directory>/snapshots/.taking-<id>/request.json   who wants one of which build; see `take`
    <directory>/snapshots/.taking-<id>/0/ 1/ …        made by whoever has the partition's store open
    <directory>/snapshots/<id>/manifest.json …        a whole one: renamed, in one step, when all of it is there

A store can be copied only by the process that has it open. So a snapshot is asked for by a file, and each process that
folds answers for its partitions after a commit (`answer`); what nobody has open, whoever asks copies himself. The files
are hard links: a snapshot costs what the models change afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from streams.data.build import FORMAT, MANIFEST, Build, Manifest, read_record, sync_directory, write_record
from streams.data.locks import FileLock, Holder, peek
from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState
from streams.data.store_reader import read_state
from streams.data.trees import digest_of, files_of, link_tree
from streams.errors import CheckpointError, ConfigError, StorageError, StoreCorrupt, StoreLocked
from streams.log import get_logger
from streams.prepared import prepared

__all__ = ["Snapshot", "Snapshots", "listed", "requests"]

log = get_logger(__name__)

DIRECTORY = "snapshots"
_TAKING = ".taking-"
_REMOVED = f"{_TAKING}removed-"
_REQUEST = "request.json"
_LOCK = "taking.lock"
_LOOK_S = 0.05
_NEW_S = 5.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that somebody is waiting for."""

    format: int = FORMAT
    build: int
    directory: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is of; written last."""

    format: int = FORMAT
    id: str
    """When it was asked for, UTC: `20260301T100000123`."""
    of: Manifest
    """The build that it was taken of, with the code and the codec that its models count as the fold of."""
    taken_at: datetime
    positions: dict[int, int]
    """By partition, the next offset to fold. A partition that is not there had folded nothing."""
    events: int
    models: int
    size_bytes: int
    """Of all files. What they share with the builds is on the disk once."""
    files: dict[str, str]
    """Each file's path below the snapshot, and its BLAKE2b digest."""

    def reaches(self, positions: Mapping[int, int]) -> bool:
        """Say whether folding can go on from here to these positions: none is before it."""
        return all(self.positions.get(number, 0) <= position for number, position in positions.items())

    def __str__(self) -> str:
        where = ", ".join(f"{number}@{position}" for number, position in sorted(self.positions.items()))
        return f"{self.id} (positions {where or 'none'}; {self.models:,} models)"


prepared(Request, Snapshot)


class Snapshots:
    """The snapshots in a state directory.

    Args:
        directory: The state directory.
    """

    def __init__(self, directory: Path) -> None:
        self._root = directory / DIRECTORY

    def all(self) -> list[Snapshot]:
        """Give all whole ones, the oldest first; one that cannot be read is named in the log."""
        found = []
        for path in sorted(self._root.glob(f"[0-9]*/{MANIFEST}")):
            try:
                snapshot = read_record(path, Snapshot)
            except StorageError as error:
                log.warning("snapshot.unreadable", path=str(path), why=str(error))
                continue
            if snapshot is not None:
                found.append(snapshot)
        return found

    def get(self, id: str) -> Snapshot:  # noqa: A002 - it is called so
        """Give one.

        Raises:
            CheckpointError: There is none of this id; those that there are, are named.
        """
        snapshots = self.all()
        for snapshot in snapshots:
            if snapshot.id == id:
                return snapshot
        raise CheckpointError(f"There is no snapshot {id!r} in {self._root}. {listed(snapshots)}")

    def take(self, build: Build, *, wait_s: float, stop: Callable[[], bool] = lambda: False) -> Snapshot | None:
        """Take one of every partition of a build, while it is folded or not.

        1. Ask for it.
        2. Wait until each partition that has a store is there; copy what no process has open.
        3. Check and describe what is there, and rename it.

        A crash before the rename leaves what is never listed, and the next one removes.

        Args:
            build: Which build.
            wait_s: How long to wait for those who fold.
            stop: Says whether it is not wanted any more; then None is given.

        Raises:
            ConfigError: The build is not in files.
            StoreLocked: A process has a store open and does not answer in time.
            StoreCorrupt, StorageError: It cannot be written, or what was written cannot be read.
        """
        if not build.is_in_files:
            raise ConfigError(
                f"{build.root} has no snapshots of its own: its models are in {build.kind.name}, with their positions, "
                "and so are both in the database's backups."
            )
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}"
        taking = self._root / f"{_TAKING}{name}"
        try:
            self._root.mkdir(exist_ok=True)
            self._sweep()
            taking.mkdir()
        except OSError as error:
            raise StorageError(f"{taking} cannot be made: {error.strerror}.") from error
        lock = FileLock.take(taking / _LOCK, Holder.me(f"snapshot {name}"))
        assert isinstance(lock, FileLock), "a fresh name"
        try:
            # Step 1
            manifest = build.manifest
            write_record(taking / _REQUEST, Request(build=manifest.build, directory=manifest.directory))
            # Step 2
            if not self._gather(build, taking, wait_s, stop):
                return None
            # Step 3
            snapshot = self._describe(build, taking, name, now, stop)
            if snapshot is None:
                return None
            write_record(taking / MANIFEST, snapshot)
            with contextlib.suppress(OSError):
                (taking / _REQUEST).unlink()
            lock.release(remove=True)
            taking.rename(self._root / name)
            sync_directory(self._root)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"Snapshot {name} of {build.root} cannot be taken: {error.strerror}.") from error
        finally:
            with contextlib.suppress(OSError):
                lock.release()
            shutil.rmtree(taking, ignore_errors=True)
        log.info("snapshot.taken", id=name, positions=snapshot.positions, models=snapshot.models)
        return snapshot

    def _gather(self, build: Build, taking: Path, wait_s: float, stop: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + wait_s
        while missing := [number for number in build.partitions() if not (taking / str(number)).is_dir()]:
            if stop():
                return False
            build.check_current()
            locked: StoreLocked | None = None
            for number in missing:
                try:
                    store = build.open(number, 0)
                except StoreLocked as error:
                    locked = error
                    continue
                try:
                    store.snapshot(taking / str(number))
                finally:
                    store.close()
            if locked is not None and time.monotonic() > deadline:
                raise StoreLocked(
                    f"No snapshot was taken: {locked} It did not answer within {wait_s:g} s.",
                    projection=build.manifest.projection,
                )
            time.sleep(_LOOK_S)
        return True

    def _describe(
        self, build: Build, taking: Path, name: str, now: datetime, stop: Callable[[], bool]
    ) -> Snapshot | None:
        states = {int(path.name): read_state(path) for path in taking.iterdir() if path.name.isdigit()}
        files = {}
        for relative, path in files_of(taking):
            if stop():
                return None
            files[relative] = digest_of(path)
        return Snapshot(
            id=name,
            of=build.counts_as,
            taken_at=now,
            positions={number: state.position for number, state in states.items()},
            events=sum(state.events for state in states.values()),
            models=sum(state.models for state in states.values()),
            size_bytes=sum(path.stat().st_size for _, path in files_of(taking)),
            files=files,
        )

    def verify(self, snapshot: Snapshot) -> None:
        """Make sure that a snapshot's files are as they were when it was taken.

        Raises:
            StoreCorrupt: One is not; it is named.
        """
        path = self._root / snapshot.id
        for relative, digest in snapshot.files.items():
            try:
                found = digest_of(path / relative)
            except OSError as error:
                raise StoreCorrupt(f"Snapshot {snapshot.id}: {relative} cannot be read: {error.strerror}.") from error
            if found != digest:
                raise StoreCorrupt(
                    f"Snapshot {snapshot.id} is damaged: {relative} is not what was written. Prune it, and use another "
                    "one or rebuild from the beginning."
                )

    def restore(self, snapshot: Snapshot, build: Build) -> dict[int, StoreState]:
        """Fill a build that nobody sees yet; give what its stores say of themselves.

        Raises:
            StoreCorrupt: The snapshot is damaged.
            StorageError: The disk.
        """
        self.verify(snapshot)
        states = {}
        for number in sorted(snapshot.positions):
            target = build.path / str(number)
            try:
                link_tree(self._root / snapshot.id / str(number), target)
            except OSError as error:
                raise StorageError(f"{target} cannot be made: {error.strerror}.") from error
            state = msgspec.structs.replace(
                read_state(target), directory=build.manifest.directory, build=build.manifest.build
            )
            RocksPartition.stamp(target, state)
            sync_directory(target)
            states[number] = state
        sync_directory(build.path)
        return states

    def prune(self, *, keep: int | None = None, older_than: timedelta | None = None) -> list[Snapshot]:
        """Remove snapshots; give those that were.

        Args:
            keep: All but the newest so many.
            older_than: All that are older.
        """
        snapshots = self.all()
        limit = None if older_than is None else datetime.now(UTC) - older_than
        gone = [
            snapshot
            for number, snapshot in enumerate(reversed(snapshots))
            if (keep is not None and number >= keep) or (limit is not None and snapshot.taken_at < limit)
        ]
        for snapshot in gone:
            # Renamed first, so that what is half removed is never listed.
            trash = self._root / f"{_REMOVED}{snapshot.id}"
            try:
                (self._root / snapshot.id).rename(trash)
            except OSError as error:
                raise StorageError(f"Snapshot {snapshot.id} cannot be removed: {error.strerror}.") from error
            shutil.rmtree(trash, ignore_errors=True)
        return list(reversed(gone))

    def _sweep(self) -> None:
        """Remove what a crash left."""
        for path in self._root.glob(f"{_TAKING}*"):
            with contextlib.suppress(FileNotFoundError):
                # One that has no lock yet may be about to take it.
                is_young = not (path / _LOCK).exists() and time.time() - path.stat().st_mtime < _NEW_S
                is_new = is_young and not path.name.startswith(_REMOVED)
                if not is_new and peek(path / _LOCK) is None:
                    shutil.rmtree(path, ignore_errors=True)


def listed(snapshots: list[Snapshot]) -> str:
    """Name the snapshots that there are, for a message."""
    if not snapshots:
        return "There are no snapshots."
    return f"Snapshots: {'; '.join(map(str, snapshots))}."


def requests(build: Build) -> Iterator[Path]:
    """Yield the directories of those snapshots of a build that are being waited for."""
    try:
        entries = list(os.scandir(build.root / DIRECTORY))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(_TAKING):
            with contextlib.suppress(StorageError):
                request = read_record(Path(entry.path) / _REQUEST, Request)
                if request == Request(build=build.manifest.build, directory=build.manifest.directory):
                    yield Path(entry.path)
