"""OrderSummary folds an order's events, and gives the same from a model that went through JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from projections.contract import Event
from projections.datasets import order_events
from projections.orders import Order, OrderSummary

PROJECTION = OrderSummary()


def event(kind: str, data: Any, *, stream: str = "order-1", at: str = "2024-05-01T10:00:00Z") -> Event:
    return Event(f"{kind}-{at}", kind, stream, at, data, None, "orders", 0, 0)


def fold(*events: Event, model: Order | None = None) -> Order | None:
    for one in events:
        if PROJECTION.extract_model_id(one) is not None:
            model = PROJECTION.apply_to_model(model, one)
    return model


PLACED = event("OrderPlaced", {"customer": "ada"}, at="2024-05-01T09:00:00Z")
TWO_PENS = event("ItemAdded", {"article": "pen", "quantity": 2, "unit_price_cents": 150})


def test_the_total_is_the_sum_of_the_lines() -> None:
    ink = event("ItemAdded", {"article": "ink", "quantity": 1, "unit_price_cents": 999})
    order = fold(PLACED, TWO_PENS, ink)
    assert order is not None
    assert order.total_cents == 2 * 150 + 999
    assert order.lines["pen"] == {"quantity": 2, "unit_price_cents": 150}


def test_a_new_price_is_the_price_of_the_whole_line() -> None:
    dearer = event("ItemAdded", {"article": "pen", "quantity": 1, "unit_price_cents": 200})
    order = fold(PLACED, TWO_PENS, dearer)
    assert order is not None
    assert order.total_cents == 3 * 200


def test_removing_all_of_an_article_removes_its_line() -> None:
    order = fold(PLACED, TWO_PENS, event("ItemRemoved", {"article": "pen", "quantity": 2}))
    assert order is not None
    assert order.lines == {}
    assert order.total_cents == 0


def test_removing_more_than_there_is_stops_the_fold_with_both_figures() -> None:
    with pytest.raises(ValueError, match="3 of article 'pen' are removed, and the order has 2"):
        fold(PLACED, TWO_PENS, event("ItemRemoved", {"article": "pen", "quantity": 3}))


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        ("OrderPaid", {"amount_cents": 300}, "paid"),
        ("OrderShipped", {"tracking": "p-1"}, "shipped"),
        ("OrderCancelled", {"reason": "late"}, "cancelled"),
        ("ItemAdded", {"article": "a", "quantity": 1, "unit_price_cents": 1}, "open"),
    ],
)
def test_the_status_follows_the_last_event(kind: str, data: Any, status: str) -> None:
    order = fold(PLACED, event(kind, data, at="2024-05-02T00:00:00Z"))
    assert order is not None
    assert order.status == status
    assert order.placed_at == "2024-05-01T09:00:00Z"
    assert order.changed_at == "2024-05-02T00:00:00Z"


def test_a_view_is_declined() -> None:
    assert PROJECTION.extract_model_id(event("OrderViewed", {})) is None


def test_an_unknown_event_changes_nothing() -> None:
    assert fold(PLACED, TWO_PENS, event("GiftWrapped", {})) == fold(PLACED, TWO_PENS)


def test_erasing_deletes_the_order_and_later_items_do_not_bring_it_back() -> None:
    assert fold(PLACED, event("OrderErased", {})) is None
    assert fold(PLACED, event("OrderErased", {}), TWO_PENS) is None


def test_an_order_placed_again_after_erasure_starts_anew() -> None:
    order = fold(PLACED, TWO_PENS, event("OrderErased", {}), PLACED)
    assert order is not None
    assert order.total_cents == 0


def test_a_model_that_went_through_json_folds_on_identically() -> None:
    kept: dict[str, Order | None] = {}
    stored: dict[str, bytes] = {}
    for stream, envelope in order_events(300, seed=3):
        one = event(envelope["type"], envelope["data"], stream=stream, at=envelope["time"])
        if PROJECTION.extract_model_id(one) is None:
            continue
        kept[stream] = PROJECTION.apply_to_model(kept.get(stream), one)
        before = msgspec.json.decode(stored[stream], type=Order) if stream in stored else None
        after = PROJECTION.apply_to_model(before, one)
        stored.pop(stream, None)
        if after is not None:
            stored[stream] = msgspec.json.encode(after)
    assert {stream: msgspec.json.encode(order) for stream, order in kept.items() if order} == stored
    assert len(stored) > 200
