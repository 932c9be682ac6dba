"""Holding partitions at a cut's barrier, and copying them there, by whoever folds them; see `cut`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from streams.data.build import Build
from streams.data.cut import Cut, Held, cuts
from streams.data.partition import HeldPartition, Phase
from streams.errors import StorageError
from streams.log import get_logger

__all__ = ["Cutting"]

log = get_logger(__name__)

_HOLD_S = 30.0
"""For so long a cut may hold what is folded: whoever compares needs a third of it, or begins again."""


class Cutting:
    """Answers for the partitions that one process holds.

    Args:
        build: What is folded.
        commit: Commits one partition's fold; says whether that could be done.
        read: Reads one partition from where it is to be read.
        stop_reading: Reads one no further.
    """

    def __init__(
        self,
        build: Build,
        commit: Callable[[HeldPartition], bool],
        read: Callable[[HeldPartition], None],
        stop_reading: Callable[[HeldPartition], None],
    ) -> None:
        self._build = build
        self._commit = commit
        self._read = read
        self._stop_reading = stop_reading
        self._seen_s: dict[str, float] = {}
        """When each cut was heard of, by its directory's name."""
        self._kept: dict[str, ExitStack] = {}
        """What is kept for each."""

    def look(self, partitions: Iterable[HeldPartition]) -> bool:
        """Do what is to be done now; say whether there is more to come, so that it is looked at again soon.

        For each partition:

        1. Commit it, say where it is, and fold it no further.
        2. Once the barrier is named: fold it on, up to that.
        3. There: commit it, copy it, and let it go on.

        One that the barrier does not name goes on at once; so do all where nobody waits any more, or whoever asked
        has held them for long: he may be stopped, or lost on the network. A process that dies in between leaves a
        partition that its next owner holds again, at or in front of the barrier.
        """
        asked = cuts(self._build)
        for name in self._kept.keys() - {cut.path.name for cut in asked}:
            self._kept.pop(name).close()
        wanted = self._in_time(asked)
        waits = False
        for held in partitions:
            if held.cut is not None and held.cut not in wanted:
                self._let_go(held)
            try:
                for cut in wanted:
                    waits = self._answer(cut, held) or waits
            except StorageError as error:  # of the copy, and not of what is folded
                log.warning("cut.failed", partition=held.number, why=str(error))
                self._let_go(held)
        return waits

    def close(self) -> None:
        """Keep nothing any more."""
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()

    def _in_time(self, wanted: list[Cut]) -> list[Cut]:
        """Leave out those that were heard of long ago."""
        if not wanted and not self._seen_s:
            return wanted
        now = time.monotonic()
        self._seen_s = {cut.path.name: self._seen_s.get(cut.path.name, now) for cut in wanted}
        return [cut for cut in wanted if now - self._seen_s[cut.path.name] < _HOLD_S]

    def _answer(self, cut: Cut, held: HeldPartition) -> bool:
        if held.store is None or held.fold is None or held.phase not in (Phase.READY, Phase.HALTED):
            return False
        if held.beside is not None or (held.cut is not None and held.cut.path != cut.path):
            return True  # what is under way comes first
        barrier = cut.barrier()
        if (barrier is not None and held.number not in barrier) or cut.copy(held.number).is_dir():
            if held.cut is not None:
                self._let_go(held)
            return False
        # Step 1
        if held.cut is None:
            if held.phase is Phase.READY and held.fold.has_moved and not self._commit(held):
                return True
            held.cut = cut
            held.fold.end_at(held.fold.position)
            self._stop_reading(held)
            self._tell(held)
        if barrier is None:
            return True
        # Step 2
        position = barrier[held.number]
        if held.phase is Phase.READY and held.fold.position < position:
            if held.fold.end_at(position):
                self._read(held)
            return True
        # Step 3
        if held.phase is Phase.READY and held.fold.has_moved and not self._commit(held):
            return True
        if held.fold.committed == position:
            self._kept.setdefault(cut.path.name, ExitStack()).callback(held.store.cut(cut.copy(held.number)).close)
            self._let_go(held)
            return False
        self._tell(held)  # it has halted in front of it, or was behind it already: who asks is to know
        return True

    @staticmethod
    def _tell(held: HeldPartition) -> None:
        assert held.cut is not None
        assert held.fold is not None
        why = f"it has halted: {held.error}" if held.phase is Phase.HALTED else ""
        told = Held(position=held.fold.committed, why=why)
        if held.told != told:
            held.cut.hold(held.number, told)
            held.told = told

    def _let_go(self, held: HeldPartition) -> None:
        held.cut = held.told = None
        if held.fold is not None:
            held.fold.end_at(None)
            if held.phase is Phase.READY:
                self._read(held)
