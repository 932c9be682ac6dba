"""When the record at a position was written."""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.calls import QUIET
from streams.config import KafkaSettings

__all__ = ["Peek"]

_WAIT_S = 0.5
_POLL_S = 0.05


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
                self._consumer = Consumer(
                    self._kafka.client(
                        **{
                            "group.id": "unused",
                            "enable.auto.commit": False,
                            "isolation.level": "read_committed",
                            "fetch.message.max.bytes": 64 << 10,
                            "queued.min.messages": 1,
                            "log_level": QUIET,
                        }
                    )
                )
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
