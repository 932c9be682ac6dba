"""The state directory of one generation: its builds, which of them is current, and who may change that.

    <directory>/current.json    which build is current; replaced atomically
    <directory>/claim.lock      held for a moment by whoever founds, joins, adopts or replaces
    <directory>/rebuild.lock    held by a rebuild to its end
    <directory>/snapshots/      see `snapshots`
    <directory>/refolds/        see `handover`
    <directory>/builds/1/ 2/ …  see `build`; only the one that `current.json` names is ever opened

Nothing is cleared in place: a rebuild makes the next build, replaces the record, and removes the old build behind it.
A build that the record does not name is a leftover, and the next claim removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from projections.contract import CqrsProjection
from streams.data.build import (
    CLAIM_LOCK,
    CURRENT,
    MANIFEST,
    REBUILD_LOCK,
    Build,
    Current,
    Manifest,
    current_build,
    restore_current,
    sync_directory,
)
from streams.data.claims import Claim
from streams.data.files import FILES
from streams.data.locks import PATIENCE_S, FileLock, Holder, is_free, peek, peek_all
from streams.data.reader import ModelReader
from streams.data.stores import Kind
from streams.errors import RebuildRunning, StorageError, StoreLocked

__all__ = ["RocksStore", "StateStore"]

_CLAIM_WAIT_S = 30.0


class StateStore:
    """Where a generation's read models are kept, and who may change that.

    Args:
        directory: This generation's own directory; made when first folded into.
        kind: What its stores are kept in.
        group: Its consumer group, where that is known: a database is to have no other one's state under its name.
    """

    def __init__(self, directory: str | os.PathLike[str], kind: Kind = FILES, group: str = "") -> None:
        self.directory = Path(directory)
        self.kind = kind
        self.group = group

    def current(self) -> Build | None:
        """Give the build that is current; None where nothing was folded yet.

        Raises:
            ForeignStore: Other files are in the directory, or its format is unknown.
            StoreCorrupt: A record cannot be read, or the build that it names is gone.
        """
        found = current_build(self.directory, self.kind)
        if self._is_current(found):
            return found
        with self.claiming("see what the database knows"):
            return current_build(self.directory, self.kind)

    def peek(self) -> Build | None:
        """Give the build that is current, without writing down here what a database knows; see `current`."""
        known = self.kind.recall(self.directory, self.group)
        if known is None:
            return current_build(self.directory, self.kind)
        return Build(
            root=self.directory,
            current=msgspec.json.decode(known[0], type=Current),
            manifest=msgspec.json.decode(known[1], type=Manifest),
            kind=self.kind,
        )

    def _is_current(self, found: Build | None) -> bool:
        """Whether what the directory says is what the database says, where there is one."""
        known = self.kind.recall(self.directory, self.group)
        return known is None or (found is not None and msgspec.json.decode(known[0], type=Current) == found.current)

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
            with self._locked(CLAIM_LOCK, Holder.me(purpose, group), _CLAIM_WAIT_S) as lock:
                if isinstance(lock, Holder):
                    raise StoreLocked(f"{self.directory} is held by {lock}, for over {_CLAIM_WAIT_S:g} s.")
                claim = Claim(self.directory, purpose, group or self.group, self.kind)
                claim.sweep()
                restore_current(self.directory, self.kind, claim.group)
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
            with self._locked(REBUILD_LOCK, Holder.me(purpose), PATIENCE_S) as lock:
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

    def rebuilder(self) -> Holder | None:
        """Name who is rebuilding this state now; None where nobody is."""
        return peek(self.directory / REBUILD_LOCK)

    def folding(self, build: Build) -> list[Holder]:
        """Name the processes of this machine that fold in a build now."""
        return peek_all(build.path / "folding")

    def users(self) -> list[Holder]:
        """Name the processes of this machine that fold in any build, or rebuild one."""
        found = [holder for path in self.directory.glob("builds/*/folding") for holder in peek_all(path)]
        rebuilder = self.rebuilder()
        return found if rebuilder is None else [*found, rebuilder]

    def remove(self) -> bool:
        """Remove all of it, where nobody folds, rebuilds or reads it; say whether nothing of it is left.

        It is renamed first: a crash leaves all of it, or what nobody opens and the next call removes.

        Raises:
            StorageError: It cannot be removed.
        """
        trashes = f".removed-{self.directory.name}-"
        try:
            if self.directory.is_dir():
                if self.users() or not all(map(_is_unread, self.directory.glob(f"builds/*/{MANIFEST}"))):
                    return False
                if not self.kind.forget(self.directory):
                    return False
                self.directory.rename(self.directory.with_name(f"{trashes}{time.time_ns()}"))
                sync_directory(self.directory.parent)
            for trash in self.directory.parent.glob(f"{trashes}*"):
                shutil.rmtree(trash)
        except FileNotFoundError:
            return False  # somebody else is at it
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be removed: {error.strerror}.") from error
        return True

    def reader(self, projection: CqrsProjection[Any] | None) -> ModelReader:
        """Open the models for reading, beside whoever folds them. Close it, or use it in `with`.

        The reader holds on to the build that is current now, also when a rebuild replaces it.

        Args:
            projection: Whose models; None for whatever is there, to be read as it is stored.

        Raises:
            StateNotFound: There is no state in the directory.
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


class RocksStore(StateStore):
    """Where a generation's read models are kept: RocksDB, on this machine.

    Args:
        directory: This generation's own directory; made when first folded into.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__(directory)


def _is_unread(manifest: Path) -> bool:
    """Say whether nobody reads a build; one that is gone, nobody does."""
    try:
        return is_free(manifest)
    except FileNotFoundError:
        return True


def _remove_empty(paths: list[Path]) -> None:
    """Remove directories that were made for nothing."""
    for path in paths:
        try:
            path.rmdir()
        except OSError:
            return
