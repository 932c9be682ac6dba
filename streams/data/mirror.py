"""What a consumer group is told of the stores' positions: behind them, never ahead, each with a stamp."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from streams.data.job import Job
from streams.data.partition import HeldPartition, Phase
from streams.data.stamp import Stamp
from streams.types import Committed

__all__ = ["Mirror"]


class Mirror:
    """Remembers which positions the group has not been told yet.

    Args:
        job: What is folded.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._untold: set[int] = set()

    def note(self, partition: int) -> None:
        """Note that there is something to tell of a partition."""
        self._untold.add(partition)

    def forget(self, partition: int) -> None:
        """Note that a partition is no longer ours to tell of."""
        self._untold.discard(partition)

    def take(self, refused: Iterable[int], held: Mapping[int, HeldPartition]) -> dict[int, Committed]:
        """Give what is to be told, as the stores are now.

        Args:
            refused: Partitions whose last commit the group refused: once more.
            held: What this process holds.
        """
        wanted, self._untold = self._untold | set(refused), set()
        found = {number: held[number] for number in wanted if number in held}
        return {number: self._stamped(one) for number, one in found.items() if one.store is not None}

    def _stamped(self, held: HeldPartition) -> Committed:
        assert held.store is not None
        state = held.store.state
        position, events = held.reached
        stamp = Stamp(
            generation=self._job.generation,
            build=state.build,
            directory=state.directory,
            fingerprint=self._job.build.current.fingerprint,
            events=state.events,
            declined=state.declined,
            models=state.models,
            dead_letters=state.dead_letters,
            skipped=state.skipped,
            last_event_time=state.last_event_time,
            record_ms=state.record_ms,
            last_event_id=state.last_event_id,
            furthest=max(position, state.position),
            furthest_events=max(events, state.events),
            time_ms=time.time_ns() // 1_000_000,
            halted=str(held.error) if held.phase is Phase.HALTED else None,
            pinned=None if self._job.pinned is None else self._job.pinned.get(held.number),
        )
        return Committed(position=state.position, metadata=stamp.encode())
