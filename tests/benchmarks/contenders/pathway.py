"""Pathway: a stateful reducer by key, with persistence to files.

Read in its "static" mode, which ends where the topic ended, by one worker. What is persisted is what was read, from
which it makes its state anew: that of the operators takes a licence key. Rows that come together have no order in
Pathway, so they are put in that of their offsets. Timed from the call of `run`, since it reads all before it folds. The
models are those that the reducer gave last, by a sink in the process.
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
        peers_python("pathway")
    except PeerUnavailable as error:
        return str(error)
    return None


def python() -> str:
    """Give the interpreter that has it."""
    return peers_python("pathway")


def run(job: Job) -> Outcome:
    """Fold the topic once."""
    # In the peers' environment.
    import pathway as pw

    models: dict[str, Model] = {}
    events = 0

    def step(state: Any, rows: list[Any]) -> Any:
        nonlocal events
        model = None if state is None else orjson.loads(state)
        for _, value in sorted((row[1], row[0]) for row, _ in rows):
            event = orjson.loads(value)
            model = fold(model, event["id"], event["data"])
        events += len(rows)
        return orjson.dumps(model)

    def changed(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            models[row["key"].decode()] = orjson.loads(row["model"])

    settings = {"bootstrap.servers": job.bootstrap_servers, "group.id": job.group, "auto.offset.reset": "earliest"}
    settings |= {"fetch.queue.backoff.ms": "2", "queued.min.messages": "100000", "check.crcs": "false"}
    records = pw.io.kafka.read(
        settings, job.topic, format="raw", mode="static", with_metadata=True, autogenerate_key=True, name="records"
    )
    rows = records.select(key=pw.this.key, value=pw.this.data, offset=pw.this._metadata["offset"].as_int())
    reduce = pw.reducers.stateful_many(step)
    folded = rows.groupby(pw.this.key).reduce(pw.this.key, model=reduce(pw.this.value, pw.this.offset))
    pw.io.subscribe(folded, on_change=changed)
    persistence = pw.persistence.Config(pw.persistence.Backend.filesystem(job.path("state")))
    started = time.perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE, persistence_config=persistence)
    seconds, rss_mb = time.perf_counter() - started, peak_rss_mb()
    sha, count = digest(models.items())
    return Outcome(events=events, seconds=seconds, rss_mb=rss_mb, digest=sha, models=count)
