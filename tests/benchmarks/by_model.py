"""`python -m tests.benchmarks.by_model`: what it costs that events are written once more, keyed by model.

One topic, as in `replay`; one projection of it as it is, and the same with `partition_by = "model"`, whose models are
the streams too, so that both must give the same. Each is rebuilt beside its first generation, in rounds, by one process
and by two.

- `by_stream_s_N`: from the beginning to the switch, by N processes.
- `by_model_s_N`: the same, in two stages; `repartitioning_s_N` is the first of them. Both have what agents take to
  start and to join.
- `ratio_N`: the second over the first.

Medians. `models_equal` is true where all gave the same models.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from streams import Generations, KafkaEventStore
from streams.control.founding import found_first
from streams.control.record import Record
from tests.benchmarks.contenders.refold import ByModel, OrderSummary
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]


class _Bench:
    """One projection, with its generations."""

    def __init__(self, runner: Runner, topic: str, projection: OrderSummary, directory: Path) -> None:
        self.generations = Generations(
            projection,
            KafkaEventStore(topic, bootstrap_servers=runner.bootstrap_servers),
            registry=f"{runner.mark}.registry",
            group=f"{runner.mark}-{projection.name}",
            state_dir=directory / projection.name,
        )
        found_first(self.generations.site)

    def rebuilt(self, workers: int) -> Record:
        """Rebuild it; the old one is retired."""
        return asyncio.run(self.generations.rebuild(policy="none", keep=timedelta(0), workers=workers))

    def models(self) -> bytes:
        """Give all models, in one piece."""
        site = self.generations.site
        with site.place(site.record().live).store.reader(site.projection) as reader:
            return msgspec.json.encode(sorted((one, msgspec.to_builtins(model)) for one, model in reader.items()))


def _seconds(record: Record, until: Callable[[str], bool]) -> float:
    """Give how long a rebuild took, up to a step."""
    rebuild = record.rebuild
    assert rebuild is not None
    ended = next((step.at for step in rebuild.steps if until(step.what)), rebuild.ended_at)
    assert ended is not None
    return (ended - rebuild.began_at).total_seconds()


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.by_model", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="(default %(default)s)")
    add_common_options(parser)
    return run_in_process(_measure, parser.parse_args(arguments))


def _measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    topic = runner.topic(
        Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    )
    by_stream, by_model = (_Bench(runner, topic, one, directory) for one in (OrderSummary(), ByModel()))
    found: dict[str, list[float]] = {}
    equal = True
    for _ in range(options.repeat):
        for workers in (1, 2):
            plain, keyed = by_stream.rebuilt(workers), by_model.rebuilt(workers)
            round_ = {
                f"by_stream_s_{workers}": _seconds(plain, lambda _: False),
                f"by_model_s_{workers}": _seconds(keyed, lambda _: False),
                f"repartitioning_s_{workers}": _seconds(keyed, lambda what: what == "replaying"),
            }
            say(f"  {', '.join(f'{name} {seconds:.1f}' for name, seconds in round_.items())}")
            for name, seconds in round_.items():
                found.setdefault(name, []).append(seconds)
            equal = equal and by_stream.models() == by_model.models()
    report: dict[str, Any] = {name: round(statistics.median(all_), 2) for name, all_ in sorted(found.items())}
    for workers in (1, 2):
        report[f"ratio_{workers}"] = round(report[f"by_model_s_{workers}"] / report[f"by_stream_s_{workers}"], 2)
    return {"events": options.events, **report, "models_equal": equal}


if __name__ == "__main__":
    sys.exit(main())
