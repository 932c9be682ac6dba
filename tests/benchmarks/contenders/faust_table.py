"""Faust (the faust-streaming fork): an agent with a Table on its RocksDB store (rocksdict), with changelog.

Its own defaults for commits (every 2.8 s or 10,000 events) and for the store; a deeper buffer and larger
fetches for throughput, and no leader topic, standby or web server, which a benchmark of one worker does
not need. Its topics are made beforehand, because Faust waits for ever for one that is missing. Timed from
the first event folded until Faust's own commits have reached the end of every partition; it is asked to
commit as soon as the last event is folded.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb
from tests.benchmarks.kafka import create_topic
from tests.benchmarks.workload import digest, fold

__all__ = ["run", "unavailable"]

_TABLE = "orders"


def unavailable() -> str | None:
    """Say so where a part of it is not installed."""
    missing = [name for name in ("faust", "rocksdict", "cramjam") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} is not installed" if missing else None


def run(job: Job) -> Outcome:
    """Fold the topic once."""
    create_topic(
        job.bootstrap_servers,
        f"{job.group}-{_TABLE}-changelog",
        len(job.ends),
        **{"cleanup.policy": "compact"},
    )
    return asyncio.run(_run(job))


async def _run(job: Job) -> Outcome:
    import faust

    logging.basicConfig(level=logging.WARNING)
    app: Any = faust.App(
        job.group,
        broker=f"kafka://{job.bootstrap_servers}",
        store="rocksdb://",
        datadir=job.path("state"),
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        web_enabled=False,
        stream_buffer_maxsize=16_384,
        consumer_max_fetch_size=4 << 20,
        producer_compression_type="lz4",
    )
    topic = app.topic(job.topic, key_type=str, key_serializer="raw", value_serializer="json")
    table: Any = app.Table(_TABLE, partitions=len(job.ends), options={"driver": "rocksdict"})
    total, events, started = job.events, 0, 0.0
    folded = asyncio.Event()

    async def agent(stream: Any) -> None:
        nonlocal events, started
        async for key, event in stream.items():
            if not events:
                started = time.perf_counter()
            table[key] = fold(table.get(key), event["id"], event["data"])
            events += 1
            if events == total:
                folded.set()

    app.agent(topic)(agent)
    app.finalize()
    await app.start()
    try:
        await folded.wait()
        probe = Consumer({"bootstrap.servers": job.bootstrap_servers, "group.id": job.group})
        partitions = [TopicPartition(job.topic, partition) for partition in job.ends]
        while True:
            await app.producer.flush()
            await app.consumer.commit()
            committed = await asyncio.to_thread(probe.committed, partitions, 10.0)
            if all(found.offset == job.ends[found.partition] for found in committed):
                break
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - started
        probe.close()
        rss_mb = peak_rss_mb()
        sha, count = digest(table.items())
    finally:
        await app.stop()
    return Outcome(events=events, seconds=seconds, rss_mb=rss_mb, digest=sha, models=count)
