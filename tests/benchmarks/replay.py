"""`python -m tests.benchmarks.replay`: how fast a topic is folded from its beginning, beside the peers.

One topic of JSON events, produced here; one run of the benchmark; every contender in a process of its own,
one after the other, in rounds (so that a noisy minute hits all of them):

- `bound`: the same job with nothing done: join a group, read the topic to its end, parse, leave. The best round.
- `plain`: the fold in plain Python, into a dict, nothing kept: what no fold in Python is faster than. The best round.
- `steady`: reading and parsing alone, between the first and the last record. The best round.
- `refold`: one agent, `rebuild_from_beginning()`, RocksDB state and checkpoints. The median.
- `refold_typed`: the same with the type of the events stated (docs/events.md).
- `refold_2`, `refold_4`: `refold` with two and four agents, each in a process of its own; `refold_typed_2` is typed.
- `quix`, `bytewax`, `pathway`, `kafka_streams`, `faust_table`: the same fold with their own durable state. The
  median; null where the peer is not installed.

What is timed is told in `tests.benchmarks.contenders`, and what is set, in each contender's module. The
slow peers may fold the topic's first events only (a topic of the same seed with fewer events):
`quix_events` and `faust_events` say how many. `models_equal` is true where every contender that ran ended,
in every round, with the models that a plain dict fold of the same events gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from tests.benchmarks.contenders.job import Outcome
from tests.benchmarks.kafka import say
from tests.benchmarks.machine import described
from tests.benchmarks.peers import PACKAGES
from tests.benchmarks.runner import ContenderError, Runner, unavailable
from tests.benchmarks.workload import Workload

__all__ = ["main", "measure"]


class Entry(NamedTuple):
    """How a contender takes part."""

    name: str
    best: bool = False
    """Report its best round and not its median."""
    rounds: int | None = None
    """At most so many rounds; None: all."""


CONTENDERS = (
    Entry("bound", best=True),
    Entry("plain", best=True),
    Entry("steady", best=True),
    Entry("refold"),
    Entry("refold_typed"),
    Entry("refold_2"),
    Entry("refold_4"),
    Entry("refold_typed_2"),
    Entry("kafka_streams"),
    Entry("quix"),
    Entry("bytewax"),
    Entry("pathway"),
    Entry("faust_table", rounds=1),
)
_SHORT = {"faust": "faust_table", "streams": "kafka_streams", "kstreams": "kafka_streams"}
_PACKAGES = ("confluent-kafka", "faust-streaming", "orjson", "rocksdict")


def measure(runner: Runner, workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and give the report."""
    skipped = dict.fromkeys(options.skip, "skipped as asked")
    for entry in CONTENDERS:
        if entry.name not in skipped and (reason := unavailable(entry.name)):
            skipped[entry.name] = reason
    for name, reason in skipped.items():
        say(f"without {name}: {reason}")

    parts = {entry.name: workload for entry in CONTENDERS}
    parts["quix"] = workload.first(options.quix_events or workload.events)
    parts["faust_table"] = workload.first(options.faust_events)
    running = [entry for entry in CONTENDERS if entry.name not in skipped]

    topics: dict[int, str] = {}
    references: dict[int, Outcome] = {}
    for part in sorted({parts[entry.name].events for entry in running}, reverse=True):
        topics[part] = runner.topic(workload.first(part), options.topic if part == workload.events else None)
        references[part] = runner.run("reference", topics[part])
        say(f"  the first {part:,} events make {references[part].models:,} models")

    outcomes: dict[str, list[Outcome]] = {entry.name: [] for entry in running}
    for number in range(1, options.repeat + 1):
        say(f"round {number} of {options.repeat}")
        for entry in running:
            if entry.rounds is not None and number > entry.rounds:
                continue
            part = parts[entry.name].events
            outcome = runner.run(entry.name, topics[part])
            outcomes[entry.name].append(outcome)
            say(f"  {entry.name:<14} {_eps(outcome):>9,} events/s  ({part:,} in {outcome.seconds:.2f} s)")

    wrong = sorted(
        name
        for name, ran in outcomes.items()
        for outcome in ran
        if name not in ("bound", "steady") and outcome.digest != references[parts[name].events].digest
    )
    for name in wrong:
        say(f"{name} ended with other models than a plain fold of the same events")
    return _report(workload, parts, outcomes, skipped, models_equal=not wrong)


def _report(
    workload: Workload,
    parts: dict[str, Workload],
    outcomes: dict[str, list[Outcome]],
    skipped: dict[str, str],
    *,
    models_equal: bool,
) -> dict[str, Any]:
    eps: dict[str, int | None] = dict.fromkeys((entry.name for entry in CONTENDERS), None)
    for entry in CONTENDERS:
        if ran := [_eps(outcome) for outcome in outcomes.get(entry.name, ())]:
            eps[entry.name] = max(ran) if entry.best else round(statistics.median(ran))
    refold = outcomes.get("refold")
    return {
        "events": workload.events,
        **{f"{name}_eps": figure for name, figure in eps.items()},
        "models_equal": models_equal,
        "rss_mb": round(statistics.median(outcome.rss_mb for outcome in refold), 1) if refold else None,
        **{
            f"refold_to_{name}": round(eps["refold"] / figure, 3) if eps["refold"] and figure else None
            for name, figure in eps.items()
            if name != "refold"
        },
        "quix_events": parts["quix"].events,
        "faust_events": parts["faust_table"].events,
        "keys": workload.keys,
        "partitions": workload.partitions,
        "seed": workload.seed,
        "skipped": skipped,
        "rounds": {
            name: [
                {
                    "eps": _eps(outcome),
                    "seconds": round(outcome.seconds, 3),
                    "cpu_seconds": outcome.cpu_seconds,
                    "rss_mb": outcome.rss_mb,
                }
                for outcome in ran
            ]
            for name, ran in outcomes.items()
        },
        "machine": described(),
        "versions": _versions(),
    }


def _eps(outcome: Outcome) -> int:
    return round(outcome.events / outcome.seconds)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {peer: packages[peer] for peer, packages in PACKAGES.items()}


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'contender':<14} {'events/s':>10} {'of bound':>9} {'RSS MiB':>8}   part of the topic"]
    for entry in CONTENDERS:
        eps = report[f"{entry.name}_eps"]
        if eps is None:
            lines.append(f"{entry.name:<14} {'-':>10} {'-':>9} {'-':>8}   {report['skipped'][entry.name]}")
            continue
        rss = statistics.median(ran["rss_mb"] for ran in report["rounds"][entry.name])
        part = {"quix": report["quix_events"], "faust_table": report["faust_events"]}.get(entry.name, report["events"])
        of_bound = f"{eps / report['bound_eps']:.0%}" if report["bound_eps"] else "-"
        lines.append(f"{entry.name:<14} {eps:>10,} {of_bound:>9} {rss:>8.0f}   {part:,} events")
    lines.append(f"models equal: {'yes' if report['models_equal'] else 'NO'}")
    on = report["machine"]
    lines.append(f"{on['cpus']} cores ({on['processor']}), memory answers within {on['scattered_ns']:g} ns")
    return "\n".join(lines)


def _skip(text: str) -> list[str]:
    names = [_SHORT.get(name, name) for name in text.replace("-", "_").split(",") if name]
    if unknown := set(names) - {entry.name for entry in CONTENDERS}:
        raise argparse.ArgumentTypeError(f"no such contender: {', '.join(sorted(unknown))}")
    return names


def positive(text: str) -> int:
    """Parse a count, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what `replay` and `growth` share."""
    parser.add_argument("--keys", type=positive, default=100_000, help="distinct streams (default %(default)s)")
    parser.add_argument("--partitions", type=positive, default=4, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides every event (default %(default)s)")
    parser.add_argument("--repeat", type=positive, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--bootstrap-servers", help="the broker (default: the embedded one)")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that one run may take (default 900)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, in place of the table")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models differ or a contender failed, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.replay", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="(default %(default)s)")
    parser.add_argument("--quix-events", type=positive, help="first events for Quix Streams (default: all)")
    parser.add_argument("--faust-events", type=positive, default=50_000, help="first events for Faust (%(default)s)")
    parser.add_argument("--skip", type=_skip, default=[], help="contenders to leave out: quix,faust,kafka_streams")
    parser.add_argument("--topic", help="a topic to use again: made if it is missing, and kept")
    parser.add_argument("--keep-topic", action="store_true", help="keep the topic, and say its name")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    if options.keep_topic and options.topic is None:
        options.topic = f"refold-bench-kept-{workload.events}-{workload.keys}-{workload.partitions}-{workload.seed}"
        say(f"keeping {options.topic}: use it again with --topic {options.topic}")
    try:
        with Runner.opened(options.bootstrap_servers, timeout_s=options.timeout) as runner:
            report = measure(runner, workload, options)
    except (ContenderError, ValueError) as error:
        say(f"failed: {error}")
        return 1 if isinstance(error, ContenderError) else 2
    except KeyboardInterrupt:
        say("interrupted; what was made is removed")
        return 130
    print(json.dumps(report, indent=2) if options.json else _table(report))
    return 0 if report["models_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
