"""The bound: the same job with nothing done. A member of a consumer group reads the topic and parses each value.

Timed as refold is, as a whole: connect, join, read from the earliest offset to the end of every partition, and
leave. Its client is set up as refold's is (`fetch.queue.backoff.ms` of 2 is worth a factor of three). About half a
second of it is librdkafka looking up the earliest offsets, which refold saves by knowing its positions; for
the rate without anything of the kind see `steady`.
"""

from __future__ import annotations

import time

import orjson
from confluent_kafka import Consumer, KafkaError

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb

__all__ = ["run", "unavailable"]

BATCH = 500


def unavailable() -> str | None:
    """Never: it needs what the product needs."""
    return None


def run(job: Job) -> Outcome:
    """Read the topic once and parse every value."""
    started = time.perf_counter()
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
    events, open_partitions = 0, set(job.ends)
    loads = orjson.loads
    while open_partitions:
        # Wait for one and take what else is there: to wait for a full batch costs a second at the end.
        first = consumer.poll(1.0)
        batch = [] if first is None else [first, *consumer.consume(BATCH - 1, 0)]
        for message in batch:
            error = message.error()
            if error is None:
                loads(message.value())
                events += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(message.partition())
            else:
                raise RuntimeError(f"{job.topic}: {error}")
    consumer.close()
    return Outcome(events=events, seconds=time.perf_counter() - started, rss_mb=peak_rss_mb())
