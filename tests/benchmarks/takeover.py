"""`python -m tests.benchmarks.takeover`: a worker dies with its disk; how long until what it had is served again.

Two workers over one topic, as in `service`, with a session timeout of `session_s`. One is killed (SIGKILL), and all its
partitions are asked for again and again. In rounds, each with a new fleet:

- `replay_after_s`: the other one folds them from the beginning of the topic.
- `fetch_after_s`: it fetches them from a snapshot repository on a shared volume, and folds the tail.
- `standby_after_s`: it has stood by for them (`--standbys 1`). `standby_stale_after_s` is until readers were answered
  from its copies, which say how stale they are.

All but the last are seconds after the session timeout until an answer for every partition is not stale: medians.
`models_equal` is true where all models were the same in each round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.service import _NAME, Worker, all_models, wait
from tests.benchmarks.workload import Workload

__all__ = ["main"]

_PAGE = f"/v1/projections/{_NAME}/models?limit=1"


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all rounds and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    topic = runner.topic(workload)
    kinds: dict[str, dict[str, str]] = {
        "replay": {},
        "fetch": {"REFOLD_SNAPSHOT_REPOSITORY": f"file://{directory / 'volume'}", "REFOLD_SNAPSHOT_SECONDS": "1"},
        "standby": {"REFOLD_STANDBYS": "1"},
    }
    seconds: dict[str, list[float]] = {}
    models: list[dict[str, Any]] = []
    for number in range(1, options.repeat + 1):
        say(f"round {number} of {options.repeat}")
        for kind, variables in kinds.items():
            home = directory / f"{kind}-{number}"
            stale_s, fresh_s, found = take_over(runner, topic, home, options, kind, variables)
            seconds.setdefault(f"{kind}_after_s", []).append(fresh_s - options.session_s)
            if kind == "standby":
                seconds.setdefault("standby_stale_after_s", []).append(stale_s)
            models.append(found)
            say(f"  {kind:>8}: answered after {stale_s:.1f} s, fresh after {fresh_s:.1f} s")
    return {
        "events": options.events,
        "keys": options.keys,
        "session_s": options.session_s,
        **{name: round(statistics.median(took), 2) for name, took in seconds.items()},
        "models_equal": all(one == models[0] for one in models),
    }


def take_over(
    runner: Runner, topic: str, home: Path, options: argparse.Namespace, kind: str, variables: Mapping[str, str]
) -> tuple[float, float, dict[str, Any]]:
    """Kill one of two; give after how many seconds all was answered, and all was fresh, and all models then."""
    told = {"REFOLD_SESSION_TIMEOUT_S": str(options.session_s), **variables}
    workers = [Worker(runner, topic, home, name, mark=home.name, **told) for name in ("one", "two")]
    try:
        for one in workers:
            one.wait()
        stays, goes = workers
        wait("both to fold", lambda: 0 < len(held(stays)) < options.partitions)
        theirs = set(range(options.partitions)) - set(held(stays))
        for one in workers:
            one.wait()
        if kind == "fetch":
            wait("snapshots", lambda: all(one["snapshot"] is not None for one in held(goes).values()))
        if kind == "standby":
            wait("copies", lambda: ready_copies(stays) == theirs)
        goes.process.kill()
        began, stale_s = time.monotonic(), None
        while True:
            answers = [stays.ask(f"{_PAGE}&partition={number}") for number in sorted(theirs)]
            if all(status == 200 for status, _ in answers):
                stale_s = time.monotonic() - began if stale_s is None else stale_s
                if not any("stale" in body for _, body in answers):
                    return stale_s, time.monotonic() - began, all_models(stays)
            time.sleep(0.02)
    finally:
        for one in workers:
            if one.process.poll() is None:
                one.process.kill()
            one.process.wait()


def generation(worker: Worker) -> dict[str, Any]:
    """Give what a worker says of the active generation."""
    projection = worker.ask("/status")[1]["projections"][_NAME]
    found: dict[str, Any] = projection["generations"].get(projection["active"], {})
    return found


def held(worker: Worker) -> dict[int, Any]:
    """Give the partitions that a worker holds."""
    return {one["partition"]: one for one in generation(worker).get("partitions", []) if one["here"]}


def ready_copies(worker: Worker) -> set[int]:
    """Give the partitions of which it stands by with a copy at the topic's end."""
    copies = generation(worker).get("standing_by", {})
    return {int(number) for number, one in copies.items() if one["phase"] == "ready"}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Exit status 1 where models are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.takeover", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="events (default %(default)s)")
    parser.add_argument("--session-s", type=positive, default=6, help="session timeout (default %(default)s)")
    add_common_options(parser)
    return run_in_process(measure, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
