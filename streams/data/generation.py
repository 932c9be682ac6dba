"""The state directory of one generation: its builds, which of them is current, and who may change that.

    <directory>/current.json    which build is current; replaced atomically
    <directory>/claim.lock      held for a moment by whoever founds, joins, adopts or replaces
    <directory>/rebuild.lock    held by a rebuild to its end
    <directory>/builds/1/ 2/ …  see `build`; only the one that `current.json` names is ever opened

Nothing is cleared in place: a rebuild makes the next build, replaces the record, and removes the old build behind it.
A build that the record does not name is a leftover, and the next claim removes it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from projections.contract import CqrsProjection
from streams.data.build import (
    CURRENT,
    MANIFEST,
    Build,
    Current,
    Manifest,
    read_record,
    sync_directory,
    trash_name,
    write_record,
)
from streams.data.locks import FileLock, Holder, holders, is_free
from streams.data.reader import ModelReader
from streams.data.store import RocksPartition
from streams.errors import (
    CodeChanged,
    ForeignStore,
    RebuildRunning,
    StorageError,
    StoreCorrupt,
    StoreLocked,
    TopicChanged,
)
from streams.log import get_logger

__all__ = ["Claim", "RocksStore"]

log = get_logger(__name__)

_CLAIM_WAIT_S = 30.0
_LOCKS = ("claim.lock", "rebuild.lock")


class RocksStore:
    """Where a generation's read models are kept: RocksDB, on this machine.

    Args:
        directory: This generation's own directory; made when first folded into.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def current(self) -> Build | None:
        """Give the build that is current; None where nothing was folded yet.

        Raises:
            ForeignStore: Other files are in the directory, or its format is unknown.
            StoreCorrupt: A record cannot be read, or the build that it names is gone.
        """
        current = read_record(self.directory / CURRENT, Current)
        if current is None:
            self._check_ours()
            return None
        manifest = read_record(self.directory / "builds" / str(current.build) / MANIFEST, Manifest)
        if manifest is None:
            # Replaced since the record was read? Then it names another one now.
            newer = read_record(self.directory / CURRENT, Current)
            if newer != current:
                return self.current()
            raise StoreCorrupt(
                f"{self.directory} names build {current.build} as current, and that is not there. The log is "
                "the truth: "
                "rebuild from the beginning."
            )
        return Build(root=self.directory, current=current, manifest=manifest)

    def _check_ours(self) -> None:
        try:
            others = sorted(
                entry.name
                for entry in self.directory.iterdir()
                if entry.name not in (*_LOCKS, "builds") and not entry.name.startswith(".re")
            )
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be read: {error.strerror}.") from error
        if others:
            hint = " It was written by refold 0.1." if "refold.json" in others else ""
            raise ForeignStore(
                f"{self.directory} has no {CURRENT} but holds {', '.join(others[:3])}: it is not a state directory of "
                f"this refold.{hint} Name another one; nothing in it was touched."
            )

    @contextmanager
    def claiming(self, purpose: str, *, group: str = "") -> Iterator[Claim]:
        """Hold the directory for a moment, to found, join, adopt or replace; everybody else waits.

        A directory that was made for it is removed again where the block ends without a current build.

        Args:
            purpose: What for, in the words that others are refused with.
            group: The consumer group.

        Raises:
            StoreLocked: Somebody has held it for longer than that ever takes.
            StorageError: The disk.
        """
        made = self._mkdir()
        try:
            with self._locked("claim.lock", Holder.me(purpose, group), _CLAIM_WAIT_S) as lock:
                if isinstance(lock, Holder):
                    raise StoreLocked(f"{self.directory} is held by {lock}, for over {_CLAIM_WAIT_S:g} s.")
                claim = Claim(self, purpose, group)
                try:
                    yield claim
                finally:
                    self._leave_nothing(lock)
        finally:
            _remove_empty(made)
        claim.finish()

    @contextmanager
    def rebuilding(self, purpose: str) -> Iterator[None]:
        """Hold the directory for one rebuild, beside whoever folds; the lock goes with the process.

        Raises:
            RebuildRunning: Another rebuild holds it; it is named.
        """
        made = self._mkdir()
        try:
            with self._locked("rebuild.lock", Holder.me(purpose), 0.0) as lock:
                if isinstance(lock, Holder):
                    raise RebuildRunning(
                        f"A rebuild is running on {self.directory} already: {lock}. Let it end or cancel it first."
                    )
                try:
                    yield
                finally:
                    self._leave_nothing(lock)
        finally:
            _remove_empty(made)

    @contextmanager
    def _locked(self, name: str, holder: Holder, wait_s: float) -> Iterator[FileLock | Holder]:
        while True:
            try:
                lock = FileLock.take(self.directory / name, holder, wait_s=wait_s)
                break
            except StorageError as error:
                # Whoever was refused before us may have just removed the directory that it had made.
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                self._mkdir()
        try:
            yield lock
        finally:
            if isinstance(lock, FileLock):
                lock.release()

    def _leave_nothing(self, lock: FileLock) -> None:
        """Remove a lock's file again where nothing was founded."""
        if not (self.directory / CURRENT).exists():
            with contextlib.suppress(OSError):
                lock.path.unlink()
            with contextlib.suppress(OSError):
                (self.directory / "builds").rmdir()

    def reader(self, projection: CqrsProjection[Any]) -> ModelReader:
        """Open the models for reading, beside whoever folds them. Close it, or use it in `with`.

        The reader holds on to the build that is current now, also when a rebuild replaces it.

        Raises:
            StorageError: There is no state in the directory.
            ForeignStore: It is another projection's.
            StoreCorrupt: It is damaged.
        """
        return ModelReader.of_current(self.current, projection, self.directory)

    def _mkdir(self) -> list[Path]:
        """Make the directory, and give those that were made, the innermost first."""
        missing = []
        path = self.directory
        while not path.exists():
            missing.append(path)
            path = path.parent
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _remove_empty(missing)
            raise StorageError(f"{self.directory} cannot be made: {error.strerror}.") from error
        return missing


@dataclass
class Claim:
    """What may be done with a directory while it is held; see `RocksStore.claiming`."""

    store: RocksStore
    purpose: str
    group: str

    def current(self) -> Build | None:
        """Give the build that is current; see `RocksStore.current`."""
        return self.store.current()

    def has_made(self, directory: str) -> bool:
        """Say whether a build with this directory id is here, be it current or the leftover of a crash."""
        for path in (self.store.directory / "builds").glob(f"*/{MANIFEST}"):
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
                f"{self.store.directory} is folded by {', '.join(map(str, others))}. To {doing}, stop it "
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
        directory = self.store.directory
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
                    f"{self.store.directory} holds the state of {what} {getattr(found, what)!r}, not of "
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
                f"{self.store.directory} {' and '.join(changed)}. Going on would mix two folds. Rebuild from the "
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
        adopted = self._write(
            msgspec.structs.replace(
                build.manifest, version=wanted.version, fingerprint=wanted.fingerprint, codec=wanted.codec
            ),
            found.revision + 1,
        )
        log.warning(
            "state.adopted", directory=str(self.store.directory), before=found.fingerprint, now=wanted.fingerprint
        )
        return Build(root=build.root, current=adopted, manifest=build.manifest)

    def make(self, wanted: Manifest, *, above: int = 0) -> Build:
        """Make the next build, which nobody sees before it is `switch`ed to.

        Args:
            wanted: What is to be folded; its number and directory do not matter.
            above: The number is greater than this too (one seen in a committed offset).

        Raises:
            StorageError: The disk; nothing is left.
        """
        current = read_current(self.store)
        number = max(above, current.build if current else 0) + 1
        manifest = msgspec.structs.replace(
            wanted, build=number, directory=current.directory if current else secrets.token_hex(6)
        )
        path = self.store.directory / "builds" / str(number)
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # a leftover: no record ever named it
                path.rename(trash_name(path))
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
            root=self.store.directory,
            current=_record(manifest, current.revision + 1 if current else 1),
            manifest=manifest,
        )

    def abandon(self, build: Build) -> None:
        """Remove a build that was made and not switched to."""
        shutil.rmtree(build.path, ignore_errors=True)

    def carry(self, old: Build, new: Build, partition: int) -> None:
        """Take one partition's store over into a new build, as it is.

        Raises:
            StoreLocked, StoreCorrupt, StorageError: It cannot be.
        """
        opened: RocksPartition = old.open(partition, 0)
        try:
            fresh = new.fresh(partition, 0)
            state = msgspec.structs.replace(opened.state, directory=fresh.directory, build=fresh.build)
            opened.carry(new.path / str(partition), state)
        finally:
            opened.close()

    def switch(self, build: Build) -> Build:
        """Make a build the current one: the instant at which readers and the next start see it."""
        self._write(build.manifest, build.current.revision)
        log.info("build.current", directory=str(self.store.directory), build=build.manifest.build)
        return build

    def _write(self, manifest: Manifest, revision: int) -> Current:
        record = _record(manifest, revision)
        write_record(self.store.directory / CURRENT, record)
        return record

    def join(self, build: Build) -> FileLock:
        """Note that this process folds in a build, until the lock is released or the process ends.

        Raises:
            StoreLocked: Others do so in another consumer group: two groups cannot share stores.
        """
        others = [holder for holder in self.folding(build) if holder.group != self.group]
        if others:
            raise StoreLocked(
                f"{self.store.directory} is folded by {', '.join(map(str, others))}, in group {others[0].group!r}. One "
                "group folds a state directory at a time: stop that process, or name another state directory.",
                projection=build.manifest.projection,
            )
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        lock = FileLock.take(build.path / "folding" / name, Holder.me(self.purpose, self.group))
        assert isinstance(lock, FileLock), "a fresh name"
        return lock

    def finish(self) -> None:
        """Remove builds that are not current, as far as nobody reads them or folds in them."""
        current = read_current(self.store)
        builds = self.store.directory / "builds"
        if current is None or not builds.is_dir():
            return
        for path in builds.iterdir():
            if path.name.startswith(".removed-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != str(current.build) and path.name.isdigit() and int(path.name) < current.build:
                with contextlib.suppress(OSError):
                    if is_free(path / MANIFEST) and not holders(path / "folding"):
                        trash = trash_name(path)
                        path.rename(trash)
                        shutil.rmtree(trash, ignore_errors=True)


def read_current(store: RocksStore) -> Current | None:
    """Read which build is current; None also where that cannot be understood, and a rebuild is to mend it."""
    try:
        return read_record(store.directory / CURRENT, Current)
    except StoreCorrupt:
        log.warning("state.record_unreadable", directory=str(store.directory))
        return None


def _record(manifest: Manifest, revision: int) -> Current:
    return Current(
        directory=manifest.directory,
        build=manifest.build,
        revision=revision,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        codec=manifest.codec,
    )


def _remove_empty(paths: list[Path]) -> None:
    """Remove directories that were made for nothing."""
    for path in paths:
        try:
            path.rmdir()
        except OSError:
            return
