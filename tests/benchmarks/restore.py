"""`python -m tests.benchmarks.restore`: a partition that comes to a machine which has nothing of it.

One partition, with all events and models. A snapshot is sent when all but the tail are folded. Then, in rounds, each in
a directory that is new, until everything is committed:

- `replay_s`: it is folded from its beginning.
- `volume_s`: it is fetched from a shared volume (`file://`), and its tail folded.
- `s3_s`: likewise from a real S3 server on this machine, where that is installed (`.ci/tools`).

Medians, with joining the group in them. `volume_speedup` and `s3_speedup` are `replay_s` over these; `…_send_s` is what
the first snapshot took, `…_again_s` one after a hundredth of the events more. `models_equal` is true where all ended
with the same models, byte for byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streams import FoldSettings, KafkaCheckpointStore, KafkaEventStore, RocksStore
from streams.control.claim import claim_live
from streams.control.ground import Ground
from streams.data.agent import Agent
from streams.data.repository import Repository
from streams.data.scratch import Scratch
from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload
from tests.s3 import s3
from tests.tools import TOOLS

__all__ = ["main"]


class Machine:
    """A machine that folds the topic as a member of one group, with or without a repository."""

    def __init__(self, topic: str, servers: str, directory: Path, group: str, **settings: Any) -> None:
        events = KafkaEventStore(topic, bootstrap_servers=servers)
        self.settings = FoldSettings(**settings)
        self.ground = Ground(
            projection=OrderSummary(),
            events=events,
            store=RocksStore(directory),
            checkpoints=KafkaCheckpointStore(group, events),
            settings=self.settings,
        )

    def fold(self, until: int) -> float:
        """Fold up to a position, from where it is; give how long that took."""
        began = time.perf_counter()
        claimed = claim_live(self.ground)
        with claimed.lock:
            Agent(dataclasses.replace(claimed.job, until={0: until})).run()
        return time.perf_counter() - began

    def send(self) -> tuple[float, int, int]:
        """Send a snapshot; give how long that took, its size, and what was sent, in bytes."""
        build = self.ground.store.current()
        assert build is not None
        began = time.perf_counter()
        repository = Repository.of(self.settings, build.counts_as)
        assert repository is not None
        store, scratch = build.open(0, 0), Scratch(build, "shipping-0")
        try:
            store.snapshot(scratch.path)
            snapshot, sent = repository.put(scratch.path, store.state, "here")
        finally:
            scratch.close()
            store.close()
        return time.perf_counter() - began, snapshot.size_bytes, sent

    def raw(self) -> dict[str, bytes]:
        """Give every model as stored."""
        with self.ground.store.reader(None) as reader:
            return dict(reader.raw_items())


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all rounds and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=1, seed=options.seed)
    topic = runner.topic(workload)
    tail = options.events * options.tail_percent // 100
    with ExitStack() as stack:
        places: dict[str, dict[str, Any]] = {"volume": {"snapshot_repository": f"file://{directory / 'volume'}"}}
        if (TOOLS / "bin" / "versitygw").exists():
            server = stack.enter_context(s3(directory / "s3"))
            os.environ |= server.credentials
            places["s3"] = {"snapshot_repository": server.url, "snapshot_repository_config": server.config}
        report: dict[str, Any] = {"events": options.events, "keys": options.keys, "tail_events": tail}
        for name, settings in places.items():
            group = f"{runner.mark}-{name}"
            first = Machine(topic, runner.bootstrap_servers, directory / f"first-{name}", group, **settings)
            first.fold(options.events - tail - options.events // 100)
            took_s, size, _ = first.send()
            first.fold(options.events - tail)
            again_s, _, sent = first.send()
            say(f"  {name}: sent {size / 1e6:.1f} MB in {took_s:.2f} s; then {sent / 1e6:.1f} MB in {again_s:.2f} s")
            report |= {f"{name}_send_s": round(took_s, 3), f"{name}_again_s": round(again_s, 3)}
            report |= {"snapshot_mb": round(size / 1e6, 1), "again_mb": round(sent / 1e6, 1)}
        seconds: dict[str, list[float]] = {}
        models: list[dict[str, bytes]] = []
        for number in range(1, options.repeat + 1):
            say(f"round {number} of {options.repeat}")
            for name, settings in {"replay": {}, **places}.items():
                group = f"{runner.mark}-{name}" + (f"-{number}" if name == "replay" else "")
                here = directory / f"{name}-{number}"
                machine = Machine(topic, runner.bootstrap_servers, here, group, **settings)
                seconds.setdefault(name, []).append(machine.fold(options.events))
                say(f"  {name:>8}: {seconds[name][-1]:.2f} s")
                models.append(machine.raw())
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    report |= {f"{name}_s": round(took, 3) for name, took in medians.items()}
    report |= {f"{name}_speedup": round(medians["replay"] / medians[name], 2) for name in places}
    return report | {"models_equal": all(one == models[0] for one in models)}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.restore", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="events (default %(default)s)")
    parser.add_argument("--tail-percent", type=int, default=2, help="folded after the snapshot (default %(default)s)")
    add_common_options(parser)
    return run_in_process(measure, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
