"""What may be done with a state directory while it is held: join, found, adopt, replace."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from streams.data.build import (
    CURRENT,
    MANIFEST,
    UNFINISHED,
    Build,
    Current,
    Manifest,
    current_build,
    read_record,
    sync_directory,
    trash_name,
    write_record,
)
from streams.data.files import FILES
from streams.data.locks import FileLock, Holder, holders, is_free
from streams.data.snapshots import Snapshots
from streams.data.store import StoreState
from streams.data.stores import Kind
from streams.errors import CodeChanged, ForeignStore, StorageError, StoreCorrupt, StoreLocked, TopicChanged
from streams.log import get_logger

__all__ = ["Claim"]

log = get_logger(__name__)


@dataclass
class Claim:
    """What may be done with a directory while it is held; see `StateStore.claiming`."""

    directory: Path
    purpose: str
    group: str
    kind: Kind = FILES
    """What stores are kept in."""

    def current(self) -> Build | None:
        """Give the build that is current; see `StateStore.current`."""
        return current_build(self.directory, self.kind)

    def _read_current(self) -> Current | None:
        """Read which build is current; None also where that cannot be understood, and a rebuild is to mend it."""
        try:
            return read_record(self.directory / CURRENT, Current)
        except StoreCorrupt:
            log.warning("state.record_unreadable", directory=str(self.directory))
            return None

    def has_made(self, directory: str) -> bool:
        """Say whether a build with this directory id is here, be it current or the leftover of a crash."""
        for path in (self.directory / "builds").glob(f"*/{MANIFEST}"):
            with contextlib.suppress(StorageError):
                manifest = read_record(path, Manifest)
                if manifest is not None and manifest.directory == directory:
                    return True
        return False

    def folding(self, build: Build) -> list[Holder]:
        """Name the processes of this machine that fold in a build."""
        return holders(build.path / "folding")

    def check_nobody_folds(self, build: Build, doing: str) -> None:
        """Make sure that no process of this machine folds in a build.

        Args:
            build: The build.
            doing: What would go wrong, to follow "To".

        Raises:
            StoreLocked: Some do; they are named.
        """
        others = self.folding(build)
        if others:
            raise StoreLocked(
                f"{self.directory} is folded by {', '.join(map(str, others))}. To {doing}, stop it "
                "first (SIGTERM "
                "drains it). Nothing was changed.",
                projection=build.manifest.projection,
            )

    def check_identity(self, found: Manifest, wanted: Manifest) -> None:
        """Make sure that a build is this projection's, of this topic.

        Raises:
            ForeignStore: It is another projection's, or another topic's.
            TopicChanged: The topic was made again or its partition count changed.
        """
        self.check_owner(found, wanted)
        directory = self.directory
        if found.topic_id != wanted.topic_id:
            raise TopicChanged(
                f"{wanted.topic} was deleted and made again since {directory} was folded from it (topic id "
                f"{found.topic_id}, now {wanted.topic_id}). Its old events are gone: rebuild from the beginning.",
                topic=wanted.topic,
            )
        if found.partitions != wanted.partitions:
            raise TopicChanged(
                f"{wanted.topic} has {wanted.partitions} partitions, and {directory} was folded from "
                f"{found.partitions}: keys have moved between partitions. Rebuild from the beginning.",
                topic=wanted.topic,
            )

    def check_owner(self, found: Manifest, wanted: Manifest) -> None:
        """Make sure that a build is this projection's, and of a topic of this name.

        Raises:
            ForeignStore: It is not.
        """
        for what in ("projection", "topic"):
            if getattr(found, what) != getattr(wanted, what):
                raise ForeignStore(
                    f"{self.directory} holds the state of {what} {getattr(found, what)!r}, not of "
                    f"{getattr(wanted, what)!r}. Name another state directory; nothing in it was touched."
                )

    def check_code(self, build: Build, wanted: Manifest) -> None:
        """Make sure that the code and the codec are those whose fold the state is.

        Raises:
            CodeChanged: They are not.
        """
        found = build.current
        changed = []
        if (found.version, found.fingerprint) != (wanted.version, wanted.fingerprint):
            changed.append(
                f"was folded by other code of {build.manifest.projection!r} (version {found.version}, fingerprint "
                f"{found.fingerprint}; now version {wanted.version}, {wanted.fingerprint})"
            )
        if found.codec != wanted.codec:
            changed.append(f"was read with {found.codec}, now {wanted.codec}")
        if changed:
            raise CodeChanged(
                f"{self.directory} {' and '.join(changed)}. Going on would mix two folds. Rebuild from the "
                "beginning, or adopt the state (`--adopt`) if the change does not alter what is folded.",
                projection=build.manifest.projection,
                topic=build.manifest.topic,
            )

    def adopt(self, build: Build, wanted: Manifest) -> Build:
        """State that the code or the codec changed but the fold did not: a new record over the same stores.

        Raises:
            StoreLocked: A process still folds in them, by the old record.
        """
        found = build.current
        if (found.version, found.fingerprint, found.codec) == (wanted.version, wanted.fingerprint, wanted.codec):
            return build
        self.check_nobody_folds(build, "adopt it for other code")
        counts_as = msgspec.structs.replace(
            build.manifest, version=wanted.version, fingerprint=wanted.fingerprint, codec=wanted.codec
        )
        adopted = self._write(_record(counts_as, found.revision + 1), build.manifest)
        log.warning("state.adopted", directory=str(self.directory), before=found.fingerprint, now=wanted.fingerprint)
        return replace(build, current=adopted)

    def make(self, wanted: Manifest, *, above: int = 0, origin: int | None = None, state: str | None = None) -> Build:
        """Make the next build, which nobody sees before it is `switch`ed to.

        Args:
            wanted: What is to be folded; its number and directory do not matter.
            above: The number is greater than this too (one seen in a committed offset).
            origin: The build whose fold it goes on with; by default, it begins one.
            state: The id of the state, where other machines have copies of it; by default that of the directory.

        Raises:
            StoreLocked: A leftover of that number is being read.
            StorageError: The disk; nothing is left.
        """
        current = self._read_current()
        number = max(above, current.build if current else 0) + 1
        manifest = msgspec.structs.replace(
            wanted,
            build=number,
            origin=number if origin is None else origin,
            directory=state or (current.directory if current else secrets.token_hex(6)),
        )
        path = self.directory / "builds" / str(number)
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # a leftover: no record ever named it
                path.rename(trash_name(path))
            # What others have of one that they share is no leftover.
            if state is None and not self.kind.forget(self.directory, number):
                raise StoreLocked(
                    f"Somebody reads what a crash has left of build {number} of {self.directory.name} in {self.kind}: "
                    "it is to be dropped first. Nothing was changed."
                )
            path.mkdir()
            (path / "folding").mkdir()
            write_record(path / MANIFEST, manifest)
            sync_directory(path.parent)
        except (OSError, StorageError) as error:
            shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{path} cannot be made: {error.strerror}.") from error
        return Build(
            root=self.directory,
            current=_record(manifest, current.revision + 1 if current else 1),
            manifest=manifest,
            kind=self.kind,
        )

    def abandon(self, build: Build) -> None:
        """Remove a build that was made and not switched to; of a database, whoever makes the next one does."""
        shutil.rmtree(build.path, ignore_errors=True)

    def carry(self, old: Build, new: Build, partition: int, *, position: int | None = None) -> None:
        """Take one partition's store over into a new build, as it is.

        Args:
            old: From where.
            new: Where to.
            partition: The partition.
            position: The position that it is to go on from, where that is another one.

        Raises:
            StoreLocked, StoreCorrupt, StorageError: It cannot be.
        """
        fresh = new.fresh(partition, 0)

        def becomes(state: StoreState) -> StoreState:
            return msgspec.structs.replace(
                state,
                directory=fresh.directory,
                build=fresh.build,
                position=state.position if position is None else position,
            )

        old.stores.carry(old.fresh(partition, 0), new.stores, becomes)

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots in the directory."""
        return Snapshots(self.directory)

    def switch(self, build: Build) -> Build:
        """Make a build the current one: the instant at which readers and the next start see it."""
        self._write(_record(build.manifest, build.current.revision), build.manifest)
        log.info("build.current", directory=str(self.directory), build=build.manifest.build)
        return build

    def _write(self, record: Current, manifest: Manifest) -> Current:
        # A database first: a directory that says less is told by it, and one that says more could not tell.
        self.kind.remember(self.directory, self.group, msgspec.json.encode(record), msgspec.json.encode(manifest))
        write_record(self.directory / CURRENT, record)
        return record

    def join(self, build: Build) -> FileLock:
        """Note that this process folds in a build, until the lock is released or the process ends.

        Raises:
            StoreLocked: Others do so in another consumer group: two groups cannot share stores.
        """
        others = [holder for holder in self.folding(build) if holder.group != self.group]
        if others:
            raise StoreLocked(
                f"{self.directory} is folded by {', '.join(map(str, others))}, in group {others[0].group!r}. One "
                "group folds a state directory at a time: stop that process, or name another state directory.",
                projection=build.manifest.projection,
            )
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        lock = FileLock.take(build.path / "folding" / name, Holder.me(self.purpose, self.group))
        assert isinstance(lock, FileLock), "a fresh name"
        return lock

    def sweep(self) -> None:
        """Remove records that a crash left half written."""
        for path in self.directory.glob(f"{UNFINISHED}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def finish(self) -> None:
        """Remove builds that are not current, as far as nobody reads them or folds in them."""
        current = self._read_current()
        builds = self.directory / "builds"
        if current is None or not builds.is_dir():
            return
        for path in builds.iterdir():
            if path.name.startswith(".removed-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != str(current.build) and path.name.isdigit() and int(path.name) < current.build:
                with contextlib.suppress(OSError):
                    if is_free(path / MANIFEST) and not holders(path / "folding"):
                        if not self.kind.forget(self.directory, int(path.name)):
                            continue
                        trash = trash_name(path)
                        path.rename(trash)
                        shutil.rmtree(trash, ignore_errors=True)


def _record(manifest: Manifest, revision: int) -> Current:
    return Current(
        directory=manifest.directory,
        build=manifest.build,
        revision=revision,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        codec=manifest.codec,
    )
