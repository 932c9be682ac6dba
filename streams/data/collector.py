"""The garbage collector, while a fold runs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["rare_collections"]

_ALLOCATIONS = 50_000
_guard = threading.Lock()
_running = 0
_before: tuple[int, int, int] = (0, 0, 0)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python's cyclic collector run after 50,000 new containers and not after 700, for the time of the block.

    A fold makes two dicts for each event, which reference counting frees at once, and keeps a large cache of
    models, which the collector would walk through again and again: 5 % to 8 % of a rebuild. Cycles that user
    code makes are still collected. The setting is the process's; when the last block ends, it is as before.
    """
    global _running, _before
    with _guard:
        if _running == 0:
            _before = gc.get_threshold()
            gc.set_threshold(max(_ALLOCATIONS, _before[0]), *_before[1:])
        _running += 1
    try:
        yield
    finally:
        with _guard:
            _running -= 1
            if _running == 0:
                gc.set_threshold(*_before)
