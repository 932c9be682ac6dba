"""What a fold does where an event cannot be folded and its policy lets it go on: undo it, and keep its bytes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from itertools import repeat
from typing import Any

from projections.contract import CqrsProjection, Event, TransientError
from streams.data.cache import MISSING, ModelCache
from streams.data.codec import EventCodec, Outcome, Record, Undecodable
from streams.data.failures import NotItsStream
from streams.data.letter import Letter
from streams.data.letters import Letters
from streams.data.loop import Loop, Ran
from streams.data.recovery import Action, Failure, Kind, RecoveryPolicy
from streams.data.serde import Serde
from streams.errors import ProjectionError

__all__ = ["Rescue", "Unguarded"]

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 60.0
_CALM_EVENTS = 20_000
"""After so many events without a failure, nothing is saved any more in case the next one fails."""
_MANY_TYPES = 64


class Unguarded(ProjectionError):
    """An event failed whose model was changed since the last commit, and nobody had saved it: fold again, guarded."""


class Rescue:
    """Of one partition's fold.

    A model may be half changed where user code fails. What it was before is in the store if it was not changed since
    the last commit. Otherwise it has to have been saved: that costs, so it is done only in front of events of types
    that have failed lately (`suspects`), once for each model and portion of events; the events of the portion that
    came before the failure are then folded into it once more. Where one of another type fails, everything since the
    last commit is folded again (`Unguarded`), and its type is suspected.

    Args:
        projection: The user's code.
        serde: How its models are stored.
        cache: The fold's models.
        codec: How records are read.
        policy: What becomes of events that fail.
        letters: Where they are kept.
        generation: The generation's id.
        group: Its consumer group.
        replay_end: Events in front of it are a rebuild's.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        serde: Serde,
        cache: ModelCache,
        codec: EventCodec,
        policy: RecoveryPolicy,
        letters: Letters,
        generation: str,
        group: str,
        replay_end: int = 0,
    ) -> None:
        self._projection = projection
        self._serde = serde
        self._cache = cache
        self._is_keyed = projection.partition_by is None
        self._keys_are_streams = bool(getattr(codec, "streams_are_keys", False))
        self._policy = policy
        self._generation = generation
        self._group = group
        self._replay_end = replay_end
        self._again = Loop(projection, cache, ())  # not interrupted: it is to come to where it was before
        self.letters = letters
        self.records: Sequence[Record] = ()
        """Those that the events come from which are folded now."""
        self._saved: dict[str, Any] = {}  # encoded; None where there was none; MISSING: as it is in the store
        self._suspected: set[Hashable] = set()
        self._guarded_to = -1
        self._careful_to = -1
        self._tried = (-1, 0)

    # Guarding

    def is_guarding(self, events: int) -> bool:
        """Whether models of some events are to be saved before they are changed.

        Args:
            events: How many the fold has seen.
        """
        return events < self._guarded_to

    def suspects(self, events: Sequence[Event]) -> Sequence[Event]:
        """Give those that are of a type of which one has failed lately; all of them, where nearly any type fails."""
        suspected = self._suspected
        if len(suspected) > _MANY_TYPES:
            return events
        try:
            return [event for event in events if event.type in suspected]
        except TypeError:  # of one whose type is no text, as some codec gave it
            return events

    def is_careful(self, events: int) -> bool:
        """Whether each model is to be looked at after each event, since some lately could not be stored."""
        return events < self._careful_to

    def guard(self, event: Event, events: int) -> None:
        """Save models in front of events of this type from now on, for a while; it has failed.

        Args:
            event: It.
            events: How many the fold has seen when it came to it.
        """
        if not self.is_guarding(events):
            self._suspected.clear()
        elif self.suspects((event,)):  # and yet it could not be undone: a model before it cannot be stored
            self._careful_to = events + _CALM_EVENTS
        self._suspect(event.type, events)

    def _suspect(self, kind: object, events: int) -> None:
        if isinstance(kind, Hashable):
            self._suspected.add(kind)
        self._guarded_to = events + _CALM_EVENTS

    def save(self, events: Sequence[Event]) -> None:
        """Save the models of events that are about to be folded, and of no others."""
        get, encode = self._cache.dirty.get, self._serde.encode
        ids = [event.stream for event in events] if self._is_keyed else [*filter(None, map(self.model_of, events))]
        models = zip(ids, map(get, ids, repeat(MISSING)), strict=True)
        try:
            self._saved = {
                model_id: model if model is None or model is MISSING else encode(model) for model_id, model in models
            }
        except Exception:  # noqa: BLE001  (it is told at the commit, or by looking at each)
            self._saved = {}

    def undo(self, event: Event, ran: Ran, before: Sequence[Event]) -> bool:
        """Have the model of an event be as it was before; False where nobody can tell how that was.

        Args:
            event: It has failed.
            ran: How far the loop had come.
            before: The events of the same portion that were folded; `save` came before them.
        """
        model_id = self.model_of(event)
        if model_id is None or (model_id not in self._cache.dirty and not ran.was_loaded):
            return True
        if ran.was_loaded:
            self._cache.restore(model_id)
            return True
        if model_id not in self._saved:
            return False
        self._cache.restore(model_id, self._saved[model_id])
        mine = [one for one in before if not self._is_keyed or one.stream == model_id]
        mine = [one for one in mine if self.model_of(one) == model_id]
        if mine:
            again = self._again.run(mine)
            if again.error is not None:
                raise again.error
        return True

    def model_of(self, event: Event) -> str | None:
        """Give the id of an event's model; None where it has none, or none can be told."""
        try:
            model_id = self._projection.extract_model_id(event)
        except Exception:  # noqa: BLE001  (it fails where it is folded, and is told there)
            return None
        return model_id if type(model_id) is str else None

    # Deciding and keeping

    def decide(self, kind: Kind, outcome: Event | Undecodable, said: str, error: BaseException | None = None) -> Action:
        """Say what becomes of an event that cannot be folded.

        Args:
            kind: Why.
            outcome: The event, or that it is none.
            said: What went wrong, in one line.
            error: What was raised, where something was.
        """
        if isinstance(error, NotItsStream):
            return "halt"
        is_transient = isinstance(error, TransientError)
        if is_transient:
            self._tried = (outcome.offset, self._tried[1] + 1 if self._tried[0] == outcome.offset else 1)
        action = self._policy.decide(
            Failure(
                kind=kind,
                error=said,
                topic=outcome.topic,
                partition=outcome.partition,
                offset=outcome.offset,
                is_rebuild=outcome.offset < self._replay_end,
                is_transient=is_transient,
                attempt=self._tried[1] if is_transient else 1,
                skipped=self.letters.skipped,
                event_id=str(outcome.id) if isinstance(outcome, Event) else None,
                model_id=self.model_of(outcome) if isinstance(outcome, Event) else None,
            )
        )
        if action == "retry" and not is_transient:
            return "halt"
        if action == "dead-letter" and isinstance(outcome, Undecodable) and not self._can_wait(outcome.offset):
            return "halt"
        return action

    @property
    def retry_in_s(self) -> float:
        """When to try the event again that was tried last; each time later."""
        return float(min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** (self._tried[1] - 1)))

    def _can_wait(self, offset: int) -> bool:
        """Whether it is known what has to wait behind a record that is no event."""
        return self._keys_are_streams and self._record(offset).key() is not None

    def keep(self, kind: Kind, outcome: Outcome, events: int, said: str, *, skipped: bool = False) -> None:
        """Keep an event's bytes as a letter.

        Args:
            kind: Why it is not folded.
            outcome: What its record came out as.
            events: How many the fold has seen.
            said: What went wrong, in one line.
            skipped: Whether nothing is to wait for it.
        """
        record = self._record(outcome.offset)
        key = record.key()
        stream = _text(key) if isinstance(outcome, Undecodable) else outcome.stream
        self.letters.add(
            Letter(
                projection=self._projection.name,
                generation=self._generation,
                group=self._group,
                topic=record.topic(),
                partition=record.partition(),
                offset=record.offset(),
                timestamp=record.timestamp()[1],
                kind=kind.value,
                skipped=skipped,
                error=said,
                stream=stream,
                model=self._model_id(kind, outcome),
                event_id=str(outcome.id) if isinstance(outcome, Event) else None,
                event_type=str(outcome.type) if isinstance(outcome, Event) else None,
                key=key,
                value=record.value(),
                headers=tuple(record.headers() or ()),
            )
        )
        if kind is not Kind.HELD and isinstance(outcome, Event):
            self._suspect(outcome.type, events)
            if kind is Kind.UNSTORABLE:
                self._careful_to = events + _CALM_EVENTS

    def _model_id(self, kind: Kind, outcome: Outcome) -> str | None:
        if isinstance(outcome, Undecodable):
            return None
        if kind is Kind.HELD and self._is_keyed:
            return outcome.stream
        return self.model_of(outcome) if isinstance(outcome, Event) else outcome.stream

    def _record(self, offset: int) -> Record:
        records = self.records
        index = offset - records[0].offset()
        if index < len(records) and records[index].offset() == offset:  # nearly always: there are no gaps
            return records[index]
        return records[bisect_left(records, offset, key=lambda record: record.offset())]

    def close(self) -> None:
        """Close what user code ran on."""
        self._again.close()


def _text(key: bytes | None) -> str | None:
    try:
        return None if key is None else key.decode()
    except UnicodeDecodeError:
        return None
