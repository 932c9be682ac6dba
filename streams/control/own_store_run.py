"""A rebuild into a `ReadModelStore`: read, folded and written by one thread of this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from streams.control.own_folding import OwnFolding, figures
from streams.control.own_ground import OwnGround, Seen
from streams.control.progress import ProgressTracker
from streams.control.run import Run
from streams.control.strategies import FromBeginning, FromCheckpoint, RebuildStrategy, SpecificStreams
from streams.data.fold import Fold
from streams.data.keeping import checkpoint_of_positions
from streams.data.models_partition import ModelsPartition
from streams.data.read_models import Position
from streams.data.refold import MemoryStore, Refold
from streams.errors import CheckpointError, ConfigError, ModelSplit, RebuildCancelled
from streams.types import Counts, Lag, RebuildProgress

__all__ = ["OwnStoreRun"]


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
        folding = OwnFolding(ground, folds, ends, tracker, self._interrupts)
        try:
            folding.run()
            models = seen.where.count()
            if isinstance(self._strategy, FromBeginning):
                self._check_not_split(sum(one.position.models for one in stores.values()), models)
        except BaseException as error:
            if isinstance(error, RebuildCancelled):
                error.checkpoint = checkpoint_of_positions(ground.name, {n: one.position for n, one in stores.items()})
            tracker.ended(figures(folds), error, checkpoints=folding.commits)
            raise
        finally:
            for fold in folds.values():
                fold.close()
        states = {number: one.state for number, one in stores.items()}
        ended = tracker.ended(figures(folds), states=states, checkpoints=folding.commits)
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
            tracker.observe(figures(refold.folds))
            self._check_cancelled()

        try:
            refold.read_to({number: one.offset for number, one in positions.items()}, check)
            mutations = self._models_of(refold, seen)
            self._check_cancelled()
            seen.where.replace(mutations)
        except BaseException as error:
            tracker.ended(figures(refold.folds), error)
            raise
        finally:
            for fold in refold.folds.values():
                fold.close()
        states = {number: fold.kept.state for number, fold in refold.folds.items()}
        return tracker.ended(figures(refold.folds), states=states, checkpoints=1)

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
