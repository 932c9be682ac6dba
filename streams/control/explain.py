"""The history of one model, told from the log: each event that touched it, and what it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from confluent_kafka import Message

from projections.contract import CqrsProjection, Event
from streams.data.build import Build, Manifest
from streams.data.codec import Outcome, Tombstone, decoded
from streams.data.fold import Fold
from streams.data.generation import StateStore
from streams.data.history import check_complete
from streams.data.reader import ModelReader
from streams.data.refold import MemoryStore, picker
from streams.data.scan import scan
from streams.data.serde import serde_for
from streams.data.source import KafkaEventStore
from streams.data.split import split_error
from streams.data.typed import typed
from streams.diff import ABSENT, Change, changes
from streams.errors import CqrsError, EventError, ProjectionError
from streams.types import TopicInfo

__all__ = ["History", "Step", "explain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event of a model, and what it changed."""

    partition: int
    offset: int
    event_id: str | None
    """None for a record with a null value that deletes the model."""
    type: str
    time: str | int | None
    """As the event has it: ISO 8601 text, or milliseconds since 1970."""
    changes: list[Change]
    """None where the event left the model as it was."""
    is_folded: bool
    """Whether the stored models have it already."""


@dataclass(slots=True, kw_only=True)
class History:
    """What made a model what it is."""

    model_id: str
    steps: list[Step] = field(default_factory=list)
    """In the log's order."""
    model: Any = ABSENT
    """As JSON, after the last step; ABSENT where there is none then."""
    error: CqrsError | None = None
    """Why an event of it cannot be folded; `steps` ends in front of it."""


def explain(
    projection: CqrsProjection[Any],
    events: KafkaEventStore,
    store: StateStore,
    model_id: str,
    *,
    at: int | datetime | None = None,
    check: Callable[[], None] = lambda: None,
) -> History:
    """Fold one model again from its events, by the code as it is now, and note each step. Nothing is changed.

    Where the topic has lost events, it begins with what is left, and the log says so.

    Where the stored models know which partition it is in, only that one is read; and where its id is its stream and the
    record's key, only its own records are decoded.

    Args:
        projection: The user's code.
        events: The topic.
        store: Where the models are; there need be none.
        model_id: The model's id.
        at: End after the event at this offset, or in front of the first event that says it is of a later time; None for
            the topic's end.
        check: Called now and then; what it raises ends the reading.

    Raises:
        ModelSplit: It is on several partitions.
        HistoryIncomplete, TopicNotFound, BrokerUnavailable, BrokerError: From Kafka.
    """
    topic = events.cluster.topic(events.topic)
    where, positions = _stored(projection, events, store, topic, model_id)
    marks = events.cluster.watermarks(topic)
    # What is left is told all the same, with a warning in the log.
    check_complete(events.cluster, topic, marks, projection=projection.name, doing="A history", allow_incomplete=True)
    ranges = {
        number: (one.low, min(one.high, at + 1) if isinstance(at, int) else one.high)
        for number, one in marks.items()
        if where in (None, number)
    }
    latest = at.astimezone(UTC) if isinstance(at, datetime) else None
    history = History(model_id=model_id)
    folding = {number: _Folding(projection, events, number, low, model_id) for number, (low, _) in ranges.items()}
    try:
        for records in scan(events, ranges, check):
            number = records[0].partition()
            for outcome in folding[number].outcomes(records):
                if _is_after(outcome, latest):
                    return history
                if history.steps and history.steps[-1].partition != number:
                    raise split_error(projection.name, topic.name, model_id, history.steps[-1].partition, number)
                try:
                    changed, history.model = folding[number].fold(outcome)
                except (EventError, ProjectionError) as error:
                    history.error = error
                    return history
                history.steps.append(_step(outcome, changed, positions))
    finally:
        for one in folding.values():
            one.close()
    return history


def _stored(
    projection: CqrsProjection[Any], events: KafkaEventStore, store: StateStore, topic: TopicInfo, model_id: str
) -> tuple[int | None, Mapping[int, int]]:
    """Give which partition a model is in, if that is known, and where the stored models are."""
    build: Build | None = store.current()
    if build is None:
        return None, {}
    wanted = Manifest.of(projection, topic, events.codec)
    if (build.manifest.topic_id, build.manifest.partitions) != (wanted.topic_id, wanted.partitions):
        return None, {}
    with ModelReader(build, None) as reader:
        positions = {number: state.position for number, state in reader.states().items()}
        return reader.partition_of(model_id), positions


class _Folding:
    """The fold of one model in one partition."""

    def __init__(
        self, projection: CqrsProjection[Any], events: KafkaEventStore, number: int, low: int, model_id: str
    ) -> None:
        self._projection = projection
        self._codec = typed(events.codec, projection)
        self._id = model_id
        self._serde = serde_for(projection.model_type())
        is_stream = projection.partition_by is None
        self._pick: Callable[[list[Message]], list[Message]] = picker(events.codec, [model_id]) if is_stream else list
        self._fold = Fold(projection, self._serde, MemoryStore.fresh(number, low))
        self._fold.carefully = True
        self._model: Any = ABSENT

    def outcomes(self, records: list[Message]) -> Iterator[Outcome]:
        """Give what is the model's; a record that is no event may be."""
        mine = self._pick(records)
        for outcomes in decoded(self._codec, mine) if mine else ():
            for outcome in outcomes:
                if isinstance(outcome, Event):
                    if self._model_of(outcome) == self._id:
                        yield outcome
                elif not isinstance(outcome, Tombstone) or (outcome.deletes and outcome.stream == self._id):
                    yield outcome

    def _model_of(self, event: Event) -> str | None:
        try:
            return self._projection.extract_model_id(event)
        except Exception:  # noqa: BLE001  (an event of the model's own stream is folded, which tells)
            return self._id if event.stream == self._id else None

    def fold(self, outcome: Outcome) -> tuple[list[Change], Any]:
        """Fold one event; give what it changed, and the model after it."""
        self._fold.fold([outcome])
        model = self._fold.cache.dirty.get(self._id)
        after = ABSENT if model is None else orjson.loads(self._serde.encode(model))
        changed, self._model = changes(self._model, after), after
        return changed, after

    def close(self) -> None:
        """Let go of what user code ran on."""
        self._fold.close()


def _is_after(outcome: Outcome, latest: datetime | None) -> bool:
    if latest is None or not isinstance(outcome, Event):
        return False
    try:
        return outcome.time > latest
    except ValueError:  # it is no time
        return False


def _step(outcome: Outcome, changed: list[Change], positions: Mapping[int, int]) -> Step:
    event = outcome if isinstance(outcome, Event) else None
    return Step(
        partition=outcome.partition,
        offset=outcome.offset,
        event_id=None if event is None else str(event.id),
        type="tombstone" if event is None else str(event.type),
        time=None if event is None else event.recorded_at,
        changes=changed,
        is_folded=outcome.offset < positions.get(outcome.partition, 0),
    )
