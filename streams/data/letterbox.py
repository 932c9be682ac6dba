"""The topic of dead letters, as a process that folds writes and reads it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.calls import QUIET, broker_error
from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.data.letter import Said, said, topic_of
from streams.denied import Need
from streams.errors import BrokerUnavailable, at
from streams.log import get_logger
from streams.types import TopicInfo

__all__ = ["Letterbox", "ensure_topic"]

log = get_logger(__name__)

_ROOM_BYTES = 64 << 10
"""What headers may add to a record of the event topic."""
_BATCH = 500
_AHEAD_KBYTES = 1024
_QUEUED_KBYTES = 16 << 10
_WAIT_S = 0.1
_SILENT_S = 20.0
_SOON_MS = 5
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
"""Whoever has purged has been told already."""


def ensure_topic(cluster: Cluster, projection: str, events: TopicInfo) -> TopicInfo:
    """Have a projection's dead letters have a topic, with as many partitions as its events.

    Records are kept for good (`retention.ms=-1`); a letter is as large as its event, and its headers beside it.

    Raises:
        BrokerError: It is not there and cannot be made.
    """
    name = topic_of(projection)
    if name not in cluster.topics():  # asked so, and not by describing it, which waits for one that was just made
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
        group: The generation's consumer group: what is said of others is passed over.
        events: The event topic.
    """

    def __init__(self, kafka: KafkaSettings, cluster: Cluster, projection: str, group: str, events: TopicInfo) -> None:
        self._kafka = kafka
        self._cluster = cluster
        self._projection = projection
        self._group = group
        self._events = events
        self._topic: TopicInfo | None = None
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._reading: set[int] = set()
        self._reader: Consumer | None = None
        self._own: dict[int, deque[list[int]]] = {}
        """By partition, the first offset of what was written from here and has not come back, and the one behind it."""
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
        if self._producer is not None and self._producer.flush(self._kafka.request_timeout_s):
            raise BrokerUnavailable(
                f"Kafka at {self._kafka.bootstrap_servers} does not acknowledge dead letters that were sent before."
            )  # they are told of where they are written; here they are to be read, and not to be sent once more
        marks = self._cluster.watermarks(self._topic)[partition]
        if self._consumer is None:
            self._consumer = self._new_consumer()
        self.close_partition(partition)
        self._consumer.incremental_assign([TopicPartition(self.name, partition, marks.high)])
        self._reading.add(partition)
        begin = position if marks.low <= position <= marks.high else marks.low
        return self._between(partition, begin, marks.high) if begin < marks.high else []

    def _between(self, partition: int, begin: int, end: int) -> list[tuple[Said | None, int]]:
        """Read what a partition has between two offsets.

        By a consumer of its own: one that waits at the end of others is not asked for more until that wait is over.
        """
        if self._reader is None:
            self._reader = self._new_consumer(**{"fetch.wait.max.ms": _SOON_MS})
        self._reader.assign([TopicPartition(self.name, partition, begin)])
        found: list[tuple[Said | None, int]] = []
        deadline = time.monotonic() + _SILENT_S
        while not found or found[-1][1] + 1 < end:
            more = self._consumed(self._reader, _WAIT_S)
            found += [(told, offset) for _, told, offset in more]
            if more:
                deadline = time.monotonic() + _SILENT_S
            elif time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"Kafka at {self._kafka.bootstrap_servers} has sent nothing of {at(self.name, partition)} for "
                    f"{_SILENT_S:g} s, which ends at {end}."
                )
        self._reader.unassign()
        return found

    def close_partition(self, partition: int) -> None:
        """Read a partition no further."""
        if self._consumer is not None and partition in self._reading:
            self._reading.discard(partition)
            self._own.pop(partition, None)
            self._consumer.incremental_unassign([TopicPartition(self.name, partition)])

    def poll(self) -> list[tuple[int, Said | None, int]]:
        """Give what has come, each with its partition and offset; without waiting.

        Raises:
            BrokerError: It cannot be read.
        """
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        return self._consumed(self._consumer, 0) if self._consumer is not None and self._reading else []

    def _consumed(self, consumer: Consumer, wait_s: float) -> list[tuple[int, Said | None, int]]:
        first = consumer.poll(wait_s)  # and not `consume`, which waits until there are so many
        messages = [] if first is None else [first, *consumer.consume(_BATCH, 0)]
        found = []
        for message in messages:
            if self._is_record(message):
                partition, offset = message.partition(), message.offset()
                # What is known here need not be understood.
                told = None if self._is_own(partition, offset) else said(message, self._group)
                found.append((partition, told, offset))
        return found

    def _is_own(self, partition: int, offset: int) -> bool:
        """Say whether a record was written from here; it is the next one that has come."""
        own = self._own.get(partition)
        if own is None:
            return False
        while own and own[0][1] <= offset:
            own.popleft()
        return bool(own) and own[0][0] <= offset

    def prepare(self) -> Producer:
        """Have what writes connect, so that the first letter does not wait for it."""
        if self._producer is None:
            self._producer = Producer(
                self._kafka.client(
                    **{
                        "enable.idempotence": True,
                        "acks": "all",
                        "compression.type": "lz4",
                        "linger.ms": 50,
                        "queue.buffering.max.kbytes": _QUEUED_KBYTES,
                        "message.max.bytes": 1_000_000_000,  # the topic says what is too large
                        "message.timeout.ms": int(self._kafka.request_timeout_s * 1000),
                        "log_level": QUIET,
                    }
                )
            )
        return self._producer

    def send(self, what: Iterable[Said]) -> None:
        """Say something, without waiting until the brokers have it: that, `write` does.

        Raises:
            BrokerError: It cannot be sent.
        """
        if self._topic is None:
            self._topic = ensure_topic(self._cluster, self._projection, self._events)
        producer = self.prepare()
        for one in what:
            self._produce(one.record())
        producer.poll(0)

    def write(self, what: Iterable[Said]) -> None:
        """Say something, and wait until the brokers have all that was said.

        Raises:
            BrokerUnavailable: They have not, in time; some may be there.
            BrokerError: They will not have one.
        """
        self.send(what)
        producer = self.prepare()
        left = producer.flush(self._kafka.request_timeout_s + 1)
        if left:
            producer.purge()
        refused, self._refused = self._refused, None
        if refused is not None and refused.code() == KafkaError._MSG_TIMED_OUT:
            left = max(left, 1)  # nobody has answered, which is no refusal
        elif refused is not None:
            raise broker_error(
                refused,
                f"write dead letters to topic {self.name!r}",
                self._kafka,
                [Need("Write", "topic", self.name)],
            )
        if left:
            raise BrokerUnavailable(
                f"Kafka at {self._kafka.bootstrap_servers} did not acknowledge {left:,} dead letters in time."
            )

    def close(self) -> None:
        """Let go of the connections."""
        for consumer in (self._consumer, self._reader):
            if consumer is not None:
                consumer.close()

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
        if error is not None:
            if error.code() not in _PURGED:
                self._refused = error
        elif (partition := message.partition()) in self._reading:
            own, offset = self._own.setdefault(partition, deque()), message.offset()
            if own and own[-1][1] == offset:
                own[-1][1] += 1
            else:
                own.append([offset, offset + 1])

    def _new_consumer(self, **settings: Any) -> Consumer:
        return Consumer(
            self._kafka.client(
                **{
                    "group.id": "refold-dead-letters",  # never joined: nothing is committed
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",  # what was removed was done with
                    "enable.partition.eof": True,
                    "isolation.level": "read_committed",
                    "queued.min.messages": _BATCH,
                    "queued.max.messages.kbytes": _AHEAD_KBYTES,
                    "fetch.queue.backoff.ms": _SOON_MS,
                    "log_level": QUIET,
                    **settings,
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


def _is_end(message: Message) -> bool:
    error = message.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF
