"""Snapshots now and then while a rebuild runs, so that what fails late need not begin anew."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from streams.data.build import Build
from streams.data.snapshots import Snapshots
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["PeriodicSnapshots"]

log = get_logger(__name__)

KEPT = 3
"""Snapshots that are kept; older ones are pruned when there is a newer one."""
_ANSWER_S = 60.0


class PeriodicSnapshots:
    """Takes a snapshot each time that so many events have been folded, on a thread of its own, one at a time.

    One that cannot be taken is logged: the rebuild does not depend on it.

    Args:
        build: What is folded.
        every: After how many events; None for none at all.
        events: Those that are folded already.
    """

    def __init__(self, build: Build, every: int | None, events: int = 0) -> None:
        self._build = build
        self._every = every if build.is_in_files else None
        self._next = None if self._every is None or every is None else (events // every + 1) * every
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def observe(self, events: int) -> None:
        """Note how many events are folded, and take a snapshot where it is time."""
        if self._next is None or self._every is None or events < self._next:
            return
        if self._thread is not None and self._thread.is_alive():
            return  # the last one is still being written; this one comes after it
        self._next = (events // self._every + 1) * self._every
        self._thread = threading.Thread(target=self._take, name="refold-snapshot", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        snapshots = Snapshots(self._build.root)
        try:
            if snapshots.take(self._build, wait_s=_ANSWER_S, stop=self._ended.is_set) is not None:
                snapshots.prune(keep=KEPT)
        except CqrsError as error:
            log.warning("snapshot.not_taken", directory=str(self._build.root), why=str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
