"""Events at the ends of a topic, by which a file is known that was loaded before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from confluent_kafka import Consumer, Message, TopicPartition

from streams.calls import QUIET
from streams.cluster import Cluster
from streams.errors import at
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

__all__ = ["identity", "seen_at_the_ends"]

log = get_logger(__name__)

_BACK = 5
"""Offsets before a partition's end from which its last record is looked for; behind it there may be a transaction's
marker."""
_LOOK_S = 3.0


def identity(stream: str, envelope: Mapping[str, Any], value: bytes) -> tuple[str, Any]:
    """Give what tells an event from others: its stream and id, or its stream and all of it."""
    return stream, envelope.get("id", value)


def seen_at_the_ends(cluster: Cluster, topic: TopicInfo) -> dict[tuple[str, Any], str]:
    """Give the first and the last event of each partition, by `identity`, with where it is.

    A courtesy: what cannot be read within a few seconds, or is none of our envelopes, is left out.
    """
    marks = {number: one for number, one in cluster.watermarks(topic).items() if one.high > one.low}
    found: dict[tuple[str, Any], str] = {}
    if marks:
        consumer = Consumer(
            cluster.settings.client(
                log_level=QUIET,
                **{"group.id": "refold-load", "enable.auto.commit": False, "enable.partition.eof": True},
            )
        )
        try:
            for message in [*_first(consumer, topic, marks), *_last(consumer, topic, marks)]:
                _add(found, message)
        finally:
            consumer.close()
    return found


def _first(consumer: Consumer, topic: TopicInfo, marks: Mapping[int, Watermarks]) -> list[Message]:
    firsts: dict[int, Message] = {}
    for message in _read(consumer, topic, {number: one.low for number, one in marks.items()}, to_the_end=False):
        firsts.setdefault(message.partition(), message)
    return list(firsts.values())


def _last(consumer: Consumer, topic: TopicInfo, marks: Mapping[int, Watermarks]) -> list[Message]:
    starts = {number: max(one.low, one.high - _BACK) for number, one in marks.items()}
    return list({one.partition(): one for one in _read(consumer, topic, starts, to_the_end=True)}.values())


def _read(consumer: Consumer, topic: TopicInfo, starts: Mapping[int, int], *, to_the_end: bool) -> list[Message]:
    """Read each partition from a position on, to its end or until there is something of it; a few seconds at most."""
    consumer.assign([TopicPartition(topic.name, number, start) for number, start in starts.items()])
    read: list[Message] = []
    done: set[int] = set()
    deadline = time.monotonic() + _LOOK_S
    while len(done) < len(starts):
        left = deadline - time.monotonic()
        if left <= 0:
            log.debug("load.ends_not_read", topic=topic.name, partitions=sorted(starts.keys() - done))
            break
        for message in consumer.consume(1000, min(left, 0.2)):
            error = message.error()
            if error is None:
                read.append(message)
            if error is not None or not to_the_end:  # its end, or, for example, it may be written only
                done.add(message.partition())
    return read


def _add(found: dict[tuple[str, Any], str], message: Message) -> None:
    key, value = message.key(), message.value()
    try:
        envelope = orjson.loads(value or b"")
        stream = (key or b"").decode()
    except ValueError:
        return
    if isinstance(envelope, dict):
        where = at(message.topic(), message.partition(), message.offset())
        found.setdefault(identity(stream, envelope, value), where)
