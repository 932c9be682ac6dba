"""`python -m tests.benchmarks.repair`: what it costs to mend a part, and to keep a copy.

One topic, as in `replay`. In rounds, in this process:

- `full_s`: `rebuild_from_beginning()`.
- `streams_s`: `rebuild(SpecificStreams(…))` of a few streams, whose stored models were changed before; nobody folds.
- `streams_beside_s`: the same, while an agent holds the partitions.
- `preview_s`: `preview` of as many streams.
- `explain_s`: `explain` of one model.
- `pause_ms`: how long a fold stands still for a snapshot, of which some are taken of a rebuild that runs.
  The topic of the pause has one partition, with as many models as the topic has streams.

Medians, but the longest pause. `streams_ratio` is `streams_s` over `full_s`. `models_equal` is true where each
repair gave the models that the full rebuild gives, byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streams import (
    FoldSettings,
    KafkaCheckpointStore,
    KafkaEventStore,
    RebuildCoordinator,
    RocksStore,
    Snapshots,
    SpecificStreams,
)
from streams.control.explain import explain
from streams.control.live import live_agent
from streams.control.preview import preview
from streams.data.answers import Answers
from streams.data.partition import HeldPartition
from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]


class Bench:
    """One projection over one topic, in a directory of its own."""

    def __init__(self, runner: Runner, topic: str, directory: Path) -> None:
        self.projection = OrderSummary()
        self.events = KafkaEventStore(topic, bootstrap_servers=runner.bootstrap_servers)
        self.store = RocksStore(directory)
        self.checkpoints = KafkaCheckpointStore(f"{runner.mark}-{directory.name}", self.events)

    def coordinator(self) -> RebuildCoordinator:
        """Give what rebuilds it."""
        return RebuildCoordinator(self.projection, self.events, self.store, self.checkpoints)

    def raw(self) -> dict[str, bytes]:
        """Give every model as stored."""
        with self.store.reader(None) as reader:
            return dict(reader.raw_items())

    def spoil(self, ids: list[str]) -> None:
        """Change some stored models."""
        build = self.store.current()
        assert build is not None
        for number in build.partitions():
            store = build.open(number, 0)
            store.commit([(one, b'{"items":0}') for one in ids if store.get(one) is not None], store.state)
            store.close()

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Hold all partitions meanwhile."""
        with live_agent(self.projection, self.events, self.store, self.checkpoints, FoldSettings()) as agent:
            thread = threading.Thread(target=agent.run)
            thread.start()
            while len(agent.status.partitions) < self.events.cluster.topic(self.events.topic).partitions:
                time.sleep(0.01)
            try:
                yield
            finally:
                agent.stop()
                thread.join()


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all rounds and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    bench = Bench(runner, runner.topic(workload), directory / "state")
    ids = [f"order-{number:07d}" for number in range(0, options.keys, max(1, options.keys // options.streams))]
    ids = ids[: options.streams]
    seconds: dict[str, list[float]] = {}
    is_equal = True

    def timed(name: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        seconds.setdefault(name, []).append(time.perf_counter() - began)
        say(f"  {name:>16}: {seconds[name][-1]:.3f} s")

    def repair() -> None:
        asyncio.run(bench.coordinator().rebuild(SpecificStreams(ids)))

    for number in range(1, options.repeat + 1):
        say(f"round {number} of {options.repeat}")
        timed("full", lambda: asyncio.run(bench.coordinator().rebuild_from_beginning()))
        truth = bench.raw()
        bench.spoil(ids)
        timed("streams", repair)
        is_equal &= bench.raw() == truth
        bench.spoil(ids)
        with bench.agent():
            timed("streams_beside", repair)
        is_equal &= bench.raw() == truth
        timed("preview", lambda: preview(bench.projection, bench.events, bench.store, options.streams))
        timed("explain", lambda: explain(bench.projection, bench.events, bench.store, ids[0]))
    medians = {f"{name}_s": round(statistics.median(took), 3) for name, took in seconds.items()}
    pauses = snapshot_pauses(runner, options, directory / "paused")
    return {
        "events": options.events,
        "keys": options.keys,
        "streams": len(ids),
        **medians,
        "streams_ratio": round(medians["streams_s"] / medians["full_s"], 3),
        "streams_beside_ratio": round(medians["streams_beside_s"] / medians["full_s"], 3),
        "pause_ms": round(1000 * max(pauses), 1),
        "pauses_ms": [round(1000 * pause, 1) for pause in pauses],
        "models_equal": is_equal,
    }


def snapshot_pauses(runner: Runner, options: argparse.Namespace, directory: Path) -> list[float]:
    """Take snapshots of one partition with all models while it is folded; give how long the fold stood still, each."""
    workload = Workload(events=options.events, keys=options.keys, partitions=1, seed=options.seed)
    bench = Bench(runner, runner.topic(workload, f"{runner.mark}-one"), directory)
    pauses: list[float] = []
    answer = Answers.snapshots

    def watched(self: Answers, held: Mapping[int, HeldPartition], checkpoint: Callable[[], None]) -> None:
        began = time.perf_counter()
        asked = any(Path(directory / "snapshots").glob(".taking-*/request.json"))
        answer(self, held, checkpoint)
        if asked and any(Path(directory / "snapshots").glob(".taking-*/0")):
            pauses.append(time.perf_counter() - began)

    Answers.snapshots = watched  # type: ignore[method-assign]
    try:
        asyncio.run(bench.coordinator().rebuild_from_beginning())
        with bench.agent():
            build = bench.store.current()
            assert build is not None
            for _ in range(options.repeat):
                Snapshots(directory).take(build, wait_s=60)
        every = max(1, options.events // 4)
        coordinator = RebuildCoordinator(
            bench.projection,
            bench.events,
            bench.store,
            bench.checkpoints,
            settings=FoldSettings(checkpoint_seconds=0.5),
            snapshot_every=every,
        )
        asyncio.run(coordinator.rebuild_from_beginning())
    finally:
        Answers.snapshots = answer  # type: ignore[method-assign]
    return pauses


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.repair", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="events (default %(default)s)")
    parser.add_argument("--streams", type=positive, default=10, help="streams that are mended (default %(default)s)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    return run_in_process(measure, options)


if __name__ == "__main__":
    sys.exit(main())
