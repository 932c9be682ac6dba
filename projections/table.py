"""What the table of a projection's models looks like, where they are kept in an SQL database."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

__all__ = ["Column", "Index", "Table"]

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_TYPE = re.compile(r"[a-z][a-z0-9_ ]*(\(\d+(, ?\d+)?\))?(\[\])?")
_OURS = frozenset({"model", "partition"})


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column, filled from the model's JSON."""

    name: str
    type: str = "text"
    """As SQL has it: text, bigint, numeric(12, 2), timestamptz, jsonb, …"""
    path: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    """Where in the model its value is, by keys; by default under the column's name."""

    def __post_init__(self) -> None:
        _check_name(self.name, "column")
        if self.name in _OURS:
            raise ValueError(f"column {self.name!r} is refold's own: choose another name")
        if not _TYPE.fullmatch(self.type):
            raise ValueError(f"column {self.name!r}: {self.type!r} is no SQL type, such as text or numeric(12, 2)")

    @property
    def keys(self) -> tuple[str, ...]:
        """The path."""
        return self.path or (self.name,)


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An index, built once a rebuild has written the models."""

    on: str
    """What is indexed, as SQL: `status`, `customer, placed_at desc`, `(model::jsonb -> 'tags')`."""
    method: str = "btree"
    """btree, gin, gist, brin, hash, …"""
    unique: bool = False
    where: str | None = None
    """Of which rows; None: of all."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table. `model`, the whole model as JSON, is always there, and `partition`."""

    key: str = "id"
    """What the column with the model's id is called: it is the primary key."""
    columns: tuple[Column, ...] = ()
    indexes: tuple[Index, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.key, "key")
        names = [self.key, *(column.name for column in self.columns)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"column {name!r} is there twice")
        if self.key in _OURS:
            raise ValueError(f"the key cannot be called {self.key!r}, which is refold's own: choose another name")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r} is no name: lower-case letters, digits and _, at most 63, no digit first")
