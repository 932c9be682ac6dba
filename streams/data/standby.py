"""Standing by: folding partitions that others own into copies of them here, a moment behind, and telling nobody."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import replace

from streams.data.collector import rare_collections
from streams.data.job import AgentStatus, Job, Work
from streams.data.lane import Lane
from streams.data.partition import Phase
from streams.data.polling import Polling
from streams.data.recovery import Recovery
from streams.log import get_logger

__all__ = ["Standby"]

log = get_logger(__name__)

_IDLE_S = 0.1
_SOON_S = 0.01
_AGAIN_S = 60.0
"""How long after a copy could not be folded further it is tried again: its owner may have sent a snapshot by then."""
_CLOSE_S = 3.0
_LETTERS = "dead letters wait in it: only its owner folds it on, and it is fetched again once they are folded"


class Standby:
    """Keeps copies of partitions near the topic's end, to be taken over by an agent of this machine.

    It is no member of the group, and says nothing of events that fail: in front of one its copy stays, until an agent
    here is given the partition, or the snapshot repository has a later one.

    `turns` blocks; everything else may be used from any thread.

    Args:
        job: What is folded into what.
    """

    def __init__(self, job: Job) -> None:
        self.job = replace(job, recovery=Recovery(), until=None)
        self._interrupts: list[str] = []
        self._lane = Lane(self.job, self._interrupts)
        self._wanted: frozenset[int] = frozenset()
        self._held: frozenset[int] = frozenset()
        self._stuck: dict[int, float] = {}
        """When each partition is to be tried again that cannot be folded further."""
        self.status = AgentStatus()

    def hold_only(self, partitions: Collection[int]) -> None:
        """Stand by for these partitions from now on, and let go of all others."""
        self._wanted = frozenset(partitions)

    def stop(self, *, stays: bool = False) -> None:  # noqa: ARG002 - it is in no group
        """Ask for the end: what is folded is committed."""
        self._interrupts.append("stop")

    def turns(self) -> Iterator[None]:
        """Fold until stopped, turn by turn; see `Agent.turns`.

        Raises:
            BuildChanged, TopicChanged, TopicNotFound, StorageError, BrokerUnavailable, BrokerError: See `Agent.run`.
        """
        polling = Polling(self.job.events, {"group.id": f"refold-standby-{secrets.token_hex(6)}"})
        clean = False
        try:
            self._lane.begin(polling)
            with rare_collections():
                while not self._interrupts:
                    self._heed(polling)
                    self._lane.advance()  # before anything is fetched; see `Agent`
                    self._leave_letters(polling)
                    slices = polling.poll(_SOON_S if self._lane.is_waiting else _IDLE_S, self._lane.commits.room)
                    self._lane.take(slices)
                    self._lane.commits.if_due(idle=not any(piece.records for piece in slices))
                    self._lane.answer_snapshots()
                    self._publish(polling)
                    yield
            clean = True
        finally:
            if clean:
                self._lane.commits.all()
            self._lane.close()
            polling.close(_CLOSE_S)

    def _heed(self, polling: Polling) -> None:
        """Let go of what is not wanted any more, at once: somebody waits for it. Take on what is."""
        now = time.monotonic()
        for number, phase in ((one, two.phase) for one, two in self.status.partitions.items()):
            if phase is Phase.HALTED:
                self._stuck.setdefault(number, now + _AGAIN_S)
        again = {number for number, at_s in self._stuck.items() if now >= at_s}
        wanted = self._wanted
        self._let_go((self._held - wanted) | (self._held & again), polling)
        self._stuck = {one: at_s for one, at_s in self._stuck.items() if one in wanted and one not in again}
        new = wanted - self._held - self._stuck.keys()
        if new:
            self._lane.hold(sorted(new))
            self._held |= new

    def _let_go(self, going: frozenset[int], polling: Polling) -> None:
        if going:
            self._lane.finish(going)
            self._lane.release(going)
            for number in going:
                polling.stop_reading(number)
            self._held -= going

    def _leave_letters(self, polling: Polling) -> None:
        """Let go of copies in which dead letters wait: to fold them on is to write further ones."""
        found = self._lane.with_letters()
        self._let_go(frozenset(found), polling)
        for number in found:
            log.info("standby.has_letters", partition=number, why=_LETTERS)
            self._stuck[number] = time.monotonic() + _AGAIN_S

    def _publish(self, polling: Polling) -> None:
        self.status = self._lane.status(polling.away_s, Work(restored=self._lane.restored), 0)
