"""One generation, claimed and folded by agents that this process has started, until it is told to stop."""

from __future__ import annotations

from collections.abc import Mapping

from streams.control.claim import claim_live
from streams.control.ground import Claimed, Ground
from streams.data.agent import AgentStatus, Job
from streams.data.runner import MakeRunner

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

    def start(self, *, adopt: bool = False) -> None:
        """Claim the generation's state, and have it folded from where it is.

        Raises:
            See `claim_live`.
        """
        claimed = claim_live(self._ground, adopt=adopt)
        try:
            self._runner = self._make(claimed.job)
            self._runner.start()
        except BaseException:
            claimed.lock.release()
            raise
        self._claimed = claimed

    @property
    def is_started(self) -> bool:
        """Whether agents are there, be they at an end or not."""
        return self._claimed is not None

    @property
    def job(self) -> Job:
        """What is folded into what."""
        assert self._claimed is not None
        return self._claimed.job

    @property
    def status(self) -> AgentStatus:
        """The agents' figures."""
        return self._runner.status if self.is_started else AgentStatus()

    def stop(self) -> None:
        """Ask the agents to end; from any thread."""
        if self.is_started:
            self._runner.stop()

    def wait(self, timeout_s: float) -> bool:
        """Wait for their end, and look after them meanwhile; say whether they have ended."""
        return not self.is_started or self._runner.wait(timeout_s)

    def close(self) -> Mapping[int, int]:
        """Stop, wait for the end, and let go of the state; give each partition's position in its store.

        Raises:
            Whatever the agents raised.
        """
        if self._claimed is None:
            return {}
        claimed, self._claimed = self._claimed, None
        with claimed.lock:
            self._runner.stop()
            while not self._runner.wait(1.0):
                pass
            status = self._runner.result()
        return {number: one.committed for number, one in status.partitions.items()}
