"""Records to events. The seam for other formats is `EventCodec`."""

from __future__ import annotations

import dataclasses
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
import orjson

from projections.contract import CqrsProjection, Event
from streams.config import Tombstones
from streams.errors import ConfigError, EventError, at, text_of

__all__ = [
    "CloudEventsCodec",
    "EventCodec",
    "JsonCodec",
    "Outcome",
    "Record",
    "Tombstone",
    "Undecodable",
    "check_tombstones",
    "decoded",
    "describe",
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
        options = ", ".join(
            f"{field.name}={getattr(codec, field.name)!r}" for field in dataclasses.fields(codec) if field.compare
        )
    module = "" if kind.__module__ == __name__ else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}({options})"


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCodec:
    """A JSON object per record; the field names are yours.

    The default is `{"id": …, "type": …, "time": …, "data": {…}, "metadata": {…}}` with the stream in the key.
    Only the type must be there: an event without an id gets `topic-partition-offset`, one without a time gets
    the record's timestamp, one without data None. A stream that is a whole number is taken as its text.
    """

    id: str = "id"
    type: str = "type"
    time: str = "time"
    data: str | None = "data"
    """None: the whole object is the data."""
    metadata: str = "metadata"
    stream: str | None = None
    """The field that names the stream; None: the record's key does, as UTF-8."""
    tombstones: Tombstones = "halt"
    """What a record with a null value does."""

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """Give one outcome for each record; see EventCodec."""
        try:
            events = self._decode_alike(records)
        except Exception:  # noqa: BLE001  (whatever it is, it is found again at its own record)
            events = None
        return [self._decode_one(record) for record in records] if events is None else events

    def _decode_alike(self, records: Sequence[Record]) -> list[Outcome] | None:
        """Decode records that all have id, type, time and data, as nearly all batches do; None where one has not.

        The loops run in C: a fifth less time for each event of history than `_decode_one`.
        """
        kind = type(records[0])
        documents = list(map(orjson.loads, map(kind.value, records)))  # type: ignore[arg-type]
        ids = list(map(itemgetter(self.id), documents))
        times = list(map(itemgetter(self.time), documents))
        if None in ids or None in times:
            return None
        if self.stream is None:
            streams = list(map(bytes.decode, map(kind.key, records)))  # type: ignore[arg-type]
        else:
            streams = list(map(itemgetter(self.stream), documents))
            if set(map(type, streams)) != {str}:
                return None
        return list(
            map(
                Event,
                ids,
                map(itemgetter(self.type), documents),
                streams,
                times,
                documents if self.data is None else map(itemgetter(self.data), documents),
                map(dict.get, documents, repeat(self.metadata)),
                repeat(records[0].topic()),
                repeat(records[0].partition()),
                map(kind.offset, records),
                records,
            )
        )

    def _decode_one(self, record: Record) -> Outcome:
        value = record.value()
        if value is None:
            return _tombstone(record, self.tombstones)
        try:
            document = orjson.loads(value)
        except orjson.JSONDecodeError as why:
            return Undecodable.of(record, f"the value is not JSON: {why}")
        if not isinstance(document, dict):
            return Undecodable.of(record, f"the value is a JSON {type(document).__name__}, not an object")
        if self.type not in document:
            return Undecodable.of(record, f"the object has no {self.type!r}, which names the event's type")
        if self.stream is None:
            stream = _key_text(record)
        elif self.stream not in document:
            return Undecodable.of(record, f"the object has no {self.stream!r}, which names the stream")
        else:
            stream = _stream_text(record, self.stream, document[self.stream])
        if isinstance(stream, Undecodable):
            return stream
        topic, partition, offset = record.topic(), record.partition(), record.offset()
        event_id, time = document.get(self.id), document.get(self.time)
        return Event(
            f"{topic}-{partition}-{offset}" if event_id is None else event_id,
            document[self.type],
            stream,
            record.timestamp()[1] if time is None else time,
            document if self.data is None else document.get(self.data),
            document.get(self.metadata),
            topic,
            partition,
            offset,
            record,
        )


@dataclass(frozen=True, slots=True)
class CloudEventsCodec:
    """CloudEvents 1.0 over Kafka, in structured and binary content mode (CloudEvents Kafka protocol binding).

    The stream is the record's key, else `subject`. `data` is JSON; in binary mode a `content-type` that is not
    JSON gives the value's bytes. Attributes other than id, type and time are the event's metadata.
    """

    tombstones: Tombstones = "halt"
    """What a record with a null value does that is no CloudEvent without data."""

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """Give one outcome for each record; see EventCodec."""
        return [self._decode_one(record) for record in records]

    def _decode_one(self, record: Record) -> Outcome:
        headers = {name.lower(): value or b"" for name, value in record.headers() or ()}
        if record.value() is None and "ce_id" not in headers:
            return _tombstone(record, self.tombstones)
        content_type = headers.get("content-type", b"").split(b";")[0].strip()
        try:
            if content_type == b"application/cloudevents+json" or "ce_id" not in headers:
                attributes, data = self._structured(record)
            else:
                attributes, data = self._binary(record, headers, content_type)
            version = attributes.pop("specversion")
            if version != "1.0":
                return Undecodable.of(record, f"not a CloudEvent: specversion is {version!r}, and only '1.0' is known")
            if record.key() is None:
                stream = _stream_text(record, "subject", attributes["subject"])
            else:
                stream = _key_text(record)
            if isinstance(stream, Undecodable):
                return stream
            event_id, kind, time = attributes.pop("id"), attributes.pop("type"), attributes.pop("time", None)
        except KeyError as missing:
            return Undecodable.of(record, f"the CloudEvent has no {missing.args[0]!r} attribute")
        except (ValueError, TypeError) as error:
            return Undecodable.of(record, f"not a CloudEvent: {error}")
        return Event(
            event_id,
            kind,
            stream,
            record.timestamp()[1] if time is None else time,
            data,
            attributes,
            record.topic(),
            record.partition(),
            record.offset(),
            record,
        )

    @staticmethod
    def _structured(record: Record) -> tuple[dict[str, Any], Any]:
        attributes = orjson.loads(record.value() or b"")
        if not isinstance(attributes, dict):
            raise TypeError(f"the value is a JSON {type(attributes).__name__}, not an object")
        return attributes, attributes.pop("data", None)

    @staticmethod
    def _binary(record: Record, headers: dict[str, bytes], content_type: bytes) -> tuple[dict[str, Any], Any]:
        attributes: dict[str, Any] = {
            name[3:]: value.decode() for name, value in headers.items() if name.startswith("ce_")
        }
        value = record.value()
        json = not content_type or content_type == b"application/json" or content_type.endswith(b"+json")
        return attributes, orjson.loads(value) if json and value else value


def _tombstone(record: Record, tombstones: Tombstones) -> Tombstone | Undecodable:
    if tombstones == "halt":
        return Undecodable.of(
            record,
            "the value is null",
            "Where the topic's producers delete by key, say what that is to do (--tombstones skip, or delete-model)",
        )
    stream = _key_text(record)
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


def _key_text(record: Record) -> str | Undecodable:
    key = record.key()
    if key is None:
        return Undecodable.of(record, "the record has no key, and the key names the stream")
    try:
        return key.decode()
    except UnicodeDecodeError as why:
        return Undecodable.of(record, f"the key {key[:_SHOWN_BYTES]!r} is not UTF-8: {why.reason}")


def _stream_text(record: Record, field: str, value: object) -> str | Undecodable:
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    return Undecodable.of(record, f"{field!r}, which names the stream, is {value!r}, neither text nor a whole number")
