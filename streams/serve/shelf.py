"""The models of the partitions that are folded here, read beside the agents that fold them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from streams.data.build import Build
from streams.data.reader import hold
from streams.data.store import StoreState
from streams.data.store_reader import PartitionReader, read_only
from streams.errors import StateNotFound, StorageError

__all__ = ["Found", "Page", "Shelf"]

_FRESH_S = 0.05
"""How old a view may be that an answer is given from."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a store has under an id."""

    raw: bytes | None
    """The model as stored; None where there is none."""
    state: StoreState
    """What the store says of itself, at the same instant."""


@dataclass(frozen=True, slots=True)
class Page:
    """Models of one partition, by id."""

    models: list[tuple[bytes, bytes]]
    is_last: bool
    state: StoreState


Key = tuple[Path, int]
"""A build's directory, and a partition."""


class _Opened:
    def __init__(self, build: Build, partition: int, scratch: Path) -> None:
        self.guard = threading.Lock()
        self.is_closed = False
        self._seen_s = time.monotonic()
        held = hold(build)
        if held is None or not build.has(partition):
            if held is not None:
                held.close()
            raise StateNotFound(f"Partition {partition} of {build.path} has no models yet.")
        self._held: IO[bytes] = held
        try:
            self.store: PartitionReader = read_only(build.path / str(partition), scratch)
        except BaseException:
            held.close()
            raise

    def catch_up(self) -> None:
        now_s = time.monotonic()
        if now_s - self._seen_s > _FRESH_S:
            self.store.catch_up()
            self._seen_s = now_s

    def close(self) -> None:
        with self.guard:
            if not self.is_closed:
                self.is_closed = True
                self.store.close()
                self._held.close()


class Shelf:
    """Opens partitions when they are first read, and keeps them open. Any thread may call."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="refold-shelf-")
        self._guard = threading.Lock()
        self._open: dict[Key, _Opened] = {}
        self._made = 0

    def find(self, build: Build, partition: int, model_id: str) -> Found:
        """Look for a model in one partition.

        Raises:
            StateNotFound: The partition has no store yet, or no more.
            StorageError: It cannot be read.
        """
        opened = self._opened(build, partition)
        with opened.guard:
            self._check_open(opened, build, partition)
            opened.catch_up()
            return Found(opened.store.get(model_id), opened.store.state())

    def page(self, build: Build, partition: int, after: bytes | None, limit: int) -> Page:
        """Give models of one partition, in the order of their ids' bytes.

        Args:
            build: Whose.
            partition: Which.
            after: The id behind which to begin; None for the first.
            limit: How many at most.

        Raises:
            See `find`.
        """
        opened = self._opened(build, partition)
        with opened.guard:
            self._check_open(opened, build, partition)
            opened.catch_up()
            # The smallest id behind another one is that one and a zero byte.
            models = list(islice(opened.store.raw_items(b"" if after is None else after + b"\0"), limit + 1))
            return Page(models[:limit], len(models) <= limit, opened.store.state())

    def keep_only(self, builds: Collection[Path]) -> None:
        """Close what is of other builds than these."""
        with self._guard:
            going = [key for key in self._open if key[0] not in builds]
            closing = [self._open.pop(key) for key in going]
        for one in closing:
            one.close()

    def close(self) -> None:
        """Close everything."""
        self.keep_only(())
        with contextlib.suppress(OSError):
            self._scratch.cleanup()

    def _opened(self, build: Build, partition: int) -> _Opened:
        key = (build.path, partition)
        with self._guard:
            found = self._open.get(key)
            if found is None or found.is_closed:
                self._made += 1
                found = self._open[key] = _Opened(build, partition, Path(self._scratch.name) / str(self._made))
            return found

    def _check_open(self, opened: _Opened, build: Build, partition: int) -> None:
        if opened.is_closed:
            raise StorageError(f"Partition {partition} of {build.path} is being let go.")
