"""Asking for models by what is in them: conditions, an order, and so many at a time. Over any store's models."""

from __future__ import annotations

import base64
import heapq
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import total_ordering
from typing import Any, Generic, Literal, TypeVar, get_args

import orjson

from streams.errors import ConfigError

__all__ = ["Condition", "Found", "Page", "Query", "read_condition"]

T = TypeVar("T")

Operator = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "contains", "starts_with"]
OPERATORS: tuple[str, ...] = get_args(Operator)

_SIGNS = {"=": "eq", "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_CONDITION = re.compile(
    r"\s*([^\s=!<>]+)\s*(?:(==|!=|>=|<=|=|>|<)\s*(.*)|\s(in|contains|starts_with|eq|ne|gte?|lte?)\s+(.*))", re.DOTALL
)
_ABSENT = object()
_COMPARES = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a field of a model is to be."""

    path: str
    """Names with dots between: `customer.city`, `lines.0.sku`; `id` is the model's id where it has no such field."""
    operator: Operator
    """eq, ne; gt, gte, lt, lte, of values of one kind (numbers, texts); in: one of a list; contains: a text with such a
    part, a list with such an item, an object with such a key; starts_with: a text."""
    value: Any

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ConfigError(f"{self.operator!r} is no operator: there are {', '.join(OPERATORS)}.")
        if self.operator == "in" and not isinstance(self.value, list | tuple | set | frozenset):
            raise ConfigError(f"in needs a list of values, and got {self.value!r}.")

    def holds(self, model_id: str, model: Any) -> bool:
        """Say whether a model is so. A field that is not there is nothing: only ne holds of it, and eq None."""
        found = _at(model_id, model, self.path)
        if found is _ABSENT:
            return self.operator == "ne" if self.value is not None else self.operator == "eq"
        if self.operator in ("eq", "ne"):
            return _same(found, self.value) == (self.operator == "eq")
        if self.operator == "in":
            return any(_same(found, one) for one in self.value)
        if self.operator == "starts_with":
            return isinstance(found, str) and found.startswith(str(self.value))
        if self.operator == "contains":
            if isinstance(found, str):
                return str(self.value) in found
            return isinstance(found, list | dict) and any(_same(one, self.value) for one in found)
        if _rank(found) != _rank(self.value) or _rank(found) not in (_NUMBER, _TEXT):
            return False
        return bool(_COMPARES[self.operator](found, self.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which models, in which order, and how many.

    The order is total: models that are alike in all that is named are in the order of their ids. So a page begins
    exactly behind the one before it, whatever came or went meanwhile.
    """

    where: tuple[Condition, ...] = ()
    """All of them hold."""
    order_by: tuple[str, ...] = ()
    """Paths, most important first; with a `-` before it the largest comes first. By default, ids."""
    limit: int = 100
    """The largest number of models."""
    after: str | None = None
    """The cursor of the page before."""

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"limit is {self.limit}: at least one model has to be asked for.")

    def run(self, models: Iterable[tuple[str, T]], plain: Callable[[Any], Any] = orjson.loads) -> Page[T]:
        """Choose from models, which are looked at once, one after the other; only the page itself is kept in memory.

        Args:
            models: Ids, each with its model; as JSON, by default.
            plain: Gives what JSON has of a model: dicts, lists, texts, numbers.

        Raises:
            ConfigError: The cursor is none, or of a query with another order.
        """
        begin = None if self.after is None else self._key_of(self.after)
        chosen = heapq.nsmallest(self.limit + 1, self._candidates(models, plain, begin), key=lambda one: one.key)
        page = chosen[: self.limit]
        return Page(
            models=[(one.id, one.model) for one in page],
            cursor=_cursor(page[-1], self.order_by) if len(chosen) > self.limit else None,
        )

    def _candidates(
        self, models: Iterable[tuple[str, T]], plain: Callable[[T], Any], begin: _Key | None
    ) -> Iterator[Found[T]]:
        is_all = not self.where and not self.order_by
        for model_id, model in models:
            fields = None if is_all else plain(model)
            if all(one.holds(model_id, fields) for one in self.where):
                values = [_value(model_id, fields, path) for path in self.order_by]
                key = _Key(values, model_id, self._downwards)
                if begin is None or begin < key:
                    yield Found(model_id, model, key)

    @property
    def _downwards(self) -> tuple[bool, ...]:
        return tuple(path.startswith("-") for path in self.order_by)

    def _key_of(self, cursor: str) -> _Key:
        try:
            order, values, model_id = orjson.loads(base64.urlsafe_b64decode(cursor))
        except ValueError as error:
            raise ConfigError(f"{cursor!r} is no cursor: give one as the page before has it.") from error
        if tuple(order) != self.order_by:
            raise ConfigError(f"The cursor is of a query in the order {', '.join(order) or 'of ids'}: give that one.")
        return _Key(values, model_id, self._downwards)


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """A model that is asked for."""

    id: str
    model: T
    key: _Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some models."""

    models: list[tuple[str, T]] = field(default_factory=list)
    """Ids, each with its model, in order."""
    cursor: str | None = None
    """What the next page is asked for with; None where there is none."""


def read_condition(text: str) -> Condition:
    """Read a condition as it is typed: `status=open`, `total>=100`, `city in Bonn,Köln`, `name starts_with A`.

    A value is taken as JSON where it is JSON, and else as text; write `zip="01067"` for a text that looks like one.

    Raises:
        ConfigError: It is none.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{text!r} is no condition: write FIELD=VALUE, with = != > >= < <=, or FIELD in A,B, FIELD contains VALUE, "
            "FIELD starts_with VALUE."
        )
    path, sign, after_sign, word, after_word = found.groups()
    kind: Any = _SIGNS[sign] if sign else word
    value: Any = after_sign if sign else after_word
    if kind == "in":
        return Condition(path=path, operator=kind, value=[_read(one.strip()) for one in value.split(",")])
    return Condition(path=path, operator=kind, value=_read(value.strip()))


def _read(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _at(model_id: str, model: Any, path: str) -> Any:
    found = model
    for name in path.split("."):
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return model_id if path == "id" else _ABSENT
    return found


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_NOTHING, _BOOL, _NUMBER, _TEXT, _OTHER = range(5)


def _rank(value: Any) -> int:
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return _BOOL
    return _NUMBER if isinstance(value, int | float) else _TEXT if isinstance(value, str) else _OTHER


def _value(model_id: str, model: Any, path: str) -> Any:
    """Give what a model is sorted by, as JSON can keep it."""
    found = _at(model_id, model, path.removeprefix("-"))
    if found is _ABSENT:
        return None
    return found if _rank(found) != _OTHER else {"json": orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()}


@total_ordering
class _Key:
    """Where a model is in an order: kinds of values in the order nothing, bool, numbers, texts, others; then its id."""

    __slots__ = ("_downwards", "id", "values")

    def __init__(self, values: Sequence[Any], model_id: str, downwards: Sequence[bool]) -> None:
        self.values = values
        self.id = model_id
        self._downwards = downwards

    def __lt__(self, other: _Key) -> bool:
        for one, two, is_down in zip(self.values, other.values, self._downwards, strict=True):
            mine, theirs = _comparable(one), _comparable(two)
            if mine != theirs:
                return (mine > theirs) if is_down else (mine < theirs)
        return self.id < other.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.values, self.id) == (other.values, other.id)

    __hash__ = None  # type: ignore[assignment]


def _comparable(value: Any) -> tuple[int, Any]:
    rank = _rank(value)
    return rank, 0 if rank == _NOTHING else value["json"] if rank == _OTHER else value


def _cursor(last: Found[Any], order_by: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([order_by, last.key.values, last.id])).decode()
