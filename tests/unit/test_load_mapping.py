"""Lines become events by the fields that were named; a line that cannot is named with what it holds."""

from __future__ import annotations

from typing import Any, Literal

import orjson
import pytest

from streams.columns import Columns
from streams.errors import ConfigError, EventError, text_of
from streams.lines import EventLines, Fields


def read(
    text: str | bytes,
    fields: Fields | None = None,
    *,
    style: Literal["ndjson", "csv"] = "ndjson",
    from_line: int = 1,
) -> list[tuple[str, dict[str, Any]]]:
    raw = text.encode() if isinstance(text, str) else text
    return list(lines(raw, fields, style=style, from_line=from_line))


def lines(
    raw: bytes,
    fields: Fields | None = None,
    *,
    style: Literal["ndjson", "csv"] = "ndjson",
    from_line: int = 1,
) -> EventLines:
    return EventLines(
        raw.splitlines(keepends=True), fields or Fields(), source="in.txt", style=style, from_line=from_line
    )


def refusal(text: str | bytes, fields: Fields | None = None, *, style: Literal["ndjson", "csv"] = "ndjson") -> str:
    with pytest.raises(EventError) as caught:
        read(text, fields, style=style)
    return str(caught.value)


def one(**record: Any) -> str:
    return orjson.dumps(record).decode()


ENVELOPE = {
    "id": "e1",
    "type": "Paid",
    "time": "2024-01-01T00:00:00Z",
    "data": {"n": 1},
    "metadata": {"by": "x"},
}


def test_an_envelope_passes_as_it_is_and_its_stream_becomes_the_key() -> None:
    assert read(one(stream="order-1", **ENVELOPE)) == [("order-1", ENVELOPE)]


@pytest.mark.parametrize("data", [None, [1, 2], "text", 7, {"deep": {"er": []}}])
def test_the_data_of_an_envelope_may_be_any_json(data: Any) -> None:
    assert read(one(stream="s", type="T", data=data)) == [("s", {"type": "T", "data": data})]


def test_id_and_time_may_be_absent_null_or_empty_where_no_field_was_named_for_them() -> None:
    assert read(one(stream="s", type="T")) == [("s", {"type": "T"})]
    assert read(one(stream="s", type="T", id=None, time="")) == [("s", {"type": "T"})]


def test_a_field_that_was_named_must_be_there() -> None:
    record = one(stream="s", type="T")
    assert "no field 'id'" in refusal(record, Fields(id="id"))
    assert "no field 'at'; there are stream, type" in refusal(record, Fields(time="at"))
    assert "no field 'amount'" in refusal(record, Fields(data=("amount",)))


def test_nothing_is_lost_unseen_from_an_envelope() -> None:
    message = refusal(one(stream="s", type="T", data={}, amount=5))
    assert "'amount'" in message
    assert "--data rest" in message


def test_nested_fields_are_reached_by_dotted_paths() -> None:
    record = one(order={"id": 17, "at": 1700000000000}, meta={"kind": "Paid", "uid": "e"}, amount=5, note="x")
    fields = Fields(key="order.id", type="meta.kind", id="meta.uid", time="order.at", data=("amount",))
    expected = {"id": "e", "type": "Paid", "time": 1700000000000, "data": {"amount": 5}}
    assert read(record, fields) == [("17", expected)]


def test_a_name_with_a_dot_in_it_wins_over_the_path() -> None:
    record = orjson.dumps({"a.b": "whole", "a": {"b": "part"}, "type": "T"})
    assert read(record, Fields(key="a.b", data=("rest",)))[0][0] == "whole"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (("amount",), {"amount": 5}),
        (("payload.city", "amount"), {"city": "Ulm", "amount": 5}),
        (("payload",), {"payload": {"city": "Ulm", "zip": 1}}),
        (("payload.*",), {"city": "Ulm", "zip": 1}),
        (("payload.*", "amount"), {"city": "Ulm", "zip": 1, "amount": 5}),
        (("rest",), {"amount": 5, "payload": {"city": "Ulm", "zip": 1}}),
        (("rest", "payload.city"), {"amount": 5, "payload": {"city": "Ulm", "zip": 1}, "city": "Ulm"}),
    ],
)
def test_data_is_made_of_the_fields_that_were_named(data: tuple[str, ...], expected: dict[str, Any]) -> None:
    record = one(stream="s", type="T", amount=5, payload={"city": "Ulm", "zip": 1})
    assert read(record, Fields(data=data))[0][1]["data"] == expected


def test_the_members_of_what_is_no_object_cannot_be_taken() -> None:
    assert "needs an object" in refusal(one(stream="s", type="T", payload=[1]), Fields(data=("payload.*",)))


def test_one_type_may_be_given_for_all_and_a_field_of_that_name_then_is_data() -> None:
    fields = Fields(type_value="Ordered", data=("rest",))
    assert read(one(stream="s", type="book"), fields) == [("s", {"type": "Ordered", "data": {"type": "book"}})]


def test_flags_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="--type kind and --type-value"):
        Fields(type="kind", type_value="T")
    with pytest.raises(ConfigError, match="--data names id twice"):
        Fields(data=("order.id", "user.id"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ("null", "a JSON NoneType, not an object"),
        (b'{"stream": "\xff"}', "not JSON"),
        ('{"type": "T"}', "no field 'stream'"),
        ('{"stream": "s"}', "no field 'type'"),
        ('{"stream": "s", "type": ""}', "the type in field 'type' is ''"),
        ('{"stream": "s", "type": 3}', "the type in field 'type' is 3"),
        ('{"stream": null, "type": "T"}', "the key in field 'stream' is None"),
        ('{"stream": true, "type": "T"}', "the key in field 'stream' is True"),
        ('{"stream": "", "type": "T"}', "the key in field 'stream' is ''"),
        ('{"stream": "s", "type": "T", "id": {}}', "the id in field 'id' is {}"),
        ('{"stream": "s", "type": "T", "time": "noon"}', "the time in field 'time' is 'noon'"),
        ('{"stream": "s", "type": "T", "time": 1.5}', "the time in field 'time' is 1.5"),
    ],
)
def test_a_bad_line_is_named_with_what_it_holds(line: str | bytes, said: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    message = refusal(one(stream="s", type="T").encode() + b"\n\n" + raw + b"\n")
    assert message.startswith("in.txt:3: ")
    assert said in message
    assert message.endswith(f"Line: {text_of(raw)}")


def test_of_a_long_bad_line_only_the_head_is_shown() -> None:
    message = refusal("[" + "1," * 5000 + "1]")
    assert len(message) < 400
    assert "(10,003 bytes)" in message


def test_events_before_a_bad_line_are_given_first() -> None:
    reader = lines(f"{one(stream='s', type='T')}\nbad\n".encode())
    given = iter(reader)
    assert next(given)[0] == "s"
    assert reader.line == 1
    with pytest.raises(EventError):
        next(given)
    assert reader.line == 2


def test_reading_from_a_line_passes_over_what_begins_before_it() -> None:
    text = f"not json\n{one(stream='a', type='T')}\n{one(stream='b', type='T')}\n"
    assert [stream for stream, _ in read(text, from_line=2)] == ["a", "b"]
    assert [stream for stream, _ in read(text, from_line=3)] == ["b"]
    assert read(text, from_line=9) == []


def test_a_byte_order_mark_and_windows_line_ends_are_read() -> None:
    assert read(b"\xef\xbb\xbf" + one(stream="s", type="T").encode() + b"\r\n") == [("s", {"type": "T"})]
    assert read(b"\xef\xbb\xbfstream,type\r\ns,T\r\n", style="csv") == [("s", {"type": "T", "data": {}})]


CSV = "stream,type,time,amount,note\n"


def test_a_csv_row_becomes_an_event_with_the_rest_as_its_data() -> None:
    expected = {"type": "Paid", "time": "2024-01-01", "data": {"amount": "5", "note": "a,b"}}
    assert read(CSV + 's,Paid,2024-01-01,5,"a,b"\n', style="csv") == [("s", expected)]


def test_a_csv_time_in_milliseconds_becomes_a_number() -> None:
    assert read(CSV + "s,T,1700000000000,1,\n", style="csv")[0][1]["time"] == 1700000000000


def test_an_empty_csv_time_counts_as_absent_unless_it_was_named() -> None:
    assert "time" not in read(CSV + "s,T,,1,\n", style="csv")[0][1]
    assert "the time in field 'time' is ''" in refusal(CSV + "s,T,,1,\n", Fields(time="time"), style="csv")


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        ("s,T,,1\n", 2, "4 columns, and the header has 5"),
        ("s,T,,1,x,y\n", 2, "6 columns, and the header has 5"),
        ('s,T,,1,"two\nlines"\ns\n', 4, "1 columns"),
        ('s,T,,1,"open\n', 2, "not CSV"),
        ('s,T,,1,"a"b\n', 2, "not CSV"),
    ],
)
def test_a_bad_csv_row_is_named_by_the_line_that_it_begins_at(rows: str, line: int, said: str) -> None:
    message = refusal(CSV + rows, style="csv")
    assert message.startswith(f"in.txt:{line}: ")
    assert said in message


def test_csv_that_is_not_utf8_is_named_by_its_line() -> None:
    message = refusal(CSV.encode() + b"s,T,,1,ok\ns,T,,1,\xe9\n", style="csv")
    assert message.startswith("in.txt:3: the line is not UTF-8")


def test_a_csv_header_that_repeats_a_name_is_refused() -> None:
    assert "header has 'a' more than once" in refusal("a,b,a\n1,2,3\n", style="csv")


def test_a_csv_is_gone_on_with_behind_a_row_of_several_lines() -> None:
    text = CSV + 'a,T,,1,"two\nlines"\nb,T,,1,\n'
    assert [stream for stream, _ in read(text, style="csv", from_line=2)] == ["a", "b"]
    assert [stream for stream, _ in read(text, style="csv", from_line=3)] == ["b"]
    assert [stream for stream, _ in read(text, style="csv", from_line=4)] == ["b"]


@pytest.mark.parametrize("style", ["ndjson", "csv"])
def test_an_empty_file_has_no_events(style: Literal["ndjson", "csv"]) -> None:
    assert read("", style=style) == []


# Columns


def typed(text: str, **options: Any) -> list[dict[str, Any]]:
    columns = Columns(**options)
    raw = text.encode().splitlines(keepends=True)
    fields = Fields(key="k", type_value="T")
    return [envelope["data"] for _, envelope in EventLines(raw, fields, source="in.csv", style="csv", columns=columns)]


def test_columns_are_read_as_what_they_are_named_to_be() -> None:
    assert typed(
        "k;qty;price;paid;tags;note\na;2;1,5;yes;[1];007\nb;-3;,25;FALSE;{};\nc;;;;;\n",
        delimiter=";",
        decimal=",",
        types=("qty=int", "price=number", "paid=bool", "tags=json", "note=text"),
    ) == [
        {"qty": 2, "price": 1.5, "paid": True, "tags": [1], "note": "007"},
        {"qty": -3, "price": 0.25, "paid": False, "tags": {}, "note": ""},
        {"qty": None, "price": None, "paid": None, "tags": None, "note": ""},
    ]


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("int", "1.5", "column 'x' is '1.5', and must be a whole number"),
        ("number", "1,5", "must be a number with '.' in front of its fraction"),
        ("number", "nan", "JSON has no form for it"),
        ("bool", "maybe", "must be true, yes or 1, or false, no or 0"),
        ("json", "{oops", "is no JSON"),
    ],
)
def test_text_that_is_not_what_its_column_is_named_to_be_is_told_with_its_line(kind: str, text: str, why: str) -> None:
    with pytest.raises(EventError, match=r"in\.csv:3: ") as caught:
        typed(f'k,x\na,\nb,"{text}"\n', types=(f"x={kind}",))
    assert why in str(caught.value)


def test_number_with_a_point_is_none_where_the_comma_is_the_decimal() -> None:
    with pytest.raises(EventError, match="with ',' in front of its fraction"):
        typed("k;x\na;1.234,5\n", delimiter=";", decimal=",", types=("x=number",))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"types": ("x",)}, "--columns has x: write NAME=TYPE, of int, number, bool, json, text"),
        ({"types": ("x=date", "=int")}, "--columns has x=date, =int"),
        ({"delimiter": ";;"}, "--delimiter is ';;', and must be one character"),
        ({"decimal": ","}, "--columns names none"),
    ],
)
def test_columns_that_cannot_be_are_told_before_anything_is_read(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Columns(**options)


def test_column_that_the_header_has_not_is_named() -> None:
    with pytest.raises(EventError, match="--columns names y, and the header has k, x"):
        typed("k,x\na,1\n", types=("y=int",))


def test_missing_fields_are_told_with_the_flags_that_name_others() -> None:
    assert "there is no field 'type'; there are stream; --type names another, and --type-value gives all one type" in (
        refusal('{"stream":"s"}')
    )
    assert "there are type; --key names another" in refusal('{"type":"T"}')


def test_text_is_shown_as_text() -> None:
    assert refusal("no jsön").endswith("Line: no jsön")
    assert text_of(b"a\nb") == r"'a\nb'"
    assert text_of(b"\xff\xfe") == r"b'\xff\xfe'"
    assert text_of("ä".encode() * 100, 5) == "ää… (200 bytes)"
