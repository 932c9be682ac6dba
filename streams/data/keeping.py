"""Writing what a fold gives into a `ReadModelStore`: with its position, or in front of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from streams.data.checkpoint import CheckpointStore
from streams.data.read_models import AtomicReadModelStore, Position, ReadModelStore
from streams.errors import CqrsError, StorageError
from streams.log import get_logger
from streams.types import ProjectionCheckpoint

__all__ = ["Keeping", "checkpoint_of_positions", "keeping"]

log = get_logger(__name__)

Mutations = Mapping[str, Any | None]
"""By id, a model; None for one that is deleted."""


class Keeping(Protocol):
    """Where models and positions of a fold are kept."""

    code: str
    """What says of a position by which code its models were folded."""

    def get(self, model_id: str) -> Any | None:
        """Give a model."""
        ...

    def count(self) -> int:
        """Count the models."""
        ...

    def begin(self, positions: Mapping[int, Position]) -> None:
        """Have there be no models, and these positions, in which nothing is folded."""
        ...

    def resume(self) -> Mapping[int, Position]:
        """Give the positions to go on from; none where nothing was begun."""
        ...

    def commit(self, mutations: Mutations, position: Position) -> None:
        """Write models and a position."""
        ...

    def replace(self, mutations: Mutations) -> None:
        """Write models of the positions that there are."""
        ...


class _Both:
    """What is the same of both: models are looked at, and the checkpoint store is told."""

    def __init__(self, models: ReadModelStore[Any], checkpoints: CheckpointStore, name: str, generation: str) -> None:
        self._looked_at = models
        self._checkpoints = checkpoints
        self._name = name
        self._generation = generation

    def get(self, model_id: str) -> Any | None:
        with _calling(self._looked_at, "get"):
            return self._looked_at.get(model_id)

    def count(self) -> int:
        with _calling(self._looked_at, "count"):
            return self._looked_at.count()

    def _tell(self, positions: Mapping[int, Position]) -> None:
        with _calling(self._checkpoints, "save"):
            self._checkpoints.save(self._name, checkpoint_of_positions(self._generation, positions))


class _Together(_Both):
    """In one store, atomically. The checkpoint store is told behind it, and is never ahead."""

    def __init__(
        self, models: AtomicReadModelStore[Any], checkpoints: CheckpointStore, name: str, generation: str, code: str
    ) -> None:
        super().__init__(models, checkpoints, name, generation)
        self._models = models
        self.code = code

    def begin(self, positions: Mapping[int, Position]) -> None:
        self._tell(positions)  # which is refused where somebody folds in the group; nothing is changed by then
        with _calling(self._models, "clear"):
            self._models.clear()
        for position in positions.values():
            with _calling(self._models, "commit"):
                self._models.commit({}, position)

    def resume(self) -> Mapping[int, Position]:
        with _calling(self._models, "positions"):
            return self._models.positions()

    def commit(self, mutations: Mutations, position: Position) -> None:
        with _calling(self._models, "commit"):
            self._models.commit(mutations, position)
        self._tell(self.resume())

    def replace(self, mutations: Mutations) -> None:
        position = next(iter(self.resume().values()))
        with _calling(self._models, "commit"):
            self._models.commit(mutations, position)


class _Apart(_Both):
    """In two stores, one after the other: models first, then the checkpoint.

    Being killed in between has events folded again into models that have them already. A checkpoint in which nothing is
    folded says that the models are to be cleared first: so where it is killed before the first one, nothing is doubled.
    """

    def __init__(self, models: ReadModelStore[Any], checkpoints: CheckpointStore, name: str, generation: str) -> None:
        super().__init__(models, checkpoints, name, generation)
        self._models = models
        self.code = generation
        self._positions: dict[int, Position] = {}
        log.warning(
            "store.at_least_once",
            models=type(models).__qualname__,
            positions=type(checkpoints).__qualname__,
            why="they are written one after the other: being killed in between has the events since the last "
            "checkpoint folded a second time, into models that have them. A projection whose fold may not see an event "
            "twice needs a store with `commit` (AtomicReadModelStore), or RocksStore.",
        )

    def begin(self, positions: Mapping[int, Position]) -> None:
        self._save(positions)
        with _calling(self._models, "clear"):
            self._models.clear()

    def resume(self) -> Mapping[int, Position]:
        with _calling(self._checkpoints, "load"):
            found = self._checkpoints.load(self._name)
        if found is None:
            return {}
        first = min(found.positions, default=None)
        is_begun = found.events_processed > 0
        self._positions = {
            number: Position(
                topic=found.topic,
                topic_id=found.topic_id,
                partition=number,
                start=offset,
                offset=offset,
                code=found.generation,
                events=found.events_processed if number == first else 0,
                models=int(is_begun),  # how many is not known, and that there may be some is what counts
                last_event_id=found.last_event_id,
            )
            for number, offset in found.positions.items()
        }
        if not is_begun:
            self.begin(self._positions)
        return self._positions

    def commit(self, mutations: Mutations, position: Position) -> None:
        self.replace(mutations)
        self._save(self._positions | {position.partition: position})

    def replace(self, mutations: Mutations) -> None:
        there = {model_id: model for model_id, model in mutations.items() if model is not None}
        if there:
            with _calling(self._models, "bulk_upsert"):
                self._models.bulk_upsert(there)
        for model_id in mutations.keys() - there.keys():
            with _calling(self._models, "delete"):
                self._models.delete(model_id)

    def _save(self, positions: Mapping[int, Position]) -> None:
        self._tell(positions)
        self._positions = dict(positions)


def keeping(
    models: ReadModelStore[Any], checkpoints: CheckpointStore, name: str, generation: str, code: str
) -> Keeping:
    """Give how a store is written to: atomically where it can do so.

    Args:
        models: The store.
        checkpoints: Where else positions are kept.
        name: The projection's.
        generation: Its generation's id.
        code: Its code's fingerprint.
    """
    if isinstance(models, AtomicReadModelStore):
        return _Together(models, checkpoints, name, generation, code)
    return _Apart(models, checkpoints, name, generation)


@contextmanager
def _calling(store: object, method: str) -> Iterator[None]:
    """Say of what a user's store raises where it came from."""
    try:
        yield
    except CqrsError:
        raise
    except Exception as error:
        raise StorageError(
            f"{type(store).__qualname__}.{method} raised {type(error).__name__}: {' '.join(str(error).split())}. "
            "What was committed before is as it was; once that is mended, go on with rebuild_from_checkpoint()."
        ) from error


def checkpoint_of_positions(generation: str, positions: Mapping[int, Position]) -> ProjectionCheckpoint:
    """Give a checkpoint; there is at least one position."""
    newest = max(positions.values(), key=lambda one: one.record_ms or 0)
    return ProjectionCheckpoint(
        topic=newest.topic,
        topic_id=newest.topic_id,
        positions={number: one.offset for number, one in positions.items()},
        last_event_id=newest.last_event_id,
        events_processed=sum(one.events for one in positions.values()),
        generation=generation,
        time=datetime.now(UTC),
    )
