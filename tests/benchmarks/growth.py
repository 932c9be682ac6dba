"""`python -m tests.benchmarks.growth`: what more of something costs a rebuild, in time and in memory.

Along each axis one thing grows, and the rest stays: the events of a topic (the time is to grow with them, and memory is
not), its models, its partitions, the size of an event. Each point is a topic of its own, rebuilt in rounds, each in a
process of its own, timed as in `replay`; medians. `--plot` draws them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.benchmarks.contenders.job import Outcome
from tests.benchmarks.kafka import remove_all, say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["AXES", "main"]

_MOST_BYTES = 1_000_000_000
_ENVELOPE_BYTES = 190


class Axis(NamedTuple):
    """What grows."""

    points: tuple[int, ...]
    label: str
    workload: Callable[[Workload, int], Workload]
    """Gives the workload of a point, from the usual one."""


def _sized(usual: Workload, size: int) -> Workload:
    """Give as many events of a size as are not too much for a disk, and ten for each model."""
    events = min(usual.events, _MOST_BYTES // size)
    return msgspec.structs.replace(
        usual, events=events, keys=min(usual.keys, max(1, events // 10)), padding=max(0, size - _ENVELOPE_BYTES)
    )


AXES = {
    "events": Axis(
        (1_000_000, 2_000_000, 5_000_000, 10_000_000),
        "events",
        lambda usual, events: msgspec.structs.replace(usual, events=events),
    ),
    "models": Axis(
        (100_000, 400_000, 1_000_000, 2_000_000),
        "models",
        lambda usual, keys: msgspec.structs.replace(usual, keys=keys, events=2 * usual.events),
    ),
    "partitions": Axis(
        (4, 16, 64), "partitions", lambda usual, partitions: msgspec.structs.replace(usual, partitions=partitions)
    ),
    "size": Axis((200, 1_000, 10_000, 100_000), "bytes of an event", _sized),
}


def _measure(runner: Runner, options: argparse.Namespace, _directory: Path) -> dict[str, Any]:
    """Run all points of all axes and give the report."""
    usual = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    report: dict[str, Any] = {"models_equal": True, "axes": {}}
    for name in options.along:
        axis = AXES[name]
        points = options.points or axis.points
        found = report["axes"][name] = [
            _point(runner, axis.workload(usual, at), at, f"{name}-{at}", options.repeat) for at in points
        ]
        report["models_equal"] &= all(point.pop("equal") for point in found)
        first, last = found[0], found[-1]
        report[f"{name}_growth"] = {
            "of_it": round(last["at"] / first["at"], 3),
            "of_seconds": round(last["seconds"] / first["seconds"], 3),
            "of_rss": round(last["rss_mb"] / first["rss_mb"], 3),
        }
    if options.plot is not None:
        draw(report, options.plot)
    return report


def _point(runner: Runner, workload: Workload, at: int, name: str, rounds: int) -> dict[str, Any]:
    topic = runner.topic(workload, f"{runner.mark}-{name}")
    try:
        expected = runner.run("reference", topic)
        outcomes: list[Outcome] = [runner.run("refold", topic) for _ in range(rounds)]
    finally:
        remove_all(runner.bootstrap_servers, topic)
    seconds = statistics.median(outcome.seconds for outcome in outcomes)
    rss_mb = statistics.median(outcome.rss_mb for outcome in outcomes)
    cpu_us = 1e6 * statistics.median(outcome.timed_cpu_seconds for outcome in outcomes) / workload.events
    say(f"  {name}: {workload.events:,} events, {seconds:.2f} s, {cpu_us:.2f} us CPU an event, {rss_mb:.0f} MiB")
    return {
        "at": at,
        "events": workload.events,
        "models": expected.models,
        "seconds": round(seconds, 3),
        "cpu_us": round(cpu_us, 3),
        "rss_mb": round(rss_mb, 1),
        "equal": all(outcome.digest == expected.digest for outcome in outcomes),
    }


def draw(report: dict[str, Any], directory: Path) -> None:
    """Draw an SVG of each axis: the time, and the memory."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "refold", "svg.fonttype": "none", "font.size": 11})
    directory.mkdir(parents=True, exist_ok=True)
    for name, points in report["axes"].items():
        figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        at = [point["at"] for point in points]
        if name == "size":
            each, what = [1e6 * point["seconds"] / point["events"] for point in points], "µs an event"
            times.set_yscale("log")
        else:
            each, what = [point["seconds"] for point in points], "seconds"
        for plot, figures, label in ((times, each, what), (memory, [point["rss_mb"] for point in points], "MiB")):
            plot.plot(at, figures, marker="o", color="#2f6f4f")
            plot.set_xlabel(AXES[name].label)
            plot.set_ylabel(label)
            plot.grid(alpha=0.3)
            if name != "events":
                plot.set_xscale("log")
            if plot is memory or name != "size":
                plot.set_ylim(bottom=0)
        times.set_title("time of a rebuild", fontsize=11)
        memory.set_title("peak memory", fontsize=11)
        figure.savefig(directory / f"growth-{name}.svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _axes(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(AXES):
        raise argparse.ArgumentTypeError(f"nothing is measured along {', '.join(sorted(unknown))}")
    return names


def _points(text: str) -> Sequence[int]:
    return tuple(positive(number) for number in text.split(","))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong or a rebuild failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="usually (default %(default)s)")
    parser.add_argument("--along", type=_axes, default=list(AXES), help=f"some of {','.join(AXES)} (default: all)")
    parser.add_argument("--points", type=_points, help="other points, of each axis")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw each axis there, as growth-AXIS.svg")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    return run_in_process(_measure, options, _show)


def _show(report: dict[str, Any]) -> None:
    for name, points in report["axes"].items():
        for point in points:
            took = f"{point['seconds']:8.2f} s  {point['cpu_us']:8.2f} us CPU an event  {point['rss_mb']:6.0f} MiB"
            print(f"{point['at']:>12,} {AXES[name].label:<18} {took}")
    print(f"models equal: {'yes' if report['models_equal'] else 'NO'}")


if __name__ == "__main__":
    sys.exit(main())
