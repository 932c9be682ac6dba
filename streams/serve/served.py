"""Which partitions this worker serves: those that have been at their topic's end since they came here."""

from __future__ import annotations

from collections.abc import Mapping

from streams.control.record import Generation
from streams.data.partition import PartitionStatus, Phase

__all__ = ["Served"]


class Served:
    """Remembers where each topic ended when a partition came here, and which partitions have come to that since.

    Nothing less will do: of a partition that is folded here from its beginning, models would be missing.
    """

    def __init__(self) -> None:
        self._targets: dict[str, dict[int, int]] = {}
        """By generation's id and partition; -1 once it is served."""

    def look(self, generation: Generation, held: Mapping[int, PartitionStatus], ends: Mapping[int, int]) -> bool:
        """Take in what this worker's agents hold of a generation; say whether all of it is served.

        Args:
            generation: Which.
            held: By partition.
            ends: Where the topic's partitions ended, when they were last looked at.
        """
        targets = self._targets.setdefault(f"{generation.id}/{generation.epoch}", {})
        for number in targets.keys() - held.keys():
            del targets[number]
        for number in held.keys() & ends.keys():
            targets.setdefault(number, ends[number])
        self.note(generation, held)
        return all(targets.get(number) == -1 or one.is_halted for number, one in held.items())

    def note(self, generation: Generation, held: Mapping[int, PartitionStatus]) -> None:
        """Take in how far what is held is by now, where nobody says how far topics are."""
        targets = self._targets.get(f"{generation.id}/{generation.epoch}", {})
        for number, one in held.items():
            if number in targets and one.committed >= targets[number]:
                targets[number] = -1

    def was_all(self, generation: Generation) -> bool:
        """Say whether all that was held here when it was last looked at was served, though it may be held no more."""
        targets = self._targets.get(f"{generation.id}/{generation.epoch}", {})
        return all(target == -1 for target in targets.values())

    def why_not(self, generation: Generation, number: int, one: PartitionStatus) -> str:
        """Say what keeps a partition from being served; "" where nothing does."""
        if one.phase in (Phase.OPENING, Phase.RESTORING) or one.committed < 0:
            return f"{one.phase}: {one.why}" if one.phase is Phase.RESTORING else str(Phase.OPENING)
        target = self._targets.get(f"{generation.id}/{generation.epoch}", {}).get(number)
        if one.phase is Phase.HALTED or (target is not None and one.committed >= target):
            return ""
        of = "" if target is None else f" of {target}"
        return f"at {one.committed}{of}, and has not been at its topic's end yet"
