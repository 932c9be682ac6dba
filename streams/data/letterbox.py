"""The topic of dead letters, as a process that folds writes and reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.calls import QUIET, broker_error
from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.data.letter import Said, said, topic_of
from streams.data.scan import scan
from streams.data.source import KafkaEventStore
from streams.denied import Need
from streams.errors import BrokerUnavailable, TopicNotFound
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

__all__ = ["Letterbox", "ensure_topic"]

log = get_logger(__name__)

_ROOM_BYTES = 64 << 10
"""What headers may add to a record of the event topic."""
_BATCH = 500
_WAIT_S = 0.1


def ensure_topic(cluster: Cluster, projection: str, events: TopicInfo) -> TopicInfo:
    """Have a projection's dead letters have a topic, with as many partitions as its events.

    Records are kept for good (`retention.ms=-1`); a letter is as large as its event, and its headers beside it.

    Raises:
        BrokerError: It is not there and cannot be made.
    """
    name = topic_of(projection)
    try:
        found = cluster.topic(name)
    except TopicNotFound:
        largest = int(cluster.topic_config(events.name).get("max.message.bytes", 1 << 20))
        config = {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "max.message.bytes": str(largest + _ROOM_BYTES),
        }
        cluster.create_topic(name, events.partitions, config)
        log.info("dead_letters.topic_made", topic=name, partitions=events.partitions)
        found = cluster.topic(name)
    if found.partitions < events.partitions:
        cluster.add_partitions(name, events.partitions)
        found = cluster.topic(name)
    return found


class Letterbox:
    """Writes letters and reads what is said of them, in the partitions that a process holds. Not thread-safe.

    Args:
        kafka: Where Kafka is.
        cluster: Likewise.
        projection: The projection's name.
        events: The event topic.
    """

    def __init__(self, kafka: KafkaSettings, cluster: Cluster, projection: str, events: TopicInfo) -> None:
        self._kafka = kafka
        self._cluster = cluster
        self._projection = projection
        self._events = events
        self._topic: TopicInfo | None = None
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._reading: set[int] = set()
        self._refused: KafkaError | None = None

    @property
    def name(self) -> str:
        """The topic's name."""
        return topic_of(self._projection)

    def open(self, partition: int, position: int) -> list[tuple[Said | None, int]]:
        """Read a partition from now on; give what it has by now, each with its offset.

        Args:
            partition: The partition.
            position: Where to begin.

        Raises:
            BrokerError, BrokerUnavailable: It cannot be read.
        """
        if self._topic is None:
            self._topic = ensure_topic(self._cluster, self._projection, self._events)
        marks = self._cluster.watermarks(self._topic)[partition]
        begin = _within(position, marks)
        known = KafkaEventStore(self.name, kafka=self._kafka)
        found = [
            (said(record), record.offset())
            for records in scan(known, {partition: (begin, marks.high)})
            for record in records
        ]
        if self._consumer is None:
            self._consumer = self._new_consumer()
        self.close_partition(partition)
        self._consumer.incremental_assign([TopicPartition(self.name, partition, marks.high)])
        self._reading.add(partition)
        return found

    def close_partition(self, partition: int) -> None:
        """Read a partition no further."""
        if self._consumer is not None and partition in self._reading:
            self._reading.discard(partition)
            self._consumer.incremental_unassign([TopicPartition(self.name, partition)])

    def poll(self) -> list[tuple[int, Said | None, int]]:
        """Give what has come, each with its partition and offset; without waiting.

        Raises:
            BrokerError: It cannot be read.
        """
        if self._consumer is None or not self._reading:
            return []
        return [
            (message.partition(), said(message), message.offset())
            for message in self._consumer.consume(_BATCH, 0)
            if self._is_record(message)
        ]

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records, and wait until the brokers have them all.

        Raises:
            BrokerUnavailable: They have not, in time; some may be there.
            BrokerError: They will not have one.
        """
        if self._topic is None:
            self._topic = ensure_topic(self._cluster, self._projection, self._events)
        if self._producer is None:
            self._producer = Producer(
                self._kafka.client(
                    **{
                        "enable.idempotence": True,
                        "acks": "all",
                        "compression.type": "lz4",
                        "linger.ms": 5,
                        "message.max.bytes": 1_000_000_000,  # the topic says what is too large
                        "message.timeout.ms": int(self._kafka.request_timeout_s * 1000),
                        "log_level": QUIET,
                    }
                )
            )
        self._refused = None
        for record in records:
            self._produce(record)
        left = self._producer.flush(self._kafka.request_timeout_s + 1)
        if self._refused is not None:
            raise broker_error(
                self._refused,
                f"write dead letters to topic {self.name!r}",
                self._kafka,
                [Need("Write", "topic", self.name)],
            )
        if left:
            self._producer.purge()
            raise BrokerUnavailable(
                f"Kafka at {self._kafka.bootstrap_servers} did not acknowledge {left:,} dead letters in time."
            )

    def close(self) -> None:
        """Let go of the connections."""
        if self._consumer is not None:
            self._consumer.close()

    def _produce(self, record: dict[str, Any]) -> None:
        assert self._producer is not None
        while True:
            try:
                self._producer.produce(self.name, on_delivery=self._delivered, **record)
            except BufferError:
                self._producer.poll(_WAIT_S)
            except KafkaException as error:
                raise broker_error(error.args[0], f"write dead letters to topic {self.name!r}", self._kafka) from error
            else:
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        del message
        if error is not None:
            self._refused = error

    def _new_consumer(self) -> Consumer:
        return Consumer(
            self._kafka.client(
                **{
                    "group.id": "refold-dead-letters",  # never joined: nothing is committed
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",  # what was removed was done with
                    "enable.partition.eof": True,
                    "isolation.level": "read_committed",
                    "log_level": QUIET,
                }
            )
        )

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if not _is_end(message) and not error.retriable() and error.code() >= 0:
            raise broker_error(error, f"read topic {self.name!r}", self._kafka, [Need("Read", "topic", self.name)])
        return False


def _within(position: int, marks: Watermarks) -> int:
    return position if marks.low <= position <= marks.high else marks.low


def _is_end(message: Message) -> bool:
    error = message.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF
