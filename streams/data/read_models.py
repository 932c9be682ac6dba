"""Where read models are kept that are not in a `RocksStore`: the seam for databases of one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
import orjson

from streams.data.filters import Page, Query
from streams.data.serde import serde_for
from streams.prepared import prepared

__all__ = ["AtomicReadModelStore", "Position", "ReadModelStore", "plain"]

M = TypeVar("M")


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far the events of one partition are in the models. A store keeps it whole, say as
    `msgspec.json.encode` of it.

    `offset` is what counts; the rest is for people, and for going on where it was left.
    """

    topic: str
    topic_id: str
    """Kafka's topic id: another one under the same name is another topic."""
    partition: int
    start: int
    """The log's first offset when the fold began."""
    offset: int
    """The next offset to fold: every event from `start` up to it is in the models, and none after it."""
    code: str = ""
    """The fingerprint of the code that folds."""
    events: int = 0
    """Events read since `start`."""
    declined: int = 0
    deleted: int = 0
    models: int = 0
    """Models that the partition's events have given."""
    last_event_id: str | None = None
    record_ms: int | None = None
    """Kafka's timestamp of the record folded last, in milliseconds since 1970."""


prepared(Position)


@runtime_checkable
class ReadModelStore(Protocol[M]):
    """Where read models are kept, by id (reference: ReadModelStore).

    Derive from it: what has a body here need not be written, and is faster where a database does it itself.
    `streams.testing.ReadModelStoreContract` is what it has to do. A rebuild calls it from one thread at a time, not
    always the same one. What it raises ends the rebuild, as the cause of a `StorageError`.

    A store that holds the positions too, in the same transactions, is an `AtomicReadModelStore`: folded into that, each
    event is in its model once. With any other, the coordinator writes models first and then the checkpoint: a crash
    in between has events folded again, into models that have them already.
    """

    @abstractmethod
    def upsert(self, model_id: str, model: M) -> None:
        """Put a model in place of the one there is, if there is one."""
        ...

    @abstractmethod
    def get(self, model_id: str) -> M | None:
        """Give a model; None where there is none. Changing it changes nothing in the store."""
        ...

    @abstractmethod
    def delete(self, model_id: str) -> None:
        """Delete a model; one that is missing is as good as deleted."""
        ...

    @abstractmethod
    def clear(self) -> None:
        """Delete all there is, in one step, or so that being killed in it leaves what can be cleared again."""
        ...

    @abstractmethod
    def iterate(self) -> Iterator[tuple[str, M]]:
        """Yield every (id, model) once, in any order, without holding them all in memory."""
        ...

    def bulk_upsert(self, models: Mapping[str, M]) -> None:
        """Put many models in place."""
        for model_id, model in models.items():
            self.upsert(model_id, model)

    def exists(self, model_id: str) -> bool:
        """Say whether there is a model of that id."""
        return self.get(model_id) is not None

    def count(self) -> int:
        """Count the models."""
        return sum(1 for _ in self.iterate())

    def query(self, query: Query) -> Page[M]:
        """Give those models that are asked for.

        Raises:
            ConfigError: The query's cursor is none, or of another order.
        """
        return query.run(self.iterate(), plain)


@runtime_checkable
class AtomicReadModelStore(ReadModelStore[M], Protocol[M]):
    """A store that keeps positions in the same transactions as the models; `clear` deletes both together."""

    @abstractmethod
    def commit(self, mutations: Mapping[str, M | None], position: Position) -> None:
        """Write models (None deletes) and the position of their partition, durably, all of it or nothing.

        What it raises is taken to have written nothing.
        """
        ...

    @abstractmethod
    def positions(self) -> Mapping[int, Position]:
        """Give, by partition, the position committed last."""
        ...


_serde = cache(serde_for)


def plain(model: Any) -> Any:
    """Give a model as JSON has it."""
    kind: Any = type(model)
    return orjson.loads(_serde(kind).encode(model))
