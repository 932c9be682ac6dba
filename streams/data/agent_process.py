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

from streams.data.agent import Agent, Job
from streams.data.locks import FileLock, Holder
from streams.errors import CqrsError
from streams.log import configure

__all__ = ["main"]

_STATUS_S = 0.05
_PR_SET_PDEATHSIG = 1
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_BEST_EFFORT_LOWEST = (2 << 13) | 7


def main(descriptor: int, parent: int, nice: int) -> None:
    """Report until the agent ends, and end with the parent."""
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C is the parent's to pass on
        signal.signal(number, signal.SIG_IGN)
    if nice:
        _give_way(nice)
    pipe = Connection(descriptor)
    job: Job = pickle.loads(pipe.recv_bytes())  # what our own parent has pickled
    logs = pipe.recv()
    if logs is not None:
        configure(**logs)
    agent = Agent(job)

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
        with _noted(job):
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
    """Lower the priority for the processor and, where Linux can, for the disk."""
    os.nice(nice)
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_BEST_EFFORT_LOWEST)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
