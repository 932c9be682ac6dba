"""What readers ask of a list of models: a projection's `Query`, by the names of its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pydantic

from projections.contract import CqrsProjection
from streams.data.failures import users_frames
from streams.data.serde import serde_for
from streams.errors import ConfigError, ProjectionError
from streams.prepared import LOOKING

__all__ = ["Keep", "fields_of", "filter_of", "read_query"]

Keep = Callable[[bytes, bytes], bool]
"""Says of a model's id and JSON whether it is among those that are asked for."""


def fields_of(projection: CqrsProjection[Any]) -> tuple[str, ...]:
    """Name what may be asked for; nothing where the projection has no `Query`."""
    kind: Any = projection.Query
    if kind is None:
        return ()
    if issubclass(kind, msgspec.Struct):
        return tuple(kind.__struct_encode_fields__)
    if issubclass(kind, pydantic.BaseModel):
        return tuple(one.alias or name for name, one in kind.model_fields.items())
    return tuple(field.name for field in dataclasses.fields(kind))


def read_query(projection: CqrsProjection[Any], given: Mapping[str, Sequence[str]]) -> Any:
    """Make a projection's `Query` of texts.

    Args:
        projection: Whose.
        given: By field, its text, or several for a list.

    Raises:
        ConfigError: The projection has no `Query`, or a field is wrong; all that is, is named.
    """
    known = fields_of(projection)
    if not known:
        raise ConfigError(f"{projection.name!r} has no Query: its models cannot be asked for by {', '.join(given)}.")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{projection.name!r} cannot be asked for {', '.join(unknown)}: it knows {', '.join(known)}.")
    kind: Any = projection.Query
    values = {name: texts[0] if len(texts) == 1 else list(texts) for name, texts in given.items()}
    try:
        return _converted(kind, values)
    except (msgspec.ValidationError, pydantic.ValidationError) as error:
        # One text may be a list of one.
        try:
            return _converted(kind, {name: list(texts) for name, texts in given.items()})
        except (msgspec.ValidationError, pydantic.ValidationError):
            raise ConfigError(f"{projection.name!r} cannot be asked so: {_one_line(error)}.") from error


def _converted(kind: Any, values: Mapping[str, Any]) -> Any:
    if issubclass(kind, msgspec.Struct):
        with LOOKING:
            return msgspec.convert(values, kind, strict=False)
    return pydantic.TypeAdapter(kind).validate_python(values)


def _one_line(error: msgspec.ValidationError | pydantic.ValidationError) -> str:
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))


def filter_of(projection: CqrsProjection[Any], query: Any) -> Keep:
    """Give what says of each model whether a query asks for it.

    Raises:
        ProjectionError: From the function: `matches` raised; the model is named.
    """
    decode = serde_for(projection.model_type()).decode

    def keep(model_id: bytes, raw: bytes) -> bool:
        try:
            return bool(projection.matches(decode(raw), query))
        except Exception as error:
            failed = ProjectionError(
                f"{type(projection).__qualname__}.matches raised {type(error).__name__}: {error}, at model "
                f"{model_id.decode(errors='replace')!r}. Nothing is wrong with what is folded; correct `matches`.",
                projection=projection.name,
            )
            failed.user_traceback = users_frames(error)
            raise failed from error

    return keep
