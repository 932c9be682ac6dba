"""Refold with the type of the events stated: the same rebuild, the same models."""

from __future__ import annotations

import msgspec

from projections.contract import CqrsProjection, Event
from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold import Order, unavailable

__all__ = ["TypedOrderSummary", "run", "unavailable"]


class ItemAdded(msgspec.Struct, gc=False):
    """All that such an event has."""

    sku: str
    quantity: int
    price_cents: int
    customer: str


class TypedOrderSummary(CqrsProjection[Order, ItemAdded]):
    """The benchmark's fold, of events with a type."""

    name = "bench-typed-order-summary"

    def extract_model_id(self, event: Event[ItemAdded]) -> str | None:
        """One model a stream."""
        return event.stream

    def apply_to_model(self, model: Order | None, event: Event[ItemAdded]) -> Order | None:
        """Fold; the same as `workload.fold`."""
        if model is None:
            model = Order()
        added = event.data
        model.items += 1
        model.quantity += added.quantity
        model.total_cents += added.quantity * added.price_cents
        model.last = event.id
        return model


def run(job: Job) -> Outcome:
    """Rebuild once, with one agent."""
    return refold.run(job, projection=TypedOrderSummary())
