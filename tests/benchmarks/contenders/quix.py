"""Quix Streams: a stateful dataframe, RocksDB state and changelog topic, at-least-once.

Its own defaults for state, commits (every 5 s) and producer. For throughput: the deeper, faster prefetch
that the bound and refold use too, and logging off. Timed from the first event folded to the return of
`run()`, which makes a last checkpoint and closes. The models are read from its RocksDB afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson

from tests.benchmarks.contenders.job import Job, Outcome, peak_rss_mb
from tests.benchmarks.peers import PeerUnavailable, peers_python
from tests.benchmarks.workload import Model, digest, fold

__all__ = ["python", "run", "unavailable"]

_STATE_KEY = "model"


def unavailable() -> str | None:
    """Say so where it cannot be installed."""
    try:
        peers_python("quixstreams")
    except PeerUnavailable as error:
        return str(error)
    return None


def python() -> str:
    """Give the interpreter that has it."""
    return peers_python("quixstreams")


def run(job: Job) -> Outcome:
    """Fold the topic once."""
    import quixstreams  # in the peers' environment

    app: Any = quixstreams.Application(
        broker_address=job.bootstrap_servers,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        state_dir=job.path("state"),
        consumer_extra_config={
            "fetch.queue.backoff.ms": 2,
            "queued.min.messages": 100_000,
            "check.crcs": False,
        },
        producer_extra_config={"compression.type": "lz4"},
        loglevel="WARNING",
    )
    topic = app.topic(job.topic, key_deserializer="bytes", value_deserializer="json")
    total, events, started = job.events, 0, 0.0

    def step(event: dict[str, Any], state: Any) -> None:
        nonlocal events, started
        if not events:
            started = time.perf_counter()
        state.set(_STATE_KEY, fold(state.get(_STATE_KEY), event["id"], event["data"]))
        events += 1
        if events == total:
            app.stop()

    app.dataframe(topic).update(step, stateful=True)
    app.run()
    seconds = time.perf_counter() - started
    rss_mb = peak_rss_mb()
    sha, count = digest(_models(job))
    return Outcome(events=events, seconds=seconds, rss_mb=rss_mb, digest=sha, models=count)


def _models(job: Job) -> Iterator[tuple[str, Model]]:
    """Read its stores: a key there is the message's key, a bar, and the state's key as JSON."""
    from rocksdict import AccessType, Options, Rdict

    suffix = b"|" + orjson.dumps(_STATE_KEY)
    for identity in sorted(job.path("state").rglob("IDENTITY")):
        options = Options(raw_mode=True)
        families = {name: Options(raw_mode=True) for name in Rdict.list_cf(str(identity.parent), options)}
        database: Any = Rdict(str(identity.parent), options, families, AccessType.read_only())
        for key, value in database.items():
            if key.endswith(suffix):
                yield key[: -len(suffix)].decode(), orjson.loads(value)
        database.close()
