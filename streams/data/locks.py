"""Locks between processes on one machine, with the holder's name in them: flock, on files made for it.

The kernel lets go of a lock with its process, however that ends. So a lock is never stale; only its file may be.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from streams.errors import StorageError
from streams.prepared import prepared

__all__ = ["FileLock", "Holder", "holders", "is_free", "peek", "peek_all"]

_RETRY_S = 0.02
_PEEK_S = 0.01
PATIENCE_S = 0.05
"""Longer than `peek` is ever in the way."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock."""

    purpose: str
    """What for, such as `run of orders`."""
    pid: int
    host: str
    since: str
    """UTC, to the second."""
    group: str = ""
    """The consumer group that it folds in."""

    @classmethod
    def me(cls, purpose: str, group: str = "") -> Holder:
        """Describe this process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(purpose=purpose, pid=os.getpid(), host=socket.gethostname(), since=now, group=group)

    def __str__(self) -> str:
        """Name it, for an error's message."""
        return f"{self.purpose} (process {self.pid} on {self.host}, since {self.since})"


prepared(Holder)


_RELEASED = -1


@dataclass(slots=True, eq=False)
class FileLock:
    """An exclusive lock, held until `release`, the end of its `with` block, or the process's end."""

    path: Path
    _descriptor: int

    @classmethod
    def take(cls, path: Path, holder: Holder, *, wait_s: float = PATIENCE_S) -> FileLock | Holder:
        """Take the lock, or give who has it.

        Args:
            path: Its file; made if missing. Its directory must exist.
            holder: What to write into it.
            wait_s: How long to wait for another holder to let go; by default just long enough for one that only peeks.

        Raises:
            StorageError: The file cannot be made or written.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                lock = cls._try(path)
                if lock is not None:
                    lock._sign(holder)
                    return lock
            except OSError as error:
                raise StorageError(f"{path} cannot be locked: {error.strerror}.") from error
            if time.monotonic() >= deadline:
                return _read(path)
            time.sleep(_RETRY_S)

    @classmethod
    def _try(cls, path: Path) -> FileLock | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed its file while we waited: then this is a lock on nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return cls(path, descriptor)
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _sign(self, holder: Holder) -> None:
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, msgspec.json.encode(holder), 0)
        except BaseException:
            self.release()
            raise

    def release(self, *, remove: bool = False) -> None:
        """Let go; once is enough, and more do no harm: a descriptor's number is soon somebody else's.

        Args:
            remove: Remove the file too, while it is still ours.
        """
        descriptor, self._descriptor = self._descriptor, _RELEASED
        if descriptor == _RELEASED:
            return
        if remove:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holders(directory: Path) -> list[Holder]:
    """Give who holds the locks whose files are in a directory, and remove the files that nobody holds.

    Only while nobody can take one of them, that is, under another lock.
    """
    return list(_holders(directory))


def _holders(directory: Path) -> Iterator[Holder]:
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if is_free(path):
                path.unlink()
            else:
                yield _read(path)


def is_free(path: Path) -> bool:
    """Say whether nobody holds a lock on a file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    with path.open("rb") as handle:
        for is_last in (False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if is_last:
                    return False
                time.sleep(_PEEK_S)
            else:
                return True
    return False


def peek(path: Path) -> Holder | None:
    """Say who holds a lock, in passing; None where nobody does. Changes nothing.

    Whoever is about to take it may have to wait for this, for an instant; see `PATIENCE_S`.
    """
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _read(path)


def peek_all(directory: Path) -> list[Holder]:
    """Say who holds the locks whose files are in a directory, in passing."""
    try:
        paths = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [holder for path in paths if (holder := peek(path)) is not None]


def _read(path: Path) -> Holder:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (OSError, msgspec.MsgspecError):  # it is just being signed, or is gone by now
        return Holder(purpose="another process", pid=0, host="this machine", since="just now")
