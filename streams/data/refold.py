"""Some streams, folded again in memory, beside the models that there are."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from confluent_kafka import Message

from projections.contract import CqrsProjection, Event
from streams.data.cache import ModelCannotBeStored
from streams.data.codec import EventCodec, Outcome, Tombstone
from streams.data.fold import Fold, feed
from streams.data.scan import scan
from streams.data.serde import Serde, serde_for
from streams.data.source import KafkaEventStore
from streams.data.store import StoreState
from streams.data.typed import typed

__all__ = ["MemoryStore", "Refold", "StreamsFold"]

_CACHE_BYTES = 256 << 20


class MemoryStore:
    """A `PartitionStore` in memory, which also knows which models there are not.

    Args:
        state: Where it begins.
        models: By id, each as stored; None for one that there is not.
    """

    def __init__(self, state: StoreState, models: Mapping[str, bytes | None] | None = None) -> None:
        self.models = dict(models or {})
        self._beside: dict[bytes, bytes] = {}
        self._state = msgspec.structs.replace(state, models=self._count())

    @classmethod
    def fresh(cls, partition: int, start: int) -> MemoryStore:
        """Make one that is of no build."""
        return cls(StoreState(directory="", build=0, partition=partition, start=start, position=start))

    @property
    def state(self) -> StoreState:
        """See PartitionStore."""
        return self._state

    def get(self, model_id: str) -> bytes | None:
        """See PartitionStore."""
        return self.models.get(model_id)

    def beside(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """See PartitionStore."""
        return [(key, self._beside[key]) for key in sorted(self._beside) if key.startswith(prefix)]

    def commit(
        self,
        changes: Iterable[tuple[str, bytes | None]],
        state: StoreState,
        beside: Mapping[bytes, bytes | None] = MappingProxyType({}),
    ) -> None:
        """See PartitionStore."""
        self.models.update(list(changes))
        for key, value in beside.items():
            if value is None:
                self._beside.pop(key, None)
            else:
                self._beside[key] = value
        self._state = msgspec.structs.replace(state, models=self._count())

    def close(self) -> None:
        """See PartitionStore."""

    def _count(self) -> int:
        return sum(raw is not None for raw in self.models.values())


class StreamsFold(Fold):
    """The fold of some of a partition's streams; it passes over all others.

    Its store ends up with every model that they touch: those that the fold gives, and None for those that it does not
    (any more).

    Args:
        projection: The user's code.
        serde: How its models are stored.
        store: Where they are kept.
        streams: The streams.
        interrupts: See Fold.
        dropped: Offsets of events that are never to be folded.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        serde: Serde,
        store: MemoryStore,
        streams: Iterable[str],
        interrupts: Sequence[object] = (),
        dropped: Container[int] = frozenset(),
    ) -> None:
        super().__init__(projection, serde, store, interrupts)
        self._dropped = dropped
        self.streams = frozenset(streams)
        self.kept = store
        self.seen: set[str] = set()
        """Streams that have events."""
        if projection.partition_by is None:  # each stream is its model's id
            for stream in self.streams:
                store.models.setdefault(stream, None)

    def fold(self, outcomes: Sequence[Outcome]) -> None:
        """Fold those that are of the streams; see Fold. A record that is no event may be one of theirs."""
        streams, dropped = self.streams, self._dropped
        mine = [
            one
            for one in outcomes
            if (not isinstance(one, Event | Tombstone) or one.stream in streams) and one.offset not in dropped
        ]
        if mine:
            self.seen.update(one.stream for one in mine if isinstance(one, Event | Tombstone))
            super().fold(mine)
        if not self._interrupts:
            self.skip_to(outcomes[-1].offset + 1)

    def commit(self) -> None:
        """Note every model that was touched; see Fold."""
        gone = [model_id for model_id in self.cache.added if model_id not in self.cache.dirty]
        super().commit()
        for model_id in gone:
            self.kept.models.setdefault(model_id, None)


class Refold:
    """Folds some streams of several partitions again, from the topic's beginning, in memory.

    Args:
        projection: The user's code.
        events: The topic.
        streams: By partition, the streams to look for there.
        fresh: By partition, the state of a store that has folded nothing of it.
        dropped: By partition, offsets of events that are never to be folded.
        interrupts: When something is put in here, by any thread, it stops after the event that it is at; then
            `check` is to raise.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        events: KafkaEventStore,
        streams: Mapping[int, Iterable[str]],
        fresh: Mapping[int, StoreState],
        dropped: Mapping[int, Container[int]],
        interrupts: Sequence[object] = (),
    ) -> None:
        self._events = events
        self._codec = typed(events.codec, projection)
        self._interrupts = interrupts
        serde = serde_for(projection.model_type())
        self.folds = {
            number: StreamsFold(
                projection, serde, MemoryStore(fresh[number]), wanted, interrupts, dropped.get(number, ())
            )
            for number, wanted in streams.items()
        }
        """By partition."""
        self._pick = {number: picker(events.codec, fold.streams) for number, fold in self.folds.items()}

    @property
    def events(self) -> int:
        """How many events were folded."""
        return sum(fold.events for fold in self.folds.values())

    def read_to(self, ends: Mapping[int, int], check: Callable[[], None]) -> None:
        """Fold on, up to these positions, and note the models.

        Args:
            ends: By partition, the position to end at; of those that are not named, nothing is read.
            check: Called now and then; what it raises ends the reading.

        Raises:
            EventError, ProjectionError: At an event that cannot be folded.
            HistoryIncomplete, BrokerUnavailable, BrokerError: See `scan`.
            Exception: Whatever `check` raises.
        """
        while behind := {
            number: (self.folds[number].position, end)
            for number, end in ends.items()
            if self.folds[number].position < end
        }:
            again: set[int] = set()
            for records in scan(self._events, behind, check):
                number = records[0].partition()
                if number not in again and not self._take(self.folds[number], self._pick[number](records), records):
                    again.add(number)
                check()
            for number in behind.keys() - again:
                self.folds[number].skip_to(ends[number])
                self._commit(self.folds[number])

    def _take(self, fold: StreamsFold, mine: list[Message], records: list[Message]) -> bool:
        """Fold what is of our streams. False: it is to be read again from the fold's position on."""
        if mine:
            feed(self._codec, mine, (fold,), self._interrupts)
        if not self._interrupts:
            fold.skip_to(records[-1].offset() + 1)
        share = _CACHE_BYTES // len(self.folds)
        if not fold.cache.is_full(share):
            return True
        fold.cache.evict(share)
        return self._commit(fold)

    @staticmethod
    def _commit(fold: StreamsFold) -> bool:
        """Note the models. False: one cannot be stored; the fold is back at the last time, to find the event."""
        try:
            fold.commit()
        except ModelCannotBeStored:
            fold.discard()
            fold.carefully = True
            return False
        return True


def picker(codec: EventCodec, streams: Iterable[str]) -> Callable[[list[Message]], list[Message]]:
    """Give what picks, of records, those that may be of some streams; without decoding, where the codec allows it."""
    if not getattr(codec, "streams_are_keys", False):
        return list
    keys = frozenset(stream.encode() for stream in streams)
    wanted = keys | {None}

    def pick(records: list[Message]) -> list[Message]:
        found = list(map(Message.key, records))
        if wanted.isdisjoint(found):
            return []
        return [record for record, key in zip(records, found, strict=True) if key in wanted]

    return pick
