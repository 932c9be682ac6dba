"""The JVM, as its owner sees it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from streams.errors import EmbeddedBrokerError

__all__ = ["WatchedProcess"]

_SCRIPT = Path(__file__).with_name("_watch.py")


class WatchedProcess:
    """A process in a session of its own, out of the terminal's Ctrl-C's reach, that ends when its owner does.

    Between the two stands `_watch.py`, which says how. Any of the three may be killed with -9: on Linux no
    process stays behind; on macOS one does if the watcher itself is killed.

    Args:
        command: What to run.
        log: Where its output goes, appended.
        directory: What it runs in.
        lock_fd: A locked file that it inherits, so that the lock lasts as long as it.
        remove: A directory to remove if the owner dies first.

    Attributes:
        pid: The process's own id (not the watcher's).

    Raises:
        EmbeddedBrokerError: It could not be started.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, directory: Path, lock_fd: int, remove: Path | None
    ) -> None:
        order = {
            "command": list(command),
            "directory": str(directory),
            "lock_fd": lock_fd,
            "parent": os.getpid(),
            "remove": None if remove is None else str(remove),
        }
        with log.open("ab") as output:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SCRIPT), json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                pass_fds=[lock_fd],
            )
        try:
            assert self._watcher.stdout is not None
            with self._watcher.stdout as answer:
                line = answer.readline()
            if not line:
                raise EmbeddedBrokerError(
                    f"{command[0]} could not be started: its watcher exited with {self._watcher.wait()}.\n"
                    f"{log.read_text(errors='replace')[-4000:]}"
                )
            self.pid = int(line)
        except BaseException:
            self.close()
            raise

    def poll(self) -> int | None:
        """Give the exit code (128 + the number for a signal), or None while it runs."""
        return self._watcher.poll()

    def send(self, command: Literal["terminate", "kill", "stop", "continue"]) -> None:
        """Send a signal. Harmless when the process has ended: a reused process id is never hit."""
        assert self._watcher.stdin is not None
        # The pipe breaks exactly when the watcher has ended, and that ends after its child.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._watcher.stdin.fileno(), command[0].upper().encode())

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; say whether it came within `timeout_s`."""
        try:
            self._watcher.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Kill it if it still runs, and let go of its pipes."""
        assert self._watcher.stdin is not None
        # Wait first: to the watcher a closed pipe means that this process died, and its data may go.
        if self._watcher.poll() is None:
            self.send("kill")
            self._watcher.wait()
        self._watcher.stdin.close()
