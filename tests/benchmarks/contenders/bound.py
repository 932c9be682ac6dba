"""The bound: the same job with nothing done. A member of a consumer group reads the topic and parses each value.

Timed as refold is, as a whole: connect, join, read from the earliest offset to the end of every partition, and
leave. Its client is set up as refold's is (`fetch.queue.backoff.ms` of 2 is worth a factor of three). About half a
second of it is librdkafka looking up the earliest offsets, which refold saves by knowing its positions; for
the rate without anything of the kind see `steady`.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson
from confluent_kafka import Consumer, KafkaError, Message

from tests.benchmarks.contenders.job import Clock, Job, Outcome

__all__ = ["batches", "run", "unavailable"]

BATCH = 500


def unavailable() -> str | None:
    """Never: it needs what the product needs."""
    return None


def batches(job: Job) -> Iterator[list[Message]]:
    """Join a group, yield all that the topic has, and leave."""
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": job.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "cooperative-sticky",
            "fetch.queue.backoff.ms": 2,
            "queued.max.messages.kbytes": 32_768,
        }
    )
    consumer.subscribe([job.topic])
    open_partitions = set(job.ends)
    while open_partitions:
        # Wait for one and take what else is there: to wait for a full batch costs a second at the end.
        first = consumer.poll(1.0)
        batch = [] if first is None else [first, *consumer.consume(BATCH - 1, 0)]
        if any(map(Message.error, batch)):
            for message in batch:
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise RuntimeError(f"{job.topic}: {error}")
                if error is not None:
                    open_partitions.discard(message.partition())
            batch = [message for message in batch if message.error() is None]
        yield batch
    consumer.close()


def run(job: Job) -> Outcome:
    """Read the topic once and parse every value."""
    clock = Clock()
    events, loads = 0, orjson.loads
    for batch in batches(job):
        for message in batch:
            loads(message.value())
        events += len(batch)
    return clock.outcome(events)
