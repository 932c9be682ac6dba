"""`python -m tests.benchmarks.generations`: a rebuild beside the live generation, and several from one read.

One topic, as in `replay`. In rounds, in this process and the agents' own:

- `one_after_the_other_s`: two projections rebuilt from the beginning, one after the other, each by one agent.
- `shared_s`: the same two as one plan, from one read. `shared_ratio` is the one over the other.
- `verify_s`: two generations of one projection compared, with all models of the topic, while nobody folds.
- `switch_s`: from the call of `rollback()`, which is the switch of another name, until a reader in another thread
  is answered by the other generation. The longest.
- `live_lag_s`: how far a live generation was behind, at most, while another one was replayed beside it at full speed,
  and events came in at `rate` a second: the age of what was folded last, where there was more. `live_lag_p99_s` too,
  and `beside_s`, how long the replay took.

Medians, but where said otherwise. `models_equal` is true where both ways give the same models, and the comparison
found none that differs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from streams import Generations, KafkaCheckpointStore, KafkaEventStore, RebuildCoordinator, RocksStore
from streams.control.folding import Folding
from streams.control.plan import RebuildPlan, Step
from streams.control.running import Running
from streams.data.process_runner import ProcessRunner
from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]


class OtherSummary(OrderSummary):
    """A second projection of the same events."""

    name = "bench-other-summary"


class Bench:
    """One projection over one topic, in a directory of its own."""

    def __init__(self, runner: Runner, topic: str, projection: OrderSummary, directory: Path) -> None:
        self.projection = projection
        self.events = KafkaEventStore(topic, bootstrap_servers=runner.bootstrap_servers)
        self.store = RocksStore(directory)
        self.checkpoints = KafkaCheckpointStore(f"{runner.mark}-{directory.name}", self.events)

    def coordinator(self, **options: Any) -> RebuildCoordinator:
        """Give what rebuilds it."""
        return RebuildCoordinator(self.projection, self.events, self.store, self.checkpoints, **options)

    def step(self) -> Step:
        """Give it as a part of a plan."""
        coordinators: list[RebuildCoordinator] = []

        async def run(make: Any) -> Any:
            coordinators.append(self.coordinator(runner=make))
            return await coordinators[-1].rebuild_from_beginning()

        return Step(
            name=self.projection.name,
            topic=self.events.topic,
            run=run,
            progress=lambda: coordinators[-1].get_progress(),
        )

    def raw(self) -> dict[str, bytes]:
        """Give every model as stored."""
        with self.store.reader(None) as reader:
            return dict(reader.raw_items())


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all rounds and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    topic = runner.topic(workload)
    seconds: dict[str, list[float]] = {}
    equal = True

    def note(name: str, took_s: float) -> None:
        seconds.setdefault(name, []).append(took_s)
        say(f"  {name:>22}: {took_s:.3f} s")

    for number in range(1, options.repeat + 1):
        say(f"round {number} of {options.repeat}")
        apart = [
            Bench(runner, topic, projection, directory / f"apart-{number}-{projection.name}")
            for projection in (OrderSummary(), OtherSummary())
        ]
        began = time.perf_counter()
        for one in apart:
            asyncio.run(one.coordinator().rebuild_from_beginning())
        note("one_after_the_other", time.perf_counter() - began)
        together = [
            Bench(runner, topic, projection, directory / f"shared-{number}-{projection.name}")
            for projection in (OrderSummary(), OtherSummary())
        ]
        plan = RebuildPlan([one.step() for one in together], parallel=2)
        began = time.perf_counter()
        outcomes = asyncio.run(plan.run())
        note("shared", time.perf_counter() - began)
        for outcome in outcomes.values():
            if outcome.error is not None:
                raise outcome.error
        equal &= [one.raw() for one in apart] == [one.raw() for one in together]
    beside = measure_beside(runner, options, topic, directory / "beside")
    medians = {f"{name}_s": round(statistics.median(took), 3) for name, took in seconds.items()}
    return {
        "events": options.events,
        "keys": options.keys,
        **medians,
        "shared_ratio": round(medians["shared_s"] / medians["one_after_the_other_s"], 3),
        **beside,
        "models_equal": equal and beside["identical"],
    }


PRODUCE = """
import sys, time
from confluent_kafka import Producer
from tests.benchmarks.workload import Workload

bootstrap, topic, rate, keys, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
began, count = time.monotonic(), 0
for key, value in Workload(events=10_000_000, keys=keys, partitions=1, seed=seed + 1).records():
    producer.produce(topic, key=key, value=value)
    count += 1
    if count % 20 == 0:
        producer.poll(0)
        time.sleep(max(0.0, began + count / rate - time.monotonic()))
"""


@contextmanager
def traffic(runner: Runner, topic: str, options: argparse.Namespace) -> Iterator[None]:
    """Events that come in at a steady rate, from a process of their own."""
    arguments = [runner.bootstrap_servers, topic, options.rate, options.keys, options.seed]
    producing = subprocess.Popen([sys.executable, "-c", PRODUCE, *map(str, arguments)], cwd=Path(__file__).parents[2])
    try:
        yield
    finally:
        producing.kill()
        producing.wait()


def measure_beside(runner: Runner, options: argparse.Namespace, topic: str, directory: Path) -> dict[str, Any]:
    """Rebuild beside a live generation with traffic, then compare and switch."""
    directory.mkdir()
    events = KafkaEventStore(topic, bootstrap_servers=runner.bootstrap_servers)
    generations = Generations(
        OrderSummary(), events, registry=f"{runner.mark}-registry", state_dir=directory, group=f"{runner.mark}-beside"
    )
    site = generations.site
    lags: list[float] = []
    running = Running(site, ProcessRunner)

    def run() -> None:
        with running:  # and all that it starts, from one thread
            running.run()

    live = threading.Thread(target=run)
    live.start()
    try:
        while generations.record is None or not running._foldings:
            time.sleep(0.1)
        folding = running._foldings["bench-order-summary.v1"]
        while not is_live(folding):
            time.sleep(0.1)
        with traffic(runner, topic, options):
            time.sleep(2)
            ended = threading.Event()
            watching = threading.Thread(target=watch, args=[folding, lags, ended])
            watching.start()
            began = time.perf_counter()
            asyncio.run(generations.rebuild(policy="report", approve="auto", keep=timedelta(hours=1), workers=1))
            beside_s = time.perf_counter() - began
            ended.set()
            watching.join()
        while not all(map(is_live, list(running._foldings.values()))) or len(running._foldings) < 2:
            time.sleep(0.1)
        report = generations.verify()
        verify_s = []
        for _ in range(options.repeat):
            began = time.perf_counter()
            report = generations.verify()
            verify_s.append(time.perf_counter() - began)
        switches = [switch_s(generations) for _ in range(5)]
    finally:
        running.stop()
        live.join()
    lags.sort()
    return {
        "rate": options.rate,
        "beside_s": round(beside_s, 3),
        "live_lag_s": round(lags[-1], 3),
        "live_lag_p99_s": round(lags[int(len(lags) * 0.99)], 3),
        "verify_s": round(statistics.median(verify_s), 3),
        "verified_models": report.summary.models_before,
        "switch_s": round(max(switches), 3),
        "identical": report.summary.is_identical,
    }


def watch(folding: Folding, lags: list[float], ended: threading.Event) -> None:
    """Note how far a generation is behind, again and again."""
    while not ended.wait(0.05):
        found = lag_s(folding)
        if found is not None:
            lags.append(found)


def is_live(folding: Folding) -> bool:
    """Whether a generation has caught up."""
    lag = lag_s(folding)
    return lag is not None and lag < 1 and len(folding.status.partitions) == folding.job.topic.partitions


def lag_s(folding: Folding) -> float | None:
    """Give the age of what was folded last, where there is more; None before it has caught up first."""
    job, status = folding.job, folding.status
    marks = job.events.cluster.watermarks(job.topic)
    now_ms = time.time_ns() // 1_000_000
    behind = [
        (now_ms - (one.record_ms or 0)) / 1000
        for number, one in status.partitions.items()
        if one.committed < marks[number].high
    ]
    if len(status.partitions) < job.topic.partitions or any(age > 3600 for age in behind):
        return None
    return max(behind, default=0.0)


def switch_s(generations: Generations) -> float:
    """Give how long it takes until a reader sees a switch."""
    with generations.models(plain=True) as models:
        models.get("order-0000001")
        before = models.generation
        seen = threading.Event()

        def read() -> None:
            while models.generation == before:
                models.get("order-0000001")
            models.get("order-0000001")
            seen.set()

        reading = threading.Thread(target=read)
        reading.start()
        began = time.perf_counter()
        generations.rollback()
        seen.wait()
        took = time.perf_counter() - began
        reading.join()
    return took


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generations", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="events (default %(default)s)")
    parser.add_argument("--rate", type=positive, default=2000, help="events a second (default %(default)s)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    return run_in_process(measure, options)


if __name__ == "__main__":
    sys.exit(main())
