"""`python -m tests.benchmarks.capacity`: what one worker takes, by its limit of memory and the number of models.

For each pair, a topic of `--events-per-model` events a model. One worker with that limit folds it from the beginning,
and then rebuilds it beside, while queries come in:

- `first_s`, `rebuild_s`: until it is served, and until readers are switched; `rebuild_events_per_second`.
- `peak_mb`: the most that the worker and its agents took together at any moment, resident, looked at ten times a
  second; `peak_ratio`: of its limit.
- `disk_mb`, `disk_bytes_per_model`: what one generation takes; `peak_disk_mb`: both at the switch.
- `restart_s`: from starting it again until it answers.

`models_equal` is true where each has all models in the end.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.service import Worker, rebuild_s, rss_mb, wait
from tests.benchmarks.workload import Workload

__all__ = ["main"]

_NAME = OrderSummary.name
_LOOK_S = 0.1


class Peak:
    """The most that a worker and its agents took, and its files."""

    def __init__(self, worker: Worker, home: Path) -> None:
        self._worker = worker
        self._home = home
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rss_mb = 0.0
        self.disk_mb = 0.0

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            try:
                self.rss_mb = max(self.rss_mb, rss_mb([self._worker.process.pid, *self._worker.agents()]))
            except OSError:  # one has just ended
                continue
            self.disk_mb = max(self.disk_mb, size_mb(self._home))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def size_mb(directory: Path) -> float:
    """Give what is below a directory."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total / (1 << 20)


def held(worker: Worker) -> int:
    """Give how many models the active generation has."""
    found = worker.ask("/status")[1]["projections"][_NAME]
    return sum(one["models"] for one in found["generations"][found["active"]]["partitions"])


@contextmanager
def one(runner: Runner, topic: str, home: Path, limit_mb: int) -> Iterator[Worker]:
    """A worker with a limit."""
    worker = Worker(runner, topic, home, "one", REFOLD_MEMORY_LIMIT_BYTES=str(limit_mb << 20))
    try:
        worker.wait()
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.stop()


def case(runner: Runner, options: argparse.Namespace, home: Path, models: int, limit_mb: int) -> dict[str, Any]:
    """Measure one pair."""
    events = models * options.events_per_model
    workload = Workload(events=events, keys=models, partitions=options.partitions, seed=options.seed)
    topic = runner.topic(workload)
    began = time.perf_counter()
    with one(runner, topic, home, limit_mb) as worker, Peak(worker, home) as peak:
        first_s = time.perf_counter() - began
        disk_mb = size_mb(home)
        took_s = rebuild_s(worker)
        worker.ask(f"/v1/projections/{_NAME}/retire", {})
        worker.stop()
    began = time.perf_counter()
    with one(runner, topic, home, limit_mb) as again:
        wait("an answer", lambda: again.ask(f"/v1/projections/{_NAME}/models?limit=1")[0] == 200)
        restart_s = time.perf_counter() - began
        is_whole = held(again) == len({key for key, _ in workload.records()})
        again.ask(f"/v1/projections/{_NAME}/retire", {})
    found = {
        "models": models,
        "events": events,
        "limit_mb": limit_mb,
        "first_s": round(first_s, 1),
        "rebuild_s": round(took_s, 1),
        "rebuild_events_per_second": round(events / took_s),
        "peak_mb": round(peak.rss_mb),
        "peak_ratio": round(peak.rss_mb / limit_mb, 2),
        "disk_mb": round(disk_mb),
        "disk_bytes_per_model": round(disk_mb * (1 << 20) / models),
        "peak_disk_mb": round(peak.disk_mb),
        "restart_s": round(restart_s, 1),
        "is_whole": is_whole,
    }
    say(f"  {found}")
    return found


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Measure all pairs, each with a registry and a state of its own."""
    cases = []
    for number, (models, limit_mb) in enumerate(options.cases):
        home = directory / str(number)
        mark, runner.mark = runner.mark, f"{runner.mark}-{number}"
        try:
            cases.append(case(runner, options, home, models, limit_mb))
        finally:
            runner.mark = mark
    return {
        "events_per_model": options.events_per_model,
        "partitions": options.partitions,
        "cases": cases,
        "models_equal": all(one["is_whole"] for one in cases),
    }


def pair(text: str) -> tuple[int, int]:
    """Read MODELS:MEBIBYTES."""
    models, _, limit_mb = text.partition(":")
    return positive(models), positive(limit_mb)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.capacity", description=__doc__.split("\n")[0])
    parser.add_argument("--events-per-model", type=positive, default=10, help="(default %(default)s)")
    parser.add_argument(
        "--cases", type=pair, nargs="+", metavar="MODELS:MIB",
        default=[(10_000, 768), (100_000, 768), (100_000, 2048), (1_000_000, 2048)],
        help="models and limits of memory",
    )  # fmt: skip
    add_common_options(parser)
    options = parser.parse_args(arguments)
    return run_in_process(measure, options)


if __name__ == "__main__":
    sys.exit(main())
