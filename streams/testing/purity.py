"""Whether a projection gives the same models however its events come in: what every rebuild rests on."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import orjson

from projections.contract import CqrsProjection
from streams.data.codec import EventCodec
from streams.data.fold import Fold, feed
from streams.data.refold import MemoryStore
from streams.data.serde import serde_for
from streams.data.typed import typed
from streams.diff import ABSENT, changes
from streams.testing.log import Given, MemoryLog

__all__ = ["assert_rebuild_equals_live"]

_SHOWN = 10


def assert_rebuild_equals_live(
    projection: CqrsProjection[Any],
    events: Iterable[Given],
    *,
    runs: int = 20,
    seed: int = 1,
    partitions: int = 3,
    codec: EventCodec | None = None,
) -> None:
    """Make sure that a rebuild gives the models that live folding gave (reference: Testing Rebuilds).

    Events are folded one by one, each committed, as they are live. Then all over again: at once; and, so many times, in
    batches of random sizes, with commits, crashes (what was not committed is folded again from the models as stored),
    models dropped from memory, and cancellations that are resumed, at random places. A fold that reads a clock, keeps
    something in the projection, or hands the same object to two models does not give the same.

    Args:
        projection: The projection; one object for all runs, as in production.
        events: The history.
        runs: How many random runs.
        seed: Of what is random.
        partitions: Of the log.
        codec: How records are read; by default a JSON envelope.

    Raises:
        AssertionError: Models differ; the run, the model and each field are told.
        ProjectionError, EventError: An event cannot be folded.
    """
    log = MemoryLog(events, partitions=partitions, codec=codec)
    live = _models(projection, log, None)
    _check(live, _models(projection, log, None), "folding them live a second time")
    _check(live, _models(projection, log, random.Random(0), at_once=True), "a rebuild at one go")
    for number in range(runs):
        story: list[str] = []
        found = _models(projection, log, random.Random(seed * 1_000_003 + number), story=story)
        _check(live, found, f"a rebuild with {', '.join(story[:_SHOWN]) or 'one batch'} (run {number} of seed {seed})")


def _models(
    projection: CqrsProjection[Any],
    log: MemoryLog,
    rng: random.Random | None,
    *,
    at_once: bool = False,
    story: list[str] | None = None,
) -> dict[str, bytes]:
    """Fold a log, and give the models as stored.

    Args:
        projection: The projection.
        log: The log.
        rng: What is random; None: one by one, and nothing is.
        at_once: In one batch, with one commit.
        story: Is told what happened.
    """
    serde, reading = serde_for(projection.model_type()), typed(log.codec, projection)
    found: dict[str, bytes] = {}
    for number, records in log.records.items():
        store = MemoryStore.fresh(number, 0)
        fold = Fold(projection, serde, store)
        while left := [one for one in records if one.offset() >= fold.position]:
            size = len(left) if at_once else 1 if rng is None else rng.randrange(1, max(2, len(left) // 2 + 2))
            feed(reading, left[:size], (fold,))
            what = "commit" if rng is None or at_once else rng.choice(["commit", "commit", "crash", "evict", "nothing"])
            if what == "commit":
                fold.commit()
            elif what == "evict":
                fold.commit()
                fold.cache.evict(0)
            elif what == "crash":
                if story is not None:
                    story.append(f"a crash before offset {fold.position} of partition {number}")
                fold = Fold(projection, serde, store)
                if rng is not None and rng.random() < 0.5 and fold.position < len(records):
                    feed(reading, records[fold.position : fold.position + 1], (fold,))  # so that it comes to an end
                    fold.commit()
        fold.commit()
        found.update({model_id: raw for model_id, raw in store.models.items() if raw is not None})
    return found


def _check(live: dict[str, bytes], found: dict[str, bytes], what: str) -> None:
    if live == found:
        return
    model_id = next(id_ for id_ in sorted({*live, *found}) if live.get(id_) != found.get(id_))
    before, after = (orjson.loads(one[model_id]) if model_id in one else ABSENT for one in (live, found))
    lines = [
        f"  {change.path or '/'}: live {change.before!r}, rebuilt {change.after!r}".replace("UNSET", "nothing")
        for change in changes(before, after)[:_SHOWN]
    ]
    raise AssertionError(
        "\n".join(
            [
                f"{what} gives another model {model_id!r} than folding the same events live:",
                *lines,
                "The fold is not pure: given the same events, apply_to_model must give the same models, whatever "
                "was folded before, in however many parts.",
            ]
        )
    )
