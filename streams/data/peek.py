"""When the records at positions were written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.calls import QUIET
from streams.config import KafkaSettings

__all__ = ["Peek", "written_ms"]

_WAIT_S = 0.5
_POLL_S = 0.05
_ALL_WAIT_S = 3.0
_PEEKING = {
    "group.id": "unused",
    "enable.auto.commit": False,
    "fetch.message.max.bytes": 64 << 10,
    "queued.min.messages": 1,
    "log_level": QUIET,
}


def written_ms(kafka: KafkaSettings, positions: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """Give Kafka's timestamps of the first records at these positions or behind them, in milliseconds since 1970.

    All at once, outside of any group, records of open and of aborted transactions included.

    Args:
        kafka: The cluster.
        positions: By topic and partition.

    Returns:
        Those that are known within three seconds.
    """
    found: dict[tuple[str, int], int] = {}
    if not positions:
        return found
    try:
        with closing(Consumer(kafka.client(**_PEEKING, **{"isolation.level": "read_uncommitted"}))) as consumer:
            consumer.assign([TopicPartition(*where, position) for where, position in positions.items()])
            deadline = time.monotonic() + _ALL_WAIT_S
            while len(found) < len(positions) and time.monotonic() < deadline:
                message = consumer.poll(_POLL_S)
                if message is None or message.error() is not None:
                    continue
                where = (message.topic(), message.partition())
                if where not in found:
                    found[where] = int(message.timestamp()[1])
                    consumer.pause([TopicPartition(*where)])
    except KafkaException:
        return found
    return found


class Peek:
    """Looks at single records of one topic, outside of any group. One thread may use it; made when it is first needed.

    Args:
        kafka: The cluster.
        topic: The topic.
    """

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._consumer: Consumer | None = None

    def written_ms(self, partition: int, position: int) -> int | None:
        """Give Kafka's timestamp of the first record at a position or behind it, in milliseconds since 1970.

        None where there is none, or it is not known within half a second.
        """
        try:
            if self._consumer is None:
                self._consumer = Consumer(self._kafka.client(**_PEEKING, **{"isolation.level": "read_committed"}))
            self._consumer.assign([TopicPartition(self._topic, partition, position)])
            deadline = time.monotonic() + _WAIT_S
            while time.monotonic() < deadline:
                message = self._consumer.poll(_POLL_S)
                if message is not None and message.error() is None:
                    return int(message.timestamp()[1])
            self._consumer.unassign()
        except KafkaException:
            return None
        return None

    def close(self) -> None:
        """Let go of the connection."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
