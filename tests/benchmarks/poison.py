"""`python -m tests.benchmarks.poison`: what events that cannot be folded cost, and what it costs to be ready for them.

Two topics of the same events, but that in one of them one event in a hundred cannot be folded; each rebuild in a
process of its own, timed as in `replay`, in rounds:

- `halts`: the clean topic with the default settings. Everything else is told as a share of its rate.
- `ready`: the clean topic with `on_error = dead-letter`.
- `skips`, `keeps`: the other topic, with `skip` and with `dead-letter`. What is kept is written to a topic, and so is
  every later event of a model that waits: that may be many more than one in a hundred (`kept_share`).

The topic that letters are kept in is there before the time runs, and has none of other runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from tests.benchmarks.contenders.job import Outcome
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Model, Poisoned, Workload, digest, fold

__all__ = ["main"]

_RUNS = {
    "halts": ("refold_halts", False),
    "ready": ("refold_keeps", False),
    "skips": ("refold_skips", True),
    "keeps": ("refold_keeps", True),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.poison", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="(default %(default)s)")
    parser.add_argument("--every", type=positive, default=100, help="one in so many fails (default %(default)s)")
    add_common_options(parser)
    return run_in_process(_measure, parser.parse_args(arguments))


def _measure(runner: Runner, options: argparse.Namespace, _directory: Path) -> dict[str, Any]:
    sizes = {"events": options.events, "keys": options.keys, "partitions": options.partitions, "seed": options.seed}
    clean, poisoned = Workload(**sizes), Poisoned(**sizes, every=options.every)
    topics = {False: runner.topic(clean), True: runner.topic(poisoned, f"{runner.mark}-poisoned")}
    skipped, kept, share = _expected(poisoned.records())
    expected = {"ready": None, "skips": skipped, "keeps": kept, "halts": None}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in _RUNS}
    for number in range(1, options.repeat + 1):
        say(f"round {number} of {options.repeat}")
        for name, (contender, is_poisoned) in _RUNS.items():
            outcome = runner.run(contender, topics[is_poisoned])
            outcomes[name].append(outcome)
            say(f"  {name:>6}: {outcome.seconds:.2f} s ({outcome.cpu_seconds:.1f} s CPU)")
    expected["ready"] = expected["halts"] = outcomes["halts"][0].digest
    rates = {name: statistics.median(one.events / one.seconds for one in ran) for name, ran in outcomes.items()}
    return {
        "events": options.events,
        **{f"{name}_eps": round(rate) for name, rate in rates.items()},
        **{f"{name}_ratio": round(rate / rates["halts"], 3) for name, rate in rates.items() if name != "halts"},
        "kept_share": round(share, 4),
        "models_equal": all(one.digest == expected[name] for name, ran in outcomes.items() for one in ran),
    }


def _expected(records: Iterable[tuple[bytes, bytes]]) -> tuple[str, str, float]:
    """Give the digests of what is to come of it by skipping and by keeping, and the share of events that is kept."""
    skipping: dict[str, Model] = {}
    keeping: dict[str, Model] = {}
    blocked: set[bytes] = set()
    count = kept = 0
    for key, value in records:
        count += 1
        try:
            event = orjson.loads(value)
        except orjson.JSONDecodeError:
            event = {"type": "Broken"}
        is_bad = event["type"] == "Broken"
        if is_bad or key in blocked:
            blocked.add(key)
            kept += 1
        else:
            keeping[key.decode()] = fold(keeping.get(key.decode()), event["id"], event["data"])
        if not is_bad:
            skipping[key.decode()] = fold(skipping.get(key.decode()), event["id"], event["data"])
    return digest(skipping.items())[0], digest(keeping.items())[0], kept / max(1, count)


if __name__ == "__main__":
    sys.exit(main())
