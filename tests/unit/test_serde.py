"""Models come back as they went in, or are refused by the field's name; equal models are equal bytes."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import pydantic
import pytest

from streams.data.serde import NotStorable, Serde, serde_for
from streams.errors import ConfigError


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Line:
    article: str
    price: float = 0.0


@dataclasses.dataclass
class Basket:
    lines: list[Line]
    tags: set[str]
    pair: tuple[int, str] = (1, "a")
    colour: Colour = Colour.RED
    at: datetime | None = None


class Struct(msgspec.Struct):
    lines: dict[str, Line]
    ids: frozenset[int]
    id: uuid.UUID
    note: Any = None


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    first_name: str = pydantic.Field(alias="firstName")
    last_name: str = pydantic.Field(validation_alias="ln", serialization_alias="LastName")
    tags: set[str] = set()
    nested: dict[str, set[int]] = {}

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def full(self) -> str:
        return f"{self.first_name} {self.last_name}"


def check(serde: Serde, model: Any) -> bytes:
    """What a store does at a sampled model."""
    serde.check_type([type(model)])
    raw = serde.encode(model)
    serde.check_null(model, raw)
    serde.check_round_trip(model, raw)
    return raw


@pytest.mark.parametrize(
    "model",
    [
        {"a": [1, 2.5, None, True, {"b": "x"}], "c": {}},
        Basket([Line("tea", 4.5)], {"b", "a"}, (2, "b"), Colour.RED, datetime(2026, 1, 1, tzinfo=UTC)),
        Struct({"x": Line("tea")}, frozenset({3, 1}), uuid.UUID(int=7)),
        Aliased.model_validate({"firstName": "A", "ln": "B", "tags": ["z", "y"], "nested": {"n": [2, 1]}}),
    ],
)
def test_comes_back_as_it_went_in(model: Any) -> None:
    serde = serde_for(type(model))
    raw = check(serde, model)
    assert serde.decode(raw) == model
    assert serde.encode(serde.decode(raw)) == raw


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ((1, 2), r"\['x'\] is a tuple, \(1, 2\), and comes back as a list"),
        (Colour.RED, r"\['x'\] is a Colour, .* and comes back as a str"),
        (uuid.UUID(int=1), r"\['x'\] is a UUID, .* and comes back as a str"),
        (float("nan"), r"\['x'\] is nan"),
        (float("-inf"), r"\['x'\] is -inf"),
        ([{"y": float("inf")}], r"\['x'\]\[0\]\['y'\] is inf"),
        ([{"y": (1,)}], r"\['x'\]\[0\]\['y'\] is a tuple"),
    ],
)
def test_dict_with_what_json_would_change_is_refused_by_the_fields_name(value: Any, why: str) -> None:
    with pytest.raises(NotStorable, match=why):
        check(serde_for(dict), {"a": None, "x": value})


@pytest.mark.parametrize("value", [datetime.now(UTC), {1, 2}, Line("a"), b"x"])
def test_dict_with_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        check(serde_for(dict), {"x": value})


def test_models_are_searched_for_nan_only_where_they_may_hold_floats() -> None:
    @dataclasses.dataclass
    class Counts:
        n: int
        at: str | None

    assert not serde_for(Counts).may_hold_floats
    assert serde_for(Line).may_hold_floats
    assert serde_for(Struct).may_hold_floats  # its note may be anything
    assert serde_for(dict).may_hold_floats


def test_infinity_in_a_typed_model_is_named() -> None:
    with pytest.raises(NotStorable, match=r"lines\[1\]\.price is inf"):
        check(serde_for(Basket), Basket([Line("a"), Line("b", float("inf"))], set()))


def test_untyped_field_of_a_typed_model_is_held_to_json() -> None:
    with pytest.raises(NotStorable, match=r"note is a tuple, \(1,\), and comes back as a list"):
        check(serde_for(Struct), Struct({}, frozenset(), uuid.UUID(int=1), note=(1,)))


def test_model_of_another_type_than_declared_is_refused() -> None:
    with pytest.raises(NotStorable, match="it is a dict, and the projection declares Line"):
        check(serde_for(Line), {"article": "a", "price": 1.0})

    class Special(Line):
        pass

    with pytest.raises(NotStorable, match=r"it is a .*Special"):
        check(serde_for(Line), Special("a"))


def test_secret_is_refused_where_it_would_be_lost() -> None:
    class Account(pydantic.BaseModel):
        password: pydantic.SecretStr

    with pytest.raises(NotStorable, match=r"password is SecretStr\('\*+'\), and comes back as"):
        check(serde_for(Account), Account(password=pydantic.SecretStr("canary")))


def test_pydantic_fields_that_are_not_written_are_refused_at_once() -> None:
    class Hidden(pydantic.BaseModel):
        shown: int = 0
        internal: int = pydantic.Field(default=0, exclude=True)
        _cache: int = pydantic.PrivateAttr(default=0)

    with pytest.raises(ConfigError, match=r"Hidden would lose .*: internal is excluded, _cache is private"):
        serde_for(Hidden)


def test_dataclass_without_equality_is_compared_by_its_fields() -> None:
    @dataclasses.dataclass(eq=False)
    class Plain:
        x: int

    check(serde_for(Plain), Plain(1))


def test_type_that_cannot_be_read_back_is_refused_by_name() -> None:
    @dataclasses.dataclass
    class Either:
        value: Line | Basket

    with pytest.raises(ConfigError, match="Either cannot be stored as JSON"):
        serde_for(Either)


SCRIPT = """
import sys
from tests.unit.test_serde import *
words = [f"w{number}" for number in range(50)]
sys.stdout.buffer.write(serde_for(Basket).encode(Basket([], set(words))) + b"\\n")
sys.stdout.buffer.write(serde_for(Aliased).encode(Aliased.model_validate(
    {"firstName": "A", "ln": "B", "tags": words, "nested": {"n": range(50)}})) + b"\\n")
sys.stdout.buffer.write(serde_for(dict).encode({word: 1 for word in set(words)}))
"""


def test_equal_models_are_equal_bytes_in_every_process() -> None:
    written = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(written) == 1


@dataclasses.dataclass
class Holder:
    name: str
    inner: dict[str, Any]


@pytest.mark.parametrize(
    ("kind", "model", "why"),
    [
        (dict, {"a": [1, {"b": object()}]}, r"\['a'\]\[1\]\['b'\] is a object, <object .*which has no JSON form"),
        (dict, {"a": {1: 2}}, r"\['a'\] has the key 1, which is a int and no text"),
        (dict, {"a": 1 << 70}, r"\['a'\] is a int, .*which has no JSON form"),
        (Holder, Holder("x", {"y": [1j]}), r"inner\['y'\]\[0\] is a complex, 1j, which has no JSON form"),
    ],
)
def test_value_without_a_json_form_is_named_by_its_field(kind: type, model: Any, why: str) -> None:
    with pytest.raises(NotStorable, match=why):
        serde_for(kind).encoded(model)
