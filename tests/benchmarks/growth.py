"""`python -m tests.benchmarks.growth`: what four times the history costs refold, in time and in memory.

Rebuilds a small and a large topic of the same keys, in rounds, each rebuild in a process of its own, timed
as in `replay`. `time_ratio` is the large one's median time over the small one's, and `rss_ratio` the same
of the peak resident sets: the time is to grow with the history and the memory is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from tests.benchmarks.contenders.job import Outcome
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import ContenderError, Runner, unavailable
from tests.benchmarks.workload import Workload

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong or a rebuild failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--small", type=positive, default=1_000_000, help="events (default %(default)s)")
    parser.add_argument("--large", type=positive, default=4_000_000, help="events (default %(default)s)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    sizes = (options.small, options.large)
    rebuilds: dict[int, list[Outcome]] = {size: [] for size in sizes}
    try:
        if reason := unavailable("refold"):
            raise ContenderError(f"refold cannot run: {reason}")
        with Runner.opened(options.bootstrap_servers, timeout_s=options.timeout) as runner:
            full = Workload(events=max(sizes), keys=options.keys, partitions=options.partitions, seed=options.seed)
            topics = {size: runner.topic(full.first(size)) for size in sizes}
            expected = {size: runner.run("reference", topics[size]).digest for size in sizes}
            for number in range(1, options.repeat + 1):
                say(f"round {number} of {options.repeat}")
                for size in sizes:
                    outcome = runner.run("refold", topics[size])
                    rebuilds[size].append(outcome)
                    cost = f"{outcome.seconds:.2f} s ({outcome.cpu_seconds:.1f} s CPU)"
                    say(f"  {size:>12,} events: {cost}, {outcome.rss_mb:.0f} MiB")
    except ContenderError as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was made is removed")
        return 130
    seconds = [statistics.median(outcome.seconds for outcome in rebuilds[size]) for size in sizes]
    rss_mb = [statistics.median(outcome.rss_mb for outcome in rebuilds[size]) for size in sizes]
    equal = all(outcome.digest == expected[size] for size in sizes for outcome in rebuilds[size])
    report = {
        "events": list(sizes),
        "seconds": [round(figure, 3) for figure in seconds],
        "rss_mb": [round(figure, 1) for figure in rss_mb],
        "time_ratio": round(seconds[1] / seconds[0], 3),
        "rss_ratio": round(rss_mb[1] / rss_mb[0], 3),
        "cpu_seconds": [statistics.median(outcome.cpu_seconds for outcome in rebuilds[size]) for size in sizes],
        "models_equal": equal,
        "keys": options.keys,
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for size, took, rss in zip(sizes, seconds, rss_mb, strict=True):
            print(f"{size:>12,} events  {took:8.2f} s  {rss:8.0f} MiB")
        print(f"time x{report['time_ratio']}, memory x{report['rss_ratio']}")
        print(f"models equal: {'yes' if equal else 'NO'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
