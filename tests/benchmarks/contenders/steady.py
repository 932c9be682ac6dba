"""The steady rate: what one Python process takes in between its first and its last record, and nothing else.

No group, no end of partitions to find, nothing before the first batch and nothing after the last: nobody who
folds a topic can reach it, which is why it is told beside the bound. `consume()` in batches that stay in the
processor's cache, and `fetch.queue.backoff.ms` of 2, without which librdkafka sleeps for a second whenever its
queue was full (a factor of three).
"""

from __future__ import annotations

import gc
import time

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb

__all__ = ["run", "unavailable"]

BATCH = 500


def unavailable() -> str | None:
    """Never: it needs what the product needs."""
    return None


def run(job: Job) -> Outcome:
    """Read the topic once and parse every value."""
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": job.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "check.crcs": False,
            "fetch.queue.backoff.ms": 2,
            "queued.min.messages": 100_000,
            "queued.max.messages.kbytes": 65_536,
        }
    )
    consumer.assign([TopicPartition(job.topic, partition, OFFSET_BEGINNING) for partition in job.ends])
    events, total = 0, job.events
    consume, loads = consumer.consume, orjson.loads
    gc.collect()
    gc.freeze()
    batch = consume(min(BATCH, total), 30.0)  # waits for so many: never ask for more than there are
    started = time.perf_counter()
    while batch:
        for message in batch:
            if message.error():
                raise RuntimeError(f"{job.topic}: {message.error()}")
            loads(message.value())
        events += len(batch)
        batch = consume(min(BATCH, total - events), 30.0) if events < total else []
    seconds = time.perf_counter() - started
    consumer.close()
    return Outcome(events=events, seconds=seconds, rss_mb=peak_rss_mb())
