"""One process at a time, by a lock on a file that the kernel releases when its last holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

__all__ = ["FileLock"]


class FileLock:
    """A lock on a file (flock), held until `release`, or the end of all processes that have its `fd`.

    The file holds the number of the process that took the lock last. It is never removed: a lock on a removed
    file excludes nobody.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """The open file: a child that inherits it holds the lock too, until it ends."""
        if self._fd is None:
            raise RuntimeError(f"the lock {self.path} is not held")
        return self._fd

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self, *, timeout_s: float = 0.0) -> bool:
        """Take the lock, waiting for at most `timeout_s`; say whether it was taken."""
        deadline = time.monotonic() + timeout_s
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        os.close(fd)
                        return False
                    time.sleep(0.05)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the lock up, also for children that inherited it. Harmless when it is not held."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None

    def holder(self) -> str:
        """Name the process that took the lock last, for messages."""
        try:
            return f"process {self.path.read_text().strip() or 'unknown'}"
        except OSError as error:
            return f"an unknown process ({error})"
