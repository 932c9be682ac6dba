"""Where an agent runs: on a thread of this process, or in a process of its own. Status, stop and errors cross over."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Protocol, TypeAlias

from streams.data.agent import Agent, AgentStatus, Job
from streams.errors import ConfigError, CqrsError

__all__ = ["MakeRunner", "ProcessRunner", "Runner", "ThreadRunner"]

_STATUS_S = 0.05
_PR_SET_PDEATHSIG = 1


class Runner(Protocol):
    """Runs one agent once. Every method may be called from any thread."""

    @property
    def status(self) -> AgentStatus:
        """The agent's figures, a moment old at most; after its end the last ones."""
        ...

    def start(self) -> None:
        """Start the agent; once.

        Raises:
            ConfigError: The job cannot be given to where the agent is to run.
        """
        ...

    def stop(self) -> None:
        """Ask the agent to end; see `Agent.stop`. Also before `start`, and more than once."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for the agent's end, at most so long; say whether it has ended."""
        ...

    def result(self) -> AgentStatus:
        """Give the last status of an agent that has ended.

        Raises:
            Whatever `Agent.run` raised.
            CqrsError: The agent's process died; the message says how.
        """
        ...


MakeRunner: TypeAlias = Callable[[Job], Runner]


class ThreadRunner:
    """Runs an agent on a thread of its own in this process."""

    def __init__(self, job: Job) -> None:
        self._agent = Agent(job)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="refold-agent")

    @property
    def status(self) -> AgentStatus:
        """See Runner."""
        return self._agent.status

    def start(self) -> None:
        """See Runner."""
        self._thread.start()

    def stop(self) -> None:
        """See Runner."""
        self._agent.stop()

    def wait(self, timeout_s: float) -> bool:
        """See Runner."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self) -> AgentStatus:
        """See Runner."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._agent.status

    def _run(self) -> None:
        try:
            self._agent.run()
        except BaseException as error:  # noqa: BLE001  (raised again by `result`)
            self._error = error


class ProcessRunner:
    """Runs an agent in a process of its own, which ends with this one, however that ends.

    The projection is found there by its module's name, as pickle does it. Start it from a thread that lives as long as
    the agent is to: on Linux the agent's process ends with the thread that started it.
    """

    def __init__(self, job: Job) -> None:
        self._job = _pickled(job)
        self._process: subprocess.Popen[bytes] | None = None
        self._ours, self._theirs = Pipe()
        self._guard = threading.Lock()
        self._status = AgentStatus()
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._stopped = False

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
                [sys.executable, "-c", f"from {__name__} import _child; _child({descriptor}, {os.getpid()})"],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))},
            )
            self._theirs.close()
            self._ours.send_bytes(self._job)
        threading.Thread(target=self._listen, name="refold-runner", daemon=True).start()
        if self._stopped:
            self.stop()

    def stop(self) -> None:
        """See Runner."""
        with self._guard:
            self._stopped = True
            if self._process is not None and not self._ended.is_set():
                with contextlib.suppress(OSError):
                    self._ours.send("stop")

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
            self._error = CqrsError(
                f"The agent's process {self.pid} died ({how}). What it had committed is kept; start it again."
            )
        self._ended.set()


def _pickled(job: Job) -> bytes:
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


def _child(descriptor: int, parent: int) -> None:
    """Be an agent's process: report until the agent ends, and end with the parent."""
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C is the parent's to pass on
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(descriptor)
    agent = Agent(pickle.loads(pipe.recv_bytes()))  # what our own parent has pickled

    def listen() -> None:
        # The parent's end closing is as good as its word.
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
        agent.stop()

    ended = threading.Event()

    def report() -> None:
        with contextlib.suppress(OSError):
            while not ended.wait(_STATUS_S):
                pipe.send(agent.status)

    threading.Thread(target=listen, daemon=True).start()
    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    error: BaseException | None = None
    try:
        agent.run()
    except BaseException as failure:  # noqa: BLE001  (raised again in the parent)
        error = failure
    ended.set()
    reporter.join()
    with contextlib.suppress(OSError):
        pipe.send(agent.status)
        try:
            pipe.send(error)
        except (TypeError, AttributeError, pickle.PicklingError):
            pipe.send(CqrsError(f"{type(error).__name__}: {error}"))
    pipe.close()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was set
        os._exit(1)
