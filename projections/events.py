"""Which types a projection's events have, by what the log calls them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec

__all__ = ["EventTypes", "UnknownEvent", "event_types", "name_of", "passing_unknown"]


class UnknownEvent(msgspec.Struct, frozen=True):
    """The data of an event whose type is none that the projection states; the event is declined for it."""


@dataclass(frozen=True, slots=True)
class EventTypes:
    """The types that a projection states for the data of its events. Plain data."""

    by_name: Mapping[str, type]
    """By the event's type in the log, the class of its data: a msgspec Struct, a dataclass or a pydantic model."""
    refuses_unknown: bool = False
    """Whether an event of any other type is an error; otherwise it is declined."""


def event_types(projection: type, argument: Any) -> dict[str, type] | None:
    """Give the types that a projection states; None where it states none.

    Args:
        projection: Its class, for errors.
        argument: What its base class is given for them: a class, or a union of some.

    Raises:
        TypeError: It is something else, or two of them have one name.
    """
    argument = getattr(argument, "__value__", argument)  # `type X = …`
    if argument is Any or isinstance(argument, TypeVar):
        return None
    kinds = get_args(argument) if get_origin(argument) in (Union, types.UnionType) else (argument,)
    found: dict[str, type] = {}
    for kind in kinds:
        if not isinstance(kind, type) or not _has_fields(kind):
            raise TypeError(
                f"{projection.__qualname__}: {kind!r} is no type of events. Name msgspec Structs, dataclasses or "
                "pydantic models, or a union of them."
            )
        name = name_of(kind)
        if name in found:
            raise TypeError(
                f"{projection.__qualname__}: {found[name].__qualname__} and {kind.__qualname__} are both the event "
                f"type {name!r}. Say in `event_type` which is which."
            )
        found[name] = kind
    return found


def name_of(kind: type) -> str:
    """Give the event type that a class is the data of: its `event_type`, or its tag as a Struct, or its own name."""
    said = getattr(kind, "event_type", None)
    if isinstance(said, str):
        return said
    tag = kind.__struct_config__.tag if issubclass(kind, msgspec.Struct) else None
    return tag if isinstance(tag, str) else kind.__name__


def _has_fields(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct) or hasattr(kind, "__dataclass_fields__") or hasattr(kind, "model_fields")


def passing_unknown(extract: Callable[[Any, Any], str | None]) -> Callable[[Any, Any], str | None]:
    """Have `extract_model_id` decline the events of unknown types, before the projection's own code sees them."""

    @functools.wraps(extract)
    def declining(self: Any, event: Any) -> str | None:
        return None if type(event.data) is UnknownEvent else extract(self, event)

    vars(declining)["passes_unknown"] = True
    return declining
