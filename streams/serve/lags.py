"""Lag over the last quarter of an hour, kept for the page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

from streams.serve.observing import Observed

__all__ = ["Lags"]

_EVERY_S = 5.0
_KEPT_S = 900.0


class Lags:
    """Keeps what was observed of each partition's lag, some hundred points each.

    Args:
        seen: Gives what was observed last, by generation's id.
    """

    def __init__(self, seen: Callable[[], Mapping[str, Observed]]) -> None:
        self._seen = seen
        self._points: dict[str, dict[int, deque[tuple[float, int]]]] = {}

    async def run(self) -> None:
        """Keep looking, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)

    def look(self) -> None:
        """Take in what was observed last; forget generations that are gone."""
        seen = self._seen()
        for gone in set(self._points) - set(seen):
            del self._points[gone]
        now_s = round(time.time(), 1)
        for id_, observed in seen.items():
            parts = self._points.setdefault(id_, {})
            for view in observed.view.partitions:
                points = parts.setdefault(view.partition, deque())
                points.append((now_s, view.lag))
                while now_s - points[0][0] > _KEPT_S:
                    points.popleft()

    def document(self) -> dict[str, dict[int, list[tuple[float, int]]]]:
        """Give all points: by generation and partition, when (seconds since 1970) and how many records."""
        return {id_: {number: list(points) for number, points in parts.items()} for id_, parts in self._points.items()}
