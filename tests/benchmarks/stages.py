"""`python -m tests.benchmarks.stages`: where the processor time of an event goes, in microseconds.

One topic, in rounds: `bound`, `plain` and `refold` as in `replay`, and `refold` with clocks at its seams, as told in
`tests.benchmarks.contenders.refold_stages`. Figures are medians of processor time, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders.refold_stages import STAGES
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]

_WHOLE = ("bound", "plain", "refold")


def _measure(runner: Runner, options: argparse.Namespace, _directory: Path) -> dict[str, Any]:
    """Run all rounds and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    topic = runner.topic(workload)
    took: dict[str, list[float]] = {name: [] for name in (*_WHOLE, *STAGES)}
    digests = set()
    for number in range(1, options.repeat + 1):
        say(f"round {number} of {options.repeat}")
        for name in (*_WHOLE, "refold_stages"):
            outcome = runner.run(name, topic)
            for part, seconds in outcome.stages.items() if outcome.stages else [(name, outcome.timed_cpu_seconds)]:
                took[part].append(seconds)
            digests.add(outcome.digest)
    us = {name: round(1e6 * statistics.median(seconds) / workload.events, 3) for name, seconds in took.items()}
    return {
        "events": workload.events,
        "keys": workload.keys,
        "cpu_us": {name: us[name] for name in _WHOLE},
        "stages_us": {name: us[name] for name in STAGES},
        "refold_to_bound": round(us["refold"] / us["bound"], 3),
        "refold_to_plain": round(us["refold"] / us["plain"], 3),
        "models_equal": len(digests - {None}) == 1,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models differ or a contender failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stages", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="(default %(default)s)")
    add_common_options(parser)
    return run_in_process(_measure, parser.parse_args(arguments), _show)


def _show(report: dict[str, Any]) -> None:
    for name, us in report["cpu_us"].items():
        print(f"{name:<12} {us:6.2f} us an event")
    for name, us in report["stages_us"].items():
        print(f"  {name:<10} {us:6.2f}")
    print(f"refold to bound {report['refold_to_bound']}, to plain {report['refold_to_plain']}")
    print(f"models equal: {'yes' if report['models_equal'] else 'NO'}")


if __name__ == "__main__":
    sys.exit(main())
