"""The models of the partitions that are folded here, read beside the agents that fold them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from streams.data.build import Build
from streams.data.query import Keep
from streams.data.reader import hold
from streams.data.store import StoreState
from streams.data.stores import StoreReader
from streams.errors import StateNotFound, StorageError

__all__ = ["Found", "Page", "Shelf"]

_FRESH_S = 0.05
"""How old a view may be that an answer is given from."""
_LOOKS_S = 0.05
"""For so long models of a partition are looked at, whether they are asked for, before others may."""
_LOOKS = 16
_FOLLOWED_S = 10.0
"""The same of one that nobody has asked for."""


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
    last: bytes | None
    """The id behind which the next page begins; None where there are no more."""
    state: StoreState


Key = tuple[Path, int]
"""A build's directory, and a partition."""


class _Opened:
    """One partition, opened when it is first read. Whoever uses it holds its guard."""

    def __init__(self, build: Build, partition: int, scratch: Path) -> None:
        self.guard = threading.Lock()
        self._build = build
        self._partition = partition
        self._scratch = scratch
        self._seen_s = 0.0
        self._is_closed = False
        self._version: object = None
        self._held: IO[bytes] | None = None
        self._store: StoreReader | None = None

    @contextmanager
    def now(self, known: int, fresh_s: float = _FRESH_S) -> Iterator[StoreReader]:
        """Give the store for the time of the block, as it was so long ago at most, and not before a position.

        Args:
            known: A position that is committed for certain.
            fresh_s: How old the view may be.

        Raises:
            StateNotFound: The partition has no store yet, or no more.
            StorageError: It cannot be read, or is being let go.
        """
        store = self._now(known, fresh_s)
        try:
            yield store
        finally:
            store.rest()

    def _now(self, known: int, fresh_s: float) -> StoreReader:
        if self._is_closed:
            raise StorageError(f"Partition {self._partition} of {self._build.path} is being let go.")
        if self._store is not None and self._version != self._version_now():  # one from the repository has replaced it
            self._let_go()
        if self._store is None:
            self._version = self._version_now()
            self._store, self._seen_s = self._open(), time.monotonic()
            return self._store
        now_s = time.monotonic()
        if now_s - self._seen_s > fresh_s or self._store.state().position < known:
            self._store.catch_up()
            self._seen_s = now_s
        return self._store

    def _open(self) -> StoreReader:
        held = hold(self._build)
        if held is None or not self._build.has(self._partition):
            if held is not None:
                held.close()
            raise StateNotFound(f"Partition {self._partition} of {self._build.path} has no models yet.")
        try:
            store = self._build.stores.read(self._partition, self._scratch)
        except BaseException:
            held.close()
            raise
        self._held = held
        return store

    def _version_now(self) -> object:
        return self._build.stores.version_of(self._partition)

    def memory_bytes(self) -> int:
        with self.guard:
            return 0 if self._store is None else self._store.memory_bytes()

    def close(self) -> None:
        with self.guard:
            self._is_closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._store is not None and self._held is not None:
            self._store.close()
            self._held.close()
            self._store = self._held = None


class Shelf:
    """Opens partitions when they are first read, and keeps them open. Any thread may call."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="refold-shelf-")
        self._guard = threading.Lock()
        self._open: dict[Key, _Opened] = {}
        self._made = 0

    def find(self, build: Build, partition: int, model_id: str, known: int = -1) -> Found:
        """Look for a model in one partition.

        Args:
            build: Whose.
            partition: Which.
            model_id: The model's id.
            known: A position that is committed for certain: what is found is not of one before.

        Raises:
            StateNotFound: The partition has no store yet, or no more.
            StorageError: It cannot be read.
        """
        opened = self._opened(build, partition)
        with opened.guard, opened.now(known) as store:
            return Found(store.get(model_id), store.state())

    def warm(self, build: Build, partition: int, known: int = -1) -> None:
        """Open a partition before it is asked for, which takes long where there is much in it, and follow what is
        written: what lies far back keeps files that the writer has long removed.
        """
        opened = self._opened(build, partition)
        with opened.guard, contextlib.suppress(StorageError), opened.now(known, _FOLLOWED_S):
            pass

    def page(
        self,
        build: Build,
        partition: int,
        after: bytes | None,
        limit: int,
        keep: Keep | None = None,
        known: int = -1,
    ) -> Page:
        """Give models of one partition, in the order of their ids' bytes.

        Where only some are asked for, others wait while it looks: it looks for a moment only, and gives what it has.

        Args:
            build: Whose.
            partition: Which.
            after: The id behind which to begin; None for the first.
            limit: How many at most.
            keep: Says which; None for all.
            known: See `find`.

        Raises:
            ProjectionError: From `keep`.
            See `find`.
        """
        opened = self._opened(build, partition)
        with opened.guard, opened.now(known) as store:
            models: list[tuple[bytes, bytes]] = []
            last, until_s = after, time.monotonic() + _LOOKS_S
            # The smallest id behind another one is that one and a zero byte.
            for number, (model_id, raw) in enumerate(store.raw_items(b"" if after is None else after + b"\0")):
                if len(models) == limit:
                    return Page(models, last, store.state())
                # Not before the first few, or the next page would begin where this one did.
                if keep is not None and number and number % _LOOKS == 0 and time.monotonic() > until_s:
                    return Page(models, last, store.state())
                if keep is None or keep(model_id, raw):
                    models.append((model_id, raw))
                last = model_id
            return Page(models, None, store.state())

    def memory_bytes(self, build: Build) -> int:
        """Give the memory that RocksDB takes for those partitions of a build that are open."""
        with self._guard:
            opened = [one for (path, _), one in self._open.items() if path == build.path]
        return sum(one.memory_bytes() for one in opened)

    def let_go(self, build: Path) -> None:
        """Close what is of a build: other processes write to it by now."""
        with self._guard:
            closing = [self._open.pop(key) for key in list(self._open) if key[0] == build]
        for one in closing:
            one.close()

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
            if found is None:
                self._made += 1
                found = self._open[key] = _Opened(build, partition, Path(self._scratch.name) / str(self._made))
            return found
