"""Read models to bytes and back. A model comes back as it went in, and equal models are equal bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson
import pydantic
import pydantic_core

from streams.errors import ConfigError
from streams.prepared import LOOKING

__all__ = ["NotStorable", "Serde", "serde_for"]


class NotStorable(Exception):
    """A model would not come back from the store as it went in; the message names the field."""


class Serde(NamedTuple):
    """How one type of read model is stored, as JSON."""

    model: type
    encode: Callable[[Any], bytes]
    """Raises TypeError or ValueError where a value in the model has no JSON form. Equal models give equal bytes, in
    every process: keys and sets are sorted."""
    decode: Callable[[bytes], Any]
    may_hold_floats: bool = True
    """Whether a null in the JSON may have been NaN or infinity."""

    def check_type(self, kinds: Iterable[type]) -> None:
        """Make sure that all of these are the declared type.

        Raises:
            NotStorable: One is another type, which would come back as the declared one.
        """
        for kind in kinds:
            if kind is not self.model:
                raise NotStorable(f"it is a {kind.__qualname__}, and the projection declares {self.model.__qualname__}")

    def check_round_trip(self, model: Any, raw: bytes) -> None:
        """Make sure that a model comes back as it went in.

        Args:
            model: The model.
            raw: The same, encoded.

        Raises:
            NotStorable: It does not; the field is named, and what becomes of it.
        """
        try:
            found = self.decode(raw)
        except Exception as error:
            raise NotStorable(f"it cannot be read back: {_one_line(error)}") from error
        difference = _difference(model, found, "")
        if difference is not None:
            raise NotStorable(difference)

    def encoded(self, model: Any) -> bytes:
        """Encode a model, with care for what is said where that cannot be done.

        Raises:
            NotStorable: A value has no JSON form; its field is named.
        """
        try:
            return self.encode(model)
        except Exception as error:
            raise NotStorable(_without_json(model, _dumps_for(self.model), "") or _one_line(error)) from error

    def check_null(self, model: Any, raw: bytes) -> None:
        """Make sure that what is null in a model's JSON was None in the model, and no NaN or infinity.

        Raises:
            NotStorable: It was one; the field is named.
        """
        if self.may_hold_floats and b"null" in raw and (where := _not_finite(model, "")) is not None:
            raise NotStorable(f"{where}, which JSON has no form for")


# A dict comes back from the store as plain JSON, so a value that JSON would turn into something else (a date,
# a dataclass) must not be let in: the fold would see one type before a restart and another after it.
_PLAIN = (
    orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_SORT_KEYS
)


def _dumps_for(model: type) -> Callable[[Any], object]:
    """Give what encodes a value in a model of this type, by itself."""
    if model is dict:
        return _plain_json
    return pydantic_core.to_json if issubclass(model, pydantic.BaseModel) else msgspec.json.encode


def _plain_json(value: Any) -> bytes:
    return orjson.dumps(value, option=_PLAIN)


def serde_for(model: type) -> Serde:
    """Choose how a projection's read model is stored.

    Args:
        model: `dict`, a dataclass, a `msgspec.Struct` or a pydantic model.

    Raises:
        ConfigError: The type is none of these, or has fields that would not come back from the store.
    """
    if model is dict:
        return Serde(dict, _plain_json, orjson.loads)
    if issubclass(model, pydantic.BaseModel):
        return _pydantic(model)
    if issubclass(model, msgspec.Struct) or dataclasses.is_dataclass(model):
        try:
            with LOOKING:
                encoder, decoder = msgspec.json.Encoder(order="deterministic"), msgspec.json.Decoder(model)
                return Serde(model, encoder.encode, decoder.decode, _may_hold_floats(model))
        except TypeError as error:
            raise ConfigError(f"Read model {model.__qualname__} cannot be stored as JSON: {error}.") from error
    raise ConfigError(
        f"A read model cannot be a {model.__qualname__}: use dict, a dataclass, a msgspec.Struct or a pydantic model."
    )


def _may_hold_floats(model: type) -> bool:
    try:
        schema = str(msgspec.json.schema(model))
    except TypeError:  # a field of a type that has none
        return True
    return "'number'" in schema or "{}" in schema  # a float, or anything at all


def _pydantic(model: type[pydantic.BaseModel]) -> Serde:
    lost = [f"{name} is excluded" for name, info in model.model_fields.items() if info.exclude]
    lost += [f"{name} is private" for name in model.__private_attributes__]
    if lost:
        raise ConfigError(
            f"Read model {model.__qualname__} would lose what a model must keep: {', '.join(lost)}. The store "
            "holds what "
            "pydantic writes as JSON; make these plain fields, or leave them out."
        )

    def decode(raw: bytes) -> pydantic.BaseModel:
        return model.model_validate_json(raw, by_name=True, by_alias=False)

    # Round trip: computed fields are left out, and names are the fields' own whatever their aliases are.
    if "uniqueItems" not in str(model.model_json_schema()):
        return Serde(model, lambda value: value.model_dump_json(round_trip=True, by_alias=False).encode(), decode)

    def encode(value: pydantic.BaseModel) -> bytes:
        as_json = value.model_dump(mode="json", round_trip=True, by_alias=False)
        return orjson.dumps(_sets_sorted(as_json, value.model_dump(round_trip=True, by_alias=False)))

    return Serde(model, encode, decode)


def _sets_sorted(as_json: Any, value: Any) -> Any:
    """Sort what was a set, in the same structure as JSON."""
    if isinstance(value, set | frozenset):
        return sorted(as_json, key=orjson.dumps)
    if isinstance(value, Mapping):
        return {
            name: _sets_sorted(item, original)
            for (name, item), original in zip(as_json.items(), value.values(), strict=True)
        }
    if isinstance(value, list | tuple):
        return [_sets_sorted(item, original) for item, original in zip(as_json, value, strict=True)]
    return as_json


def _difference(before: Any, after: Any, where: str) -> str | None:
    """Say where a value and what came back for it differ, also in type; None where they do not.

    By structure and not by `==`, which knows no difference between 1 and True, and may be the user's own.
    """
    if type(before) is not type(after):
        return (
            f"{_named(where)} is a {type(before).__qualname__}, {before!r:.80}, and comes back as a "
            f"{type(after).__qualname__}, {after!r:.80}"
        )
    fields = _fields(before)
    if fields is not None:
        return _first(
            _difference(getattr(before, name, None), getattr(after, name, None), f"{where}.{name}" if where else name)
            for name in fields
        )
    if isinstance(before, dict):
        missing = [key for key in before if key not in after]
        if missing or len(before) != len(after):
            return f"{_named(where)} has the key {(missing or ['?'])[0]!r:.80}, which comes back otherwise"
        return _first(_difference(value, after[key], f"{where}[{key!r}]") for key, value in before.items())
    if isinstance(before, list | tuple):
        if len(before) != len(after):
            return f"{_named(where)} has {len(before)} items, and comes back with {len(after)}"
        pairs = enumerate(zip(before, after, strict=True))
        return _first(_difference(value, found, f"{where}[{index}]") for index, (value, found) in pairs)
    if before == after:
        return None
    return f"{_named(where)} is {before!r:.80}, and comes back as {after!r:.80}"


def _fields(value: Any) -> Sequence[str] | None:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if isinstance(value, pydantic.BaseModel):
        return [*type(value).model_fields, *(value.model_extra or ())]
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    return None


def _without_json(value: Any, dumps: Callable[[Any], object], where: str) -> str | None:
    """Say which value in a model has no JSON form; None where each by itself has one."""
    fields = _fields(value)
    if fields is not None:
        items = [(f"{where}.{name}" if where else name, getattr(value, name, None)) for name in fields]
    elif isinstance(value, dict):
        keys = [key for key in value if not isinstance(key, str)]
        if keys and dumps is _dumps_for(dict):
            return f"{_named(where)} has the key {keys[0]!r:.80}, which is a {type(keys[0]).__qualname__} and no text"
        items = [(f"{where}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    else:
        items = []
    found = _first(_without_json(item, dumps, name) for name, item in items)
    if found is not None or fields is not None:
        return found
    try:
        dumps(value)
    except Exception:  # noqa: BLE001  (whatever it is, it is this value's)
        return f"{_named(where)} is a {type(value).__qualname__}, {value!r:.80}, which has no JSON form"
    return None


def _not_finite(value: Any, where: str) -> str | None:
    if isinstance(value, float):
        return None if value - value == 0 else f"{_named(where)} is {value!r}"
    fields = _fields(value)
    if fields is not None:
        return _first(_not_finite(getattr(value, name, None), f"{where}.{name}" if where else name) for name in fields)
    if isinstance(value, dict):
        return _first(_not_finite(item, f"{where}[{key!r}]") for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return _first(_not_finite(item, f"{where}[{index}]") for index, item in enumerate(value))
    return None


def _first(found: Iterable[str | None]) -> str | None:
    return next((one for one in found if one is not None), None)


def _named(where: str) -> str:
    return where or "the model"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
