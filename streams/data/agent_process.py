"""An agent's process: `python -m streams.data.agent_process DESCRIPTOR PARENT NICE`, as `ProcessRunner` starts it.

It is given its job, and the word to stop, by the descriptor of a pipe, and reports its status there. It ends with its
parent, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import platform
import secrets
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TypeAlias

from streams.data.agent import Agent
from streams.data.job import AnyJob, Hold, Job, Repartition
from streams.data.locks import FileLock, Holder
from streams.data.polling import end_where_closing_hangs
from streams.data.repartition import Repartitioner
from streams.data.standby import Standby
from streams.errors import CqrsError
from streams.log import configure

__all__ = ["main"]

Actor: TypeAlias = Agent | Standby | Repartitioner

_STATUS_S = 0.05
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_BEST_EFFORT_LOWEST = (2 << 13) | 7


def main(descriptor: int, parent: int, nice: int) -> None:
    """Report until the agent ends, and end with the parent."""
    _die_with(parent)
    end_where_closing_hangs()
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C is the parent's to pass on
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(descriptor)
    job: AnyJob = pickle.loads(pipe.recv_bytes())  # what our own parent has pickled
    logs = pipe.recv()
    if logs is not None:
        configure(**logs)
    agent = _actor(job)
    stretches = _Stretches(agent, nice)

    def listen() -> None:
        # The parent's end closing is as good as its word; whoever starts the parent again has it come back.
        word: int | frozenset[int] | tuple[str, Hold | None] | str = "stay"
        with contextlib.suppress(EOFError, OSError):
            while not isinstance(word := pipe.recv(), str):
                if isinstance(word, int):
                    stretches.renice(word)
                elif isinstance(word, tuple):
                    if isinstance(agent, Repartitioner):
                        agent.hold(word[1])
                elif isinstance(agent, Standby):
                    agent.hold_only(word)
        agent.stop(stays=word != "stop")

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
        with _noted(job) if isinstance(job, Job) else contextlib.nullcontext():
            stretches.run()
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


def _actor(job: AnyJob) -> Actor:
    if isinstance(job, Repartition):
        return Repartitioner(job)
    return Standby(job) if job.stands_by else Agent(job)


class _Stretches:
    """Runs an agent in stretches, each on a thread of its own, with the priority that it is to have by then.

    Linux gives each thread its own, and one that was lowered may not be raised again without a privilege. A new one
    begins with that of the thread that starts it: so the main thread keeps the usual one, and only starts others.

    Args:
        agent: The agent.
        nice: By how much its priority is lowered.
    """

    def __init__(self, agent: Actor, nice: int) -> None:
        self._turns = agent.turns()
        self._nice = nice
        self._is_over = False
        self._changed = threading.Event()
        self._error: BaseException | None = None

    def renice(self, nice: int) -> None:
        """Go on with another priority; from any thread."""
        if nice != self._nice:
            self._nice = nice
            self._changed.set()

    def run(self) -> None:
        """Run the agent to its end.

        Raises:
            See `Agent.run`.
        """
        while not self._is_over:
            self._changed.clear()
            thread = threading.Thread(target=self._stretch, name="refold-agent")
            thread.start()
            thread.join()
        if self._error is not None:
            raise self._error

    def _stretch(self) -> None:
        try:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_NAME, b"refold-agent")  # for those who look, as `top -H` does
            if self._nice:
                _give_way(self._nice)
            for _ in self._turns:
                if self._changed.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  (raised again by `run`)
            self._error = error
        self._is_over = True


def _noted(job: Job) -> FileLock:
    """Note this process among those that fold in the build, beside its parent, by whose claim it does."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    lock = FileLock.take(job.build.path / "folding" / name, Holder.me(f"agent of {job.generation}", job.group))
    assert isinstance(lock, FileLock), "a fresh name"
    return lock


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was set
        os._exit(1)


def _give_way(nice: int) -> None:
    """Lower this thread's priority for the processor and the disk; where Linux is not, the process's, for good."""
    if sys.platform == "linux":
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + nice)
    else:
        os.nice(nice)
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_BEST_EFFORT_LOWEST)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
