"""Which worker serves a partition: what the generation's group says, and how long ago it said so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streams.control.record import Generation
from streams.control.site import Site
from streams.errors import CqrsError
from streams.types import Member

__all__ = ["FRESH_S", "LEFT_ALONE_S", "Owners", "Owning"]

FRESH_S = 3.0
"""How old an answer of the group's may be for a partition to be served by it. A worker that was stopped for longer than
that asks anew before it serves anything: by then the group may have given its partitions to others."""
LEFT_ALONE_S = 5.0
"""A generation in whose group nobody was for so long is left alone."""
_ASK_S = 1.0
_SILENT_S = 5.0
"""For so long after nobody has answered, nobody is asked: readers are not to wait, each in turn."""


@dataclass(frozen=True, slots=True)
class Owning:
    """Who holds the partitions of a generation."""

    addresses: Mapping[int, str] = field(default_factory=dict)
    """By partition; one that is not named nobody serves."""
    workers: frozenset[str] = frozenset()
    """All who are in the group, whether they have been given a partition or not."""
    at_s: float = float("-inf")
    """When the group said so, by the monotonic clock."""

    @property
    def is_fresh(self) -> bool:
        """Whether it may be gone by."""
        return time.monotonic() - self.at_s <= FRESH_S


class Owners:
    """Remembers what groups said. Any thread may call."""

    def __init__(self) -> None:
        self._known: dict[str, Owning] = {}
        self._alone: dict[str, float] = {}
        """Since when nobody has been in a generation's group."""
        self._silent_s = float("-inf")
        """When nobody answered last."""
        self._guard = threading.Lock()

    def note(self, generation: str, members: Iterable[Member], at_s: float) -> Owning:
        """Take in who is in a generation's group.

        Args:
            generation: Its id.
            members: As the group said.
            at_s: When it was asked.
        """
        members = list(members)
        addresses = {number: one.address for one in members if one.address for number in one.partitions}
        owning = Owning(addresses, frozenset(one.address for one in members if one.address), at_s)
        with self._guard:
            self._silent_s = float("-inf")
            if members:
                self._alone.pop(generation, None)
            else:
                self._alone.setdefault(generation, at_s)
            if owning.at_s > self._known.get(generation, Owning()).at_s:
                self._known[generation] = owning
        return owning

    def known(self, generation: str) -> Owning:
        """Give what its group said last."""
        return self._known.get(generation, Owning())

    def alone_s(self, generation: str) -> float:
        """Say for how long nobody has been in a generation's group, in seconds, as far as it was asked."""
        since_s = self._alone.get(generation)
        return 0.0 if since_s is None else time.monotonic() - since_s

    def unheard_s(self, generation: str) -> float:
        """Say for how long its group has said nothing, in seconds; infinity where it never did."""
        return time.monotonic() - self.known(generation).at_s

    @property
    def are_silent(self) -> bool:
        """Whether nobody has answered just now who could say."""
        return time.monotonic() - self._silent_s < _SILENT_S

    def note_silence(self) -> None:
        """Take in that nobody answers."""
        self._silent_s = time.monotonic()

    def ask(self, site: Site, generation: Generation) -> Owning:
        """Ask its group now; it takes a second at most. Where nobody answers, what it said last is given."""
        began_s = time.monotonic()
        if self.are_silent:
            return self.known(generation.id)
        try:
            members = site.events.cluster.within(_ASK_S).members(generation.group)
        except CqrsError:
            self.note_silence()
            return self.known(generation.id)
        return self.note(generation.id, members, began_s)
