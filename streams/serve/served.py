"""Which partitions this worker serves: those that have been close to their topic's end since they came here."""

from __future__ import annotations

from collections.abc import Mapping

from streams.control.caught_up import CLOSE_RECORDS
from streams.control.record import Generation
from streams.data.partition import PartitionStatus, Phase

__all__ = ["Served"]


class Served:
    """Remembers which partitions have been close to their topic's end since they came here."""

    def __init__(self) -> None:
        self._served: dict[str, set[int]] = {}

    def look(self, generation: Generation, held: Mapping[int, PartitionStatus], ends: Mapping[int, int]) -> bool:
        """Take in what this worker's agents hold of a generation; say whether all of it is served.

        Args:
            generation: Which.
            held: By partition.
            ends: Where the topic's partitions ended, when they were last looked at.
        """
        known = self._served.setdefault(generation.id, set())
        known.intersection_update(held)
        for number, one in held.items():
            if one.committed >= 0 and number in ends and ends[number] - one.committed <= CLOSE_RECORDS:
                known.add(number)
        return all(number in known or one.is_halted for number, one in held.items())

    def why_not(self, generation: Generation, number: int, one: PartitionStatus) -> str:
        """Say what keeps a partition from being served; "" where nothing does."""
        if one.phase is Phase.OPENING or one.committed < 0:
            return str(Phase.OPENING)
        if one.phase is Phase.HALTED or number in self._served.get(generation.id, ()):
            return ""
        return f"at {one.committed}, and not close to its topic's end yet"
