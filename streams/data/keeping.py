"""Writing what a fold gives into a `ReadModelStore`: with its position, or in front of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

from msgspec.structs import replace

from streams.data.checkpoint import CheckpointStore
from streams.data.read_models import AtomicReadModelStore, Position, ReadModelStore
from streams.data.serde import NotStorable, Serde
from streams.data.store import StoreState
from streams.errors import CqrsError, StorageError, StoreCorrupt
from streams.log import get_logger
from streams.types import ProjectionCheckpoint

__all__ = ["Keeping", "ModelsPartition", "checkpoint_of_positions", "keeping"]

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


class _Together:
    """In one store, atomically. The checkpoint store is told behind it, and is never ahead."""

    def __init__(
        self, models: AtomicReadModelStore[Any], checkpoints: CheckpointStore, name: str, generation: str, code: str
    ) -> None:
        self._models = models
        self._checkpoints = checkpoints
        self._name = name
        self._generation = generation
        self.code = code

    def get(self, model_id: str) -> Any | None:
        with _calling(self._models, "get"):
            return self._models.get(model_id)

    def count(self) -> int:
        with _calling(self._models, "count"):
            return self._models.count()

    def begin(self, positions: Mapping[int, Position]) -> None:
        with _calling(self._models, "clear"):
            self._models.clear()
        for position in positions.values():
            with _calling(self._models, "commit"):
                self._models.commit({}, position)
        self._tell(positions)

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

    def _tell(self, positions: Mapping[int, Position]) -> None:
        with _calling(self._checkpoints, "save"):
            self._checkpoints.save(self._name, checkpoint_of_positions(self._generation, positions))


class _Apart:
    """In two stores, one after the other: models first, then the checkpoint.

    Being killed in between has events folded again into models that have them already. A checkpoint in which nothing is
    folded says that the models are to be cleared first: so where it is killed before the first one, nothing is doubled.
    """

    def __init__(self, models: ReadModelStore[Any], checkpoints: CheckpointStore, name: str, generation: str) -> None:
        self._models = models
        self._checkpoints = checkpoints
        self._name = name
        self._generation = self.code = generation
        self._positions: dict[int, Position] = {}
        log.warning(
            "store.at_least_once",
            models=type(models).__qualname__,
            positions=type(checkpoints).__qualname__,
            why="they are written one after the other: being killed in between has the events since the last "
            "checkpoint folded a second time, into models that have them. A projection whose fold may not see an event "
            "twice needs a store with `commit` (AtomicReadModelStore), or RocksStore.",
        )

    def get(self, model_id: str) -> Any | None:
        with _calling(self._models, "get"):
            return self._models.get(model_id)

    def count(self) -> int:
        with _calling(self._models, "count"):
            return self._models.count()

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
        with _calling(self._checkpoints, "save"):
            self._checkpoints.save(self._name, checkpoint_of_positions(self._generation, positions))
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


class ModelsPartition:
    """One partition's side of a store; see `PartitionStore`. It keeps no dead letters.

    Args:
        where: The store.
        serde: How the fold takes models.
        position: Where the partition's fold begins.
    """

    def __init__(self, where: Keeping, serde: Serde, position: Position) -> None:
        self._where = where
        self._serde = serde
        self._took(position)

    def _took(self, position: Position) -> None:
        self.position = position
        """The position committed last."""
        self.state = StoreState(
            directory="",
            build=0,
            partition=position.partition,
            start=position.start,
            position=position.offset,
            models=position.models,
            events=position.events,
            declined=position.declined,
            deleted=position.deleted,
            last_event_id=position.last_event_id,
            record_ms=position.record_ms,
        )
        """See PartitionStore."""

    def get(self, model_id: str) -> bytes | None:
        """See PartitionStore."""
        model = self._where.get(model_id)
        if model is None:
            return None
        try:
            return self._serde.encoded(model)
        except NotStorable as error:
            raise StoreCorrupt(
                f"The store gave model {model_id!r} as no {self._serde.model.__qualname__}: {error}."
            ) from error

    def beside(self, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:  # noqa: ARG002
        """See PartitionStore."""
        return ()

    def commit(
        self,
        changes: Iterable[tuple[str, bytes | None]],
        state: StoreState,
        beside: Mapping[bytes, bytes | None] = MappingProxyType({}),
    ) -> None:
        """See PartitionStore."""
        assert not beside, "this keeps no dead letters"
        decode = self._serde.decode
        # What the fold has in memory, it goes on changing: the store gets its own.
        mutations = {model_id: None if raw is None else decode(raw) for model_id, raw in changes}
        position = replace(
            self.position,
            offset=state.position,
            code=self._where.code,
            events=state.events,
            declined=state.declined,
            deleted=state.deleted,
            models=state.models,
            last_event_id=state.last_event_id,
            record_ms=state.record_ms,
        )
        self._where.commit(mutations, position)
        self._took(position)

    def close(self) -> None:
        """See PartitionStore."""


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
