"""Refold itself: one rebuild from the beginning, RocksDB state and checkpoints on, through the public API.

Default settings. Timed from the call of `rebuild_from_beginning()` to its return: what it checks before it
starts, joining its group, the last checkpoint and leaving are all counted.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

import streams
from projections.contract import CqrsProjection, Event
from tests.benchmarks.contenders.job import Clock, Job, Outcome
from tests.benchmarks.workload import digest

__all__ = ["ByModel", "OrderSummary", "run", "unavailable"]

_NEEDED = ("KafkaCheckpointStore", "KafkaEventStore", "RebuildCoordinator", "RocksStore")


class Order(msgspec.Struct):
    """The read model: a Struct, as the README advises where speed counts."""

    items: int = 0
    quantity: int = 0
    total_cents: int = 0
    last: str = ""


class OrderSummary(CqrsProjection[Order]):
    """The benchmark's fold as a projection."""

    name = "bench-order-summary"

    def extract_model_id(self, event: Event) -> str | None:
        """One model a stream."""
        return event.stream

    def apply_to_model(self, model: Order | None, event: Event) -> Order | None:
        """Fold; the same as `workload.fold`."""
        if model is None:
            model = Order()
        data = event.data
        quantity = data["quantity"]
        model.items += 1
        model.quantity += quantity
        model.total_cents += quantity * data["price_cents"]
        model.last = event.id
        return model


class ByModel(OrderSummary):
    """The same, with its events written once more, keyed by model."""

    name = "bench-by-model"
    partition_by = "model"


def unavailable() -> str | None:
    """Say so where this version of the package has no rebuild yet."""
    missing = [name for name in _NEEDED if not hasattr(streams, name)]
    return f"`streams` exports no {', '.join(missing)}" if missing else None


def run(
    job: Job, workers: int = 1, projection: CqrsProjection[Order] | None = None, store: Any = None, **settings: Any
) -> Outcome:
    """Rebuild once, with so many agents, and read the models back.

    Args:
        job: The run.
        workers: How many agents.
        projection: Another one than `OrderSummary`.
        store: Where the models are kept, if not in RocksDB.
        settings: Of `FoldSettings`, where they are not the default ones.
    """
    api: Any = streams
    projection = projection or OrderSummary()
    event_log = api.KafkaEventStore(job.topic, bootstrap_servers=job.bootstrap_servers)
    store = store or api.RocksStore(job.path("state"))
    checkpoints = api.KafkaCheckpointStore(job.group, event_log)
    coordinator = api.RebuildCoordinator(
        projection,
        event_log,
        store,
        checkpoints,
        workers=workers,
        **({"settings": api.FoldSettings(**settings)} if settings else {}),
    )

    async def rebuild() -> Outcome:
        clock = Clock()
        await coordinator.rebuild_from_beginning()
        return clock.outcome(0)

    outcome = asyncio.run(rebuild())  # its memory and processor time are of this process alone, where there are several
    with store.reader(projection) as reader:
        events = sum(state.events for state in reader.states().values())
        sha, count = digest((model_id, msgspec.to_builtins(model)) for model_id, model in reader.items())
    return msgspec.structs.replace(outcome, events=events, digest=sha, models=count)
