"""Bytewax: a keyed, stateful map on one worker, with recovery to SQLite, as its docs advise for durable state.

Its own defaults of ten seconds between snapshots (`epoch_interval`) and of a thousand records a batch; its source
prefetches as the bound does. Timed from the first event folded to the return of `run_main`, which ends with a last
snapshot. The models are those that the fold gave last, by a sink in the process.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb
from tests.benchmarks.peers import PeerUnavailable, peers_python
from tests.benchmarks.workload import Model, digest, fold

__all__ = ["python", "run", "unavailable"]


def unavailable() -> str | None:
    """Say so where it cannot be installed."""
    try:
        peers_python("bytewax")
    except PeerUnavailable as error:
        return str(error)
    return None


def python() -> str:
    """Give the interpreter that has it."""
    return peers_python("bytewax")


def run(job: Job) -> Outcome:
    """Fold the topic once."""
    # In the peers' environment.
    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import run_main

    models: dict[str, Model] = {}
    events, started = 0, 0.0

    class Last(StatelessSinkPartition[Any]):  # type: ignore[misc]
        def write_batch(self, items: list[tuple[str, Model]]) -> None:
            models.update(items)

    class Sink(DynamicSink[Any]):  # type: ignore[misc]
        def build(self, _step_id: str, _worker_index: int, _worker_count: int) -> Last:
            return Last()

    def keyed(record: Any) -> tuple[str, dict[str, Any]]:
        return record.key.decode(), orjson.loads(record.value)

    def step(model: Model | None, event: dict[str, Any]) -> tuple[Model, Model]:
        nonlocal events, started
        if not events:
            started = time.perf_counter()
        events += 1
        model = fold(model, event["id"], event["data"])
        return model, model

    source = KafkaSource(
        [job.bootstrap_servers],
        [job.topic],
        tail=False,
        add_config={"fetch.queue.backoff.ms": "2", "queued.min.messages": "100000", "check.crcs": "false"},
    )
    flow = Dataflow("fold")
    records = op.input("records", flow, source)
    op.output("models", op.stateful_map("fold", op.map("keyed", records, keyed), step), Sink())
    recovery = job.path("recovery")
    recovery.mkdir()
    init_db_dir(recovery, 1)
    run_main(flow, recovery_config=RecoveryConfig(recovery))
    seconds, rss_mb = time.perf_counter() - started, peak_rss_mb()
    sha, count = digest(models.items())
    return Outcome(events=events, seconds=seconds, rss_mb=rss_mb, digest=sha, models=count)
