"""A CSV's columns: what stands between them, and what their text means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from streams.errors import ConfigError

__all__ = ["BadRecord", "Columns", "Reader"]


class BadRecord(Exception):
    """What is wrong with one record; whoever reads the file adds where."""


Reader = Callable[[str], Any]


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _bool(text: str) -> bool:
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.strip().lower()]
    except KeyError:
        raise ValueError("must be true, yes or 1, or false, no or 0") from None


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error})") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """How a CSV's columns are to be read."""

    delimiter: str = ","
    """Between two columns: one character."""
    decimal: str = "."
    """In numbers: what stands in front of the fraction, one character."""
    types: tuple[str, ...] = ()
    """`NAME=TYPE`: `int`, `number`, `bool`, `json` or `text`, which is what the others are. An empty one is null."""

    def __post_init__(self) -> None:
        for name in ("delimiter", "decimal"):
            if len(getattr(self, name)) != 1:
                raise ConfigError(f"--{name} is {getattr(self, name)!r}, and must be one character.")
        wrong = [one for one in self.types if one.rpartition("=")[2] not in self._known() or not one.rpartition("=")[0]]
        if wrong:
            raise ConfigError(f"--columns has {', '.join(wrong)}: write NAME=TYPE, of {', '.join(self._known())}.")
        if self.decimal != "." and not any(one.endswith("=number") for one in self.types):
            raise ConfigError(
                f"--decimal {self.decimal!r} says how numbers are read, and --columns names none: NAME=number."
            )

    def readers(self, header: list[str]) -> dict[str, Reader]:
        """Give the function that reads each column that is no text.

        Raises:
            BadRecord: There is no such column.
        """
        wanted = {one.rpartition("=")[0]: one.rpartition("=")[2] for one in self.types}
        missing = [name for name in wanted if name not in header]
        if missing:
            raise BadRecord(f"--columns names {', '.join(missing)}, and the header has {', '.join(header)}")
        known = self._known()
        return {name: known[kind] for name, kind in wanted.items() if kind != "text"}

    def _known(self) -> dict[str, Reader]:
        return {"int": _int, "number": self._number, "bool": _bool, "json": _json, "text": str}

    def _number(self, text: str) -> float:
        try:
            if self.decimal != "." and "." in text:
                raise ValueError
            value = float(text.replace(self.decimal, "."))
        except ValueError:
            raise ValueError(f"must be a number with {self.decimal!r} in front of its fraction") from None
        if value - value != 0:
            raise ValueError("JSON has no form for it")
        return value
