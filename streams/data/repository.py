"""The snapshot repository: partitions' stores as of one position each, in object storage, for whoever folds them next.

    <url>/<projection>/<state>-<build>/<partition>/snapshots/<position>   what it is of, and its files; written last
    <url>/<projection>/<state>-<build>/<partition>/files/<digest>         a file of one or several snapshots

A file's name is what is in it: what is there already is not sent again, be it of an earlier snapshot or of an upload
that was cut off. A snapshot that nobody has written last is nobody's; its files are used by the next one, or removed.

Correctness hangs on nothing here: what is wrong with a snapshot is found when it is fetched, and then the next older
one is taken, or the topic is folded from its beginning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from streams.config import FoldSettings
from streams.data.build import Manifest, sync_directory
from streams.data.rocks import failure
from streams.data.store import StoreState
from streams.data.trees import digest_of
from streams.errors import ForeignStore, StorageError, StoreCorrupt
from streams.log import get_logger
from streams.objects import Objects, Stored
from streams.prepared import prepared

__all__ = ["Kept", "Repository", "StoredFile", "StoredSnapshot", "remove_state"]

log = get_logger(__name__)

FORMAT = 1
_GRACE = timedelta(hours=1)
"""For so long an object that no snapshot names stays: somebody may be about to name it."""
_TABLE = ".sst"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a store."""

    name: str
    digest: str
    """BLAKE2b, which is also the object's name."""
    size_bytes: int


class StoredSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot in the repository is of."""

    format: int = FORMAT
    of: Manifest
    """The build, with the code and the codec whose fold it counted as for who sent this."""
    state: StoreState
    """What the store says of itself: partition, position, counts."""
    taken_at: datetime
    by: str
    """The host that sent it."""
    files: list[StoredFile]

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(one.size_bytes for one in self.files)


prepared(StoredFile, StoredSnapshot)


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot that there is, as far as a listing says."""

    position: int
    at: datetime
    """When it was written, by the store's clock."""


class Repository:
    """The snapshots of one build, as all machines that fold it share them. Any one thread may use it at a time.

    Args:
        objects: Where they are kept.
        manifest: Of which.
        keep: How many of a partition are kept.
    """

    def __init__(self, objects: Objects, manifest: Manifest, keep: int) -> None:
        self._objects = objects
        self._manifest = manifest
        self._keep = keep
        self._digests: dict[int, dict[tuple[int, int, int], str]] = {}
        """By partition, those of tables, which never change, by what tells that a file is the same."""
        self._is_swept = False

    @classmethod
    def of(cls, settings: FoldSettings, manifest: Manifest) -> Repository | None:
        """Give that of the settings; None where they name none.

        Raises:
            ConfigError: See `Objects`.
        """
        if settings.snapshot_repository is None:
            return None
        objects = Objects(settings.snapshot_repository, settings.snapshot_repository_config)
        return cls(objects, manifest, settings.snapshots_kept)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._objects.url

    def kept(self, partition: int) -> list[Kept]:
        """Give which snapshots there are of a partition, the furthest first.

        Raises:
            RepositoryError: It does not answer.
        """
        found = self._objects.listed(f"{self._place(partition)}/snapshots")
        return sorted(_kept(found), key=lambda one: one.position, reverse=True)

    def get(self, partition: int, position: int) -> StoredSnapshot | None:
        """Read what a snapshot is of; None where there is none.

        Raises:
            StoreCorrupt: It cannot be understood.
            ForeignStore: It is of another format, state or topic.
            RepositoryError: The repository does not answer.
        """
        name = self._snapshot(partition, position)
        raw = self._objects.get(name)
        if raw is None:
            return None
        where = f"{self.url.rstrip('/')}/{name}"
        try:
            found = msgspec.json.decode(raw)
            if isinstance(found, dict) and found.get("format") != FORMAT:
                raise ForeignStore(
                    f"{where} has format {found.get('format')!r}; this version of refold knows {FORMAT}. Nothing of it "
                    "was used."
                )
            snapshot = msgspec.convert(found, StoredSnapshot, str_keys=True)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{where} cannot be read: {error}.") from error
        ours, state = self._manifest, snapshot.state
        if (state.directory, state.build, state.partition, state.position) != (
            ours.directory,
            ours.build,
            partition,
            position,
        ) or (snapshot.of.topic_id, snapshot.of.partitions) != (ours.topic_id, ours.partitions):
            raise ForeignStore(f"{where} is of another state or topic than its place says. Nothing of it was used.")
        return snapshot

    def put(
        self, path: Path, state: StoreState, by: str, check: Callable[[], None] = lambda: None
    ) -> tuple[StoredSnapshot, int]:
        """Send a copy of a partition's store; give what it is now, and how many bytes were sent for it.

        1. Send those files that are not there.
        2. Write what the snapshot is of.
        3. Remove what is more than is to be kept.

        A crash before step 2 leaves files that the next call finds there.

        Args:
            path: The copy.
            state: What it says of itself.
            by: The host.
            check: Called now and then; what it raises ends it.

        Raises:
            RepositoryError: The repository does not answer, or refuses.
            StorageError: The copy cannot be read.
        """
        # Step 1
        place = self._place(state.partition)
        there = {one.name: one.size_bytes for one in self._objects.listed(f"{place}/files")}
        files, sent = [], 0
        known = self._digests.get(state.partition, {})
        digests: dict[tuple[int, int, int], str] = {}
        for file in _files_of(path):
            check()
            try:
                about = file.stat()
                same = (about.st_ino, about.st_size, about.st_mtime_ns)
                digest = known.get(same) or digest_of(file)
            except OSError as error:
                raise StorageError(f"{file} cannot be read: {error.strerror}.") from error
            if file.suffix == _TABLE:
                digests[same] = digest
            name = f"{place}/files/{digest}"
            if there.get(name) != about.st_size:
                self._objects.put(name, file)
                sent += about.st_size
            files.append(StoredFile(name=file.name, digest=digest, size_bytes=about.st_size))
        self._digests[state.partition] = digests
        # Step 2
        check()
        snapshot = StoredSnapshot(of=self._manifest, state=state, taken_at=datetime.now(UTC), by=by, files=files)
        self._objects.put(self._snapshot(state.partition, state.position), msgspec.json.encode(snapshot))
        # Step 3
        self._prune(state.partition)
        self._sweep()
        return snapshot, sent

    def fetch(self, snapshot: StoredSnapshot, target: Path, check: Callable[[int], None]) -> None:
        """Fetch a snapshot's files into a directory that there is, durably.

        Args:
            snapshot: Which.
            target: Where to.
            check: Called with the number of bytes that came; what it raises ends it.

        Raises:
            StoreCorrupt: Files are not there, or not what was sent; then they are removed, so that they are sent again,
                and the snapshot with them.
            RepositoryError: The repository does not answer.
            DiskFull, StorageError: The disk.
        """
        place, state = self._place(snapshot.state.partition), snapshot.state
        damaged = [
            file
            for file in snapshot.files
            if not _is_safe(file.name)
            or not self._fetch(f"{place}/files/{file.digest}", file, target / file.name, check)
        ]
        if damaged:
            names = [f"{place}/files/{file.digest}" for file in damaged if _is_safe(file.digest)]
            self._objects.delete([self._snapshot(state.partition, state.position), *names])
            raise StoreCorrupt(
                f"{self.url.rstrip('/')}/{place}: of the snapshot at {state.position}, "
                f"{', '.join(file.name for file in damaged)} (object {damaged[0].digest}) is not there, or not what "
                "was sent. It was removed with the snapshot."
            )
        try:
            sync_directory(target)
        except OSError as error:
            raise failure(target, "write", error) from error

    def _fetch(self, name: str, file: StoredFile, target: Path, check: Callable[[int], None]) -> bool:
        """Fetch one file; say whether it is what was sent."""
        digest, size = hashlib.blake2b(digest_size=16), 0
        try:
            with target.open("wb") as handle:
                for chunk in self._objects.chunks(name):
                    check(len(chunk))
                    digest.update(chunk)
                    handle.write(chunk)
                    size += len(chunk)
                handle.flush()
                os.fsync(handle.fileno())
        except FileNotFoundError:
            return False
        except StorageError:
            raise
        except OSError as error:
            raise failure(target, "write", error) from error
        return (size, digest.hexdigest()) == (file.size_bytes, file.digest)

    def drop(self, partition: int, position: int) -> None:
        """Remove a snapshot; what its files are of goes with the next `put`.

        Raises:
            RepositoryError: The repository does not answer.
        """
        self._objects.delete([self._snapshot(partition, position)])

    def forget(self, partition: int) -> None:
        """Remove all snapshots of a partition; what their files are of goes with a later `put`.

        Raises:
            RepositoryError: The repository does not answer.
        """
        self._objects.delete([self._snapshot(partition, one.position) for one in self.kept(partition)])

    def _prune(self, partition: int) -> None:
        """Remove snapshots that are more than is to be kept, and what only they have had."""
        place = self._place(partition)
        listed = self._objects.listed(f"{place}/snapshots")
        kept = sorted(_kept(listed), key=lambda one: one.position, reverse=True)
        if not kept:  # somebody else has just removed what was written
            return
        self._objects.delete(self._snapshot(partition, one.position) for one in kept[self._keep :])
        used: set[str] = set()
        for one in kept[: self._keep]:
            try:
                found = self.get(partition, one.position)
            except (StoreCorrupt, ForeignStore) as error:
                log.warning("snapshot.unreadable", partition=partition, position=one.position, why=str(error))
                return  # what it needs is not known
            if found is not None:
                used.update(file.digest for file in found.files)
        old = max(one.at for one in kept) - _GRACE  # by the store's own clock
        self._objects.delete(
            one.name
            for one in self._objects.listed(f"{place}/files")
            if one.name.rpartition("/")[2] not in used and one.modified < old
        )

    def _sweep(self) -> None:
        """Remove what there is of earlier builds of the state, once."""
        ours = self._manifest
        for number in [] if self._is_swept else _builds_of(self._objects, ours.projection, ours.directory):
            if number < ours.build:
                _remove(self._objects, ours.projection, ours.directory, number)
        self._is_swept = True

    def _place(self, partition: int) -> str:
        return f"{_root(self._manifest.projection, self._manifest.directory, self._manifest.build)}/{partition}"

    def _snapshot(self, partition: int, position: int) -> str:
        return f"{self._place(partition)}/snapshots/{position:020}"


def _builds_of(objects: Objects, projection: str, state: str) -> list[int]:
    """Give the builds of a state that have snapshots.

    Raises:
        RepositoryError: The repository does not answer.
    """
    found = (name.rpartition("-") for name in objects.folders(projection))
    return sorted(int(build) for directory, _, build in found if directory == state and build.isdigit())


def _remove(objects: Objects, projection: str, state: str, build: int) -> None:
    """Remove all snapshots of a build, and then their files.

    Raises:
        RepositoryError: The repository does not answer.
    """
    names = [one.name for one in objects.listed(_root(projection, state, build))]
    objects.delete(sorted(names, key=lambda name: "/snapshots/" not in name))
    log.info("snapshots.removed", projection=projection, state=state, build=build, objects=len(names))


def remove_state(settings: FoldSettings, projection: str, state: str) -> None:
    """Remove all snapshots of a state, of all its builds, where the settings name a repository.

    Raises:
        ConfigError: See `Objects`.
        RepositoryError: It does not answer.
    """
    if settings.snapshot_repository is not None and state:
        objects = Objects(settings.snapshot_repository, settings.snapshot_repository_config)
        for build in _builds_of(objects, projection, state):
            _remove(objects, projection, state, build)


def _root(projection: str, state: str, build: int) -> str:
    return f"{projection}/{state}-{build}"


def _kept(listed: list[Stored]) -> Iterator[Kept]:
    for one in listed:
        name = one.name.rpartition("/")[2]
        if name.isdigit():
            yield Kept(int(name), one.modified)


def _files_of(path: Path) -> Iterator[Path]:
    """Yield the files of a store that RocksDB reads."""
    for file in sorted(path.iterdir()):
        if not file.name.startswith("LOG") and file.name != "LOCK":
            yield file


def _is_safe(name: str) -> bool:
    """Say whether a file's name is a name, and no way to somewhere else."""
    return name not in ("", ".", "..") and "/" not in name
