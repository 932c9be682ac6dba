"""Records to events. The seam for other formats is `EventCodec`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import orjson

from projections.contract import Event
from streams.errors import EventError, at

__all__ = ["CloudEventsCodec", "EventCodec", "JsonCodec", "Record"]

_SHOWN_BYTES = 120


class Record(Protocol):
    """A record as the log gives it; confluent-kafka's `Message` is one."""

    def topic(self) -> str: ...  # noqa: D102
    def partition(self) -> int: ...  # noqa: D102
    def offset(self) -> int: ...  # noqa: D102
    def key(self) -> bytes | None: ...  # noqa: D102
    def value(self) -> bytes | None: ...  # noqa: D102
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...  # noqa: D102
    def timestamp(self) -> tuple[int, int]:
        """Give (type, milliseconds since 1970); type 0 where the record has none."""
        ...


@runtime_checkable
class EventCodec(Protocol):
    """Reads records of one partition as events, in their order."""

    def decode(self, records: Iterable[Record]) -> Iterator[Event]:
        """Yield one event for each record, lazily: what was yielded is folded before the next is read.

        Called once for each batch and not for each record, so that a codec can keep its loop tight.

        Raises:
            EventError: At the record that cannot be read, with its coordinates; the fold stops in front of it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCodec:
    """A JSON object per record; the field names are yours.

    The default is `{"id": …, "type": …, "time": …, "data": {…}, "metadata": {…}}` with the stream in the key.
    Only the type must be there: an event without an id gets `topic-partition-offset`, one without a time gets
    the record's timestamp, one without data None.
    """

    id: str = "id"
    type: str = "type"
    time: str = "time"
    data: str | None = "data"
    """None: the whole object is the data."""
    metadata: str = "metadata"
    stream: str | None = None
    """The field that names the stream; None: the record's key does, as UTF-8."""

    def decode(self, records: Iterable[Record]) -> Iterator[Event]:
        """Yield one event for each record; see EventCodec."""
        loads = orjson.loads
        id_field, type_field, time_field, data_field = self.id, self.type, self.time, self.data
        metadata_field, stream_field = self.metadata, self.stream
        topic: str | None = None
        for record in records:
            # One try for everything keeps the loop tight; `_explain` finds out afterwards what was wrong.
            try:
                document = loads(record.value())  # type: ignore[arg-type]
                get = document.get
                if topic is None:
                    topic = record.topic()
                partition = record.partition()
                offset = record.offset()
                event = Event(
                    get(id_field) or f"{topic}-{partition}-{offset}",
                    document[type_field],
                    record.key().decode() if stream_field is None else document[stream_field],  # type: ignore[union-attr]
                    get(time_field) or record.timestamp()[1],
                    document if data_field is None else get(data_field),
                    get(metadata_field),
                    topic,
                    partition,
                    offset,
                )
            except Exception as error:
                raise self._explain(record, error) from error
            yield event

    def _explain(self, record: Record, error: Exception) -> EventError:
        value = record.value()
        if value is None:
            return _unreadable(record, "the value is null", "A tombstone is not an event")
        try:
            document = orjson.loads(value)
        except orjson.JSONDecodeError as why:
            return _unreadable(record, f"the value is not JSON: {why}")
        if not isinstance(document, dict):
            return _unreadable(record, f"the value is a JSON {type(document).__name__}, not an object")
        if self.type not in document:
            return _unreadable(record, f"the object has no {self.type!r}, which names the event's type")
        if self.stream is not None:
            return _unreadable(record, f"the object has no {self.stream!r}, which names the stream")
        return _bad_key(record) or _unreadable(record, f"{type(error).__name__}: {error}")


class CloudEventsCodec:
    """CloudEvents 1.0 over Kafka, in structured and binary content mode (CloudEvents Kafka protocol binding).

    The stream is the record's key, else `subject`. `data` is JSON; in binary mode a `content-type` that is not
    JSON gives the value's bytes. Attributes other than id, type and time are the event's metadata.
    """

    def decode(self, records: Iterable[Record]) -> Iterator[Event]:
        """Yield one event for each record; see EventCodec."""
        for record in records:
            headers = {name.lower(): value or b"" for name, value in record.headers() or ()}
            content_type = headers.get("content-type", b"").split(b";")[0].strip()
            try:
                if content_type == b"application/cloudevents+json" or "ce_id" not in headers:
                    attributes, data = self._structured(record)
                else:
                    attributes, data = self._binary(record, headers, content_type)
                yield self._event(record, attributes, data)
            except KeyError as missing:
                raise _unreadable(record, f"the CloudEvent has no {missing.args[0]!r} attribute") from missing
            except (ValueError, TypeError, AttributeError) as error:
                raise _bad_key(record) or _unreadable(record, f"not a CloudEvent: {error}") from error

    @staticmethod
    def _structured(record: Record) -> tuple[dict[str, Any], Any]:
        value = record.value()
        if value is None:
            raise ValueError("the value is null")
        attributes = orjson.loads(value)
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

    @staticmethod
    def _event(record: Record, attributes: dict[str, Any], data: Any) -> Event:
        key = record.key()
        version = attributes.pop("specversion")
        if version != "1.0":
            raise ValueError(f"specversion is {version!r}, and only '1.0' is known")
        return Event(
            attributes.pop("id"),
            attributes.pop("type"),
            key.decode() if key is not None else attributes["subject"],
            attributes.pop("time", None) or record.timestamp()[1],
            data,
            attributes,
            record.topic(),
            record.partition(),
            record.offset(),
        )


def _bad_key(record: Record) -> EventError | None:
    key = record.key()
    if key is None:
        return _unreadable(record, "the record has no key, and the key names the stream")
    try:
        key.decode()
    except UnicodeDecodeError as why:
        return _unreadable(record, f"the key {key[:_SHOWN_BYTES]!r} is not UTF-8: {why.reason}")
    return None


def _unreadable(record: Record, why: str, advice: str | None = None) -> EventError:
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    value = record.value()
    shown = "null" if value is None else f"{len(value)} bytes: {value[:_SHOWN_BYTES]!r}"
    return EventError(
        f"{at(topic, partition, offset)} is no event: {why}. Value: {shown}. "
        f"{advice or 'Choose another codec or other field names'}, or correct the producer; "
        "everything before this record is folded and kept.",
        topic=topic,
        partition=partition,
        offset=offset,
    )
