"""Records as events: the JSON envelope, other field names, CloudEvents, and everything that is no event."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from projections.contract import Event
from streams.data.codec import CloudEventsCodec, EventCodec, JsonCodec
from streams.errors import EventError
from tests.support import MadeRecord


def decode(record: MadeRecord, codec: EventCodec | None = None) -> Event:
    return next((codec or JsonCodec()).decode([record]))


def test_default_envelope() -> None:
    value = orjson.dumps(
        {"id": "e1", "type": "T", "time": "2026-01-02T03:04:05Z", "data": {"a": 1}, "metadata": {"m": 2}}
    )
    event = decode(MadeRecord(value, b"stream-1", 7, 3, "orders"))
    assert event == Event("e1", "T", "stream-1", "2026-01-02T03:04:05Z", {"a": 1}, {"m": 2}, "orders", 3, 7)
    assert event.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_event_without_id_time_or_data_gets_its_coordinates_and_the_records_time() -> None:
    event = decode(MadeRecord(b'{"type":"T"}', b"s", 7, 3, "orders"))
    assert (event.id, event.data, event.metadata) == ("orders-3-7", None, None)
    assert event.time == datetime.fromtimestamp(1_700_000_000, UTC)


def test_null_id_and_time_count_as_missing() -> None:
    event = decode(MadeRecord(b'{"id":null,"type":"T","time":null,"data":1}', b"s", 7))
    assert (event.id, event.recorded_at) == ("t-0-7", 1_700_000_000_000)


def test_field_names_are_configurable() -> None:
    codec = JsonCodec(id="uuid", type="kind", time="at", data=None, stream="order")
    document = {"uuid": "u", "kind": "K", "at": "2026-01-01", "order": "o-1", "total": 5}
    event = decode(MadeRecord(orjson.dumps(document), None), codec)
    assert (event.id, event.type, event.stream, event.data) == ("u", "K", "o-1", document)
    assert event.time == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (MadeRecord(b"{nope", b"s", 5), "the value is not JSON"),
        (MadeRecord(b"\xff\xfe", b"s", 5), "the value is not JSON"),
        (MadeRecord(b"[1]", b"s", 5), "a JSON list, not an object"),
        (MadeRecord(b'"text"', b"s", 5), "a JSON str, not an object"),
        (MadeRecord(b'{"id":"x"}', b"s", 5), "no 'type'"),
        (MadeRecord(None, b"s", 5), "the value is null"),
        (MadeRecord(b'{"type":"T"}', None, 5), "no key"),
        (MadeRecord(b'{"type":"T"}', b"\xff", 5), "is not UTF-8"),
    ],
)
def test_what_is_no_event_is_refused_with_coordinates_and_cause(record: MadeRecord, why: str) -> None:
    with pytest.raises(EventError, match=r"^t\[0\]@5 is no event: ") as raised:
        decode(record)
    assert why in str(raised.value)
    assert (raised.value.topic, raised.value.partition, raised.value.offset) == ("t", 0, 5)


def test_missing_stream_field_is_named() -> None:
    with pytest.raises(EventError, match="no 'order', which names the stream"):
        decode(MadeRecord(b'{"type":"T"}', b"k", 0), JsonCodec(stream="order"))


def test_long_values_are_shown_by_their_head_only() -> None:
    with pytest.raises(EventError) as raised:
        decode(MadeRecord(b"x" * 900_000, b"s", 0))
    assert len(str(raised.value)) < 600
    assert "900000 bytes" in str(raised.value)


def test_events_before_a_bad_record_are_given_out_first() -> None:
    events = JsonCodec().decode([MadeRecord(b'{"type":"T"}', b"s", 0), MadeRecord(b"", b"s", 1)])
    assert next(events).offset == 0
    with pytest.raises(EventError):
        next(events)


CLOUD = {
    "specversion": "1.0",
    "id": "c1",
    "type": "com.x.Made",
    "source": "/x",
    "time": "2026-01-01T00:00:00Z",
}


def test_cloudevent_structured() -> None:
    value = orjson.dumps(CLOUD | {"subject": "s-9", "data": {"a": 1}, "traceparent": "00-1"})
    headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
    event = decode(MadeRecord(value, None, 4, headers_=headers), CloudEventsCodec())
    assert (event.id, event.type, event.stream, event.data) == ("c1", "com.x.Made", "s-9", {"a": 1})
    assert event.metadata == {"source": "/x", "subject": "s-9", "traceparent": "00-1"}


def test_cloudevent_binary() -> None:
    headers = tuple((f"ce_{name}", value.encode()) for name, value in CLOUD.items())
    headers += (("content-type", b"application/json"),)
    event = decode(MadeRecord(b'{"a":1}', b"key", 4, headers_=headers), CloudEventsCodec())
    assert (event.id, event.stream, event.data, event.metadata) == ("c1", "key", {"a": 1}, {"source": "/x"})


def test_cloudevent_binary_that_is_not_json_gives_its_bytes() -> None:
    headers = tuple((f"ce_{name}", value.encode()) for name, value in CLOUD.items())
    headers += (("content-type", b"application/octet-stream"),)
    assert decode(MadeRecord(b"\x00\x01", b"k", headers_=headers), CloudEventsCodec()).data == b"\x00\x01"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (orjson.dumps({k: v for k, v in CLOUD.items() if k != "id"}), "no 'id' attribute"),
        (orjson.dumps(CLOUD | {"specversion": "0.3"}), "specversion is '0.3'"),
        (b"[]", "a JSON list"),
        (b"{", "not a CloudEvent"),
        (None, "the value is null"),
    ],
)
def test_what_is_no_cloudevent_is_refused(value: bytes | None, why: str) -> None:
    with pytest.raises(EventError, match=r"^t\[0\]@2 is no event") as raised:
        decode(MadeRecord(value, b"k", 2), CloudEventsCodec())
    assert why in str(raised.value)


def test_cloudevent_without_key_or_subject_has_no_stream() -> None:
    with pytest.raises(EventError, match="no 'subject'"):
        decode(MadeRecord(orjson.dumps(CLOUD), None), CloudEventsCodec())
