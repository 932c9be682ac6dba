"""The consumer that most teams write: poll, SELECT the row, fold, UPSERT it; a transaction for so many events.

Positions are in the same transaction, so that it is exactly once, as refold is; without that it is no faster.
"""

from __future__ import annotations

import os
import time
from typing import Any

import orjson
import psycopg
from confluent_kafka import Consumer, TopicPartition

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb
from tests.benchmarks.contenders.refold_postgres import DSN, unavailable
from tests.benchmarks.workload import digest, fold

__all__ = ["run", "unavailable"]


def run(job: Job, events_per_commit: int = 100) -> Outcome:
    """Fold the topic once."""
    schema = f"plain_{job.group.replace('-', '_')}".lower()
    with psycopg.connect(os.environ[DSN], autocommit=True) as database:
        database.execute(f"CREATE SCHEMA {schema}".encode())
        database.execute(f"SET search_path TO {schema}".encode())
        database.execute("CREATE TABLE orders (id text PRIMARY KEY, model json NOT NULL) WITH (fillfactor = 80)")
        database.execute("CREATE TABLE positions (partition int PRIMARY KEY, position bigint NOT NULL)")
        started = time.perf_counter()
        events = _fold(job, database, events_per_commit)
        seconds = time.perf_counter() - started
        sha, count = digest(database.execute("SELECT id, model FROM orders").fetchall())
    return Outcome(events=events, seconds=seconds, rss_mb=peak_rss_mb(), digest=sha, models=count)


def _fold(job: Job, database: psycopg.Connection[Any], events_per_commit: int) -> int:
    consumer = Consumer(
        {"bootstrap.servers": job.bootstrap_servers, "group.id": job.group, "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(job.topic, partition, 0) for partition in job.ends])
    events = 0
    while events < job.events:
        batch = consumer.consume(events_per_commit, 1.0)
        with database.transaction():
            for message in batch:
                assert message.error() is None, message.error()
                key = message.key().decode()
                row = database.execute("SELECT model FROM orders WHERE id = %s", [key], prepare=True).fetchone()
                event = orjson.loads(message.value())
                model = fold(None if row is None else row[0], event["id"], event["data"])
                database.execute(
                    "INSERT INTO orders VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET model = excluded.model",
                    [key, orjson.dumps(model).decode()],
                    prepare=True,
                )
                database.execute(
                    "INSERT INTO positions VALUES (%s, %s) ON CONFLICT (partition) DO UPDATE "
                    "SET position = excluded.position",
                    [message.partition(), message.offset() + 1],
                    prepare=True,
                )
        events += len(batch)
    consumer.close()
    return events
