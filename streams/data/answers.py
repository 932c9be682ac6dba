"""What others of this machine ask of whoever has a build's stores open: snapshots, and models to be replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from streams.data.beside import Beside
from streams.data.cache import ModelCannotBeStored
from streams.data.handover import Outcome, handovers, swap
from streams.data.job import Job
from streams.data.partition import HeldPartition, Phase
from streams.data.serde import Serde
from streams.data.snapshots import requests
from streams.errors import StorageError, at
from streams.log import get_logger

__all__ = ["Answers"]

log = get_logger(__name__)

_LOOK_S = 0.2
_PATIENCE_S = 5.0


class Answers:
    """Answers for the partitions that one process holds.

    Args:
        job: What is folded into what.
        serde: How models are stored.
        interrupts: See Fold.
    """

    def __init__(self, job: Job, serde: Serde, interrupts: Sequence[object]) -> None:
        self._job = job
        self._serde = serde
        self._interrupts = interrupts
        self._looked_s = 0.0
        self._waits_since: float | None = None

    def is_due(self) -> bool:
        """Say whether it is time to look again."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return False
        self._looked_s = time.monotonic()
        return True

    def look_soon(self) -> None:
        """Have it be time again at once: somebody waits, and folding does."""
        self._looked_s = 0.0

    def snapshots(self, held: Mapping[int, HeldPartition], checkpoint: Callable[[], None]) -> None:
        """Copy stores into the snapshots that somebody waits for, as of a commit.

        What has moved is copied after its next checkpoint, which comes by itself; so a snapshot costs the fold no other
        pause than for the copy.

        Args:
            held: By partition.
            checkpoint: Commits what has moved, where that takes too long to come.
        """
        waits = False
        for taking in requests(self._job.build):
            wanted = [one for one in held.values() if one.store and not (taking / str(one.number)).is_dir()]
            if self._waits_since is not None and time.monotonic() - self._waits_since > _PATIENCE_S:
                checkpoint()
            for one in wanted:
                if one.store is None or one.fold is None:
                    continue
                if one.fold.has_moved and one.phase is Phase.READY:
                    waits = True
                    continue
                try:
                    one.store.snapshot(taking / str(one.number))
                except StorageError as error:  # of the snapshot, and not of what is folded
                    log.warning("snapshot.failed", partition=one.number, why=str(error))
        if not waits:
            self._waits_since = None
            return
        self.look_soon()  # so that the checkpoint is not missed
        if self._waits_since is None:
            self._waits_since = time.monotonic()

    def take_up(self, held: Iterable[HeldPartition]) -> list[HeldPartition]:
        """Take streams up that somebody has handed over; give the partitions that are to be read again for them."""
        here = {one.number: one for one in held if one.store is not None and one.phase in (Phase.READY, Phase.HALTED)}
        for one in here.values():
            if one.beside is not None and not one.beside.asked.is_wanted():
                one.drop_beside()
        build, again = self._job.build, []
        for asked in handovers(build):
            mine = here.get(asked.partition)
            if mine is None or mine.beside is not None:
                continue
            try:
                handover = asked.read()
            except StorageError as error:
                asked.end(Outcome(error=str(error)))
                continue
            if handover is not None and handover.is_of(build):
                fresh = build.fresh(mine.number, handover.position)
                dropped = (
                    frozenset() if mine.fold is None or mine.fold.rescue is None else mine.fold.rescue.letters.dropped
                )
                mine.beside = Beside(
                    self._job.projection, self._serde, asked, handover, fresh, self._interrupts, dropped
                )
                if mine.phase is Phase.HALTED:
                    self.halted(mine)
                elif not mine.is_level:
                    again.append(mine)
        return again

    def halted(self, held: HeldPartition) -> None:
        """Give streams back that would have been folded on, in a partition that is read no further."""
        beside = held.beside
        if beside is not None and not held.is_level:
            held.drop_beside()
            beside.asked.end(
                Outcome(error=f"{at(self._job.topic.name, held.number)} has halted meanwhile: {held.error}. Try again.")
            )

    def replace(self, held: HeldPartition) -> None:
        """Replace the models of streams that are where the store is, in one batch.

        A crash before the batch leaves the handover to whoever has the store next. So does one after it, and the same
        models are written again.

        Raises:
            StorageError: The disk.
        """
        beside, store, fold = held.beside, held.store, held.fold
        assert beside is not None
        assert store is not None
        assert fold is not None
        error = None if beside.failure is None else str(beside.failure)
        if error is None:
            try:
                beside.commit()
            except ModelCannotBeStored as why:
                error = str(why)
        held.drop_beside()
        if error is not None:
            beside.asked.end(Outcome(error=error))
            return
        swapped = swap(store, beside.kept.models, beside.streams)
        fold.discard()  # what it has in memory of these models is the old ones
        if fold.rescue is not None:
            fold.rescue.letters.tell_folded(swapped.letters)
        beside.asked.end(Outcome(position=fold.position, events=beside.events, models=swapped.models))
