"""Queries over models: what they choose, in which order, and page by page."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import Condition, Query
from streams.data.filters import read_condition
from streams.errors import ConfigError

MODEL = {
    "status": "open",
    "total": 250,
    "rate": 1.5,
    "paid": False,
    "zip": "01067",
    "nothing": None,
    "customer": {"city": "Köln", "tags": ["new", 7]},
    "lines": [{"sku": "a"}, {"sku": "b"}],
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("status=open", True),
        ("status == open", True),
        ("status!=open", False),
        ("total>=250", True),
        ("total > 250", False),
        ("total<1e3", True),
        ("rate <= 1.5", True),
        ("total=250.0", True),
        ("total>abc", False),
        ("status>closed", True),
        ("paid=false", True),
        ("paid=0", False),
        ("zip=01067", True),
        ('zip="01067"', True),
        ("total in 1, 250", True),
        ("status in closed,open", True),
        ("status in closed", False),
        ("customer.city starts_with Kö", True),
        ("customer.city contains öl", True),
        ("customer.tags contains new", True),
        ("customer.tags contains 7", True),
        ("customer contains city", True),
        ("total contains 2", False),
        ("lines.1.sku=b", True),
        ("lines.2.sku=b", False),
        ("nothing=null", True),
        ("missing=null", True),
        ("missing!=3", True),
        ("missing=3", False),
        ("missing>3", False),
        ("id=m1", True),
        ("status eq open", True),
    ],
)
def test_a_condition_holds_or_does_not(text: str, holds: bool) -> None:
    assert read_condition(text).holds("m1", MODEL) == holds


@pytest.mark.parametrize("text", ["", "status", "= 3", "status ~ 3", "status between 1"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no condition"):
        read_condition(text)


def test_wrong_queries_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        Query(limit=0)
    with pytest.raises(ConfigError, match="in needs a list"):
        Condition(path="a", operator="in", value=3)
    with pytest.raises(ConfigError, match="is no operator"):
        Condition(path="a", operator="like", value=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no cursor"):
        Query(after="nonsense").run([])
    cursor = Query(order_by=("n",), limit=1).run([("a", b'{"n":1}'), ("b", b'{"n":2}')]).cursor
    with pytest.raises(ConfigError, match="is of a query in the order n"):
        Query(after=cursor).run([])


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.sampled_from(["", "a", "b", "é"]))
MODELS = st.dictionaries(
    st.text("abcdé", min_size=1, max_size=3),
    st.fixed_dictionaries({}, optional={"n": st.one_of(VALUES, st.lists(VALUES, max_size=2)), "m": VALUES}),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(MODELS, st.lists(st.sampled_from(["n", "-n", "m", "-m"]), max_size=2), st.integers(1, 7))
def test_pages_hold_every_model_once_in_a_total_order(
    models: dict[str, dict[str, Any]], order: list[str], limit: int
) -> None:
    rows = [(model_id, orjson.dumps(model)) for model_id, model in models.items()]
    whole = Query(order_by=tuple(order), limit=1000).run(rows)
    assert whole.cursor is None
    assert {model_id for model_id, _ in whole.models} == set(models)
    paged: list[tuple[str, bytes]] = []
    cursor = None
    while True:
        page = Query(order_by=tuple(order), limit=limit, after=cursor).run(reversed(rows))
        assert len(page.models) <= limit
        paged += page.models
        cursor = page.cursor
        if cursor is None:
            break
    assert paged == whole.models
    for path in order[:1]:
        numbers: list[Any] = [
            model.get(path.removeprefix("-"))
            for model in (models[model_id] for model_id, _ in whole.models)
            if type(model.get(path.removeprefix("-"))) in (int, float)
        ]
        assert numbers == sorted(numbers, reverse=path.startswith("-"))
    if not order:
        assert [model_id for model_id, _ in whole.models] == sorted(models)


def test_only_the_page_is_kept() -> None:
    alive = 0

    class Id(str):
        def __init__(self, _value: str) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most = 0

    def rows() -> Any:
        nonlocal most
        for number in range(5000):
            yield Id(f"m{number:05}"), orjson.dumps({"n": number * 7919 % 5000})
            most = max(most, alive)

    page = Query(order_by=("-n",), limit=10).run(rows())
    assert [orjson.loads(raw)["n"] for _, raw in page.models] == list(range(4999, 4989, -1))
    assert most < 20
