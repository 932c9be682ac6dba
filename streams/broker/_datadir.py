"""The broker's data directory: given or temporary, and one broker's at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from streams.broker._lock import FileLock
from streams.errors import EmbeddedBrokerError

__all__ = ["DataDir"]

_PREFIX = "refold-broker-"
_LOCK_WAIT_S = 2.0  # a broker whose owner was just killed is still going
_STALE_S = 60.0  # no lock for so long after it was made: nobody is about to take it


class DataDir:
    """A locked data directory. The lock is also its broker's (`lock_fd`), and lasts as long as that runs.

    Attributes:
        path: The directory: `log/` (Kafka's own), `broker.log`, `server.properties`, `broker.lock`.
        temporary: Whether `release` removes it.
    """

    def __init__(self, path: Path, lock: FileLock, *, temporary: bool) -> None:
        self.path = path
        self.temporary = temporary
        self._lock = lock

    @classmethod
    def take(cls, given: Path | None) -> DataDir:
        """Make the directory if need be, and lock it.

        Raises:
            EmbeddedBrokerError: It cannot be made, holds something else, or another broker has it.
        """
        if given is None:
            _remove_stale()
            path = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        else:
            path = given
            _check_ours(path)
        lock = FileLock(path / "broker.lock")
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = lock.acquire(timeout_s=_LOCK_WAIT_S)
        except OSError as error:
            raise EmbeddedBrokerError(
                f"The data directory {path} cannot be written to ({error.strerror}). Give another: --data-dir."
            ) from error
        if not taken:
            raise EmbeddedBrokerError(
                f"Another embedded broker has the data directory {path} ({lock.holder()}). "
                "Stop that one, or give another --data-dir."
            )
        return cls(path, lock, temporary=given is None)

    @property
    def log_dir(self) -> Path:
        """Kafka's log.dirs; there once it is formatted."""
        return self.path / "log"

    @property
    def log(self) -> Path:
        """What the JVM writes to stdout and stderr since its last start. The start before: `broker.log.1`."""
        return self.path / "broker.log"

    @property
    def lock_fd(self) -> int:
        """For the broker to inherit."""
        return self._lock.fd

    def begin_log(self) -> None:
        """Begin a new log, and keep one old one."""
        if self.log.exists():
            self.log.replace(self.path / "broker.log.1")

    def read_log(self) -> str:
        """Give the log; empty when there is none."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def release(self) -> None:
        """Let others have it, or remove it if it is temporary. Not while the broker runs."""
        if self.temporary:
            shutil.rmtree(self.path)
        self._lock.release()


def _check_ours(path: Path) -> None:
    """Refuse to write into somebody's files."""
    if path.exists() and not path.is_dir():
        raise EmbeddedBrokerError(f"The data directory {path} is a file. Give a directory: --data-dir.")
    if path.exists() and any(path.iterdir()) and not (path / "broker.lock").exists():
        raise EmbeddedBrokerError(
            f"The data directory {path} holds other files than an embedded broker's. Give an empty one: --data-dir."
        )


def _remove_stale() -> None:
    """Remove temporary directories whose owner was killed while the broker was down, so that nobody did."""
    for lock_file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/broker.lock"):
        with contextlib.suppress(OSError):  # another process removes it as well, or it is another user's
            if lock_file.stat().st_uid != os.getuid() or time.time() - lock_file.stat().st_mtime < _STALE_S:
                continue
            lock = FileLock(lock_file)
            if lock.acquire():
                try:
                    shutil.rmtree(lock_file.parent)
                finally:
                    lock.release()
