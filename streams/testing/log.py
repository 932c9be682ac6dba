"""An event log in memory, and events for it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from pydantic import BaseModel

from projections.contract import Event
from projections.events import name_of
from streams.data.codec import EventCodec, Undecodable
from streams.data.json_codec import JsonCodec
from streams.errors import EventError

__all__ = ["Given", "MemoryLog", "MemoryRecord", "event"]

_FIRST_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
_STEP_MS = 1000


@dataclass(frozen=True, slots=True)
class Given:
    """An event that a log is to hold; see `event`."""

    type: str
    stream: str
    data: Any = None
    id: str | None = None
    time: str | None = None
    metadata: Any = None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def envelope(self) -> bytes:
        """Give it as JSON, as the default codec reads it."""
        document = {"id": self.id, "type": self.type, "time": self.time, "data": self.data, "metadata": self.metadata}
        return orjson.dumps({name: value for name, value in document.items() if value is not None})


def event(
    type: str | object,  # noqa: A002 - it is called so
    stream: str = "stream-1",
    data: Mapping[str, Any] | None = None,
    *,
    id: str | None = None,  # noqa: A002
    time: str | None = None,
    metadata: Any = None,
    headers: Iterable[tuple[str, bytes | None]] = (),
    **fields: Any,
) -> Given:
    """Describe an event.

    Args:
        type: What happened: its name, or an object of a type of events that a projection states, which is the data too.
        stream: Whose it is.
        data: Its payload; it goes through JSON, as it does in production.
        id: Its id; by default one that no other event of the log has.
        time: When it happened, as ISO 8601 text; by default a second after the event before it.
        metadata: The envelope's metadata.
        headers: Its record's headers.
        fields: Further fields of `data`.
    """
    if not isinstance(type, str):
        if data is not None or fields:
            raise TypeError("an event is given as an object, or by its type and data")
        name = name_of(type.__class__)
        payload = type.model_dump(mode="json") if isinstance(type, BaseModel) else msgspec.to_builtins(type)
        return Given(name, stream, payload, id, time, metadata, tuple(headers))
    payload = {**(data or {}), **fields}
    return Given(type, stream, payload, id, time, metadata, tuple(headers))


@dataclass(slots=True)
class MemoryRecord:
    """A record as Kafka gives it; see `codec.Record`."""

    _key: bytes | None
    _value: bytes | None
    _partition: int
    _offset: int
    _headers: list[tuple[str, bytes | None]] = field(default_factory=list)

    def __len__(self) -> int:
        """See Record."""
        return len(self._value or b"")

    def topic(self) -> str:
        """See Record."""
        return "memory"

    def partition(self) -> int:
        """See Record."""
        return self._partition

    def offset(self) -> int:
        """See Record."""
        return self._offset

    def key(self) -> bytes | None:
        """See Record."""
        return self._key

    def value(self) -> bytes | None:
        """See Record."""
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """See Record."""
        return self._headers or None

    def timestamp(self) -> tuple[int, int]:
        """See Record."""
        return 1, _FIRST_MS + self._offset * _STEP_MS


class MemoryLog:
    """Records of a topic, in memory. A stream's are all in one partition, as with a producer that keys by stream.

    Args:
        events: What it holds; more may be added.
        partitions: How many partitions it has.
        codec: How records are read; by default a JSON envelope.
    """

    def __init__(self, events: Iterable[Given] = (), *, partitions: int = 1, codec: EventCodec | None = None) -> None:
        self.codec: EventCodec = codec or JsonCodec()
        self.records: dict[int, list[MemoryRecord]] = {number: [] for number in range(partitions)}
        """By partition, in order."""
        self.append(*events)

    def append(self, *events: Given) -> None:
        """Write events."""
        for one in events:
            self.append_raw(one.stream.encode(), one.envelope(), one.headers)

    def append_raw(
        self, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]] = ()
    ) -> None:
        """Write a record as it is."""
        records = self.records[zlib.crc32(key or b"") % len(self.records)]
        number = next(number for number, there in self.records.items() if there is records)
        records.append(MemoryRecord(key, value, number, len(records), list(headers)))

    def decoded(self, partition: int = 0) -> Sequence[Event]:
        """Give a partition's events.

        Raises:
            EventError: A record is none.
        """
        records = self.records[partition]
        events = []
        for outcome in self.codec.decode(records) if records else ():
            if isinstance(outcome, Undecodable):
                raise outcome.error()
            if not isinstance(outcome, Event):
                raise EventError(f"record {outcome.offset} has no value: it is a tombstone, and no event")
            events.append(outcome)
        return events
