"""Standing by for one generation: a process that folds copies of partitions which other workers own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from streams.data.agent import AgentStatus, Job
from streams.data.process_runner import ProcessRunner
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["StandingBy", "chosen"]

log = get_logger(__name__)

_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0
_IDLE_S = 10.0
"""For so long a process stays that has nothing to stand by for."""


def chosen(
    address: str, owners: Mapping[int, str], workers: Collection[str], partitions: int, standbys: int
) -> frozenset[int]:
    """Say for which partitions a worker is to stand by. All workers come to the same, from what the group says.

    Of those who do not own it, each partition has those stand by whose hash with it comes first (rendezvous hashing):
    where workers come or go, only what they had, or are to have, is moved.

    Args:
        address: The worker.
        owners: By partition, where it is folded.
        workers: All who have the code.
        partitions: How many the topic has.
        standbys: How many are to stand by for each.
    """
    found = set()
    for number in range(partitions):
        others = sorted(set(workers) - {owners.get(number)}, key=lambda one: _rank(number, one))
        if address in others[:standbys]:
            found.add(number)
    return frozenset(found)


def _rank(partition: int, address: str) -> bytes:
    return hashlib.blake2b(f"{partition}/{address}".encode(), digest_size=8).digest()


class StandingBy:
    """Runs the process that stands by, for as long as there is something to stand by for.

    All calls are to come from one thread, which the process ends with.

    Args:
        make: Makes what runs it.
    """

    def __init__(self, make: Callable[[Job], ProcessRunner]) -> None:
        self._make = make
        self._runner: ProcessRunner | None = None
        self._held_only: frozenset[int] = frozenset()
        self._began_s = self._changed_s = 0.0
        self._again_s = 0.0
        self._failures = 0

    @property
    def status(self) -> AgentStatus:
        """The figures of the copies."""
        return AgentStatus() if self._runner is None else self._runner.status

    @property
    def pids(self) -> frozenset[int]:
        """The process, while there is one."""
        pid = None if self._runner is None else self._runner.pid
        return frozenset() if pid is None else frozenset({pid})

    def look(self, job: Job, wanted: frozenset[int]) -> None:
        """Have it stand by for these partitions; start it again after a while where it has died.

        Args:
            job: What is folded into what here.
            wanted: The partitions.
        """
        if self._runner is not None and self._runner.wait(0.0):
            self._ended(self._runner)
        if self._runner is None:
            if not wanted or time.monotonic() < self._again_s:
                return
            try:
                runner = self._make(replace(job, stands_by=True, instance=""))
                runner.hold_only(wanted)
                runner.start()
            except CqrsError as error:
                self._failed(error)
                return
            self._runner, self._held_only, self._began_s = runner, wanted, time.monotonic()
            self._changed_s = self._began_s
            return
        if wanted != self._held_only:
            self._held_only, self._changed_s = wanted, time.monotonic()
            self._runner.hold_only(wanted)
        if not wanted and time.monotonic() - self._changed_s > _IDLE_S:
            self._runner.stop()

    def stop(self) -> None:
        """Ask it to end."""
        if self._runner is not None:
            self._runner.stop()

    def close(self) -> None:
        """Have it end, and wait for it."""
        runner = self._runner
        if runner is not None:
            runner.stop()
            while not runner.wait(1.0):
                pass
            self._ended(runner)

    def _ended(self, runner: ProcessRunner) -> None:
        self._runner, self._held_only = None, frozenset()
        try:
            runner.result()
        except CqrsError as error:
            self._failed(error)

    def _failed(self, error: CqrsError) -> None:
        if time.monotonic() - self._began_s > _LONGEST_BACKOFF_S:
            self._failures = 0
        self._failures += 1
        backoff_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (self._failures - 1))
        self._again_s = time.monotonic() + backoff_s
        log.warning("standby.ended", again_in_s=backoff_s, why=str(error))
