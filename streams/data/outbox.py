"""Letters on their way to the topic of dead letters: which it has, which it will have, and which it may lack."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from streams.data.letter import Letter

__all__ = ["Known", "Outbox"]


class Known(NamedTuple):
    """What is known of a letter that the topic has, or is to have."""

    skipped: bool
    """Whether as one for which nothing waits."""
    where: int
    """Where in the topic it is, or an offset in front of that."""


class Outbox:
    """Of one partition's letters since its last commit.

    Letters are sent as they come, and have to have arrived before the commit that passes their events. Between the two
    nobody knows whether the topic has them; what may not have arrived is sent once more. Events that are come by a
    second time, since everything since the commit was forgotten, have their letters already, or on their way.
    """

    def __init__(self) -> None:
        self._new: list[tuple[Letter, bytes]] = []
        self._sent: list[bytes] = []  # as in the store, which has less room than letters take in memory
        self._lost: list[bytes] = []  # of these the topic may not have some
        self._to_come: dict[int, Known] = {}  # by offset of the event, those in `_new`
        self._flying: dict[int, Known] = {}  # those in `_sent` and `_lost`
        self._there: dict[int, Known] = {}  # those that the topic has

    def __contains__(self, offset: int) -> bool:
        """Say whether an event's letter was put in here since the last commit."""
        return offset in self._there or offset in self._to_come or offset in self._flying

    def put(self, letter: Letter, raw: bytes, known: Known) -> None:
        """Have a letter be sent; `raw` is it as in the store."""
        self._to_come[letter.offset] = known
        self._new.append((letter, raw))

    def has(self, offset: int, known: Known) -> None:
        """Note that the topic has an event's letter from before."""
        self._there[offset] = known

    @property
    def is_waiting(self) -> bool:
        """Whether there are letters that nobody has sent."""
        return bool(self._new)

    @property
    def unsure(self) -> int:
        """How many letters there are of which nobody knows whether the topic has them."""
        return len(self._new) + len(self._sent) + len(self._lost)

    def to_send(self) -> list[Letter]:
        """Give the letters that are to be sent now; once all have arrived, or one may not have, that is to be told."""
        again = [msgspec.msgpack.decode(raw, type=Letter) for raw in self._lost]
        letters = again + [letter for letter, _ in self._new]
        self._sent += self._lost
        self._sent += [raw for _, raw in self._new]
        self._flying |= self._to_come
        self._new, self._lost, self._to_come = [], [], {}
        return letters

    def arrived(self) -> None:
        """Note that the topic has all letters that were sent."""
        self._there |= self._flying
        self._flying, self._sent = {}, []

    def not_arrived(self) -> None:
        """Note that the topic may not have some of the letters that were sent."""
        self._lost, self._sent = self._sent, []

    def committed(self) -> None:
        """Note that the store has passed the events of all letters that have arrived."""
        self._there = {}

    def reset(self) -> dict[int, Known]:
        """Forget what was not sent; give, by offset of the event, what the topic has or will have since the commit."""
        known = self._there | self._flying
        self._there, self._to_come, self._new = {}, {}, []
        return known
