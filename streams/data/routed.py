"""Events in a topic that they were written to once more, keyed by model: as they were, with where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from projections.contract import Event
from streams.data.codec import EventCodec, Outcome, Record

__all__ = ["ORIGIN", "Origin", "Routed", "headers_with_origin"]

ORIGIN = "refold-origin"
"""The header that says where an event came from: `partition:offset:key` of the event topic; no third part where the
record had no key."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event came from."""

    partition: int
    offset: int
    key: bytes | None

    @classmethod
    def of(cls, record: Record) -> Origin:
        """Read it from a record's headers.

        Raises:
            ValueError: There is none, or none of ours.
        """
        for name, value in reversed(record.headers() or ()):
            if name == ORIGIN and value is not None:
                partition, offset, *key = value.split(b":", 2)
                return cls(int(partition), int(offset), key[0] if key else None)
        raise ValueError(f"the record has no header {ORIGIN!r}: another program than refold has written it")


def headers_with_origin(record: Record) -> list[tuple[str, bytes | None]]:
    """Give a record's headers, and where it is."""
    key = record.key()
    where = b"%d:%d" % (record.partition(), record.offset())
    return [*(record.headers() or ()), (ORIGIN, where if key is None else b"%b:%b" % (where, key))]


class _Unrouted:
    """A record with the key and the headers that it came with. Its topic, partition and offset are those it has now."""

    __slots__ = ("_record", "origin")

    def __init__(self, record: Record) -> None:
        self._record = record
        self.origin = Origin.of(record)

    def topic(self) -> str:
        return self._record.topic()

    def partition(self) -> int:
        return self._record.partition()

    def offset(self) -> int:
        return self._record.offset()

    def key(self) -> bytes | None:
        return self.origin.key

    def value(self) -> bytes | None:
        return self._record.value()

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return (self._record.headers() or [])[:-1] or None  # the last one says where it came from

    def timestamp(self) -> tuple[int, int]:
        return self._record.timestamp()

    def __len__(self) -> int:
        return len(self._record)


@dataclass(frozen=True)
class Routed:
    """Reads records that a `Repartitioner` has written, by the codec of the event topic.

    An event's stream, key and headers are those that it was written with. Its topic, partition and offset are those
    of the record that is read, and `Origin.of` tells the others. An event without an id of its own is known by where it
    was in the event topic, so that it has the same id each time that it is written once more.

    Args:
        codec: How the event topic's records are read.
        topic: The event topic's name.
    """

    codec: EventCodec
    topic: str

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """See EventCodec."""
        unrouted = list(map(_Unrouted, records))
        outcomes = self.codec.decode(unrouted)
        made_up = f"{records[0].topic()}-{records[0].partition()}-"
        if not any(type(one) is Event and type(one.id) is str and one.id.startswith(made_up) for one in outcomes):
            return outcomes
        return [
            replace(one, id=f"{self.topic}-{record.origin.partition}-{record.origin.offset}")
            if type(one) is Event and one.id == f"{made_up}{one.offset}"
            else one
            for one, record in zip(outcomes, unrouted, strict=True)
        ]
