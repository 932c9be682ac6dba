"""What readers ask of lists: a projection's own `Query`, from texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pydantic
import pytest

from streams.data.query import fields_of, filter_of, read_query
from streams.errors import ConfigError, ProjectionError
from tests.support import Tally


@dataclass
class Plain:
    least: int = 0
    kinds: list[str] = field(default_factory=list)
    exact: bool = False


class Struct(msgspec.Struct):
    least: int = 0
    kinds: list[str] = []
    exact: bool = False


class Model(pydantic.BaseModel):
    least: int = 0
    kinds: list[str] = []
    exact: bool = False


class Asked(Tally):
    def matches(self, model: dict[str, Any], query: Any) -> bool:
        return bool(model["sum"] >= query.least)


KINDS = [Plain, Struct, Model]


def asked(kind: type) -> Tally:
    projection = Asked()
    projection.Query = kind  # type: ignore[misc]
    return projection


@pytest.mark.parametrize("kind", KINDS)
def test_texts_become_what_the_fields_are(kind: type) -> None:
    projection = asked(kind)
    assert fields_of(projection) == ("least", "kinds", "exact")
    found = read_query(projection, {"least": ["7"], "kinds": ["a", "b"], "exact": ["true"]})
    assert (found.least, found.kinds, found.exact) == (7, ["a", "b"], True)
    one = read_query(projection, {"kinds": ["a"]})
    assert (one.least, one.kinds) == (0, ["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_asked_is_said(kind: type) -> None:
    projection = asked(kind)
    with pytest.raises(ConfigError, match=r"cannot be asked for most: it knows least, kinds, exact"):
        read_query(projection, {"most": ["7"]})
    with pytest.raises(ConfigError, match=r"cannot be asked so: .*least"):
        read_query(projection, {"least": ["seven"]})
    with pytest.raises(ConfigError, match=r"'tally' has no Query"):
        read_query(Tally(), {"least": ["7"]})


def test_models_are_chosen_and_what_raises_is_told_with_the_model() -> None:
    projection = asked(Plain)
    keep = filter_of(projection, Plain(least=5))
    assert keep(b"one", b'{"sum": 5}')
    assert not keep(b"two", b'{"sum": 4}')
    with pytest.raises(ProjectionError, match=r"Asked\.matches raised KeyError: 'sum', at model 'three'"):
        keep(b"three", b"{}")
