"""One generation, claimed and folded by agents that this process has started, until it is told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable

from streams.control.claim import claim_live
from streams.control.ground import Claimed, Ground
from streams.data.agent import AgentStatus, Job
from streams.data.runner import MakeRunner, Runner

__all__ = ["Folding"]


class Folding:
    """Folds a generation for good.

    `start`, `wait` and `close` are to be called from one thread.

    Args:
        ground: What is folded.
        make_runner: Where its agents run.
    """

    def __init__(self, ground: Ground, make_runner: MakeRunner) -> None:
        self._ground = ground
        self._make = make_runner
        self._claimed: Claimed | None = None
        self._newest: Claimed | None = None
        self._runner: Runner | None = None

    def start(self, claim: Callable[[Ground], Claimed] = claim_live) -> None:
        """Claim the generation's state, and have it folded from where it is.

        Args:
            claim: How; by default as the only one who folds it, beside others of this machine.

        Raises:
            See `claim_live`.
        """
        claimed = claim(self._ground)
        try:
            runner = self._make(claimed.job)
            runner.start()
        except BaseException:
            claimed.lock.release()
            raise
        self._claimed = self._newest = claimed
        self._runner = runner

    @property
    def is_started(self) -> bool:
        """Whether agents are there, be they at an end or not."""
        return self._claimed is not None

    @property
    def job(self) -> Job:
        """What is folded into what; after its end, what was."""
        assert self._newest is not None
        return self._newest.job

    @property
    def status(self) -> AgentStatus:
        """The agents' figures; after their end, the last ones."""
        return AgentStatus() if self._runner is None else self._runner.status

    @property
    def pids(self) -> set[int]:
        """The processes in which the agents run."""
        pids: set[int] = getattr(self._runner, "pids", {os.getpid()})
        return pids

    def stop(self, *, stays: bool = False) -> None:
        """Ask the agents to end; from any thread.

        Args:
            stays: They are about to come back; see `Job.instance`.
        """
        if self._runner is not None:
            self._runner.stop(stays=stays)

    def renice(self, nice: int) -> None:
        """Have the agents go on with another priority."""
        if self._runner is not None:
            self._runner.renice(nice)

    def wait(self, timeout_s: float) -> bool:
        """Wait for their end, and look after them meanwhile; say whether they have ended."""
        return self._claimed is None or self._runner is None or self._runner.wait(timeout_s)

    def close(self) -> None:
        """Stop, wait for the end, and let go of the state; it may be started again.

        Raises:
            Whatever the agents raised.
        """
        claimed, self._claimed, runner = self._claimed, None, self._runner
        if claimed is None or runner is None:
            return
        with claimed.lock:
            runner.stop()
            while not runner.wait(1.0):
                pass
            runner.result()
