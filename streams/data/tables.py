"""Which table a projection's models have, where they are kept in an SQL database."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
import pydantic

from projections.contract import CqrsProjection
from projections.table import Column, Table
from streams.errors import ConfigError
from streams.log import get_logger

__all__ = ["table_of"]

log = get_logger(__name__)

_SQL: dict[type, str] = {
    str: "text",
    bool: "boolean",
    int: "bigint",
    float: "double precision",
    Decimal: "numeric",
    datetime: "timestamptz",
    date: "date",
    UUID: "uuid",
}
_TAKEN = frozenset({"id", "model", "partition"})
"""Names of a table's own columns: fields that are called so are in `model` alone."""


def table_of(projection: CqrsProjection[Any]) -> Table:
    """Give the table that a projection declares, or that its model's fields make.

    Each field of a dataclass, msgspec Struct or pydantic model is a column: of its own type where SQL has one, and
    jsonb else. A model that is a dict has no columns but `model`, unless the projection names some.

    Raises:
        ConfigError: What it declares is no table.
    """
    declared = projection.table
    if declared is not None:
        if not isinstance(declared, Table):
            raise ConfigError(
                f"{type(projection).__qualname__}.table is {declared!r:.80}; it is to be a projections.table.Table."
            )
        return declared
    columns: dict[str, Column] = {}
    for name, key, kind in _fields(projection.model_type()):
        with contextlib.suppress(ValueError):  # one that SQL has no name for is in `model` alone
            if name not in _TAKEN and name not in columns:
                columns[name] = Column(name, _sql_type(kind), None if key == name else (key,))
    return Table(columns=tuple(columns.values()))


def _fields(model: type) -> list[tuple[str, str, Any]]:
    """Give (column, key in the JSON, type) of each field; none where they cannot be told."""
    try:
        if model is not dict and issubclass(model, pydantic.BaseModel):
            return [(name, name, info.annotation) for name, info in model.model_fields.items()]
        if issubclass(model, msgspec.Struct):
            return [(field.name, field.encode_name, field.type) for field in msgspec.structs.fields(model)]
        if dataclasses.is_dataclass(model):
            hints = typing.get_type_hints(model)
            return [(field.name, field.name, hints[field.name]) for field in dataclasses.fields(model)]
    except (NameError, TypeError) as error:  # a type that is imported for type checkers alone
        log.info("table.without_columns", model=model.__qualname__, why=str(error))
    return []


def _sql_type(kind: Any) -> str:
    """Give the SQL type of what a field holds."""
    if get_origin(kind) is typing.Annotated:
        return _sql_type(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        rest = [one for one in get_args(kind) if one is not types.NoneType]
        return _sql_type(rest[0]) if len(rest) == 1 else "jsonb"
    if get_origin(kind) is Literal:
        return "text" if all(isinstance(one, str) for one in get_args(kind)) else "jsonb"
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return "text" if all(isinstance(one.value, str) for one in kind) else "jsonb"
        return next((_SQL[base] for base in kind.__mro__ if base in _SQL), "jsonb")
    return "jsonb"
