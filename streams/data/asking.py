"""Asking those who have a build's stores open, by a directory that counts while whoever asks lives.

<directory>/<kind>/<id>/asking.lock   held by whoever asks; without him nobody answers
<directory>/<kind>/<id>/…             what he asks, and the answers
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.data.locks import FileLock, Holder, peek
from streams.errors import StorageError

__all__ = ["asked", "asking", "is_asked"]

_LOCK = "asking.lock"
_NEW_S = 5.0
"""So young, a directory without a lock belongs to somebody who is about to take it."""


@contextmanager
def asking(root: Path, purpose: str) -> Iterator[Path]:
    """Make a directory to ask in; it goes with the block, and counts for nothing where the process is killed.

    Args:
        root: Where those of its kind are; made if missing.
        purpose: What for, in the words that others are told.

    Raises:
        StorageError: The disk.
    """
    path = root / secrets.token_hex(6)
    try:
        root.mkdir(exist_ok=True)
        _sweep(root)
        path.mkdir()
    except OSError as error:
        raise StorageError(f"{path} cannot be made: {error.strerror}.") from error
    lock = FileLock.take(path / _LOCK, Holder.me(purpose))
    assert isinstance(lock, FileLock), "a fresh name"
    try:
        yield path
    finally:
        lock.release()
        shutil.rmtree(path, ignore_errors=True)


def is_asked(path: Path) -> bool:
    """Say whether whoever asks in a directory still waits for the answers."""
    return peek(path / _LOCK) is not None


def asked(root: Path) -> list[Path]:
    """Give the directories in which somebody asks."""
    try:
        found = [Path(entry.path) for entry in os.scandir(root)]
    except OSError:
        return []
    return [path for path in found if is_asked(path)]


def _sweep(root: Path) -> None:
    """Remove what those left who were killed."""
    for path in root.iterdir():
        with contextlib.suppress(FileNotFoundError):
            is_young = not (path / _LOCK).exists() and time.time() - path.stat().st_mtime < _NEW_S
            if not is_young and not is_asked(path):
                shutil.rmtree(path, ignore_errors=True)
