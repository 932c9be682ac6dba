"""Records as events: the JSON envelope, other field names, CloudEvents, and everything that is no event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from projections.contract import Event
from streams.data.cloudevents import CloudEventsCodec
from streams.data.codec import EventCodec, Outcome, Record, Tombstone, Undecodable, check_tombstones, decoded, describe
from streams.data.json_codec import JsonCodec
from streams.errors import ConfigError, EventError
from tests.support import MadeRecord, Tally


def decode(record: MadeRecord, codec: EventCodec | None = None) -> Event:
    (outcome,) = (codec or JsonCodec()).decode([record])
    if isinstance(outcome, Undecodable):
        raise outcome.error()
    assert isinstance(outcome, Event)
    return outcome


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


def kinds(outcomes: Iterable[Sequence[Outcome]]) -> list[str]:
    return [type(outcome).__name__ for portion in outcomes for outcome in portion]


@pytest.mark.parametrize("position", [0, 99, 100, 149])
def test_each_record_has_its_own_outcome_whatever_its_neighbours_are(position: int) -> None:
    records = [MadeRecord(b'{"type":"T"}', b"s", number) for number in range(150)]
    records[position] = MadeRecord(b"", b"s", position)
    outcomes = [outcome for portion in decoded(JsonCodec(), records) for outcome in portion]
    assert [outcome.offset for outcome in outcomes] == list(range(150))
    assert [number for number, one in enumerate(outcomes) if isinstance(one, Undecodable)] == [position]


class Strict:
    """A codec of a user's own, which raises, or forgets a record."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def decode(self, records: Sequence[Record]) -> list[Outcome]:
        outcomes = list(JsonCodec().decode(records))
        if any(record.offset() == 3 for record in records):
            if self.fault == "short":
                return outcomes[:-1]
            if self.fault == "cancelled":
                raise asyncio.CancelledError
            raise RuntimeError("three")
        return outcomes


@pytest.mark.parametrize("fault", ["raises", "cancelled", "short"])
def test_codec_that_fails_is_told_at_the_record_that_it_fails_on(fault: str) -> None:
    records = [MadeRecord(b'{"type":"T"}', b"s", number) for number in range(6)]
    assert kinds(decoded(Strict(fault), records)) == ["Event"] * 3 + ["Undecodable"] + ["Event"] * 2


@pytest.mark.parametrize("empty", ["", 0])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_empty_id_and_time_are_kept_on_every_path(empty: str | int, neighbours: int) -> None:
    value = orjson.dumps({"id": empty, "type": "T", "time": empty, "data": None})
    records = [MadeRecord(value, b"s", 0), *[MadeRecord(b"", b"s", 1)] * neighbours]
    event = JsonCodec().decode(records)[0]
    assert isinstance(event, Event)
    assert (event.id, event.recorded_at) == (empty, empty)


@pytest.mark.parametrize("stream", [7, "7"])
def test_whole_number_as_a_stream_is_text(stream: int | str) -> None:
    value = orjson.dumps({"id": "i", "type": "T", "time": "t", "data": None, "order": stream})
    assert decode(MadeRecord(value), JsonCodec(stream="order")).stream == "7"
    cloud = orjson.dumps(CLOUD | {"subject": stream})
    assert decode(MadeRecord(cloud, None), CloudEventsCodec()).stream == "7"


@pytest.mark.parametrize("stream", [7.5, True, None, ["a"]])
def test_stream_that_is_neither_text_nor_a_whole_number_is_refused(stream: Any) -> None:
    value = orjson.dumps({"id": "i", "type": "T", "time": "t", "data": None, "order": stream})
    with pytest.raises(EventError, match="neither text nor a whole number"):
        decode(MadeRecord(value), JsonCodec(stream="order"))


def test_codecs_that_read_differently_are_described_differently() -> None:
    assert describe(JsonCodec()) == describe(JsonCodec())
    assert describe(JsonCodec()) != describe(JsonCodec(type="kind"))
    assert describe(CloudEventsCodec()) == "CloudEventsCodec(tombstones='halt')"
    assert describe(Strict("x")) == f"{__name__}.Strict()"


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


@pytest.mark.parametrize("codec", [JsonCodec(), CloudEventsCodec()])
def test_null_value_halts_and_says_what_may_be_done_about_it(codec: EventCodec) -> None:
    with pytest.raises(EventError, match=r"the value is null.*--tombstones skip, or delete-model"):
        decode(MadeRecord(None, b"s"), codec)


@pytest.mark.parametrize("kind", [JsonCodec, CloudEventsCodec])
@pytest.mark.parametrize(("tombstones", "deletes"), [("skip", False), ("delete-model", True)])
def test_null_value_is_a_tombstone_where_that_is_said(kind: Any, tombstones: str, deletes: bool) -> None:
    codec = kind(tombstones=tombstones)
    assert codec.decode([MadeRecord(None, b"s", 4, 2)]) == [
        Tombstone(stream="s", deletes=deletes, topic="t", partition=2, offset=4)
    ]
    assert tombstones in describe(codec)
    (keyless,) = codec.decode([MadeRecord(None, None)])
    assert isinstance(keyless, Undecodable)


def test_binary_cloudevent_without_data_is_no_tombstone() -> None:
    headers = tuple({"ce_specversion": b"1.0", "ce_id": b"e1", "ce_type": b"T"}.items())
    event = decode(MadeRecord(None, b"s", headers_=headers), CloudEventsCodec(tombstones="delete-model"))
    assert (event.id, event.data) == ("e1", None)


def test_tombstones_cannot_delete_models_that_are_not_found_by_key() -> None:
    check_tombstones(Tally(), JsonCodec(tombstones="delete-model"))
    with pytest.raises(ConfigError, match=r"'tally-by-month' have ids of their own \(partition_by = 'stream'\)"):
        check_tombstones(ByMonth(), JsonCodec(tombstones="delete-model"))
    check_tombstones(ByMonth(), JsonCodec(tombstones="skip"))


class ByMonth(Tally):
    name = "tally-by-month"
    partition_by = "stream"


@pytest.mark.parametrize("value", [b'{"type":"T"}', b'{"id":"e","type":"T","time":1,"data":{}}'])
def test_headers_are_those_of_the_record_in_their_order(value: bytes) -> None:
    headers = (("trace", b"1"), ("tenant", None), ("trace", b"2"))
    event = decode(MadeRecord(value, b"s", headers_=headers))
    assert event.headers == headers
    assert (event.header("trace"), event.header("tenant"), event.header("none")) == (b"2", None, None)
    assert decode(MadeRecord(value, b"s")).headers == ()
    assert event != decode(MadeRecord(value, b"s"))
    assert event == decode(MadeRecord(value, b"s", headers_=headers))
