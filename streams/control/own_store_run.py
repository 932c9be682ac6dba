"""A rebuild into a `ReadModelStore`: read, folded and written by one thread of this process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Message

from streams.control.own_ground import OwnGround, Seen
from streams.control.progress import ProgressTracker
from streams.control.run import Run
from streams.control.strategies import FromBeginning, FromCheckpoint, RebuildStrategy, SpecificStreams
from streams.data.cache import ModelCannotBeStored
from streams.data.fold import Fold, feed
from streams.data.keeping import ModelsPartition, checkpoint_of_positions
from streams.data.pace import Pace
from streams.data.partition import PartitionStatus
from streams.data.read_models import Position
from streams.data.refold import MemoryStore, Refold
from streams.data.scan import scan
from streams.data.throttle import Throttle
from streams.errors import CheckpointError, ConfigError, EventError, ModelSplit, ProjectionError, RebuildCancelled
from streams.log import get_logger
from streams.types import Counts, Lag, RebuildProgress

__all__ = ["OwnStoreRun"]

log = get_logger(__name__)


class OwnStoreRun(Run):
    """Folds the topic into a store of the user's, as far as the topic goes when it begins.

    No group is joined, and nobody else is kept from folding into the same store: one process at a time is for the user
    to see to.

    Args:
        ground: What to rebuild.
        strategy: FromBeginning, FromCheckpoint or SpecificStreams.

    Raises:
        ConfigError: Any other strategy.
    """

    def __init__(self, ground: OwnGround, strategy: RebuildStrategy) -> None:
        super().__init__(ground.projection.name, ground.events.topic)
        if not isinstance(strategy, FromBeginning | FromCheckpoint | SpecificStreams):
            raise ConfigError(
                f"A rebuild {strategy} begins with the models as they were there. RocksStore has snapshots of them, "
                f"{ground.store} has not: FromBeginning, FromCheckpoint and SpecificStreams are for any store."
            )
        self._ground = ground
        self._strategy = strategy
        self._interrupts: list[str] = []

    def cancel(self) -> None:
        """Stop after the event at hand."""
        super().cancel()
        self._interrupts.append("cancel")

    def _rebuild(self) -> RebuildProgress:
        """Do it.

        1. Look: the topic, its history, and where models are kept, that they are of this topic and code.
        2. From the beginning: clear the store.
        3. Fold each partition to the end that it had then, and commit on the way; or fold some streams in memory, up
           to where the models are, and put their models in place.
        """
        self._check_cancelled()
        # Step 1
        seen = self._ground.look(is_resumed=isinstance(self._strategy, FromCheckpoint))
        self._check_cancelled()
        # Step 2
        if isinstance(self._strategy, FromBeginning):
            positions = seen.fresh()
            seen.where.begin(positions)
        else:
            positions = seen.kept(self._strategy.checkpoint if isinstance(self._strategy, FromCheckpoint) else None)
        # Step 3
        if isinstance(self._strategy, SpecificStreams):
            return self._fold_again(seen, positions, self._strategy.ids)
        return self._fold_on(seen, positions)

    def _fold_on(self, seen: Seen, positions: Mapping[int, Position]) -> RebuildProgress:
        ground, ends = self._ground, seen.ends
        stores = {number: ModelsPartition(seen.where, seen.serde, one) for number, one in positions.items()}
        folds = {
            number: Fold(ground.projection, seen.serde, store, self._interrupts, until=ends[number])
            for number, store in stores.items()
        }
        self._tracker = tracker = ProgressTracker(
            {n: Lag(start=one.offset, position=one.offset, target=ends[n]) for n, one in positions.items()},
            Counts(
                events=sum(one.events for one in positions.values()),
                declined=sum(one.declined for one in positions.values()),
                deleted=sum(one.deleted for one in positions.values()),
            ),
        )
        folding = _Folding(ground, folds, ends, tracker, self._interrupts)
        try:
            folding.run()
            models = seen.where.count()
            if isinstance(self._strategy, FromBeginning):
                self._check_not_split(sum(one.position.models for one in stores.values()), models)
        except BaseException as error:
            if isinstance(error, RebuildCancelled):
                error.checkpoint = checkpoint_of_positions(ground.name, {n: one.position for n, one in stores.items()})
            tracker.ended(folding.figures(), error, checkpoints=folding.commits)
            raise
        finally:
            for fold in folds.values():
                fold.close()
        states = {number: one.state for number, one in stores.items()}
        ended = tracker.ended(folding.figures(), states=states, checkpoints=folding.commits)
        tracker.snapshot = dataclasses.replace(ended, models=models)
        return tracker.snapshot

    def _check_not_split(self, given: int, models: int) -> None:
        if given != models:
            raise ModelSplit(
                f"The partitions of {self._topic} gave {given:,} models, and {self._ground.store} has {models:,}. "
                "Events of one model are on several partitions, so that its folds have overwritten each other, or "
                "somebody else writes into the store. Have the producer choose the partition by the model's id.",
                projection=self._name,
                topic=self._topic,
            )

    def _fold_again(self, seen: Seen, positions: Mapping[int, Position], streams: frozenset[str]) -> RebuildProgress:
        fresh = {number: MemoryStore.fresh(number, one.start).state for number, one in positions.items()}
        refold = Refold(
            self._ground.projection, self._ground.events, dict.fromkeys(positions, streams), fresh, {}, self._interrupts
        )
        self._tracker = tracker = ProgressTracker(
            {n: Lag(start=one.start, position=one.start, target=one.offset) for n, one in positions.items()}
        )

        def check() -> None:
            tracker.observe(_figures(refold.folds))
            self._check_cancelled()

        try:
            refold.read_to({number: one.offset for number, one in positions.items()}, check)
            mutations = self._models_of(refold, seen)
            self._check_cancelled()
            seen.where.replace(mutations)
        except BaseException as error:
            tracker.ended(_figures(refold.folds), error)
            raise
        finally:
            for fold in refold.folds.values():
                fold.close()
        states = {number: fold.kept.state for number, fold in refold.folds.items()}
        return tracker.ended(_figures(refold.folds), states=states, checkpoints=1)

    def _models_of(self, refold: Refold, seen: Seen) -> dict[str, Any]:
        """Give the streams' models; None for one that there is not any more."""
        assert isinstance(self._strategy, SpecificStreams)
        known = set().union(*(fold.seen for fold in refold.folds.values()))
        unknown = sorted(one for one in self._strategy.ids - known if seen.where.get(one) is None)
        if unknown:
            raise CheckpointError(
                f"{self._topic} has no event of {', '.join(map(repr, unknown))} up to where the models are, and there "
                "is no model of that id. Nothing was changed.",
                projection=self._name,
                topic=self._topic,
            )
        given: dict[str, Any] = {}
        gone: set[str] = set()
        for number, fold in refold.folds.items():
            for model_id, raw in fold.kept.models.items():
                if raw is None:
                    gone.add(model_id)
                elif model_id in given:
                    raise ModelSplit(
                        f"Model {model_id!r} has events on partition {number} of {self._topic} and on another one. "
                        "Nothing was changed.",
                        projection=self._name,
                        topic=self._topic,
                    )
                else:
                    given[model_id] = seen.serde.decode(raw)
        return dict.fromkeys(gone) | given


class _Folding:
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
            feed(self._ground.events.codec, records, (fold,), self._interrupts)
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
        self._tracker.observe(self.figures(), checkpoints=self.commits)
        if self._interrupts:
            raise RebuildCancelled(
                f"The rebuild of {self._ground.projection.name!r} was cancelled after "
                f"{self._tracker.snapshot.events_processed:,} events. What was folded is committed.",
                projection=self._ground.projection.name,
                topic=self._ground.events.topic,
            )

    def figures(self) -> dict[int, PartitionStatus]:
        """Give how far each partition is."""
        return _figures(self._folds)


def _figures(folds: Mapping[int, Fold]) -> dict[int, PartitionStatus]:
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
