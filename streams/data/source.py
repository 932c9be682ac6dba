"""The event topic."""

from __future__ import annotations

from functools import partial
from typing import Any

from streams.calls import QUIET
from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.data.codec import EventCodec
from streams.data.json_codec import JsonCodec
from streams.log import get_logger
from streams.resolving import load

__all__ = ["CLIENT", "KafkaEventStore"]

log = get_logger(__name__)

CLIENT: dict[str, str | int | float | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",
    # librdkafka stops fetching for this long once its queue is full. Its default of a second starves a replay:
    # 3 times slower.
    "fetch.queue.backoff.ms": 2,
    "queued.max.messages.kbytes": 32768,
    # An answer comes beside the queue, and unpacked it is several times as large. Kafka's default is 50 MB, which many
    # partitions fill up, with a megabyte each: 64 take 460 MB in place of 230, and are not read any faster.
    "fetch.max.bytes": 4 << 20,
    "log_level": QUIET,
}


class KafkaEventStore:
    """An event log: a Kafka topic, and how its records are read as events.

    Args:
        topic: The topic's name. It must exist.
        codec: How records are read; by default a JSON envelope (JsonCodec).
        bootstrap_servers: Where Kafka is, unless `kafka` says.
        kafka: All connection settings.
    """

    def __init__(
        self,
        topic: str,
        *,
        codec: EventCodec | None = None,
        bootstrap_servers: str | None = None,
        kafka: KafkaSettings | None = None,
    ) -> None:
        self.topic = topic
        self.codec: EventCodec = codec or JsonCodec()
        self.kafka = kafka or load(KafkaSettings, bootstrap_servers=bootstrap_servers)
        self.cluster = Cluster(self.kafka)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to another process as its settings; the connection is made anew there."""
        return partial(KafkaEventStore, self.topic, codec=self.codec, kafka=self.kafka), ()
