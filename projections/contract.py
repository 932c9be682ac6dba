"""What a user writes: a projection, and the event that it is given."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from types import FunctionType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypedDict, get_args, get_origin

import msgspec
from typing_extensions import TypeVar

from projections.events import EventTypes, event_types, passing_unknown
from projections.table import Table

__all__ = ["CqrsProjection", "Event", "RebuildDoc", "TransientError"]

ReadModel = TypeVar("ReadModel")
Data = TypeVar("Data", default=Any)


class HasHeaders(Protocol):
    """A record of Kafka's."""

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """Give its headers; None where it has none."""
        ...


class Event(msgspec.Struct, Generic[Data], frozen=True, gc=False, eq=False):
    """One event of the log, decoded. Events are values: a projection reads them and never changes them.

    `Event[ItemAdded | ItemRemoved]` is one whose data is of these types, as a projection may state it.

    A msgspec Struct and not a dataclass, because one is built for every event of every replay
    (0.1 µs against 0.8 µs).
    """

    id: str
    """The event's own id; where its envelope has none, `topic-partition-offset`."""
    type: str
    """What happened, for example `OrderPlaced`."""
    stream: str
    """The stream the event belongs to: the Kafka key, unless the codec says otherwise."""
    recorded_at: str | int
    """When it happened: the envelope's ISO 8601 text, or else Kafka's record timestamp in milliseconds."""
    data: Data
    """The payload: as decoded from JSON, or of one of the types that the projection states."""
    metadata: Any
    """The envelope's metadata as decoded from JSON; None where there is none."""
    topic: str
    partition: int
    offset: int
    """The record's own offset. The position after it is `offset + 1`."""
    record: HasHeaders | None = None
    """What the headers are read from, when they are asked for."""

    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """The record's headers in their order, a name as often as it is there; read at each access."""
        return () if self.record is None else tuple(self.record.headers() or ())

    def header(self, name: str) -> bytes | None:
        """Give the value of a header, of several the last one's; None where there is none."""
        return dict(self.headers).get(name)

    def __eq__(self, other: object) -> bool:
        """Compare all that an event says, and not the record that it was read from."""
        if not isinstance(other, Event):
            return NotImplemented
        return self.headers == other.headers and all(
            getattr(self, field) == getattr(other, field) for field in self.__struct_fields__ if field != "record"
        )

    __hash__ = None  # type: ignore[assignment]  # its data is a dict

    @property
    def time(self) -> datetime:
        """`recorded_at` as an aware datetime, parsed at each access. Text without an offset counts as UTC.

        Raises:
            ValueError: The text is not ISO 8601.
        """
        if isinstance(self.recorded_at, int):
            return datetime.fromtimestamp(self.recorded_at / 1000, UTC)
        time = datetime.fromisoformat(self.recorded_at)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


class TransientError(Exception):
    """Raise it where an event cannot be folded now, and the same event may be later: nothing is wrong with either.

    A rebuild that retries then goes on at this event. The fold stays pure: what it gives must not depend on how often
    it was tried.
    """


class RebuildDoc(TypedDict, total=False):
    """What whoever rebuilds a projection is to know of that (reference: Documentation). A plain dict will do."""

    typical_seconds_per_million_events: float
    """As its author measured it; where no rebuild was measured yet, its plan goes by this."""
    memory_bytes: int
    """What one process takes meanwhile."""
    dependencies: str
    """What is to be current before, beside `depends_on`; in words."""
    notes: str
    """What else there is to know."""


class CqrsProjection(ABC, Generic[ReadModel, Data]):
    """A pure fold of events into read models, one model at a time.

    Name the read model's type in the base: `class Orders(CqrsProjection[Order])`. It may be `dict`, a
    dataclass, a `msgspec.Struct` or a pydantic model; it is stored as JSON.

    Name the types of the events' data behind it: `class Orders(CqrsProjection[Order, OrderPlaced | OrderPaid])`, where
    each is a `msgspec.Struct`, a dataclass or a pydantic model. An event is of the class that has its type for a name
    (or for its `event_type`, or a Struct's tag), and `event.data` is an object of it. An event whose data does not fit
    is no event: the error names the field.

    Purity is the whole contract: given the same events, `apply_to_model` gives the same models. It must not
    read clocks, random numbers or databases, and must have no effects: during a rebuild it is called again
    for every event of history, and after a crash again for the events since the last checkpoint (whose first
    results were never stored).
    """

    name: ClassVar[str]
    """Stable, lower-case and dashed. With `version` it names the consumer group and the state directory."""
    version: ClassVar[int] = 1
    """Raise it when the fold changes, so that the new version is built beside the old one."""
    idempotent: ClassVar[bool] = False
    """State that folding an event again, over models that have it already, changes nothing. Then a rebuild may begin at
    any position over the models as they are; otherwise it needs the models as of that position."""
    partition_by: ClassVar[Literal["stream", "model"] | None] = None
    """Kafka orders events within a partition only, so a model must be fed by one partition alone. That is
    certain where the model's id is its stream. `"stream"` states that it also holds for ids that differ:
    every event of one model is of one stream (`order-7/2026-01`, say). `"model"` states that it does not: events of
    several streams feed one model (an airport, of all flights'). They are written once more then, to a topic of the
    generation's own that is keyed by model, and folded from there: those of one partition of the event topic in their
    order, those of different ones in the order in which they came there, which a rebuild need not repeat."""

    unknown_events: ClassVar[Literal["decline", "refuse"]] = "decline"
    """Where the types of events are stated: what an event of any other type is, declined, or an error as one that is no
    event (see `on_error`)."""

    depends_on: ClassVar[tuple[str, ...]] = ()
    """Names of projections that are to be current before this one is rebuilt: a rebuild of several takes them in that
    order, and one of this alone waits until they have folded all that their topics have."""

    rebuild_doc: ClassVar[RebuildDoc] = {}
    """What whoever rebuilds it is to know; `refold describe` tells it. No part of the fold: changing it is no reason to
    rebuild."""

    table: ClassVar[Table | None] = None
    """The columns, key and indexes of the table that its models are kept in, where that is PostgreSQL; by default each
    field of a typed model is a column. Another table is another version."""

    Query: ClassVar[type | None] = None
    """What readers may ask for in a list of models: a dataclass, a `msgspec.Struct` or a pydantic model, whose fields
    have defaults. Declare it in the class, and say in `matches` what it means. Neither is part of the fold: changing
    them is no reason to rebuild."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Decline events of unknown types before the projection's own code sees them."""
        super().__init_subclass__(**options)
        if cls.event_types() is None:
            return
        found = inspect.getattr_static(cls, "extract_model_id")  # its own, or a base's that knows of no types
        if getattr(found, "passes_unknown", False) or getattr(found, "__isabstractmethod__", False):
            return
        if not isinstance(found, FunctionType):
            raise TypeError(f"{cls.__qualname__}: write extract_model_id as a plain method, where events have types")
        cls.extract_model_id = passing_unknown(found)  # type: ignore[assignment, method-assign]

    @abstractmethod
    def extract_model_id(self, event: Event[Data]) -> str | None:
        """Say which read model an event belongs to; None declines the event.

        A declined event counts as processed and changes nothing.
        """

    @abstractmethod
    def apply_to_model(
        self, model: ReadModel | None, event: Event[Data]
    ) -> ReadModel | Awaitable[ReadModel | None] | None:
        """Fold one event into its model. May be a plain or an `async def` method; a plain one is faster.

        Args:
            model: The model as the events before left it; None where there is none. It is yours to change in
                place and return: if the call fails, the changed object is thrown away.
            event: The next event of this model, in the log's order.

        Returns:
            The model after the event; None deletes it.

        Raises:
            Exception: Whatever this raises stops the fold in front of this event, with the event's
                coordinates in the error. State and position stay as they were before it.
        """

    def validate(self, old: Any | None, new: Any | None) -> bool:
        """Say whether a model may differ so from what it was before a rebuild (`--verify validate`).

        Override it to state what a change of the code is to change. Called for each model that differs, and for no
        other, once a rebuild beside the live version has caught up; never while events are folded.

        Args:
            old: The model of the version that is active, as plain JSON; None where it has none.
            new: The model of the new version as of the same positions; None where it has none.

        Returns:
            Whether that is as it should be. Where it is not, readers stay with the old version until a person has
            looked at it.
        """
        raise NotImplementedError

    def matches(self, model: ReadModel, query: Any) -> bool:
        """Say whether a model is among those that readers ask for; see `Query`.

        Called for each model of a list that is asked for by a query, in the process that answers; never while events
        are folded. It must not change the model.

        Args:
            model: The model as last committed.
            query: What is asked for, as a `Query`.
        """
        raise NotImplementedError

    @classmethod
    def model_type(cls) -> type[ReadModel]:
        """The read model's type, as named in the base class.

        Raises:
            TypeError: The class names none.
        """
        for argument in cls._arguments(0):
            argument = get_origin(argument) or argument
            if isinstance(argument, type):
                return argument
        raise TypeError(f"{cls.__qualname__} names no read model: write `class {cls.__name__}(CqrsProjection[dict])`")

    @classmethod
    def event_types(cls) -> EventTypes | None:
        """The types of its events' data, as named in the base class; None where it names none.

        Raises:
            TypeError: What is named is no type of events.
        """
        for argument in cls._arguments(1):
            found = event_types(cls, argument)
            if found is not None:
                return EventTypes(found, refuses_unknown=cls.unknown_events == "refuse")
        return None

    @classmethod
    def _arguments(cls, number: int) -> Iterator[Any]:
        """Yield what the class and its bases give for one of the parameters."""
        for klass in cls.__mro__:
            for base in klass.__dict__.get("__orig_bases__", ()):
                origin = get_origin(base)
                if isinstance(origin, type) and issubclass(origin, CqrsProjection):
                    yield from get_args(base)[number : number + 1]
