"""How fast a rebuild may fold, so that it leaves the rest of a machine or of a cluster to others."""

from __future__ import annotations

import time

from streams.config import FoldSettings

__all__ = ["Throttle"]

_PORTION_S = 0.1
"""A batch holds at most what may be folded in so long: the group is polled in between."""
_LONGEST_S = 1.0
"""The longest rest at once, however large a record was; what is left of it follows the next poll."""


class Throttle:
    """Spreads events and bytes over time. What is not used is not saved up: a pause makes nothing faster afterwards.

    Args:
        settings: Its `rate` says how fast; by default as fast as can be.
    """

    def __init__(self, settings: FoldSettings) -> None:
        self._events_per_s, self._bytes_per_s = settings.rates
        self._free_at_s = 0.0

    @property
    def room(self) -> int | None:
        """How many events the next batch may hold; None for any number."""
        return None if self._events_per_s is None else max(1, int(self._events_per_s * _PORTION_S))

    def took(self, events: int, size_bytes: int) -> None:
        """Note what was folded."""
        seconds = 0.0
        if self._events_per_s is not None:
            seconds = events / self._events_per_s
        if self._bytes_per_s is not None:
            seconds = max(seconds, size_bytes / self._bytes_per_s)
        self._free_at_s = max(self._free_at_s, time.monotonic()) + seconds

    @property
    def rest_s(self) -> float:
        """How long to rest before the next batch."""
        return min(_LONGEST_S, max(0.0, self._free_at_s - time.monotonic()))

    @property
    def is_on(self) -> bool:
        """Whether there is a limit at all."""
        return self._events_per_s is not None or self._bytes_per_s is not None
