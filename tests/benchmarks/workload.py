"""The events that every contender folds, the fold itself in plain Python, and how its results are compared.

An event is a JSON envelope of about 150 bytes, its key is the stream, keys are uniformly random. The seed
decides everything: event number i is the same in every topic of one seed, so a topic of the first N events
holds, partition by partition, a prefix of the full one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import orjson

__all__ = ["Model", "Workload", "digest", "fold"]

Model = dict[str, Any]
"""`{"items": int, "quantity": int, "total_cents": int, "last": event id}`."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a topic."""

    events: int
    keys: int
    partitions: int
    seed: int = 1
    padding: int = 0
    """So many bytes more has each event, which no fold reads."""

    def first(self, events: int) -> Workload:
        """Give the workload of the first events of this one (all, where it has no more)."""
        return msgspec.structs.replace(self, events=min(events, self.events))

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each record's key and value, in the order in which they are produced."""
        rng = random.Random(self.seed)
        note = {"note": "n" * self.padding} if self.padding else {}
        for number in range(self.events):
            key = b"order-%07d" % rng.randrange(self.keys)
            minute, second = divmod(number // 1000 % 3600, 60)
            yield (
                key,
                orjson.dumps(
                    {
                        "id": f"e{number:010d}",
                        "type": "ItemAdded",
                        "time": f"2026-01-01T00:{minute:02d}:{second:02d}.{number % 1000:03d}Z",
                        "data": {
                            "sku": f"s{rng.randrange(1000)}",
                            "quantity": rng.randrange(1, 5),
                            "price_cents": rng.randrange(100, 9999),
                            "customer": f"c{rng.randrange(5000)}",
                        }
                        | note,
                    }
                ),
            )


class Poisoned(Workload, frozen=True, kw_only=True):
    """The same, but that one event in so many cannot be folded: by turns, it is torn, or `Picky` raises."""

    every: int = 100

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """See Workload."""
        for number, (key, value) in enumerate(super().records()):
            if number % self.every:
                yield key, value
            elif number % (2 * self.every):
                yield key, value[:-1]
            else:
                yield key, value.replace(b'"ItemAdded"', b'"Broken"', 1)


def fold(model: Model | None, event_id: str, data: dict[str, Any]) -> Model:
    """Fold one event into its order's summary; the model may be changed in place.

    The Python contenders all call this very function, and the Java one has the same in Java.
    """
    if model is None:
        model = {"items": 0, "quantity": 0, "total_cents": 0, "last": ""}
    quantity = data["quantity"]
    model["items"] += 1
    model["quantity"] += quantity
    model["total_cents"] += quantity * data["price_cents"]
    model["last"] = event_id
    return model


def digest(models: Iterable[tuple[str, Model]]) -> tuple[str, int]:
    """Give the SHA-256 of models in the order of their keys as canonical JSON, and their number."""
    sha = hashlib.sha256()
    count = 0
    for key, model in sorted(models, key=lambda pair: pair[0]):
        sha.update(orjson.dumps([key, model], option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
        count += 1
    return sha.hexdigest(), count
