"""`python -m tests.benchmarks.instructions`: the processor's instructions for an event, counted by Valgrind.

Where time is noise on a shared machine, instructions are not: two runs differ by less than a hundredth. So a change
that makes the way from records to models longer is seen where it is made. What is counted is that way alone, with real
records, real models and a real store, and without a broker: two runs of one process, one of which folds more events,
subtracted.

- `plain`: `orjson.loads`, and the projection's fold over a dict: what no fold in Python needs less than.
- `refold`: decoding, the fold, the cache of models. `typed`: the same with the type of the events stated.

Each is told as a multiple of `plain`, so that it holds for another build of Python or of a library. `--record` writes
them to `instructions.json`, by version of Python; `test_instructions` fails where one is by more than 3 % above that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Message

from streams.data.codec import EventCodec
from streams.data.feeding import Feeding, feed_all
from streams.data.fold import Fold
from streams.data.json_codec import JsonCodec
from streams.data.partition import HeldPartition
from streams.data.rocks_partition import RocksPartition
from streams.data.serde import serde_for
from streams.data.store import StoreState
from streams.data.typed import typed
from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.contenders.refold_typed import TypedOrderSummary
from tests.benchmarks.workload import Workload

__all__ = ["RECORDED", "main", "measure", "version"]

RECORDED = Path(__file__).with_name("instructions.json")
_EVENTS = (3_000, 13_000)
_KEYS = 1_000
_BATCH = 500
_COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")
_START_MS = 1_767_225_600_000


def version() -> str:
    """Name the Python that this is."""
    return "{} {}.{}".format(platform.python_implementation(), *sys.version_info)


def _records(events: int) -> list[Message]:
    workload = Workload(events=events, keys=_KEYS, partitions=1)
    return [
        Message(topic="t", partition=0, offset=offset, key=key, value=value, timestamp=(1, _START_MS))
        for offset, (key, value) in enumerate(workload.records())
    ]


def _plain(records: list[Message], _directory: Path) -> None:
    apply, loads = OrderSummary().apply_to_model, orjson.loads
    models: dict[str, Any] = {}
    for record in records:
        event = _Plain(loads(record.value()))
        stream = record.key().decode()
        models[stream] = apply(models.get(stream), event)  # type: ignore[arg-type]


class _Plain:
    """As much of an event as the fold reads."""

    __slots__ = ("data", "id")

    def __init__(self, document: dict[str, Any]) -> None:
        self.id, self.data = document["id"], document["data"]


def _folding(make: Callable[[], OrderSummary | TypedOrderSummary]) -> Callable[[list[Message], Path], None]:
    def fold(records: list[Message], directory: Path) -> None:
        projection = make()
        codec: EventCodec = typed(JsonCodec(), projection)
        fresh = StoreState(directory="d", build=1, partition=0, start=0, position=0)
        store = RocksPartition.open(directory / "0", fresh)
        held = HeldPartition(0)
        held.fold = Fold(projection, serde_for(projection.model_type()), store)
        for start in range(0, len(records), _BATCH):
            feeding = Feeding(held, list(records[start : start + _BATCH]), is_cut=False, end=None, interrupts=())
            feed_all(codec, [feeding])
            if feeding.error is not None:
                raise feeding.error
        held.fold.commit()
        assert held.fold.position == len(records)

    return fold


KINDS: dict[str, Callable[[list[Message], Path], None]] = {
    "plain": _plain,
    "refold": _folding(OrderSummary),
    "typed": _folding(TypedOrderSummary),
}


def _run_all(directory: Path) -> None:
    """Run each kind with each number of events, in a process that is forked for it: what they have in common, from
    starting Python to making the records, is then the same, and drops out."""
    records = _records(max(_EVENTS))
    for kind, run in KINDS.items():
        for events in _EVENTS:
            if (pid := os.fork()) == 0:
                (directory / f"{kind}-{events}").mkdir()
                run(records[:events], directory / f"{kind}-{events}")
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            if status:
                sys.exit(f"{kind} with {events} events failed: {status}")
            (directory / f"{kind}-{events}.pid").write_text(str(pid))


def measure(valgrind: str) -> dict[str, Any]:
    """Count, and give the report: instructions for an event of each kind, and as a multiple of `plain`."""
    with tempfile.TemporaryDirectory(prefix="refold-bench-") as name:
        directory = Path(name)
        subprocess.run(
            [
                *(valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"),
                f"--log-file={directory}/%p.log",
                *(sys.executable, "-m", "tests.benchmarks.instructions", "--in", str(directory)),
            ],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        counted = {kind: [_counted(directory, f"{kind}-{events}") for events in _EVENTS] for kind in KINDS}
    few, many = _EVENTS
    per_event = {kind: (upper - lower) / (many - few) for kind, (lower, upper) in counted.items()}
    return {
        "python": version(),
        "instructions": {kind: round(number) for kind, number in per_event.items()},
        "to_plain": {
            kind: round(number / per_event["plain"], 4) for kind, number in per_event.items() if kind != "plain"
        },
    }


def _counted(directory: Path, name: str) -> int:
    log = (directory / f"{(directory / f'{name}.pid').read_text()}.log").read_text()
    found = _COUNTED.search(log)
    if found is None:
        raise RuntimeError(f"Valgrind counted nothing for {name}: {log[-500:]}")
    return int(found[1].replace(",", ""))


def main(arguments: list[str] | None = None) -> int:
    """Count and print, or record."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.instructions", description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="what is counted is what it may be from now on")
    parser.add_argument("--in", dest="directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.directory is not None:
        _run_all(options.directory)
        return 0
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        sys.exit("valgrind is not installed: .ci/tools installs it")
    report = measure(valgrind)
    print(json.dumps(report, indent=2))
    if options.record:
        recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        recorded[report["python"]] = report["to_plain"]
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
