"""Records that are CloudEvents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from projections.contract import Event
from streams.config import Tombstones
from streams.data.codec import Outcome, Record, Undecodable, key_text, stream_text, tombstone_of

__all__ = ["CloudEventsCodec"]


@dataclass(frozen=True, slots=True)
class CloudEventsCodec:
    """CloudEvents 1.0 over Kafka, in structured and binary content mode (CloudEvents Kafka protocol binding).

    The stream is the record's key, else `subject`. `data` is JSON; in binary mode a `content-type` that is not
    JSON gives the value's bytes. Attributes other than id, type and time are the event's metadata.
    """

    tombstones: Tombstones = "halt"
    """What a record with a null value does that is no CloudEvent without data."""

    @property
    def streams_are_keys(self) -> bool:
        """Whether the key of a record that has one names its stream; see EventCodec."""
        return True

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        """Give one outcome for each record; see EventCodec."""
        return [self._decode_one(record) for record in records]

    def _decode_one(self, record: Record) -> Outcome:
        headers = {name.lower(): value or b"" for name, value in record.headers() or ()}
        if record.value() is None and "ce_id" not in headers:
            return tombstone_of(record, self.tombstones)
        content_type = headers.get("content-type", b"").split(b";")[0].strip()
        try:
            if content_type == b"application/cloudevents+json" or "ce_id" not in headers:
                attributes, data = self._structured(record)
            else:
                attributes, data = self._binary(record, headers, content_type)
            version = attributes.pop("specversion")
            if version != "1.0":
                return Undecodable.of(record, f"not a CloudEvent: specversion is {version!r}, and only '1.0' is known")
            has_key = record.key() is not None
            stream = key_text(record) if has_key else stream_text(record, "subject", attributes["subject"])
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
