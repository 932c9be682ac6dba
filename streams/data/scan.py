"""Reading parts of the log, outside every consumer group's business."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from streams.calls import QUIET, broker_error
from streams.data.source import KafkaEventStore
from streams.errors import BrokerUnavailable, HistoryIncomplete, at

__all__ = ["scan"]

_BATCH = 500
_WAIT_S = 0.2
_END = KafkaError._PARTITION_EOF
_GONE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_PASSING = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


def scan(
    events: KafkaEventStore, ranges: Mapping[int, tuple[int, int]], check: Callable[[], None] = lambda: None
) -> Iterator[list[Message]]:
    """Read parts of a topic, as read_committed; nothing is committed, and no group is joined.

    Args:
        events: The topic.
        ranges: By partition, the first offset and the one to end in front of.
        check: Called between two portions; what it raises ends the reading.

    Yields:
        Records of one partition, at least one, in order.

    Raises:
        HistoryIncomplete: What was to be read is gone by now.
        BrokerUnavailable: Nobody has answered for `outage_limit_s`.
        BrokerError: Kafka refused.
    """
    left = {partition: end for partition, (start, end) in ranges.items() if start < end}
    if not left:
        return
    consumer = Consumer(
        events.kafka.client(
            **{
                "group.id": "refold-scan",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.queue.backoff.ms": 2,
                "log_level": QUIET,
            }
        )
    )
    try:
        consumer.assign([TopicPartition(events.topic, partition, ranges[partition][0]) for partition in left])
        heard_s = time.monotonic()
        while left:
            check()
            messages = consumer.consume(_BATCH, _WAIT_S)
            if any(message.error() is None or message.error().code() == _END for message in messages):
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > events.kafka.outage_limit_s:
                raise BrokerUnavailable(
                    f"Kafka at {events.kafka.bootstrap_servers} has sent nothing of {events.topic} for "
                    f"{events.kafka.outage_limit_s:g} s.",
                    topic=events.topic,
                )
            for partition, group in _runs(messages):
                records = _records(events, group, partition, left)
                if records:
                    yield records
    finally:
        consumer.close()


def _runs(messages: list[Message]) -> Iterator[tuple[int, list[Message]]]:
    """Give the runs of messages of one partition."""
    partitions = list(map(Message.partition, messages))
    if partitions and partitions.count(partitions[0]) == len(partitions):
        yield partitions[0], messages
        return
    for partition, group in groupby(messages, Message.partition):
        yield partition, list(group)


def _records(events: KafkaEventStore, messages: list[Message], partition: int, left: dict[int, int]) -> list[Message]:
    """Take what is wanted of some messages of one partition, and note where its end is reached."""
    if not any(map(Message.error, messages)) and messages[-1].offset() + 1 < left.get(partition, 0):
        return messages  # nearly always; found by a loop in C, since this is per record of history
    records: list[Message] = []
    for message in messages:
        error = message.error()
        if error is None:
            if message.offset() < left.get(partition, 0):
                records.append(message)
            if message.offset() + 1 >= left.get(partition, 0):
                left.pop(partition, None)
        elif error.code() == _END:
            left.pop(partition, None)
        elif error.code() in _GONE:
            raise HistoryIncomplete(
                f"What was to be read of {at(events.topic, partition)} is gone by now (retention or a deletion).",
                topic=events.topic,
                partition=partition,
            )
        elif error.code() not in _PASSING:
            raise broker_error(error, f"read {events.topic}", events.kafka)
    return records
