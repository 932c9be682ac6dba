"""`python -m tests.benchmarks.postgres`: models in PostgreSQL, beside RocksDB and the consumer that most teams write.

One topic as in `replay`, an embedded PostgreSQL with its default settings (fsync on), one process each, in rounds:

- `refold`: the rebuild into RocksDB.
- `refold_postgres`: the same into PostgreSQL. `to_refold` is its share of that rate.
- `plain_postgres`, `plain_postgres_1`: poll, SELECT, UPSERT, and a commit for every 100 events, or for each; these fold
  the topic's first events alone (`plain_events`). `to_plain_100`, `to_plain_1`: how many times as fast refold is.

Then live, at `--rate` events/s for `--seconds`: `visible_ms_p50`, `visible_ms_p99` from an event's produce to the
moment at which a connection that asks the view all the time sees it.

Medians. `models_equal` is true where all that folded the same events gave the same models.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import orjson
import psycopg
from confluent_kafka import Producer

from streams.broker.postgres import EmbeddedPostgres
from tests.benchmarks.contenders.job import Outcome
from tests.benchmarks.contenders.refold_postgres import DSN
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]

_ROOT = Path(__file__).parents[2]
_PROJECTION = "tests.benchmarks.contenders.refold:OrderSummary"
_WARM_S = 5.0
"""Events that are not measured: partitions are handed out, and first models written."""
_PROBES = 8
_EVERY = 10
_LOOK_S = 0.005
_LAST_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.postgres", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="(default %(default)s)")
    parser.add_argument("--plain-events", type=positive, default=50_000, help="(default %(default)s)")
    parser.add_argument("--rate", type=positive, default=2000, help="live: events/s (default %(default)s)")
    parser.add_argument("--seconds", type=positive, default=20, help="live: for how long (default %(default)s)")
    add_common_options(parser)
    return run_in_process(_measure, parser.parse_args(arguments))


def _measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    whole = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    part = whole.first(min(options.plain_events, options.events))
    topics = {"whole": runner.topic(whole), "part": runner.topic(part)}
    contenders = {"refold": "whole", "refold_postgres": "whole", "plain_postgres": "part", "plain_postgres_1": "part"}
    with EmbeddedPostgres() as server:
        os.environ[DSN] = server.dsn
        wanted = {name: runner.run("reference", topic).digest for name, topic in topics.items()}
        ran: dict[str, list[Outcome]] = {name: [] for name in contenders}
        for _ in range(options.repeat):
            for name, which in contenders.items():
                outcome = runner.run(name, topics[which])
                ran[name].append(outcome)
                say(f"  {name:<18} {outcome.events / outcome.seconds:>9,.0f} events/s")
        equal = all(outcome.digest == wanted[contenders[name]] for name, all_ in ran.items() for outcome in all_)
        live = _live(runner, options, server, directory)
    eps = {name: round(statistics.median(one.events / one.seconds for one in all_)) for name, all_ in ran.items()}
    return {
        "events": options.events,
        "plain_events": part.events,
        **{f"{name}_eps": figure for name, figure in eps.items()},
        "to_refold": round(eps["refold_postgres"] / eps["refold"], 2),
        "to_plain_100": round(eps["refold_postgres"] / eps["plain_postgres"], 1),
        "to_plain_1": round(eps["refold_postgres"] / eps["plain_postgres_1"], 1),
        **live,
        "models_equal": equal,
    }


def _live(runner: Runner, options: argparse.Namespace, server: EmbeddedPostgres, directory: Path) -> dict[str, Any]:
    """Measure how long after its produce an event is seen in the view."""
    topic = runner.topic(Workload(events=options.partitions, keys=100, partitions=options.partitions, seed=9))
    env = {
        **os.environ,
        "REFOLD_BOOTSTRAP_SERVERS": runner.bootstrap_servers,
        "REFOLD_STORE": "postgres",
        "REFOLD_DSN": server.dsn,
        "REFOLD_PG_SCHEMA": "live",
    }
    command = [sys.executable, "-m", "streams", "run", _PROJECTION, "--topic", topic, "--group", f"{runner.mark}-live"]
    command += ["--state-dir", str(directory / "live"), "--registry", f"{runner.mark}.registry"]
    run = subprocess.Popen(command, env=env, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with psycopg.connect(server.dsn, autocommit=True) as database:
            _await_view(database)
            waits = _produce_and_look(runner, topic, options, database)
    finally:
        run.terminate()
        run.wait(30)
    waits.sort()
    return {
        "live_events": len(waits),
        "visible_ms_p50": round(waits[len(waits) // 2], 1),
        "visible_ms_p99": round(waits[len(waits) * 99 // 100], 1),
    }


def _await_view(database: psycopg.Connection[Any]) -> None:
    deadline = time.monotonic() + 60
    while database.execute("SELECT to_regclass('live.bench_order_summary')").fetchone() == (None,):
        if time.monotonic() > deadline:
            raise TimeoutError("the view is not there after 60 s")
        time.sleep(0.1)


def _produce_and_look(
    runner: Runner, topic: str, options: argparse.Namespace, database: psycopg.Connection[Any]
) -> list[float]:
    """Produce at the rate; some events are of the probes' streams, whose rows are asked for all the time."""
    producer = Producer({"bootstrap.servers": runner.bootstrap_servers, "linger.ms": 1})
    produced: dict[str, deque[tuple[int, float]]] = {f"probe-{number}": deque() for number in range(_PROBES)}
    waits: list[float] = []
    stopped = threading.Event()

    def look() -> None:
        asked = "SELECT id, last FROM live.bench_order_summary WHERE id = ANY(%s)"
        until = math.inf
        while time.perf_counter() < until and (any(produced.values()) or not stopped.is_set()):
            rows = database.execute(asked, [list(produced)], prepare=True).fetchall()
            now = time.perf_counter()
            for key, last in rows:
                seen = int(last.removeprefix("live-"))
                while produced[key] and produced[key][0][0] <= seen:
                    waits.append((now - produced[key].popleft()[1]) * 1000)
            if stopped.is_set() and until == math.inf:
                until = now + _LAST_S
            time.sleep(_LOOK_S)

    looker = threading.Thread(target=look)
    looker.start()
    began = time.perf_counter()
    warm = int(options.rate * _WARM_S)
    for number in range(warm + options.rate * options.seconds):
        due = began + number / options.rate
        while (rest := due - time.perf_counter()) > 0:
            time.sleep(min(rest, 0.001))
        key = f"probe-{number // _EVERY % _PROBES}" if number % _EVERY == 0 else f"order-{number % 5000}"
        if key in produced and number >= warm:
            produced[key].append((number, time.perf_counter()))
        value = {"id": f"live-{number}", "type": "ItemAdded", "data": {"quantity": 1, "price_cents": 5}}
        producer.produce(topic, key=key, value=orjson.dumps(value))
        producer.poll(0)
    producer.flush()
    stopped.set()
    looker.join()
    return waits


if __name__ == "__main__":
    sys.exit(main())
