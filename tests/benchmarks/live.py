"""`python -m tests.benchmarks.live`: how far `refold run` is behind live events, and how long checkpoints take.

One process folds a topic that it has caught up with, and events come in at each of `--rates` for `--seconds`, from
another process on the same cores:

- `lag_s`: the most that the group's committed offsets were behind in the second half of that time, in seconds of what
  comes. `drain_s`: from the last event until they were at the end. `is_flat`: that took less than a second.
- `pause_p50_ms`, `pause_p99_ms`, `pause_max_ms`: how long a commit takes, synced to disk; no event is folded
  meanwhile. `replay_pauses_ms`: those before, while it caught up.

`flat_eps` is the highest rate that stays flat: as many as came.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, TopicPartition

from streams import RocksStore
from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.generations import traffic
from tests.benchmarks.kafka import ends, say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.service import wait
from tests.benchmarks.workload import Workload, digest

__all__ = ["main"]

_PROJECTION = f"{OrderSummary.__module__}:{OrderSummary.__qualname__}"
_LOOK_S = 0.1
_FLAT_S = 1.0


class _Lag:
    """How many events a group is behind."""

    def __init__(self, bootstrap_servers: str, topic: str, group: str) -> None:
        self._servers, self._topic = bootstrap_servers, topic
        self._consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": group})

    def __call__(self) -> int:
        there = ends(self._servers, self._topic)
        found = self._consumer.committed([TopicPartition(self._topic, one) for one in there], timeout=10)
        return sum(there.values()) - sum(max(0, int(where.offset)) for where in found)


class _Pauses:
    """How long checkpoints took, from the log of `refold run`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0

    def take_ms(self) -> list[float]:
        """Give those since this was last asked, in order of length."""
        text = self._log.read_text()
        new, self._read = text[self._read :], len(text)
        lines = [json.loads(line) for line in new.splitlines() if "checkpoint.saved" in line and line.endswith("}")]
        return sorted(1000 * line["seconds"] for line in lines if line["models"])


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Fold, at each of the rates, and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    topic, group = runner.topic(workload), f"{runner.mark}-live"
    command = [sys.executable, "-m", "streams", "--log-level", "warning", "--log-format", "json", "run", _PROJECTION]
    command += ["--topic", topic, "--state-dir", str(directory / "state"), "--group", group]
    command += ["--registry", f"{runner.mark}-registry"]
    environment = {"REFOLD_LOG": "streams.data.commits=debug", "REFOLD_BOOTSTRAP_SERVERS": runner.bootstrap_servers}
    log = directory / "run.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        lag, pauses = _Lag(runner.bootstrap_servers, topic, group), _Pauses(log)
        wait(f"it to catch up, by {log}", lambda: lag() == 0)
        report: dict[str, Any] = {"keys": options.keys, "replay_pauses_ms": _rounded(pauses.take_ms()), "rates": []}
        for rate in options.rates:
            found = _at(runner, topic, argparse.Namespace(**{**vars(options), "rate": rate}), lag)
            report["rates"].append(found | _percentiles(pauses.take_ms()))
            say(f"  {report['rates'][-1]}")
    finally:
        process.terminate()
        process.wait(60)
    report["flat_eps"] = max((found["came_eps"] for found in report["rates"] if found["is_flat"]), default=None)
    with RocksStore(directory / "state" / f"{OrderSummary.name}.v1").reader(OrderSummary()) as reader:
        sha, _ = digest((model_id, msgspec.to_builtins(model)) for model_id, model in reader.items())
    report["models_equal"] = sha == runner.run("reference", topic).digest
    return report


def _at(runner: Runner, topic: str, options: argparse.Namespace, lag: _Lag) -> dict[str, Any]:
    before = sum(ends(runner.bootstrap_servers, topic).values())
    began = time.monotonic()
    lags = []
    with traffic(runner, topic, options):
        while (now := time.monotonic() - began) < options.seconds:
            if now > options.seconds / 2:
                lags.append(lag())
            time.sleep(_LOOK_S)
    ended = time.monotonic()
    wait("it to be at the end", lambda: lag() == 0)
    drain_s = time.monotonic() - ended
    came = (sum(ends(runner.bootstrap_servers, topic).values()) - before) / options.seconds
    return {
        "rate": options.rate,
        "came_eps": round(came),
        "lag_s": round(max(lags) / came, 3),
        "drain_s": round(drain_s, 3),
        "is_flat": drain_s < _FLAT_S,
    }


def _percentiles(pauses_ms: list[float]) -> dict[str, float | int]:
    if not pauses_ms:
        return {"pauses": 0}
    return {
        "pauses": len(pauses_ms),
        "pause_p50_ms": round(statistics.median(pauses_ms), 2),
        "pause_p99_ms": round(pauses_ms[int(len(pauses_ms) * 0.99)], 2),
        "pause_max_ms": round(pauses_ms[-1], 2),
    }


def _rounded(pauses_ms: list[float]) -> list[float]:
    return [round(pause_ms, 1) for pause_ms in pauses_ms]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.live", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=500_000, help="that are there before (%(default)s)")
    parser.add_argument(
        "--rates",
        type=lambda text: [positive(one) for one in text.split(",")],
        default=[2_000, 10_000, 50_000, 100_000],
        help="events a second (2000,10000,50000,100000)",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="at each of them (default %(default)s)")
    add_common_options(parser)
    return run_in_process(measure, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
