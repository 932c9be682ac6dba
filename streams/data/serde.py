"""Read models to bytes and back. Equal models give equal bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import orjson
import pydantic

from streams.errors import ConfigError

__all__ = ["Serde", "serde_for"]


class Serde(NamedTuple):
    """How one type of read model is stored, as JSON."""

    encode: Callable[[Any], bytes]
    """Raises TypeError or ValueError where a value in the model has no JSON form."""
    decode: Callable[[bytes], Any]


# A dict comes back from the store as plain JSON, so a value that JSON would turn into something else (a date,
# a dataclass) must not be let in: the fold would see one type before a restart and another after it.
_PLAIN = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS


def serde_for(model: type) -> Serde:
    """Choose how a projection's read model is stored.

    Args:
        model: `dict`, a dataclass, a `msgspec.Struct` or a pydantic model.

    Raises:
        ConfigError: The type is none of these.
    """
    if model is dict:
        return Serde(partial(orjson.dumps, option=_PLAIN), orjson.loads)
    if issubclass(model, pydantic.BaseModel):
        return Serde(lambda value: value.model_dump_json(by_alias=True).encode(), model.model_validate_json)
    if issubclass(model, msgspec.Struct) or dataclasses.is_dataclass(model):
        return Serde(msgspec.json.Encoder().encode, msgspec.json.Decoder(model).decode)
    raise ConfigError(
        f"A read model cannot be a {model.__qualname__}: use dict, a dataclass, a msgspec.Struct or a pydantic model."
    )
