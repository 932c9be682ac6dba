"""The fold: events into models, in memory, until a checkpoint writes models and position together."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import msgspec

from projections.contract import CqrsProjection, Event
from streams.data.codec import EventCodec, Record
from streams.data.serde import Serde
from streams.data.store import PartitionStore
from streams.errors import EventError, ProjectionError, at

__all__ = ["Fold", "ModelCannotBeStored"]

_MISSING = object()
_KEY_OVERHEAD_BYTES = 200  # a dict slot, the id and its size, twice
_SAMPLES = 8


class ModelCannotBeStored(Exception):
    """A model of the batch has no JSON form. Which event made it so is found by folding again, `carefully`."""


class Fold:
    """One partition's models between two checkpoints: a write-back cache over its store.

    Folding changes memory only. `commit` writes every changed model and the position in one batch;
    `discard` forgets everything since. So the store holds, at every instant,
    `fold(log[start:position])`, whatever user code or the process did in between.

    Models stay decoded in memory while they fit. Those changed since the last commit are in `_dirty`; the rest
    in `_clean`. Insertion order there is recency of change, because a model that is
    changed moves from one to the other. Eviction therefore takes the models that went unchanged the longest, at
    no cost per event.

    Args:
        projection: The user's code.
        codec: Reads the records.
        serde: How its models are stored.
        store: Where this partition's models and position are kept.
        interrupts: When something is put in here, by any thread, the fold stops after the event it is at.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        codec: EventCodec,
        serde: Serde,
        store: PartitionStore,
        interrupts: Sequence[object] = (),
    ) -> None:
        self._projection = projection
        self._codec = codec
        self._serde = serde
        self._store = store
        self._interrupts = interrupts
        self._is_async = inspect.iscoroutinefunction(projection.apply_to_model)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bytes_per_stored = 6.0  # memory that a decoded model takes, over its stored size; measured at commits
        self.carefully = False
        """Check after each event that its model can be stored; slow, to find the event after whose fold it cannot."""
        self._reset()

    def _reset(self) -> None:
        state = self._store.state
        self.position = state.position
        self.events = state.events
        self.declined = state.declined
        self._last_event_id = state.last_event_id
        self._dirty: dict[str, Any] = {}
        self._dirty_bytes = 0  # as stored, when they were last
        self._clean: dict[str, Any] = {}
        self._clean_sizes: dict[str, int] = {}  # as stored; a tuple with the model would cost the garbage collector
        self._clean_bytes = 0
        self._added: set[str] = set()  # ids in _dirty that the store does not have
        self._unseen_bytes = 0  # of events since the last commit: by how much the models may have grown
        self._holds_all = state.models == 0  # the store has no model that is not in memory

    @property
    def pending(self) -> int:
        """Events since the last commit."""
        return self.events - self._store.state.events

    @property
    def changed(self) -> int:
        """Models that the next commit writes."""
        return len(self._dirty)

    @property
    def has_moved(self) -> bool:
        """Whether the position differs from the store's: events, or only gaps in the log, were passed."""
        return self.position != self._store.state.position

    @property
    def committed(self) -> int:
        """The store's position."""
        return self._store.state.position

    def fold(self, records: Sequence[Record]) -> None:
        """Fold records of this partition, in order; those in front of the position are passed over.

        Raises:
            EventError: A record is no event.
            ProjectionError: User code failed.

        After either, models of this batch may be half changed: `discard`, then fold again up to that record.
        """
        if records[0].offset() < self.position:
            records = [record for record in records if record.offset() >= self.position]
            if not records:
                return
        events = self._codec.decode(records)
        if self.carefully:
            for event in events:
                self._run(iter((event,)))
                self._check_storable(event)
        else:
            self._run(events)
        if self.position <= records[-1].offset():  # interrupted: count what was folded
            records = [record for record in records if record.offset() < self.position]
        self.events += len(records)
        self._unseen_bytes += sum(map(len, records))

    def skip_to(self, position: int) -> None:
        """Move over offsets that hold no record: transaction markers, aborted or compacted records."""
        self.position = max(self.position, position)

    def _run(self, events: Iterator[Event]) -> None:
        if self._is_async:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self._fold_async(events))
        else:
            self._fold(events)

    def _fold(self, events: Iterator[Event]) -> None:
        """Fold events until they end or an interrupt comes. Every line here runs once per event of history."""
        extract, apply = self._projection.extract_model_id, self._projection.apply_to_model
        any_stream = self._projection.partition_by is not None
        dirty, load, interrupts = self._dirty, self._load, self._interrupts
        get = dirty.get
        event: Event | None = None
        declined = 0
        try:
            for event in events:
                model_id = extract(event)
                if model_id is None:
                    declined += 1
                else:
                    if not any_stream and model_id != event.stream:
                        raise self._not_its_stream(model_id)
                    model = get(model_id, _MISSING)
                    if model is _MISSING:
                        model = load(model_id)
                    changed = apply(model, event)
                    if changed is not model:
                        dirty[model_id] = changed
                if interrupts:
                    break
        except (EventError, ProjectionError):
            raise
        except Exception as error:
            raise self._failed(event, error) from error
        self._passed(event, declined)

    async def _fold_async(self, events: Iterator[Event]) -> None:
        """The same for an `async def apply_to_model`. A copy, because an await costs more than the rest."""
        extract, apply = self._projection.extract_model_id, cast(Any, self._projection.apply_to_model)
        any_stream = self._projection.partition_by is not None
        dirty, load, interrupts = self._dirty, self._load, self._interrupts
        event: Event | None = None
        declined = 0
        try:
            for event in events:
                model_id = extract(event)
                if model_id is None:
                    declined += 1
                else:
                    if not any_stream and model_id != event.stream:
                        raise self._not_its_stream(model_id)
                    model = dirty.get(model_id, _MISSING)
                    if model is _MISSING:
                        model = load(model_id)
                    changed = await apply(model, event)
                    if changed is not model:
                        dirty[model_id] = changed
                if interrupts:
                    break
        except (EventError, ProjectionError):
            raise
        except Exception as error:
            raise self._failed(event, error) from error
        self._passed(event, declined)

    def _passed(self, event: Event | None, declined: int) -> None:
        if event is not None:
            self.position = event.offset + 1
            self.declined += declined
            self._last_event_id = str(event.id)  # a number, where the envelope has one

    def _load(self, model_id: str) -> Any:
        """Find a model at its first change since the last commit."""
        if type(model_id) is not str:
            raise TypeError(f"extract_model_id gave {model_id!r}; a model's id is a str, or None to decline the event")
        model = self._clean.pop(model_id, None)
        if model is not None:
            size = self._clean_sizes.pop(model_id)
            self._clean_bytes -= size
        else:
            raw = None if self._holds_all else self._store.get(model_id)
            if raw is None:
                self._added.add(model_id)
                return None
            model, size = self._serde.decode(raw), len(raw)
        self._dirty_bytes += size
        self._dirty[model_id] = model
        return model

    def commit(self) -> None:
        """Write every changed model and the position in one batch.

        Raises:
            ModelCannotBeStored: A model has no JSON form.
            StorageError: The store failed.

        After either nothing was written; `discard`.
        """
        state = msgspec.structs.replace(
            self._store.state,
            position=self.position,
            events=self.events,
            declined=self.declined,
            models=self._count(),
            last_event_id=self._last_event_id,
        )
        self._store.commit(self._encoded(), state)
        self._dirty = {}
        self._dirty_bytes = 0
        self._added = set()
        self._unseen_bytes = 0

    def _encoded(self) -> Iterator[tuple[str, bytes | None]]:
        """Encode the changed models, and move them to the unchanged ones as it goes."""
        encode, clean, clean_sizes = self._serde.encode, self._clean, self._clean_sizes
        encoded_bytes = 0
        for model_id, model in self._dirty.items():
            if model is None:
                yield model_id, None
                continue
            try:
                raw = encode(model)
            except Exception as error:
                raise ModelCannotBeStored(f"model {model_id!r}: {error}") from error
            clean[model_id] = model
            clean_sizes[model_id] = size = len(raw)
            encoded_bytes += size
            yield model_id, raw
        self._clean_bytes += encoded_bytes
        self._calibrate()

    def _count(self) -> int:
        """Count the models that the store will have after the commit."""
        gone = sum(1 for model_id, model in self._dirty.items() if model is None and model_id not in self._added)
        new = sum(1 for model_id in self._added if self._dirty.get(model_id) is not None)
        return self._store.state.models + new - gone

    def discard(self) -> None:
        """Forget everything since the last commit, also every cached model: user code may have half changed it."""
        carefully = self.carefully
        self._reset()
        self.carefully = carefully

    # Memory

    @property
    def memory_bytes(self) -> int:
        """About how much memory the cached models take."""
        return self._in_memory(self._dirty_bytes, len(self._dirty)) + self._in_memory(
            self._clean_bytes, len(self._clean)
        )

    def _in_memory(self, stored_bytes: int, models: int) -> int:
        return int(stored_bytes * self._bytes_per_stored) + _KEY_OVERHEAD_BYTES * models

    def is_full(self, limit_bytes: int) -> bool:
        """Whether the changed models alone are about to need more than half of the limit."""
        # The events since the last commit bound by how much models have grown that nobody has measured since.
        return self._in_memory(self._dirty_bytes, len(self._dirty)) > limit_bytes // 2 or (
            self._unseen_bytes > limit_bytes
        )

    def evict(self, limit_bytes: int) -> None:
        """Drop unchanged models, those changed longest ago first, until the cache fits the limit."""
        excess = self.memory_bytes - limit_bytes
        if excess <= 0 or not self._clean:
            return
        while excess > 0 and self._clean:
            # In portions: each pass over the front of a dict walks over what was deleted there before.
            for model_id in list(islice(self._clean, 1 + len(self._clean) // 16)):
                del self._clean[model_id]
                size = self._clean_sizes.pop(model_id)
                self._clean_bytes -= size
                excess -= self._in_memory(size, 1)
        self._holds_all = False

    def _calibrate(self) -> None:
        """Measure on a few models what a decoded one takes in memory, for each byte stored."""
        sample = list(islice(reversed(self._clean), _SAMPLES))
        stored = sum(self._clean_sizes[model_id] for model_id in sample)
        if stored:
            measured = sum(_deep_size(self._clean[model_id]) for model_id in sample) / stored
            self._bytes_per_stored += 0.5 * (measured - self._bytes_per_stored)

    # Failures

    def _check_storable(self, event: Event) -> None:
        model_id = self._projection.extract_model_id(event)
        model = self._dirty.get(model_id) if model_id is not None else None
        if model is None:
            return
        try:
            self._serde.encode(model)
        except Exception as error:
            raise self._failed(event, error, f"its model {model_id!r} cannot be stored") from error

    def _failed(self, event: Event | None, error: Exception, what: str = "the projection failed") -> ProjectionError:
        if event is None:
            return ProjectionError(f"{self._projection.name}: {error}", projection=self._projection.name)
        return ProjectionError(
            f"{at(event.topic, event.partition, event.offset)}: {what}: {self._projection.name} on event "
            f"{event.id} ({event.type}, stream {event.stream!r}): {type(error).__name__}: {error}. State and "
            "position are as they were before this event; correct the projection and start again.",
            projection=self._projection.name,
            topic=event.topic,
            partition=event.partition,
            offset=event.offset,
            event_id=event.id,
        )

    def _not_its_stream(self, model_id: str) -> Exception:
        if type(model_id) is not str:
            return TypeError(f"extract_model_id gave {model_id!r}; a model's id is a str, or None to decline the event")
        return ValueError(
            f"model {model_id!r} is not the event's stream, so it might be fed from several partitions, whose "
            "events have no order among each other. If every event of one model is of one stream, say so: "
            f'`partition_by = "stream"` in {type(self._projection).__name__}. If not, key the topic by the model'
        )

    def close(self) -> None:
        """Let go of the store and of the event loop, without committing."""
        self._store.close()
        if self._loop is not None:
            self._loop.close()
            self._loop = None


def _deep_size(value: Any) -> int:
    """Give about the memory of a model: its containers and leaves, shared ones counted each time."""
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(_deep_size(k) + _deep_size(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return size + sum(map(_deep_size, value))
    if hasattr(value, "__dict__"):
        size += _deep_size(vars(value))
    for klass in type(value).__mro__:
        for name in getattr(klass, "__slots__", ()) if not isinstance(value, str | bytes) else ():
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                size += _deep_size(getattr(value, name))
    return size
