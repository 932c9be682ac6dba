"""Agents in processes of their own. Status, stop and errors cross over, by a pipe."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe

from streams.data.agent import AgentStatus
from streams.data.job import AnyJob, Hold
from streams.errors import AgentDied, ConfigError
from streams.log import configured

__all__ = ["ProcessRunner"]

ENTRY = "streams.data.agent_process"


class ProcessRunner:
    """Runs an agent in a process of its own, which ends with this one, however that ends.

    The projection is found there by its module's name, as pickle does it. Start it from a thread that lives as long as
    the agent is to: on Linux the agent's process ends with the thread that started it.

    Args:
        job: What is folded into what.
        nice: By how much its priority for the processor is lowered, 0 to 19; where it is, it also waits for others at
            the disk.
    """

    def __init__(self, job: AnyJob, *, nice: int = 0) -> None:
        self._job = _pickled(job)
        self._nice = nice
        self._process: subprocess.Popen[bytes] | None = None
        self._ours, self._theirs = Pipe()
        self._guard = threading.Lock()
        self._status = AgentStatus()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._stopped = False
        self._held_only: frozenset[int] | None = None

    @property
    def status(self) -> AgentStatus:
        """See Runner."""
        return self._status

    @property
    def pid(self) -> int | None:
        """The process's id; None before `start`."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """See Runner."""
        with self._guard:
            descriptor = self._theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", ENTRY, str(descriptor), str(os.getpid()), str(self._nice)],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))},
            )
            self._theirs.close()
            self._ours.send_bytes(self._job)
            self._ours.send(configured())
            if self._held_only is not None:
                self._ours.send(self._held_only)
        threading.Thread(target=self._listen, name="refold-runner", daemon=True).start()
        if self._stopped:
            self.stop()

    def stop(self, *, stays: bool = False) -> None:
        """See Runner."""
        with self._guard:
            self._stopped = True
            if self._process is not None and not self._ended.is_set():
                with contextlib.suppress(OSError):
                    self._ours.send("stay" if stays else "stop")

    def renice(self, nice: int) -> None:
        """See Runner."""
        with self._guard:
            self._nice = nice
            if self._process is not None and not self._ended.is_set():
                with contextlib.suppress(OSError):
                    self._ours.send(nice)

    def hold_only(self, partitions: frozenset[int]) -> None:
        """Have one that stands by do so for these partitions alone."""
        with self._guard:
            self._held_only = partitions
            if self._process is not None and not self._ended.is_set():
                with contextlib.suppress(OSError):
                    self._ours.send(partitions)

    def hold(self, wish: Hold | None) -> None:
        """See Runner."""
        with self._guard:
            if self._process is not None and not self._ended.is_set():
                with contextlib.suppress(OSError):
                    self._ours.send(("hold", wish))

    def wait(self, timeout_s: float) -> bool:
        """See Runner."""
        return self._ended.wait(timeout_s)

    def result(self) -> AgentStatus:
        """See Runner."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._status

    def _listen(self) -> None:
        said_why = False
        try:
            while True:
                message = self._ours.recv()
                if isinstance(message, AgentStatus):
                    self._status = message
                else:
                    said_why, self._error = True, message
        except (EOFError, OSError):
            assert self._process is not None
            code = self._process.wait()
        if not said_why:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._error = AgentDied(
                f"The agent's process {self.pid} died ({how}). What it had committed is kept; start it again."
            )
        self._ended.set()


def _pickled(job: AnyJob) -> bytes:
    for part in (job.projection, job.events.codec):
        if type(part).__module__ == "__main__":
            raise ConfigError(
                f"{type(part).__qualname__} cannot be given to a process of its own, since it is defined in "
                "the program "
                "that runs: put it into a module that can be imported."
            )
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise ConfigError(
            f"{job.projection.name} cannot be folded in a process of its own: {error}. Its class, and its "
            "codec's, must "
            "be importable by name from a module."
        ) from error
