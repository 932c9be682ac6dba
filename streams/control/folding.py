"""One generation, claimed and folded by agents that this process has started, until it is told to stop."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import replace

from streams.control.claim import claim_live
from streams.control.ground import Claimed, Ground
from streams.data.agent import AgentStatus
from streams.data.job import Hold, Job
from streams.data.runner import MakeRunner, Runner

__all__ = ["Folding"]

_LOOK_S = 0.05


class Folding:
    """Folds a generation for good; where that has a topic of its own, what fills it runs beside.

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
        self._status = AgentStatus()
        self._seat = secrets.token_hex(4)
        self._filling: Runner | None = None
        """What fills the generation's own topic."""
        self._wish: Hold | None = None

    def start(self, claim: Callable[[Ground], Claimed] = claim_live, ground: Ground | None = None) -> None:
        """Claim the generation's state, and have it folded from where it is.

        Args:
            claim: How; by default as the only one who folds it, beside others of this machine.
            ground: What is folded, where more is known of it by now.

        Raises:
            See `claim_live`.
        """
        if ground is not None:
            self._ground = ground
        claimed, was_filling = claim(self._ground), self.is_filling
        try:
            self.fill()
            runner = self._make(claimed.job)
            runner.start()
        except BaseException:
            claimed.lock.release()
            if self._filling is not None and not was_filling:
                _end([self._filling])
                self._filling = None
            raise
        self._claimed = self._newest = claimed
        self._runner = runner

    def fill(self) -> None:
        """Have the generation's own topic filled, where it has one; its models need not be claimed for that."""
        repartition = self._ground.repartition
        if self._filling is None and repartition is not None:
            filling = self._make(replace(repartition, seat=self._seat, address=self._ground.address))
            filling.start()
            self._filling, self._wish = filling, None

    @property
    def is_started(self) -> bool:
        """Whether agents are there that fold, be they at an end or not."""
        return self._claimed is not None

    @property
    def is_filling(self) -> bool:
        """Whether there is what fills the generation's own topic, be it at an end or not."""
        return self._filling is not None

    @property
    def job(self) -> Job:
        """What is folded into what; after its end, what was."""
        assert self._newest is not None
        return self._newest.job

    @property
    def status(self) -> AgentStatus:
        """The agents' figures; after their end, the last ones."""
        return self._status if self._runner is None else self._runner.status

    @property
    def filled(self) -> AgentStatus:
        """The figures of what fills the generation's own topic, by partition of the event topic; likewise."""
        return AgentStatus() if self._filling is None else self._filling.status

    @property
    def pids(self) -> set[int]:
        """The processes in which all of it runs."""
        found: set[int] = set()
        for runner in self._runners():
            found |= getattr(runner, "pids", {os.getpid()})
        return found or {os.getpid()}

    def stop(self, *, stays: bool = False) -> None:
        """Ask the agents to end; from any thread.

        Args:
            stays: They are about to come back; see `Job.instance`.
        """
        for runner in self._runners():
            runner.stop(stays=stays)

    def renice(self, nice: int) -> None:
        """Have the agents go on with another priority."""
        for runner in self._runners():
            runner.renice(nice)

    def hold(self, wish: Hold | None) -> None:
        """Have what fills the generation's own topic be held for a moment, or go on."""
        if self._filling is not None and wish != self._wish:
            self._wish = wish
            self._filling.hold(wish)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of any of it, and look after all meanwhile; say whether something has ended."""
        if self._filling is not None and self._filling.wait(timeout_s if self._runner is None else 0.0):
            return True
        return self._runner.wait(timeout_s) if self._runner is not None else self._filling is None

    def close(self) -> None:
        """Stop, wait for the end, and let go of the state; it may be started again.

        Raises:
            Whatever the agents raised.
        """
        claimed, runners = self._claimed, self._runners()
        try:
            _end(runners)
            self._status = self.status
            self._claimed = self._runner = self._filling = None
            for runner in runners:
                runner.result()
        finally:
            if claimed is not None:
                claimed.lock.release()

    def _runners(self) -> list[Runner]:
        return [runner for runner in (self._runner, self._filling) if runner is not None]


def _end(runners: list[Runner]) -> None:
    for runner in runners:
        runner.stop()
    while not all(runner.wait(_LOOK_S) for runner in runners):
        pass
