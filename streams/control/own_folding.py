"""The reading, folding and committing of a rebuild into a `ReadModelStore`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from confluent_kafka import Message

from streams.control.own_ground import OwnGround
from streams.control.progress import ProgressTracker
from streams.data.cache import ModelCannotBeStored
from streams.data.fold import Fold, feed
from streams.data.pace import Pace
from streams.data.partition import PartitionStatus
from streams.data.scan import scan
from streams.data.throttle import Throttle
from streams.data.typed import typed
from streams.errors import EventError, ProjectionError, RebuildCancelled
from streams.log import get_logger

__all__ = ["OwnFolding", "figures"]

log = get_logger(__name__)


class OwnFolding:
    """The reading, folding and committing of one run.

    Args:
        ground: What is folded.
        folds: By partition.
        ends: By partition, the position to end at.
        tracker: Is told the figures.
        interrupts: See Fold.
    """

    def __init__(
        self,
        ground: OwnGround,
        folds: Mapping[int, Fold],
        ends: Mapping[int, int],
        tracker: ProgressTracker,
        interrupts: list[str],
    ) -> None:
        self._ground = ground
        self._codec = typed(ground.events.codec, ground.projection)
        self._folds = folds
        self._ends = ends
        self._tracker = tracker
        self._interrupts = interrupts
        self._failed: dict[int, EventError | ProjectionError] = {}
        self._again: set[int] = set()
        self._pace, self._throttle = Pace(ground.settings), Throttle(ground.settings)
        self._share = max(1, ground.settings.models_bytes // max(1, len(folds)))
        self.commits = 0

    def run(self) -> None:
        """Fold all to their ends.

        Raises:
            EventError, ProjectionError: At the first event that cannot be folded, once the other partitions are done.
            RebuildCancelled: It was asked to stop; what was folded is committed.
            StorageError: The store failed.
            HistoryIncomplete, BrokerUnavailable, BrokerError: See `scan`.
        """
        while behind := {
            number: (fold.position, self._ends[number])
            for number, fold in self._folds.items()
            if number not in self._failed and fold.position < self._ends[number]
        }:
            self._again.clear()
            for records in scan(self._ground.events, behind, self._check):
                self._take_all(records[0].partition(), records)
            for number in behind.keys() - self._again - self._failed.keys():
                self._folds[number].skip_to(self._ends[number])
            self._commit(self._folds)
            self._check()
        if self._failed:
            raise next(iter(self._failed.values()))

    def _take_all(self, number: int, records: list[Message]) -> None:
        fold = self._folds[number]
        for portion in self._portions(records):
            if number in self._failed or number in self._again:
                return
            self._take(number, portion)
            pending = sum(one.pending for one in self._folds.values())
            if self._pace.is_due(pending, sum(one.changed for one in self._folds.values()), idle=False):
                self._commit(self._folds)
            elif fold.cache.is_full(self._share):
                self._commit({number: fold})
            fold.cache.evict(self._share)
            self._check()

    def _portions(self, records: list[Message]) -> Iterator[list[Message]]:
        """Give no more at once than may be folded before the next commit."""
        while records:
            room = self._pace.room(sum(fold.pending for fold in self._folds.values()))
            yield records[:room]
            records = [] if room is None else records[room:]

    def _take(self, number: int, records: list[Message]) -> None:
        fold = self._folds[number]
        try:
            feed(self._codec, records, (fold,), self._interrupts)
        except (EventError, ProjectionError) as error:
            fold.discard()
            log.warning("rebuild.halted", partition=number, why=str(error))
            self._failed[number] = error
            return
        if self._interrupts:
            return
        fold.skip_to(records[-1].offset() + 1)
        self._throttle.took(len(records), sum(map(len, records)))
        while not self._interrupts and (rest_s := self._throttle.rest_s) > 0:
            time.sleep(rest_s)

    def _commit(self, folds: Mapping[int, Fold]) -> None:
        """Commit what has moved. A partition with a model that cannot be stored is read again, to find the event."""
        began, models = time.monotonic(), 0
        for number, fold in folds.items():
            if not fold.has_moved:
                continue
            models += fold.changed
            try:
                fold.commit()
                self.commits += 1
            except ModelCannotBeStored:
                fold.discard()
                fold.carefully = True
                self._again.add(number)
        self._pace.taken(began, models)

    def _check(self) -> None:
        if self._interrupts:
            self._commit(self._folds)
        self._tracker.observe(figures(self._folds), checkpoints=self.commits)
        if self._interrupts:
            raise RebuildCancelled(
                f"The rebuild of {self._ground.projection.name!r} was cancelled after "
                f"{self._tracker.snapshot.events_processed:,} events. What was folded is committed.",
                projection=self._ground.projection.name,
                topic=self._ground.events.topic,
            )


def figures(folds: Mapping[int, Fold]) -> dict[int, PartitionStatus]:
    """Give how far each partition is."""
    return {
        number: PartitionStatus(
            position=fold.position,
            committed=fold.committed,
            events=fold.events,
            declined=fold.declined,
            deleted=fold.deleted,
        )
        for number, fold in folds.items()
    }
