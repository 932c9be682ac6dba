"""Directories of a build in which a store's copy is put together, or from which it is sent."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from pathlib import Path

from streams.data.build import Build
from streams.data.locks import FileLock, Holder, peek
from streams.data.rocks import failure

__all__ = ["Scratch"]

_LOCK = "scratch.lock"
_NEW_S = 5.0


class Scratch:
    """One such directory, until `close`. What a process leaves that was killed, the next one removes.

    Args:
        build: In whose directory.
        what: What it is for, and of which partition.

    Raises:
        DiskFull, StorageError: The disk.
    """

    def __init__(self, build: Build, what: str) -> None:
        self._root = build.path / f".{what}-{secrets.token_hex(4)}"
        self.path = self._root / "store"
        """The copy's place; not made yet."""
        self.old = self._root / "old"
        """For what a copy replaces."""
        _sweep(build.path, what)
        try:
            self._root.mkdir()
        except OSError as error:
            raise failure(self._root, "write", error) from error
        lock = FileLock.take(self._root / _LOCK, Holder.me(what))
        assert isinstance(lock, FileLock), "a fresh name"
        self._lock = lock

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        shutil.rmtree(self._root, ignore_errors=True)


def _sweep(path: Path, what: str) -> None:
    for left in path.glob(f".{what}-*"):
        with contextlib.suppress(FileNotFoundError):
            lock = left / _LOCK
            # One that has no lock yet may be about to take it.
            is_young = not lock.exists() and time.time() - left.stat().st_mtime < _NEW_S
            if not is_young and peek(lock) is None:
                shutil.rmtree(left, ignore_errors=True)
