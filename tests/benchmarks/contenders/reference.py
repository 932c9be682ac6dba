"""What every contender must end with: the topic folded into a plain dict, with the standard library's JSON.

Checks that no offset is missing, has no state store, and shares nothing with the engine but the fold.
"""

from __future__ import annotations

import json
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb
from tests.benchmarks.workload import Model, digest, fold

__all__ = ["run", "unavailable"]


def unavailable() -> str | None:
    """Never."""
    return None


def run(job: Job) -> Outcome:
    """Fold the topic into a dict."""
    models: dict[str, Model] = {}
    started = time.perf_counter()
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": job.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.queue.backoff.ms": 2,
        }
    )
    consumer.assign([TopicPartition(job.topic, partition, OFFSET_BEGINNING) for partition in job.ends])
    positions = dict.fromkeys(job.ends, 0)
    while left := job.events - sum(positions.values()):
        batch = consumer.consume(min(500, left), 30.0)  # waits for so many: never ask for more than there are
        if not batch:
            raise TimeoutError(f"{job.topic}: no event came within 30 s, at {positions} of {job.ends}.")
        for message in batch:
            partition, offset, key, value = (
                message.partition(),
                message.offset(),
                message.key(),
                message.value(),
            )
            if message.error() or offset != positions[partition] or key is None or value is None:
                raise RuntimeError(f"{job.topic}[{partition}]@{offset} came in place of {positions}: {message.error()}")
            event = json.loads(value)
            model_id = key.decode()
            models[model_id] = fold(models.get(model_id), event["id"], event["data"])
            positions[partition] = offset + 1
    consumer.close()
    seconds = time.perf_counter() - started
    rss_mb = peak_rss_mb()
    sha, count = digest(models.items())
    return Outcome(events=job.events, seconds=seconds, rss_mb=rss_mb, digest=sha, models=count)
