"""Events whose types a projection states: each is read as what it is, and what does not fit is told by its field."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.contract import CqrsProjection, Event
from projections.events import EventTypes, UnknownEvent
from projections.fingerprint import fingerprint
from streams.data.cloudevents import CloudEventsCodec
from streams.data.codec import EventCodec, Outcome, Tombstone, Undecodable
from streams.data.json_codec import JsonCodec
from streams.data.routed import Routed, headers_with_origin
from streams.data.typed import _Typed, typed
from streams.errors import ConfigError, EventError
from streams.testing import Scenario, assert_rebuild_equals_live
from streams.testing import event as happened
from tests.support import MadeRecord

AT = datetime.fromisoformat("2026-01-02T03:04:05Z")


class ItemAdded(msgspec.Struct, frozen=True):
    sku: str
    quantity: int = 1


@dataclass(frozen=True)
class BasketEmptied:
    event_type: ClassVar[str] = "basket-emptied"
    at: datetime
    why: list[str] = field(default_factory=list)


class Noted(pydantic.BaseModel):
    text: str = pydantic.Field(min_length=2)


class Tagged(msgspec.Struct, tag="item-removed"):
    sku: str


BasketEvent = ItemAdded | BasketEmptied | Noted | Tagged


class Basket(msgspec.Struct):
    items: dict[str, int] = {}
    notes: list[str] = []


class Baskets(CqrsProjection[Basket, BasketEvent]):
    name = "baskets"

    def extract_model_id(self, event: Event[BasketEvent]) -> str | None:
        assert not isinstance(event.data, UnknownEvent)
        return event.stream

    def apply_to_model(self, model: Basket | None, event: Event[BasketEvent]) -> Basket | None:
        model = model or Basket()
        match event.data:
            case ItemAdded(sku=sku, quantity=quantity):
                model.items[sku] = model.items.get(sku, 0) + quantity
            case Tagged(sku=sku):
                model.items.pop(sku, None)
            case BasketEmptied():
                model.items.clear()
            case Noted(text=text):
                model.notes.append(text)
        return model


class Strict(Baskets):
    name = "baskets"
    unknown_events = "refuse"


def read(
    value: object, projection: CqrsProjection[Any] | None = None, codec: EventCodec | None = None, **parts: Any
) -> Outcome:
    raw = value if isinstance(value, bytes) or value is None else orjson.dumps(value)
    codec = typed(codec or JsonCodec(), projection or Baskets())
    (outcome,) = codec.decode([MadeRecord(raw, **parts)])
    return outcome


def data_of(outcome: Outcome) -> Any:
    assert isinstance(outcome, Event), outcome
    return outcome.data


def why(outcome: Outcome) -> str:
    assert isinstance(outcome, Undecodable), outcome
    return outcome.reason


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("ItemAdded", {"sku": "a", "quantity": 2, "more": 1}, ItemAdded("a", 2)),
        ("ItemAdded", {"sku": "a"}, ItemAdded("a")),
        (
            "basket-emptied",
            {"at": "2026-01-02T03:04:05Z"},
            BasketEmptied(datetime.fromisoformat("2026-01-02T03:04:05Z")),
        ),
        ("Noted", {"text": "hello"}, Noted(text="hello")),
        ("item-removed", {"sku": "a"}, Tagged("a")),
        ("BasketPaid", {"any": "thing"}, UnknownEvent()),
        ("BasketEmptied", None, UnknownEvent()),
    ],
)
@pytest.mark.parametrize("codec", [JsonCodec(), CloudEventsCodec()])
def test_each_is_of_the_class_that_its_type_names(codec: EventCodec, name: str, data: Any, expected: object) -> None:
    found = read({"specversion": "1.0", "source": "x", "id": "1", "type": name, "data": data}, codec=codec)
    assert data_of(found) == expected
    assert type(data_of(found)) is type(expected)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("ItemAdded", {"sku": 1}, "as 'ItemAdded' it does not fit ItemAdded: Expected `str`, got `int` - at `$.sku`"),
        ("ItemAdded", {}, "Object missing required field `sku`"),
        ("ItemAdded", None, "Object missing required field `sku`"),
        ("ItemAdded", [], "Expected `object`, got `array`"),
        ("basket-emptied", {"at": "now"}, "Invalid RFC3339 encoded datetime - at `$.at`"),
        (
            "Noted",
            {"text": "x"},
            "as 'Noted' it does not fit Noted: String should have at least 2 characters - at `text`",
        ),
    ],
)
def test_what_does_not_fit_is_told_by_its_field(name: str, data: Any, said: str) -> None:
    assert said in why(read({"id": "1", "type": name, "data": data}))
    assert said in why(read({"type": name, "data": data}))


def test_error_says_where_and_what_and_what_to_do() -> None:
    outcome = read({"id": "1", "type": "ItemAdded", "data": {"sku": 1}}, offset_=7, partition_=3, topic_="orders")
    assert isinstance(outcome, Undecodable)
    said = str(outcome.error())
    assert said.startswith("orders[3]@7 is no event: as 'ItemAdded' it does not fit ItemAdded")
    assert '"sku":1' in said
    assert "--on-error" in said


class Closed(msgspec.Struct):
    pass


def test_no_data_is_enough_for_a_type_without_fields() -> None:
    for value in ({"id": "1", "type": "Closed"}, {"id": "1", "type": "Closed", "data": None}, {"type": "Closed"}):
        assert data_of(read(value, stating(Closed)())) == Closed()


def test_base_that_knows_of_no_types_is_given_no_unknown_event_either() -> None:
    class Anything:
        def extract_model_id(self, event: Event[Any]) -> str | None:
            assert not isinstance(event.data, UnknownEvent)
            return event.stream

    class Mixed(Anything, Baskets):
        name = "baskets"

    unknown = read({"id": "1", "type": "BasketPaid"}, Mixed())
    assert isinstance(unknown, Event)
    assert Mixed().extract_model_id(unknown) is None


def test_unknown_types_are_declined_or_refused() -> None:
    unknown = read({"id": "1", "type": "BasketPaid", "data": {}})
    assert isinstance(unknown, Event)
    assert Baskets().extract_model_id(unknown) is None
    for value in ({"id": "1", "type": "BasketPaid", "data": {}}, {"type": "BasketPaid"}):
        said = why(read(value, Strict()))
        assert said == (
            "its type 'BasketPaid' is none that the projection states (ItemAdded, Noted, basket-emptied, item-removed)"
        )


def test_what_is_no_event_stays_none() -> None:
    assert "not JSON" in why(read(b"{oops"))
    assert "null" in why(read(None))
    assert isinstance(read(None, codec=JsonCodec(tombstones="skip")), Tombstone)
    assert "'type'" in why(read({"id": "1", "data": {}}))
    assert "no key" in why(read({"id": "1", "type": "Noted", "data": {"text": "hello"}}, key_=None))


VALUES = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["ItemAdded", "Noted", "item-removed", "basket-emptied", "Other", "", 7, None])},
        optional={
            "id": st.sampled_from(["e1", 1, None, 2.5]),
            "time": st.sampled_from(["2026-01-02T03:04:05Z", 1, None]),
            "data": st.one_of(
                st.none(),
                st.fixed_dictionaries(
                    {},
                    optional={
                        "sku": st.sampled_from(["a", 1]),
                        "quantity": st.sampled_from([1, "1", 2.0, 10**19]),
                        "text": st.sampled_from(["hello", "x", None]),
                        "at": st.sampled_from(["2026-01-02T03:04:05Z", 0]),
                    },
                ),
            ),
            "metadata": st.sampled_from([{"a": 1}, None, [1]]),
            "order": st.sampled_from(["o", 3, None]),
        },
    ).map(orjson.dumps),
    st.sampled_from([None, b"[]", b"7", b"{", b'{"type":"ItemAdded","data":{"sku":"\xff"}}']),
)
CODECS = st.sampled_from(
    [
        JsonCodec(),
        JsonCodec(tombstones="delete-model"),
        JsonCodec(stream="order"),
        JsonCodec(data=None),
        JsonCodec(id="time", time="id"),
        JsonCodec(id="type"),
        JsonCodec(type="ty.pe", data="metadata", metadata="data"),
    ]
)


@given(values=st.lists(VALUES, min_size=1, max_size=6), codec=CODECS, strict=st.booleans())
def test_the_quick_way_gives_what_the_other_one_gives(
    values: list[bytes | None], codec: JsonCodec, strict: bool
) -> None:
    records = [MadeRecord(value, b"s", number) for number, value in enumerate(values)]
    projection = Strict() if strict else Baskets()
    kinds = projection.event_types()
    assert kinds is not None
    quick, slow = typed(codec, projection).decode(records), _Typed(codec, kinds).decode(records)
    assert list(map(_comparable, quick)) == list(map(_comparable, slow))


def _comparable(outcome: Outcome) -> object:
    # msgspec and orjson number what they have read so far in their messages.
    return (outcome.offset, outcome.size) if isinstance(outcome, Undecodable) else (type(outcome), outcome)


def test_those_that_were_written_once_more_are_typed_too() -> None:
    value = orjson.dumps({"type": "ItemAdded", "data": {"sku": "a"}})
    first = MadeRecord(value, b"s", 5, 1, "orders")
    again = MadeRecord(value, b"a", 9, 0, "own", tuple(headers_with_origin(first)))
    codec = typed(Routed(JsonCodec(), "orders"), Baskets())
    (event,) = codec.decode([again])
    assert isinstance(event, Event)
    assert (event.id, event.stream, event.data) == ("orders-1-5", "s", ItemAdded("a"))


def test_projection_is_folded_by_its_types() -> None:
    added, removed = happened(ItemAdded("a", 2)), happened(Tagged("a"))
    scenario = Scenario(Baskets()).given(added, happened("Other", sku="b"), happened("ItemAdded", sku="b"))
    scenario.then("stream-1", Basket({"a": 2, "b": 1}))
    assert scenario.declined == 1
    scenario.when(removed, happened(Noted(text="thanks"))).then("stream-1", Basket({"b": 1}, ["thanks"]))
    with pytest.raises(EventError, match=r"Expected `int`, got `str` - at `\$.quantity`"):
        scenario.when(happened("ItemAdded", sku="a", quantity="many"))
    assert_rebuild_equals_live(Baskets(), [added, happened("Other"), removed, added] * 5)


def test_untyped_projections_are_read_as_before() -> None:
    class Untyped(CqrsProjection[dict[str, Any]]):
        name = "untyped"

        def extract_model_id(self, event: Event) -> str | None:
            return event.stream

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            return model

    codec = JsonCodec()
    assert Untyped.event_types() is None
    assert typed(codec, Untyped()) is codec


def test_events_are_given_to_tests_as_objects_too() -> None:
    assert happened(BasketEmptied(AT), "b").type == "basket-emptied"
    assert happened(BasketEmptied(AT), "b").data == {"at": "2026-01-02T03:04:05Z", "why": []}
    with pytest.raises(TypeError, match="as an object, or by its type and data"):
        happened(ItemAdded("a"), quantity=1)


def stating(
    kinds: Any, unknown: Literal["decline", "refuse"] = "decline", **more: Any
) -> type[CqrsProjection[Any, Any]]:
    """A projection that states these types."""

    class Stating(CqrsProjection[dict[str, Any], kinds]):
        name = "stating"
        unknown_events = unknown

        def extract_model_id(self, event: Event[Any]) -> str | None:
            return event.stream

        def apply_to_model(self, model: dict[str, Any] | None, event: Event[Any]) -> dict[str, Any] | None:
            return model

    return Stating


def test_a_single_class_is_a_union_of_one_and_a_subclass_has_its_bases_types() -> None:
    one = stating(ItemAdded)
    assert one.event_types() == EventTypes({"ItemAdded": ItemAdded})
    assert Strict.event_types() == EventTypes(
        {"ItemAdded": ItemAdded, "basket-emptied": BasketEmptied, "Noted": Noted, "item-removed": Tagged}, True
    )
    assert pickle.loads(pickle.dumps(Baskets())).event_types() == Baskets.event_types()


class Other:
    class ItemAdded(msgspec.Struct):
        pass


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (int, "<class 'int'> is no type of events"),
        (ItemAdded | str, "<class 'str'> is no type of events"),
        (dict[str, Any], "is no type of events"),
        (ItemAdded | Other.ItemAdded, "ItemAdded and Other.ItemAdded are both the event type 'ItemAdded'"),
    ],
)
def test_what_cannot_be_stated_is_said_where_the_class_is_made(kinds: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        stating(kinds)


def test_type_that_cannot_be_read_is_said_before_anything_is_folded() -> None:
    class Odd(msgspec.Struct):
        what: Sequence[int] | set[int]

    with pytest.raises(ConfigError, match=r"Events of type .*Odd cannot be read from JSON"):
        typed(JsonCodec(), stating(Odd)())


def test_fingerprint_knows_the_types() -> None:
    prints = {fingerprint(stating(kinds, unknown)()) for kinds, unknown in KINDS}
    assert len(prints) == len(KINDS)


KINDS: list[tuple[Any, Literal["decline", "refuse"]]] = [
    (Any, "decline"),
    (ItemAdded, "decline"),
    (ItemAdded, "refuse"),
    (ItemAdded | Noted, "decline"),
]
