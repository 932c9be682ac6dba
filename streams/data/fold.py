"""The fold: events into models, in memory, until a checkpoint writes models and position together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import msgspec

from projections.contract import CqrsProjection, Event
from streams.data.cache import ModelCache
from streams.data.codec import EventCodec, Outcome, Record, Tombstone, Undecodable, decoded
from streams.data.failures import brief, failed, let_go
from streams.data.loop import Loop, Ran
from streams.data.recovery import Kind
from streams.data.rescue import Rescue, Unguarded
from streams.data.serde import Serde
from streams.data.store import PartitionStore
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["Fold", "feed"]

log = get_logger(__name__)

_EVENTS_ONLY = {Event}
_GUARDED = 256
"""So many events at once, while models are saved before them: where one fails, they are saved anew."""
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

    rescue: Rescue | None = None
    """What is done with events that cannot be folded; None: nothing, the fold ends in front of them."""

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
        self.cache = ModelCache(serde, store)
        self._loop = Loop(projection, self.cache, interrupts)
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
        """Whether the next commit has something to write: events, or only gaps in the log, were passed, or dead letters
        have come or gone."""
        if self.position != self._store.state.position:
            return True
        return self.rescue is not None and self.rescue.letters.has_changes

    def keep_to(self, limit_bytes: int) -> float:
        """Drop unchanged models until the rest fits; above 1, a commit is due, so that it goes on fitting.

        Args:
            limit_bytes: Of models in memory, and dead letters that are to be written.
        """
        beside = 0 if self.rescue is None else self.rescue.letters.memory_bytes
        self.cache.evict(max(0, limit_bytes - beside))
        return self.cache.fullness(limit_bytes, beside) if self.has_moved else 0.0

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

    def begin(self, records: Sequence[Record], sizes: Sequence[int], record_ms: int) -> None:
        """Take in which records come next, their sizes in bytes, and the timestamp of the last of them."""
        self.cache.saw(sizes)
        self.record_ms = record_ms
        if self.rescue is not None:
            self.rescue.records = records

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
            self._fold(cast(Sequence[Event], outcomes))
        else:
            self._fold_mixed(outcomes)
        if passed_end and not self._interrupts:
            self.skip_to(cast(int, self._end))

    def _fold_mixed(self, outcomes: Sequence[Outcome]) -> None:
        for kind, alike in groupby(outcomes, type):
            if kind is Event:
                self._fold(cast(Sequence[Event], list(alike)))
            elif kind is Tombstone:
                for tombstone in cast(Iterable[Tombstone], alike):
                    self._bury(tombstone)
            else:
                for undecodable in cast(Iterable[Undecodable], alike):
                    self._reject(undecodable)
            if self._interrupts:
                return

    def _bury(self, tombstone: Tombstone) -> None:
        """Take a record that deletes its key's model, or that is to be passed over."""
        if self.rescue is not None and self.rescue.letters.leaves_out(tombstone):
            self._keep_back(tombstone)
            return
        self.position = tombstone.offset + 1
        self.events += 1
        if not tombstone.deletes:
            self.declined += 1
            return
        self.deleted += 1
        self.cache.remove(tombstone.stream)

    def _reject(self, undecodable: Undecodable) -> None:
        """Go on without a record that is no event, or end in front of it."""
        rescue = self.rescue
        if rescue is None:
            raise undecodable.error()
        if undecodable.offset not in rescue.letters.dropped:
            said = f"the record is no event: {undecodable.reason}"
            action = rescue.decide(Kind.UNDECODABLE, undecodable, said)
            if action in ("halt", "retry"):
                raise undecodable.error()
            rescue.keep(Kind.UNDECODABLE, undecodable, self.events, said, skipped=action == "skip")
        self._leave_out(undecodable)

    def _leave_out(self, outcome: Outcome) -> None:
        self.position = max(self.position, outcome.offset + 1)
        self.events += 1

    def _keep_back(self, outcome: Event | Tombstone) -> None:
        """Pass an event that is not to be folded now, or ever."""
        rescue = self.rescue
        assert rescue is not None
        if outcome.offset not in rescue.letters.dropped:
            rescue.keep(Kind.HELD, outcome, self.events, "an event before it waits")
        self._leave_out(outcome)

    def skip_to(self, position: int) -> None:
        """Move over offsets that hold no record: transaction markers, aborted or compacted records."""
        if self._end is not None:
            position = min(position, self._end)
        self.position = max(self.position, position)

    def _fold(self, events: Sequence[Event]) -> None:
        """Fold events, but for those that have to wait behind others."""
        if self.rescue is None:
            self._fold_free(events, ())
            return
        while events:
            portion = events[:_GUARDED] if self.rescue.is_guarding(self.events) else events
            free, waiting = self.rescue.letters.sort(portion)
            if self._fold_free(free, waiting):
                events = events[len(portion) :]
            else:  # some of the others may have to wait behind the one that has failed
                events = events[bisect_left(events, self.position, key=_offset) :]
            if self._interrupts:
                return

    def _fold_free(self, events: Sequence[Event], waiting: Sequence[Event]) -> bool:
        """Fold events, as far as none fails that is not to be gone on without. False: one has failed.

        Args:
            events: Those that wait for nothing.
            waiting: Those between them that do: each is kept once it is passed.
        """
        rescue = self.rescue
        while events:
            is_careful = self.carefully or (rescue is not None and rescue.is_careful(self.events))
            is_guarding = rescue is not None and rescue.is_guarding(self.events)
            portion = events[:1] if is_careful else events[:_GUARDED] if is_guarding else events
            if rescue is not None:
                rescue.save(portion if is_careful else rescue.suspects(portion) if is_guarding else ())
            if self.cache.is_far:
                self.cache.fetch(self._ids_of(portion))
            ran = self._loop.run(portion)
            self._passed(portion[: ran.folded], ran)
            error = ran.error
            if waiting:
                waiting = self._pass_by(waiting, self.position if error is None else portion[ran.folded].offset)
            if error is not None:
                self._failed(portion, ran, Kind.FAILED, error)
            elif is_careful and (error := self._not_storable(portion[0])) is not None:
                self._failed(portion, Ran(0, 0, 0, error, ran.was_loaded), Kind.UNSTORABLE, error)
            if self._interrupts or error is not None:
                return False
            events = events[ran.folded :]
        self._pass_by(waiting)
        return True

    def _ids_of(self, events: Sequence[Event]) -> Iterator[str]:
        """Yield the models of events, up to the first where that cannot be told: the loop comes to it."""
        try:
            for event in events:
                model_id = self._projection.extract_model_id(event)
                if isinstance(model_id, str):
                    yield model_id
        except Exception:  # noqa: BLE001
            return

    def _pass_by(self, waiting: Sequence[Event], end: int | None = None) -> Sequence[Event]:
        """Pass events that are not to be folded now, or ever, in front of an offset; give the others."""
        number = 0
        for number, event in enumerate(waiting, 1):
            if end is not None and event.offset >= end:
                return waiting[number - 1 :]
            self._keep_back(event)
        return waiting[number:]

    def _passed(self, events: Sequence[Event], ran: Ran) -> None:
        if not events:
            return
        event = events[-1]
        self.position = event.offset + 1
        self.events += len(events)
        self.declined += ran.declined
        self.deleted += ran.deleted
        self._last_event_id = str(event.id)  # a number, where the envelope has one
        self._last_event_time = event.recorded_at

    def _failed(self, events: Sequence[Event], ran: Ran, kind: Kind, error: BaseException) -> None:
        """Go on without an event that could not be folded, or raise what its failure is: the user's, unless it is ours
        or comes from outside."""
        if isinstance(error, (CqrsError, *_NEVER)):
            raise error
        event, rescue = events[ran.folded], self.rescue
        said = brief(error)
        model_id = None if kind is Kind.FAILED else self._projection.extract_model_id(event)
        what = "the projection failed" if model_id is None else f"its model {model_id!r} cannot be stored"
        action = "halt" if rescue is None else rescue.decide(kind, event, said, error)
        if rescue is None or action in ("halt", "retry"):
            failure = failed(self._projection, event, error, what)
            if rescue is not None and action == "retry":
                failure.retry_in_s = rescue.retry_in_s
            raise failure from error
        if not rescue.undo(event, ran, events[: ran.folded]):
            rescue.guard(event, self.events)
            raise Unguarded(f"event {event.offset} cannot be undone", offset=event.offset)
        rescue.keep(kind, event, self.events, said, skipped=action == "skip")
        let_go(error)
        if kind is Kind.FAILED:
            self._leave_out(event)

    def fold_letter(self, outcome: Outcome) -> tuple[Kind, str] | None:
        """Fold an event that was passed before, because it could not be folded then.

        Returns:
            Why it cannot be folded this time either; None where it is in its model now.

        Raises:
            Unguarded: It failed, and its model cannot be put back; `discard`.
            StorageError: The store failed; likewise.
        """
        rescue = self.rescue
        assert rescue is not None
        if isinstance(outcome, Undecodable):
            return Kind.UNDECODABLE, outcome.reason
        if isinstance(outcome, Tombstone):
            if outcome.deletes:
                self.cache.remove(outcome.stream)
            return None
        rescue.save((outcome,))
        ran = self._loop.run((outcome,))
        kind, error = Kind.FAILED, ran.error
        if error is None:
            kind, error = Kind.UNSTORABLE, self._not_storable(outcome)
        if error is None:
            return None
        if isinstance(error, (CqrsError, *_NEVER)):
            raise error
        if not rescue.undo(outcome, ran, ()):
            rescue.guard(outcome, self.events)
            raise Unguarded(f"event {outcome.offset} cannot be undone", offset=outcome.offset)
        said = brief(error)
        let_go(error)
        return kind, said

    def _not_storable(self, event: Event) -> Exception | None:
        """Give why an event's model cannot be stored; None where it can."""
        model_id = self._projection.extract_model_id(event)
        if model_id is None:
            return None
        try:
            self.cache.check_storable(model_id)
        except Exception as error:  # noqa: BLE001  (told as what it is by whoever called)
            return error
        return None

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
        letters = None if self.rescue is None else self.rescue.letters
        if letters is None:
            self._store.commit(self.cache.encoded(), state)
        else:
            self._store.commit(self.cache.encoded(), letters.of(state), letters.staged)
            letters.committed()
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
        if self.rescue is not None:
            self.rescue.letters.reset()

    def close(self) -> None:
        """Close the store and the loop that async code ran on, without writing."""
        self._store.close()
        self._loop.close()
        if self.rescue is not None:
            self.rescue.close()


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
        fold.begin(records, sizes, record_ms)
    for outcomes in decoded(codec, records):
        for fold in folds:
            fold.fold(outcomes)
        if interrupts:
            return


def _offset(event: Event) -> int:
    return event.offset


def _time(time: object) -> str | int | None:
    """Keep a time as its envelope has it, and whatever else stands there as text."""
    return time if time is None or type(time) in (str, int) else str(time)  # type: ignore[return-value]
