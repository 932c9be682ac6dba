"""What an event that was written once more is read as."""

from __future__ import annotations

import pytest

from projections.contract import Event
from streams.data.codec import Undecodable, decoded, describe
from streams.data.json_codec import JsonCodec
from streams.data.routed import ORIGIN, Origin, Routed, headers_with_origin
from tests.support import MadeRecord, envelope

CODEC = Routed(JsonCodec(), "events")


def routed(record: MadeRecord, model: str, offset: int) -> MadeRecord:
    return MadeRecord(
        record.value(),
        model.encode(),
        topic_="by-model",
        partition_=5,
        offset_=offset,
        headers_=tuple(headers_with_origin(record)),
    )


def test_an_event_is_what_it_was_at_where_it_is_now() -> None:
    was = MadeRecord(envelope(1), b"stream-7", topic_="events", partition_=3, offset_=41, headers_=(("trace", b"t"),))
    (event,) = CODEC.decode([routed(was, "model", 9)])
    assert isinstance(event, Event)
    assert (event.id, event.stream, event.data, event.headers) == ("e1", "stream-7", {"n": 1}, (("trace", b"t"),))
    assert (event.topic, event.partition, event.offset) == ("by-model", 5, 9)


@pytest.mark.parametrize("key", [b"a", b"", b"a:b:c", b"\xff", None])
def test_where_it_came_from(key: bytes | None) -> None:
    record = routed(MadeRecord(envelope(1), key, topic_="events", partition_=3, offset_=41), "model", 9)
    assert Origin.of(record) == Origin(3, 41, key)


def test_one_without_an_id_has_the_same_each_time() -> None:
    was = MadeRecord(b'{"type": "add", "data": {}}', b"a", topic_="events", partition_=3, offset_=41)
    for offset in (9, 1000):
        mixed = [routed(was, "model", offset), routed(MadeRecord(envelope(2), b"a"), "model", offset + 1)]
        assert [event.id for event in CODEC.decode(mixed) if isinstance(event, Event)] == ["events-3-41", "e2"]


def test_a_header_of_that_name_that_the_event_had_already_is_the_older_one() -> None:
    once = routed(MadeRecord(envelope(1), b"a", partition_=1, offset_=2), "b", 3)
    assert Origin.of(routed(once, "c", 4)) == Origin(5, 3, b"b")


def test_a_record_of_somebody_else_is_no_event() -> None:
    good = routed(MadeRecord(envelope(1), b"a"), "model", 0)
    bad = MadeRecord(envelope(2), b"model", topic_="by-model", partition_=5, offset_=1)
    ((first, second),) = decoded(CODEC, [good, bad])
    assert isinstance(first, Event)
    assert isinstance(second, Undecodable)
    assert ORIGIN in second.reason


def test_what_it_is_read_by_is_known_by_its_own_options() -> None:
    assert describe(CODEC) == f"Routed(codec={describe(JsonCodec())}, topic='events')"
    assert describe(Routed(JsonCodec(stream="customer"), "events")) != describe(CODEC)
