"""Which table a projection's models have."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pydantic
import pytest

from projections.contract import CqrsProjection, Event
from projections.table import Column, Index, Table
from streams.data.tables import table_of
from streams.errors import ConfigError


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


@dataclass
class Plain:
    id: str
    name: str
    count: int
    share: float | None
    is_open: bool
    price: Decimal
    at: datetime
    on: date
    ref: UUID
    colour: Colour
    size: Size
    state: Literal["a", "b"]
    either: int | str
    noted: Annotated[str, "for people"]
    tags: list[str]
    partition: int
    größe: int
    Name: str


class Struct(msgspec.Struct, rename="camel"):
    total_cents: int
    parts: dict[str, int]


class Model(pydantic.BaseModel):
    total_cents: int
    at: datetime | None = None


def projection(model: type, declared: Any = None) -> CqrsProjection[Any]:
    class Made(CqrsProjection[model]):  # type: ignore[valid-type]
        name = "made"
        table = declared

        def extract_model_id(self, event: Event) -> str | None:
            return event.stream

        def apply_to_model(self, model: Any, _event: Event) -> Any:
            return model

    return Made()


def columns(model: type) -> dict[str, str]:
    return {one.name: one.type for one in table_of(projection(model)).columns}


def test_fields_are_columns_of_their_types() -> None:
    assert columns(Plain) == {
        "name": "text",
        "count": "bigint",
        "share": "double precision",
        "is_open": "boolean",
        "price": "numeric",
        "at": "timestamptz",
        "on": "date",
        "ref": "uuid",
        "colour": "text",
        "size": "jsonb",
        "state": "text",
        "either": "jsonb",
        "noted": "text",
        "tags": "jsonb",
    }


def test_each_kind_of_model_has_the_names_that_its_json_has() -> None:
    assert {one.keys for one in table_of(projection(Struct)).columns} == {("totalCents",), ("parts",)}
    assert columns(Struct) == {"total_cents": "bigint", "parts": "jsonb"}
    assert columns(Model) == {"total_cents": "bigint", "at": "timestamptz"}
    assert columns(dict) == {}


def test_what_a_projection_declares_is_taken() -> None:
    declared = Table(key="order_id", columns=(Column("city", path=("address", "city")),), indexes=(Index("city"),))
    assert table_of(projection(Plain, declared)) is declared
    with pytest.raises(ConfigError, match="is to be a projections"):
        table_of(projection(Plain, {"city": "text"}))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Column("Name"), "no name"),
        (lambda: Column("a; DROP TABLE x"), "no name"),
        (lambda: Column("model"), "refold's own"),
        (lambda: Column("a", "text; DROP TABLE x"), "no SQL type"),
        (lambda: Table(columns=(Column("a"), Column("a"))), "twice"),
        (lambda: Table(key="a", columns=(Column("a"),)), "twice"),
        (lambda: Table(key="partition"), "refold's own"),
    ],
)
def test_what_cannot_be_is_said(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_types_with_numbers_are_types() -> None:
    for type_ in ("numeric(12, 2)", "varchar(30)", "text[]", "double precision", "timestamp with time zone"):
        assert Column("a", type_).type == type_
