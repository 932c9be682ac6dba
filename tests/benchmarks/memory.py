"""`python -m tests.benchmarks.memory`: what a rebuild takes of memory under `REFOLD_MEMORY_LIMIT_BYTES`.

One topic with many models, rebuilt once under each limit, in a process of its own. `rss_share` is the process's peak
resident set over its limit: it is to stay below 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]

_VARIABLE = "REFOLD_MEMORY_LIMIT_BYTES"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=4_000_000, help="(default %(default)s)")
    parser.add_argument("--limits-mib", default="256,384,512", help="with commas between (default %(default)s)")
    parser.add_argument("--snapshots", action="store_true", help="send snapshots to a repository all the while")
    add_common_options(parser)
    parser.set_defaults(keys=400_000)
    return run_in_process(_measure, parser.parse_args(arguments))


def _measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    topic = runner.topic(
        Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    )
    expected = runner.run("reference", topic)
    report: dict[str, Any] = {"events": options.events, "models": expected.models}
    if options.snapshots:
        os.environ |= {
            "REFOLD_SNAPSHOT_REPOSITORY": f"file://{directory / 'snapshots'}",
            "REFOLD_SNAPSHOT_SECONDS": "1",
        }
    equal = True
    for limit_mib in map(int, options.limits_mib.split(",")):
        os.environ[_VARIABLE] = str(limit_mib << 20)
        outcome = runner.run("refold", topic)
        equal = equal and outcome.digest == expected.digest
        say(f"  {limit_mib} MiB: {outcome.rss_mb:.0f} MiB, {outcome.seconds:.1f} s")
        report[f"rss_mb_{limit_mib}"] = outcome.rss_mb
        report[f"rss_share_{limit_mib}"] = round(outcome.rss_mb / limit_mib, 3)
        report[f"eps_{limit_mib}"] = round(outcome.events / outcome.seconds)
    del os.environ[_VARIABLE]
    return report | {"models_equal": equal}


if __name__ == "__main__":
    sys.exit(main())
