"""Which partitions this worker serves: those that have been close to their topic's end since they came here."""

from __future__ import annotations

from collections.abc import Mapping

from streams.control.caught_up import CLOSE_RECORDS
from streams.control.record import Generation
from streams.data.partition import PartitionStatus, Phase
from streams.serve.observing import Observed

__all__ = ["Served"]


class Served:
    """Remembers which partitions have been close to their topic's end since they came here."""

    def __init__(self) -> None:
        self._served: dict[str, set[int]] = {}

    def look(self, generation: Generation, held: Mapping[int, PartitionStatus], seen: Observed | None) -> None:
        """Take in what this worker's agents hold of a generation, and where the topic ended when it was last seen."""
        known = self._served.setdefault(generation.id, set())
        known.intersection_update(held)
        if seen is None:
            return
        ends = {view.partition: view.end for view in seen.view.partitions}
        for number, one in held.items():
            if one.committed >= 0 and number in ends and ends[number] - one.committed <= CLOSE_RECORDS:
                known.add(number)

    def why_not(self, generation: Generation, number: int, one: PartitionStatus) -> str:
        """Say what keeps a partition from being served; "" where nothing does."""
        if one.phase is Phase.OPENING or one.committed < 0:
            return str(Phase.OPENING)
        if one.phase is Phase.HALTED or number in self._served.get(generation.id, ()):
            return ""
        return f"at {one.committed}, and not close to its topic's end yet"
