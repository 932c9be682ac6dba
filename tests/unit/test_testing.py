"""What users test their projections with: it passes what is right, and finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections.contract import CqrsProjection, Event
from streams.errors import EventError, ProjectionError
from streams.testing import MemoryLog, Scenario, assert_rebuild_equals_live, event
from streams.testing.strategies import histories
from tests.support import Tally


class Baskets(CqrsProjection[dict[str, Any]]):
    """As the README's."""

    name = "baskets"

    def extract_model_id(self, event: Event) -> str | None:
        return None if event.type == "Looked" else event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "BasketDropped":
            return None
        basket = model or {"items": 0, "articles": {}}
        basket["items"] += event.data["quantity"]
        basket["articles"][event.data["article"]] = event.data["quantity"]
        return basket


def added(quantity: int = 1, article: str = "tea", stream: str = "basket-1") -> Any:
    return event("ItemAdded", stream, quantity=quantity, article=article)


def test_given_when_then_folds_as_the_engine_does() -> None:
    shop = Scenario(Baskets()).given(added(2)).when(added(1, "cup"), event("Looked", "basket-1"))
    shop.then("basket-1", {"items": 3, "articles": {"tea": 2, "cup": 1}})
    shop.then_nothing("basket-2").then_models({"basket-1": {"items": 3, "articles": {"tea": 2, "cup": 1}}})
    assert shop.declined == 1
    shop.when(event("BasketDropped", "basket-1")).then_nothing("basket-1")
    assert shop.models == {}


def test_what_differs_is_told_by_field() -> None:
    shop = Scenario(Baskets()).given(added(2))
    with pytest.raises(AssertionError) as raised:
        shop.then("basket-1", {"items": 3, "articles": {"tea": 2, "cup": 1}})
    assert str(raised.value).splitlines() == [
        "model 'basket-1' is not as expected:",
        "  /articles/cup: expected 1, and it is nothing",
        "  /items: expected 3, and it is 2",
    ]
    with pytest.raises(AssertionError, match=r"there is no model 'basket-7'; there are: 'basket-1'"):
        shop.then("basket-7", {})
    with pytest.raises(AssertionError, match="there is to be none"):
        shop.then_nothing("basket-1")


def test_what_would_halt_in_production_fails_and_leaves_the_models_as_they_were() -> None:
    tally = Scenario(Tally()).given(event("add", n=1))
    before = tally.models
    with pytest.raises(ProjectionError, match="cannot fold memory-0-2"):
        tally.when(event("add", n=1), event("fail"))
    with pytest.raises(ProjectionError, match="cannot be stored"):
        tally.when(event("unstorable"))
    assert tally.models == before
    tally.when(event("add", n=1))
    assert tally.models["stream-1"]["count"] == 2


class OfAnother(Tally):
    def extract_model_id(self, event: Event) -> str:
        return f"{event.stream}!"


def test_an_id_that_is_not_the_stream_fails() -> None:
    with pytest.raises(ProjectionError, match="not the event's stream"):
        Scenario(OfAnother()).when(event("add"))


def test_a_log_holds_what_kafka_would() -> None:
    log = MemoryLog([added(), added(stream="basket-2")], partitions=4)
    log.append_raw(b"basket-1", b"{torn")
    streams = {number: [one.key() for one in records] for number, records in log.records.items() if records}
    assert sorted(len(keys) for keys in streams.values()) in ([1, 2], [3])
    partition = next(number for number, keys in streams.items() if keys.count(b"basket-1") == 2)
    with pytest.raises(EventError, match=rf"memory\[{partition}\]@\d is no event"):
        log.decoded(partition)


@settings(max_examples=20, deadline=None)
@given(
    histories(
        {
            "ItemAdded": st.fixed_dictionaries(
                {"quantity": st.integers(1, 9), "article": st.sampled_from(["tea", "cup", "pot"])}
            ),
            "BasketDropped": st.just({}),
            "Looked": st.just({}),
        }
    )
)
def test_rebuilds_of_a_pure_fold_equal_it(history: list[Any]) -> None:
    assert_rebuild_equals_live(Baskets(), history, runs=8)


HISTORY = [added(number % 5 + 1, f"a{number % 3}", f"basket-{number % 4}") for number in range(40)]


class Counting(Baskets):
    """Keeps something in the projection."""

    def __init__(self) -> None:
        self.numbers = count()

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        basket = super().apply_to_model(model, event)
        return None if basket is None else {**basket, "number": next(self.numbers)}


class Remembering(Baskets):
    """Goes by what it has seen in this process."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        basket = super().apply_to_model(model, event)
        if basket is not None and event.id not in self.seen:
            basket["new"] = basket.get("new", 0) + 1
        self.seen.add(event.id)
        return basket


class Sharing(Baskets):
    """Hands one object to several models."""

    shared: dict[str, int] = {}  # noqa: RUF012

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        basket = model or {"items": 0, "articles": self.shared}
        basket["articles"][event.stream] = basket["articles"].get(event.stream, 0) + 1
        return basket


@pytest.mark.parametrize("kind", [Counting, Remembering, Sharing])
def test_folds_that_are_not_pure_are_found(kind: type[Baskets]) -> None:
    with pytest.raises(AssertionError, match="The fold is not pure") as raised:
        assert_rebuild_equals_live(kind(), HISTORY)
    assert "another model 'basket-" in str(raised.value)


def test_pytest_has_it_where_refold_is_installed(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from projections.contract import CqrsProjection\n"
        "from streams.testing import event\n\n"
        "class Count(CqrsProjection[dict]):\n"
        "    name = 'count'\n"
        "    def extract_model_id(self, event): return event.stream\n"
        "    def apply_to_model(self, model, event): return {'n': (model or {'n': 0})['n'] + 1}\n\n"
        "def test_it(refold_scenario):\n"
        "    refold_scenario(Count()).given(event('a')).when(event('a')).then('stream-1', {'n': 2})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
