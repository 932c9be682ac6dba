"""What a rebuild would change, seen on a few streams."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from projections.contract import CqrsProjection, Event
from streams.control.ground import check_by_stream
from streams.control.refolding import Refolding
from streams.data.codec import decoded
from streams.data.generation import StateStore
from streams.data.history import check_complete
from streams.data.reader import ModelReader
from streams.data.scan import scan
from streams.data.source import KafkaEventStore
from streams.diff import ABSENT, Change, changes
from streams.errors import StateNotFound

__all__ = ["Difference", "Preview", "preview"]

_PLACES = 20
_WINDOW = 200
_SEED = 20260301
"""The same models and the same topic give the same sample, so that two previews can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A model that the code as it is now folds differently."""

    model_id: str
    partition: int
    changes: list[Change]
    """From the stored model to the other one. One at path "" without `before` is a new model; without `after`, one that
    is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What folding a sample of streams again gave, beside the stored models, at one position of each partition."""

    streams: list[str]
    """Those that were folded."""
    events: int
    models: int
    """How many models were compared."""
    differences: list[Difference]
    """Ordered by id."""


def preview(
    projection: CqrsProjection[Any],
    events: KafkaEventStore,
    store: StateStore,
    streams: int | Collection[str],
    *,
    allow_incomplete: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Preview:
    """Fold a sample of streams again, by the code as it is now, and compare with the stored models. Nothing is changed.

    Nobody is in the way of anybody: it reads, beside whoever folds.

    Args:
        projection: The user's code.
        events: The topic.
        store: Where the models are.
        streams: Their ids, or how many. Without `partition_by` these are drawn evenly from the models; with it, from
            places all over the topic, where a long stream is met more often.
        allow_incomplete: Compare also where the topic has lost events, which then differ by that.
        check: Called now and then; what it raises ends it.

    Raises:
        StateNotFound: There are no models.
        CheckpointError: A stream has neither events nor a model.
        EventError, ProjectionError: At an event that the code as it is now cannot fold.
        HistoryIncomplete, TopicNotFound, BrokerUnavailable, BrokerError: From Kafka.
    """
    check_by_stream(projection, "A preview")
    topic = events.cluster.topic(events.topic)
    marks = events.cluster.watermarks(topic)
    build = store.current()
    if build is None:
        raise StateNotFound(f"{store.directory} holds no read models yet, to compare with.", projection=projection.name)
    check_complete(
        events.cluster,
        topic,
        marks,
        projection=projection.name,
        doing="A preview",
        allow_incomplete=allow_incomplete,
    )
    with store.reader(None) as reader:
        positions = {number: state.position for number, state in reader.states().items()}
        if isinstance(streams, int):
            ranges = {number: (marks[number].low, position) for number, position in positions.items()}
            streams = _sample(projection, events, reader, ranges, streams, check)
        with closing(Refolding(projection, events, topic, reader.build, streams, "preview", marks)) as refolding:
            refolding.read_at(positions, check)
        differences = []
        models = 0
        for number, fold in refolding.folds.items():
            for model_id, raw in fold.kept.models.items():
                before = reader.get_raw_of(number, model_id)
                if before is None and raw is None:
                    continue
                models += 1
                found = changes(_json(before), _json(raw))
                if found:
                    differences.append(Difference(model_id=model_id, partition=number, changes=found))
    return Preview(
        streams=sorted(streams),
        events=refolding.events,
        models=models,
        differences=sorted(differences, key=lambda one: one.model_id),
    )


def _json(raw: bytes | None) -> Any:
    return ABSENT if raw is None else orjson.loads(raw)


def _sample(
    projection: CqrsProjection[Any],
    events: KafkaEventStore,
    reader: ModelReader,
    ranges: dict[int, tuple[int, int]],
    count: int,
    check: Callable[[], None],
) -> list[str]:
    """Draw some streams."""
    chance = random.Random(_SEED)
    if projection.partition_by is None:
        return _drawn(reader.ids(), count, chance, check)
    found: dict[str, None] = {}
    for _ in range(_PLACES):
        number = chance.choice(sorted(ranges))
        low, high = ranges[number]
        start = chance.randrange(low, high) if high > low else low
        for records in scan(events, {number: (start, min(high, start + _WINDOW))}, check):
            for outcomes in decoded(events.codec, records):
                found.update((one.stream, None) for one in outcomes if isinstance(one, Event))
    return chance.sample(list(found), min(count, len(found)))


def _drawn(ids: Iterator[str], count: int, chance: random.Random, check: Callable[[], None]) -> list[str]:
    """Draw evenly from what comes by, in one pass (reservoir sampling)."""
    drawn: list[str] = []
    for number, one in enumerate(ids):
        if number < count:
            drawn.append(one)
        elif (place := chance.randrange(number + 1)) < count:
            drawn[place] = one
        if number % 10_000 == 0:
            check()
    return drawn
