"""Folds models of very different sizes with a small cache, and prints by how much the process grew, in bytes."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import orjson

from projections.contract import CqrsProjection, Event
from streams.data.fold import Fold, feed
from streams.data.json_codec import JsonCodec
from streams.data.rocks_partition import RocksPartition
from streams.data.serde import serde_for
from streams.data.store import StoreState
from tests.support import MadeRecord

SHAPES = ("text", "numbers", "objects", "mixed")


class Keeper(CqrsProjection[dict[str, Any]]):
    """Keeps what it is given."""

    name = "keeper"

    def extract_model_id(self, event: Event) -> str:
        return event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any]:
        return {"payload": event.data, "count": (model or {"count": 0})["count"] + 1}


def payload(rng: random.Random, shape: str) -> Any:
    size = rng.choice([100, 100, 100, 1000, 10_000, 100_000, 1_000_000])
    if shape == "mixed":
        shape = rng.choice(SHAPES[:3])
    if shape == "text":
        return "x" * size
    if shape == "numbers":
        return [rng.randrange(1000, 10**9) for _ in range(size // 10)]
    return [{"name": f"n{rng.randrange(10**6)}", "value": rng.random()} for _ in range(size // 45)]


def resident() -> int:
    """The resident set now; and its peak so far is to be counted from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS:")


def peak() -> int:
    return _status("VmHWM:")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(directory: str, shape: str, limit: int, total: int) -> None:
    rng = random.Random(5)
    state = StoreState(directory="d", build=1, partition=0, start=0, position=0)
    fold = Fold(Keeper(), serde_for(dict), RocksPartition.open(Path(directory) / "0", state))
    before = None
    offset = written = 0
    while written < total:
        value = orjson.dumps({"id": f"e{offset}", "type": "T", "time": "t", "data": payload(rng, shape)})
        record = MadeRecord(value, f"s{rng.randrange(20_000)}".encode(), offset)
        feed(JsonCodec(), [record], (fold,))
        offset, written = offset + 1, written + len(value)
        if fold.cache.is_full(limit) or offset % 5000 == 0:
            fold.commit()
        fold.cache.evict(limit)
        if before is None and written > 4 << 20:  # what libraries and the store need at all is there by now
            before = resident()
    fold.commit()
    fold.close()
    print(peak() - (before or 0))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
