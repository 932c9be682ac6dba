"""A service with two projections of two topics, as its team writes it down: the flights and the orders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import orjson
import pytest

from projections.datasets import DemoEvent, flight_events, order_events
from projections.flights import AircraftLog
from projections.orders import OrderSummary
from tests.integration.asking import Asking
from tests.integration.fleet import Fleet, fleet, soon
from tests.integration.kit import Kit, produce, read_log

NewKit = Callable[..., Kit]
FLIGHTS, ORDERS = 60_000, 6000
ENOUGH = 100

SERVICE = """
[projections.flights]
class = "projections.flights:AircraftLog"
topic = "{flights}"

[projections.orders]
class = "projections.orders:OrderSummary"
topic = "{orders}"
"""


def records(events: Iterable[DemoEvent]) -> list[tuple[str, bytes]]:
    return [(event.key, orjson.dumps(event.envelope)) for event in events]


def check(of: Fleet, asking: Asking) -> None:
    name = of.projection_object.name
    expected = of.expected()
    for one in of.workers:
        if one.process.poll() is None:
            assert of.models(one, page=1000) == expected, name
    log = read_log(of.kit.bootstrap, of.kit.cluster.topic(of.kit.topic))
    generations = {answer.generation for answer in asking.answers}
    asking.check(log, dict.fromkeys(generations, of.projection_object))
    assert len(generations) == 2, generations
    assert len(asking.answers) > ENOUGH, asking.others


@pytest.mark.slow
def test_flights_and_orders_are_served_through_rebuilds_a_killed_worker_and_a_rollback(
    new_kit: NewKit, tmp_path: Path
) -> None:
    flights = new_kit(partitions=4)
    orders = new_kit(partitions=8, registry_topic=flights.registry)
    sky, shop = records(islice(flight_events(), FLIGHTS)), records(order_events(ORDERS, 7))
    produce(flights.bootstrap, flights.topic, sky[: FLIGHTS // 2])
    produce(orders.bootstrap, orders.topic, shop[: len(shop) // 2])
    config = tmp_path / "refold.toml"
    config.write_text(SERVICE.format(flights=flights.topic, orders=orders.topic))
    with fleet(flights, projection_object=AircraftLog(), config=config) as air:
        ground = Fleet(orders, projection_object=OrderSummary(), workers=air.workers)
        up = {name: air.start(name) for name in "abc"}
        air.ready(*up.values())
        assert set(up["a"].status()["projections"]) == {"aircraft-log", "order-summary"}
        tails = sorted({key for key, _ in sky})[::10]
        numbers = [f"order-{number:07}" for number in range(1, ORDERS, 37)]
        with Asking(air, tails) as of_flights, Asking(ground, numbers) as of_orders:
            for name in ("aircraft-log", "order-summary"):
                status, _, done = up["a"].ask("POST", f"/v1/projections/{name}/rebuild", {}, timeout_s=40)
                assert status == 200, done
            produce(flights.bootstrap, flights.topic, sky[FLIGHTS // 2 :])
            up["b"].kill()
            produce(orders.bootstrap, orders.topic, shop[len(shop) // 2 :])
            up["b"] = air.start("b2", state="b")
            for one in (air, ground):
                soon("the switch", lambda: one.record().active.endswith("-2"), deadline_s=90)  # noqa: B023
                rebuild = one.record().rebuild
                assert rebuild is not None
                assert rebuild.report is not None
                assert rebuild.report.is_identical
            air.ready(*up.values())
            time.sleep(1)  # for some answers of the new generations
            status, _, done = up["c"].ask("POST", "/v1/projections/order-summary/rollback")
            assert (status, done["active"]) == (200, "order-summary.v1"), done
            assert air.record().active == "aircraft-log.v1-2", "the other one is not touched"
            air.ready(*up.values())
            soon("enough to be asked", lambda: min(len(of_flights.answers), len(of_orders.answers)) > ENOUGH)
        for one, asking in ((air, of_flights), (ground, of_orders)):
            soon("all to be folded", lambda: one.models(up["a"], page=1000) == one.expected(), deadline_s=60)  # noqa: B023
            check(one, asking)
        asked = "/v1/projections/order-summary/models?limit=1000&q.status=shipped&q.status=cancelled"
        assert {model["status"] for model in one_page(up["b"].get(asked))} == {"shipped", "cancelled"}
        assert [worker.terminate() for worker in up.values()] == [0, 0, 0]


def one_page(answer: tuple[int, dict[str, list[dict[str, dict[str, str]]]]]) -> list[dict[str, str]]:
    status, page = answer
    assert status == 200
    return [one["model"] for one in page["models"]]
