"""The reference's example: a summary of each order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from projections.contract import CqrsProjection, Event

__all__ = ["Line", "Order", "OrderSummary"]


class Line(TypedDict):
    """What is ordered of one article."""

    quantity: int
    unit_price_cents: int


@dataclass(slots=True, kw_only=True)
class Order:
    """One order as it stands. Money is whole cents."""

    customer: str
    status: str = "open"
    """`open`, `paid`, `shipped` or `cancelled`."""
    lines: dict[str, Line] = field(default_factory=dict)
    """Article → quantity and price; an article that was removed whole is not in it."""
    total_cents: int = 0
    """The sum over the lines."""
    paid_cents: int = 0
    placed_at: str | int = ""
    changed_at: str | int = ""
    """Time of the last event that was folded."""
    tracking: str | None = None
    """The parcel's number, once shipped."""
    cancelled_because: str | None = None


class OrderSummary(CqrsProjection[Order]):
    """One summary per order: lines, totals, payment and where it stands.

    `OrderViewed` is declined. `OrderErased` deletes the model, and only a new `OrderPlaced` brings it back:
    what else arrives later for an order that was erased is not stored.

    Its rebuild behavior is `rebuild_doc`.
    """

    name = "order-summary"
    version = 1
    rebuild_doc = {  # noqa: RUF012 - read, and never changed
        "typical_seconds_per_million_events": 3.75,
        "memory_bytes": 400_000_000,
        "dependencies": "none; prices are in the events, so no product catalog has to be current",
        "notes": "safe at any time: a pure fold; measured with 120,000 orders, one process, two cores",
    }

    @dataclass(slots=True, kw_only=True)
    class Query:
        """Which orders a list is to have; all conditions hold."""

        status: list[str] = field(default_factory=list)
        """One of these."""
        customer: str | None = None
        least_total_cents: int = 0

    def matches(self, model: Order, query: Query) -> bool:
        """Whether an order is as the query says."""
        return (
            (not query.status or model.status in query.status)
            and query.customer in (None, model.customer)
            and model.total_cents >= query.least_total_cents
        )

    def extract_model_id(self, event: Event) -> str | None:
        """The order's id, which is the stream; None for `OrderViewed`, which changes no order."""
        return None if event.type == "OrderViewed" else event.stream

    def apply_to_model(self, model: Order | None, event: Event) -> Order | None:
        """Fold one event of an order; an event of another type is no change.

        Raises:
            ValueError: More of an article is removed than the order has.
        """
        kind = event.type
        data = event.data
        if kind == "OrderErased":
            return None
        if kind == "OrderPlaced":
            return Order(customer=data["customer"], placed_at=event.recorded_at, changed_at=event.recorded_at)
        if model is None:
            return None  # erased before
        if kind == "ItemAdded":
            _add(model, data["article"], data["quantity"], data["unit_price_cents"])
        elif kind == "ItemRemoved":
            _remove(model, data["article"], data["quantity"])
        elif kind == "OrderPaid":
            model.paid_cents += data["amount_cents"]
            model.status = "paid"
        elif kind == "OrderShipped":
            model.tracking = data["tracking"]
            model.status = "shipped"
        elif kind == "OrderCancelled":
            model.cancelled_because = data["reason"]
            model.status = "cancelled"
        else:
            return model
        model.changed_at = event.recorded_at
        return model


def _add(model: Order, article: str, quantity: int, unit_price_cents: int) -> None:
    line = model.lines.get(article)
    if line is None:
        model.lines[article] = {"quantity": quantity, "unit_price_cents": unit_price_cents}
        model.total_cents += quantity * unit_price_cents
        return
    # The newest price is the price of the whole line.
    before = line["quantity"] * line["unit_price_cents"]
    line["quantity"] += quantity
    line["unit_price_cents"] = unit_price_cents
    model.total_cents += line["quantity"] * unit_price_cents - before


def _remove(model: Order, article: str, quantity: int) -> None:
    line = model.lines.get(article)
    if line is None or line["quantity"] < quantity:
        had = 0 if line is None else line["quantity"]
        raise ValueError(f"{quantity} of article {article!r} are removed, and the order has {had}")
    line["quantity"] -= quantity
    model.total_cents -= quantity * line["unit_price_cents"]
    if not line["quantity"]:
        del model.lines[article]
