"""`python -m tests.benchmarks.comparison`: how long the comparison of two large states takes, and in how much memory.

Two stores of `--models` models each are written, of which every `--changed`-th differs; then they are compared, in a
process of its own, whose peak memory is what counts. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from streams.control.compare import compare
from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState
from streams.data.store_reader import read_only

STATE = StoreState(directory="d", build=1, partition=0, start=0, position=0)
_BATCH = 100_000


def models(count: int, changed: int | None) -> Iterator[tuple[str, bytes]]:
    """Yield models of about 90 bytes; every `changed`-th one has another total."""
    for number in range(count):
        total = number + (1 if changed and number % changed == 0 else 0)
        text = (
            f'{{"customer":"c-{number % 9973}","lines":[{number % 7},{number % 11}],"total":{total},"status":"paid"}}'
        )
        yield f"order-{number:010}", text.encode()


def write(path: Path, count: int, changed: int | None) -> None:
    """Fill a store."""
    store = RocksPartition.open(path, STATE)
    batch: list[tuple[str, bytes]] = []
    for one in models(count, changed):
        batch.append(one)
        if len(batch) == _BATCH:
            store.commit(batch, STATE)
            batch = []
    store.commit(batch, STATE)
    store.close()


def measure(directory: Path) -> dict[str, object]:
    """Compare the two stores in a directory."""
    began = time.perf_counter()
    was, now = (read_only(directory / name, directory / f"{name}-scratch") for name in ("before", "after"))
    found = compare(was, now)
    seconds = time.perf_counter() - began
    return {
        "models": found.models_before,
        "changed": found.kinds["changed"],
        "seconds": round(seconds, 2),
        "models_per_second": round(found.models_before / seconds),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1_000_000)
    parser.add_argument("--changed", type=int, default=100, help="every n-th model differs")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within is not None:
        print(json.dumps(measure(options.within), indent=2))
        return
    with tempfile.TemporaryDirectory(prefix="refold-comparison-") as scratch:
        write(Path(scratch) / "before", options.models, None)
        write(Path(scratch) / "after", options.models, options.changed)
        subprocess.run([sys.executable, "-m", "tests.benchmarks.comparison", "--within", scratch], check=True)


if __name__ == "__main__":
    main()
