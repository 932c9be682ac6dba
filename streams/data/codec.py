"""Records to events. The seam for other formats is `EventCodec`."""

from __future__ import annotations

import dataclasses
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import msgspec

from projections.contract import CqrsProjection, Event
from streams.config import Tombstones
from streams.errors import ConfigError, EventError, at, text_of

__all__ = [
    "EventCodec",
    "Outcome",
    "Record",
    "Tombstone",
    "Undecodable",
    "check_tombstones",
    "decoded",
    "describe",
    "key_text",
    "stream_text",
    "tombstone_of",
]

_SHOWN_BYTES = 120
_PORTION = 100


class Record(Protocol):
    """A record as the log gives it; confluent-kafka's `Message` is one."""

    def topic(self) -> str: ...  # noqa: D102
    def partition(self) -> int: ...  # noqa: D102
    def offset(self) -> int: ...  # noqa: D102
    def key(self) -> bytes | None: ...  # noqa: D102
    def value(self) -> bytes | None: ...  # noqa: D102
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...  # noqa: D102
    def __len__(self) -> int:
        """Give the value's size in bytes; 0 for a null value."""
        ...

    def timestamp(self) -> tuple[int, int]:
        """Give (type, milliseconds since 1970); type 0 where the record has none."""
        ...


class Undecodable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record that is no event, and why."""

    reason: str
    """What is wrong, to follow "is no event:"."""
    topic: str
    partition: int
    offset: int
    value: bytes | None
    """The start of the record's value."""
    size: int
    """The value's size in bytes."""
    advice: str = "Choose another codec or other field names, or correct the producer"

    @classmethod
    def of(cls, record: Record, reason: str, advice: str | None = None) -> Undecodable:
        """Say of a record what is wrong with it."""
        value = record.value()
        return cls(
            reason=reason,
            topic=record.topic(),
            partition=record.partition(),
            offset=record.offset(),
            value=None if value is None else value[:_SHOWN_BYTES],
            size=len(record),
            **({} if advice is None else {"advice": advice}),
        )

    def error(self) -> EventError:
        """Give the error that stops a fold in front of the record."""
        shown = "null" if self.value is None else f"{self.size} bytes: {text_of(self.value)}"
        return EventError(
            f"{at(self.topic, self.partition, self.offset)} is no event: {self.reason}. Value: {shown}. "
            f"{self.advice}; everything before this record is folded and kept.",
            topic=self.topic,
            partition=self.partition,
            offset=self.offset,
        )


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record with a null value, which the codec was told to take as one (Kafka's word for it)."""

    stream: str
    """The record's key."""
    deletes: bool
    """Whether it deletes the key's model; otherwise it is declined."""
    topic: str
    partition: int
    offset: int


Outcome: TypeAlias = Event | Tombstone | Undecodable
"""What a record came out as."""


@runtime_checkable
class EventCodec(Protocol):
    """Reads records of one partition as events, in their order.

    How it reads is part of what a state is of: where it has options, make it a dataclass, whose fields then count.

    A codec may have an attribute `streams_are_keys`. Where it is true, the stream of a record that has a key is that
    key, as UTF-8, and some streams' records are found without decoding the others.
    """

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """Give one outcome for each record, in order: the event, or why it is none.

        Called once for many records and not for each, so that a codec can keep its loop tight.

        Args:
            records: At least one; all of one partition.

        Raises:
            Exception: Whatever it raises is taken as the reason why a record is no event; which one, is found by
                asking again for each of them alone.
        """
        ...


def decoded(codec: EventCodec, records: Sequence[Record]) -> Iterator[Sequence[Outcome]]:
    """Decode in portions; one outcome for each record, whatever its neighbours are.

    Portions are small, so that the garbage collector does not see them: with more dicts alive at once it would go
    through all cached models again and again.
    """
    for start in range(0, len(records), _PORTION):
        yield _decoded(codec, records[start : start + _PORTION])


def _decoded(codec: EventCodec, records: Sequence[Record]) -> Sequence[Outcome]:
    try:
        outcomes = codec.decode(records)
        if len(outcomes) == len(records):
            return outcomes
        why = f"it gave {len(outcomes)} outcomes for {len(records)} records"
    except (Exception, CancelledError) as error:  # noqa: BLE001  (told at its own record)
        why = f"{type(error).__name__}: {error}"
    if len(records) == 1:
        return [Undecodable.of(records[0], f"{type(codec).__name__} failed: {why}")]
    return [_decoded(codec, [record])[0] for record in records]


def describe(codec: EventCodec) -> str:
    """Say how a codec reads, in one line: what differs reads differently."""
    kind = type(codec)
    options = ""
    if dataclasses.is_dataclass(codec):
        given = [(field.name, getattr(codec, field.name)) for field in dataclasses.fields(codec) if field.compare]
        options = ", ".join(f"{name}={_described(value)}" for name, value in given)
    module = "" if kind.__module__.startswith("streams.data.") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}({options})"


def _described(value: object) -> str:
    is_codec = dataclasses.is_dataclass(value) and hasattr(value, "decode")
    return describe(cast(EventCodec, value)) if is_codec else repr(value)


def tombstone_of(record: Record, tombstones: Tombstones) -> Tombstone | Undecodable:
    """Give what a record with a null value is, as the codec's option says."""
    if tombstones == "halt":
        return Undecodable.of(
            record,
            "the value is null",
            "Where the topic's producers delete by key, say what that is to do (--tombstones skip, or delete-model)",
        )
    stream = key_text(record)
    if isinstance(stream, Undecodable):
        return stream
    return Tombstone(
        stream=stream,
        deletes=tombstones == "delete-model",
        topic=record.topic(),
        partition=record.partition(),
        offset=record.offset(),
    )


def check_tombstones(projection: CqrsProjection[Any], codec: EventCodec) -> None:
    """Make sure that models can be found by a record's key, where tombstones are to delete them.

    Raises:
        ConfigError: The projection's model ids are not its streams.
    """
    if projection.partition_by is not None and getattr(codec, "tombstones", "") == "delete-model":
        raise ConfigError(
            f"tombstones = delete-model deletes the model whose id is a record's key, and the models of "
            f"{projection.name!r} have ids of their own (partition_by = {projection.partition_by!r}). Choose skip, and "
            "let events delete models."
        )


def key_text(record: Record) -> str | Undecodable:
    """Give the stream that a record's key names, or why it names none."""
    key = record.key()
    if key is None:
        return Undecodable.of(record, "the record has no key, and the key names the stream")
    try:
        return key.decode()
    except UnicodeDecodeError as why:
        return Undecodable.of(record, f"the key {key[:_SHOWN_BYTES]!r} is not UTF-8: {why.reason}")


def stream_text(record: Record, field: str, value: object) -> str | Undecodable:
    """Give the stream that a field names, text or a whole number as text, or why it names none."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    return Undecodable.of(record, f"{field!r}, which names the stream, is {value!r}, neither text nor a whole number")
