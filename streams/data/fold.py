"""The fold: events into models, in memory, until a checkpoint writes models and position together."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, cast

import msgspec

from projections.contract import CqrsProjection, Event
from streams.data.cache import MISSING, ModelCache
from streams.data.codec import EventCodec, Outcome, Record, Tombstone, Undecodable, decoded
from streams.data.failures import failed, not_its_stream
from streams.data.serde import Serde
from streams.data.store import PartitionStore
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["Fold", "feed"]

log = get_logger(__name__)

_EVENTS_ONLY = {Event}
_NEVER = (KeyboardInterrupt, GeneratorExit)
"""What user code may raise that is no failure of it: it comes from outside."""


_told_of: set[str] = set()


class Fold:
    """One partition's fold. Folding changes memory only.

    `commit` writes every changed model and the position in one batch; `discard` forgets everything since. So the
    store holds, at every instant, `fold(log[start:position])`, whatever user code or the process did in between.

    Args:
        projection: The user's code.
        serde: How its models are stored.
        store: Where this partition's models and position are kept.
        interrupts: When something is put in here, by any thread, the fold stops after the event it is at.
        until: The position to end at, exactly; None for no end.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        serde: Serde,
        store: PartitionStore,
        interrupts: Sequence[object] = (),
        *,
        until: int | None = None,
    ) -> None:
        self._projection = projection
        self._store = store
        self._interrupts = interrupts
        self._until = until
        self._end = until
        self._is_async = inspect.iscoroutinefunction(projection.apply_to_model)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.cache = ModelCache(serde, store)
        self.carefully = False
        """Check after each event that its model can be stored; slow, to find the event after whose fold it cannot."""
        self._reset()

    def _reset(self) -> None:
        state = self._store.state
        self.position = state.position
        self.events = state.events
        self.declined = state.declined
        self.deleted = state.deleted
        self.record_ms = state.record_ms
        self._last_event_id = state.last_event_id
        self._last_event_time = state.last_event_time

    @property
    def pending(self) -> int:
        """Events since the last commit."""
        return self.events - self._store.state.events

    @property
    def changed(self) -> int:
        """Models that the next commit writes."""
        return len(self.cache.dirty)

    @property
    def has_moved(self) -> bool:
        """Whether the position differs from the store's: events, or only gaps in the log, were passed."""
        return self.position != self._store.state.position

    @property
    def committed(self) -> int:
        """The store's position."""
        return self._store.state.position

    @property
    def is_at_end(self) -> bool:
        """Whether the position is the one to end at."""
        return self._end is not None and self.position >= self._end

    def end_at(self, position: int | None) -> bool:
        """End at another position for a while; say whether that is another one than before.

        Args:
            position: It is not behind `until`; None for `until` again.
        """
        before, self._end = self._end, self._until if position is None else position
        return before != self._end

    def begin(self, sizes: Sequence[int], record_ms: int) -> None:
        """Take in the sizes in bytes of the records that come next, and the timestamp of the last of them."""
        self.cache.saw(sizes)
        self.record_ms = record_ms

    def fold(self, outcomes: Sequence[Outcome]) -> None:
        """Fold what consecutive records of this partition came out as.

        Those in front of the position are passed over, and those from `until` on are left.

        Raises:
            EventError: One is no event; everything before it is folded.
            ProjectionError: User code failed. Models of this batch may be half changed: `discard`, then fold again up
                to that event.
            StorageError: The store failed; `discard`.
        """
        if outcomes[0].offset < self.position:
            outcomes = [outcome for outcome in outcomes if outcome.offset >= self.position]
        passed_end = self._end is not None and bool(outcomes) and outcomes[-1].offset >= self._end
        if passed_end:
            outcomes = [outcome for outcome in outcomes if outcome.offset < cast(int, self._end)]
        if set(map(type, outcomes)) <= _EVENTS_ONLY:
            self._count(cast(Sequence[Event], outcomes))
        else:
            self._fold_mixed(outcomes)
        if passed_end and not self._interrupts:
            self.skip_to(cast(int, self._end))

    def _fold_mixed(self, outcomes: Sequence[Outcome]) -> None:
        for kind, alike in groupby(outcomes, type):
            if kind is Event:
                self._count(cast(Sequence[Event], list(alike)))
            elif kind is Tombstone:
                for tombstone in cast(Iterable[Tombstone], alike):
                    self._bury(tombstone)
            else:
                raise cast(Undecodable, next(alike)).error()
            if self._interrupts:
                return

    def _bury(self, tombstone: Tombstone) -> None:
        """Take a record that deletes its key's model, or that is to be passed over."""
        self.position = tombstone.offset + 1
        self.events += 1
        if not tombstone.deletes:
            self.declined += 1
            return
        self.deleted += 1
        model = self.cache.dirty.get(tombstone.stream, MISSING)
        if (self.cache.load(tombstone.stream) if model is MISSING else model) is not None:
            self.cache.dirty[tombstone.stream] = None

    def skip_to(self, position: int) -> None:
        """Move over offsets that hold no record: transaction markers, aborted or compacted records."""
        if self._end is not None:
            position = min(position, self._end)
        self.position = max(self.position, position)

    def _count(self, events: Sequence[Event]) -> None:
        if not events:
            return
        if self.carefully:
            for event in events:
                self._run((event,))
                self._check_storable(event)
                if self._interrupts:
                    break
        else:
            self._run(events)
        if self.position > events[-1].offset:
            self.events += len(events)
        else:  # interrupted: count what was folded
            self.events += sum(1 for event in events if event.offset < self.position)

    def _run(self, events: Sequence[Event]) -> None:
        if self._is_async:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self._fold_async(events))
        else:
            self._fold(events)

    def _fold(self, events: Sequence[Event]) -> None:
        """Fold events until they end or an interrupt comes. Every line here runs once per event of history."""
        extract, apply = self._projection.extract_model_id, self._projection.apply_to_model
        any_stream = self._projection.partition_by is not None
        dirty, load, interrupts = self.cache.dirty, self.cache.load, self._interrupts
        get = dirty.get
        event = events[0]
        declined = deleted = 0
        try:
            for event in events:
                model_id = extract(event)
                if model_id is None:
                    declined += 1
                else:
                    if not any_stream and model_id != event.stream:
                        raise not_its_stream(model_id)
                    model = get(model_id, MISSING)
                    if model is MISSING:
                        model = load(model_id)
                    changed = apply(model, event)
                    if changed is not model:
                        dirty[model_id] = changed
                    if changed is None:
                        deleted += 1
                if interrupts:
                    break
        except BaseException as error:  # noqa: BLE001  (raised as what it is)
            self._raise(event, error)
        self._passed(event, declined, deleted)

    async def _fold_async(self, events: Sequence[Event]) -> None:
        """The same for an `async def apply_to_model`. A copy, because an await costs more than the rest."""
        extract, apply = self._projection.extract_model_id, cast(Any, self._projection.apply_to_model)
        any_stream = self._projection.partition_by is not None
        dirty, load, interrupts = self.cache.dirty, self.cache.load, self._interrupts
        event = events[0]
        declined = deleted = 0
        try:
            for event in events:
                model_id = extract(event)
                if model_id is None:
                    declined += 1
                else:
                    if not any_stream and model_id != event.stream:
                        raise not_its_stream(model_id)
                    model = dirty.get(model_id, MISSING)
                    if model is MISSING:
                        model = load(model_id)
                    changed = await apply(model, event)
                    if changed is not model:
                        dirty[model_id] = changed
                    if changed is None:
                        deleted += 1
                if interrupts:
                    break
        except BaseException as error:  # noqa: BLE001  (raised as what it is)
            self._raise(event, error)
        self._passed(event, declined, deleted)

    def _passed(self, event: Event, declined: int, deleted: int) -> None:
        self.position = event.offset + 1
        self.declined += declined
        self.deleted += deleted
        self._last_event_id = str(event.id)  # a number, where the envelope has one
        self._last_event_time = event.recorded_at

    def commit(self) -> None:
        """Write every changed model and the position in one batch.

        Raises:
            ModelCannotBeStored: A model would not come back as it went in.
            StorageError: The store failed.

        After either nothing was written; `discard`.
        """
        before = self._store.state
        state = msgspec.structs.replace(
            before,
            position=self.position,
            events=self.events,
            declined=self.declined,
            deleted=self.deleted,
            models=self.cache.count(),
            last_event_id=self._last_event_id,
            last_event_time=_time(self._last_event_time),
            record_ms=self.record_ms,
        )
        self._store.commit(self.cache.encoded(), state)
        method = f"{type(self._projection).__qualname__}.apply_to_model"
        if before.events == 0 and state.gave_nothing and method not in _told_of:
            _told_of.add(method)  # once, and not for each partition
            log.warning(
                "fold.gives_no_models",
                method=method,
                folded=state.events - state.declined,
                why="it gave None for every event so far, which deletes the model; is a `return model` missing?",
            )
        self.cache.committed()

    def discard(self) -> None:
        """Forget everything since the last commit, also every cached model: user code may have half changed it."""
        self.cache.reset()
        self._reset()

    # Failures

    def _check_storable(self, event: Event) -> None:
        model_id = self._projection.extract_model_id(event)
        if model_id is not None:
            try:
                self.cache.check_storable(model_id)
            except Exception as error:
                raise failed(self._projection, event, error, f"its model {model_id!r} cannot be stored") from error

    def _raise(self, event: Event, error: BaseException) -> None:
        """Raise what a failure at an event is: the user's, unless it is ours or comes from outside."""
        if isinstance(error, (CqrsError, *_NEVER)):
            raise error
        raise failed(self._projection, event, error) from error

    def close(self) -> None:
        """Close the store and the loop that async code ran on, without writing."""
        self._store.close()
        if self._loop is not None:
            self._loop.close()


def feed(
    codec: EventCodec, records: Sequence[Record], folds: Iterable[Fold], interrupts: Sequence[object] = ()
) -> None:
    """Decode records of one partition once, and fold them with each of the folds.

    Raises:
        EventError, ProjectionError, StorageError: See `Fold.fold`.
    """
    folds = list(folds)
    sizes = list(map(len, records))
    record_ms = records[-1].timestamp()[1]
    for fold in folds:
        fold.begin(sizes, record_ms)
    for outcomes in decoded(codec, records):
        for fold in folds:
            fold.fold(outcomes)
        if interrupts:
            return


def _time(time: object) -> str | int | None:
    """Keep a time as its envelope has it, and whatever else stands there as text."""
    return time if time is None or type(time) in (str, int) else str(time)  # type: ignore[return-value]
