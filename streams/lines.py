"""Lines of NDJSON or CSV to events. Knows nothing of Kafka."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from streams.columns import BadRecord, Columns, Reader
from streams.errors import ConfigError, EventError, text_of

__all__ = ["EventLines", "Fields"]

_MILLISECOND_DIGITS = 11
"""Digits from which a CSV's bare number is milliseconds and not a compact ISO date."""

Getter = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which of a record's fields become which part of the event.

    A field is a name, or a dotted path into nested objects (`order.id`); a name with the dot in itself wins.
    A field that is named here must be in every record. Of those left at None, the key and the type must be
    there too; the id and the time need not (the reader of the topic then takes the record's coordinates and
    Kafka's timestamp).
    """

    key: str | None = None
    """The stream, text or a whole number; by default `stream`."""
    id: str | None = None
    """By default `id`."""
    type: str | None = None
    """By default `type`."""
    type_value: str | None = None
    """One type for all records, in place of a field."""
    time: str | None = None
    """ISO 8601 text, or milliseconds since 1970; by default `time`."""
    data: tuple[str, ...] = ()
    """The fields that make up the data, each under its last name; `payload.*` takes the members of `payload`;
    `rest` takes every top-level field not named otherwise. By default, of NDJSON the field `data` as it is,
    where any further field (but `metadata`) is an error, so that nothing is lost unseen; of CSV the rest."""

    def __post_init__(self) -> None:
        if self.type is not None and self.type_value is not None:
            raise ConfigError(
                f"--type {self.type} and --type-value {self.type_value!r} exclude each other: leave one out."
            )
        names = [path.rpartition(".")[2] for path in self.data if path != "rest" and not path.endswith(".*")]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"--data names {', '.join(twice)} twice: one would hide the other. Leave one out.")


class EventLines:
    """The events of a file, as (stream, envelope), one at a time.

    Blank lines are no records. CSV is RFC 4180 with a header row; its values stay text, and an empty id or
    time counts as absent.
    """

    line: int
    """The first line of the record that was yielded last, or that is bad; 1 is the file's first."""

    def __init__(
        self,
        raw: Iterable[bytes],
        fields: Fields,
        *,
        source: str,
        style: Literal["ndjson", "csv"] = "ndjson",
        columns: Columns | None = None,
        from_line: int = 1,
    ) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            raw: The lines as bytes, UTF-8, each with its line end.
            fields: What goes where.
            source: The file's name, for messages.
            style: How a line is to be read.
            columns: How a CSV's columns are to be read.
            from_line: Records that begin before this line are passed over; a CSV's header is read.
        """
        self.line = 0
        self._raw = raw
        self._source = source
        self._from_line = from_line
        self._columns = columns or Columns()
        self._records = self._csv if style == "csv" else self._ndjson
        self._event = _mapping(fields, csv_rows=style == "csv")
        self._shown = b""

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield stream and envelope of each record.

        Raises:
            EventError: At the first record that is none, with its line and the value's head.
        """
        try:
            for record in self._records():
                yield self._event(record)
        except BadRecord as why:
            raise EventError(f"{self._source}:{self.line}: {why}. Line: {text_of(self._shown)}") from why

    def _ndjson(self) -> Iterator[dict[str, Any]]:
        for number, raw in enumerate(self._raw, 1):
            if number < self._from_line:
                continue
            text = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
            if not text:
                continue
            self.line = number
            self._shown = text
            try:
                record = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise BadRecord(f"the line is not JSON ({error})") from error
            if not isinstance(record, dict):
                raise BadRecord(f"the line is a JSON {type(record).__name__}, not an object")
            yield record

    def _csv(self) -> Iterator[dict[str, Any]]:
        reader = csv.reader(self._decoded(), delimiter=self._columns.delimiter, strict=True)
        header: list[str] | None = None
        begins = 1
        while True:
            self.line = begins
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise BadRecord(f"the row is not CSV ({error})") from error
            if row is None:
                return
            begins = reader.line_num + 1
            if header is None:
                header = self._header(row)
                typed = self._columns.readers(header)
            elif row and self.line >= self._from_line:
                if len(row) != len(header):
                    raise BadRecord(f"the row has {len(row)} columns, and the header has {len(header)}")
                yield self._typed(dict(zip(header, row, strict=True)), typed)

    @staticmethod
    def _typed(record: dict[str, Any], typed: Mapping[str, Reader]) -> dict[str, Any]:
        for name, read in typed.items():
            text = record[name]
            try:
                record[name] = read(text) if text else None
            except ValueError as error:
                raise BadRecord(f"column {name!r} is {text!r}, and {error}") from error
        return record

    def _decoded(self) -> Iterator[str]:
        for number, raw in enumerate(self._raw, 1):
            self._shown = raw.rstrip(b"\r\n")
            try:
                yield (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode()
            except UnicodeDecodeError as error:
                self.line = number
                raise BadRecord(f"the line is not UTF-8 ({error.reason} at byte {error.start})") from error

    @staticmethod
    def _header(row: list[str]) -> list[str]:
        twice = sorted({name for name in row if row.count(name) > 1})
        if twice:
            raise BadRecord(f"the header has {', '.join(map(repr, twice))} more than once")
        return row


def _mapping(fields: Fields, *, csv_rows: bool) -> Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]:
    """Build the function from a record to stream and envelope; it raises BadRecord."""
    key_field, id_field = fields.key or "stream", fields.id or "id"
    type_field, time_field = fields.type or "type", fields.time or "time"
    key_of = _getter(key_field, "; --key names another")
    type_of = _getter(type_field, "; --type names another, and --type-value gives all one type")
    id_of, time_of = _getter(id_field, "; --id names another"), _getter(time_field, "; --time names another")
    optional = [fields.id is None, fields.time is None]
    used = {key_field, id_field, time_field} | ({type_field} if fields.type_value is None else set())
    add_data = _data_mapping(fields.data or (("rest",) if csv_rows else ()), used)

    def event(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        envelope: dict[str, Any] = {}
        id_ = _optional(id_of, record, optional=optional[0])
        if id_ is not None:
            envelope["id"] = _text(id_, id_field, "id")
        if fields.type_value is not None:
            envelope["type"] = fields.type_value
        else:
            kind = type_of(record)
            if not isinstance(kind, str) or not kind:
                raise BadRecord(
                    f"the type in field {type_field!r} is {kind!r}, and must be text; --type names another, and "
                    "--type-value gives all one type"
                )
            envelope["type"] = kind
        time = _optional(time_of, record, optional=optional[1])
        if time is not None:
            envelope["time"] = _time(time, time_field, csv_rows=csv_rows)
        add_data(record, envelope)
        return _text(key_of(record), key_field, "key"), envelope

    return event


def _getter(path: str, advice: str = "") -> Getter:
    parts = path.split(".")

    def get(record: dict[str, Any]) -> Any:
        if path in record:
            return record[path]
        value: Any = record
        for part in parts:
            if not isinstance(value, dict) or part not in value:
                raise BadRecord(f"there is no field {path!r}; there are {', '.join(record) or 'none'}{advice}")
            value = value[part]
        return value

    return get


def _optional(get: Getter, record: dict[str, Any], *, optional: bool) -> Any:
    """Give a field's value; None where the user did not name the field and it is absent, null or empty."""
    if not optional:
        return get(record)
    try:
        value = get(record)
    except BadRecord:
        return None
    return None if value == "" else value


def _text(value: Any, field: str, role: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRecord(f"the {role} in field {field!r} is {value!r}, and must be text or a whole number (--{role})")


def _time(value: Any, field: str, *, csv_rows: bool) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        if csv_rows and value.isdecimal() and len(value) >= _MILLISECOND_DIGITS:
            return int(value)
        try:
            datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return value
    raise BadRecord(f"the time in field {field!r} is {value!r}, and must be ISO 8601 text or milliseconds (--time)")


def _data_mapping(paths: tuple[str, ...], used: set[str]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Build the function that puts the data, and the metadata where it is passed on, into an envelope."""
    if not paths:
        known = used | {"data", "metadata"}

        def as_it_is(record: dict[str, Any], envelope: dict[str, Any]) -> None:
            lost = [name for name in record if name not in known]
            if lost:
                raise BadRecord(
                    f"the fields {', '.join(map(repr, lost))} are no part of the envelope and would be lost: "
                    "name those to keep with --data, or keep all with --data rest"
                )
            for name in ("data", "metadata"):
                if name in record:
                    envelope[name] = record[name]

        return as_it_is

    getters = [(path, _getter(path.removesuffix(".*"))) for path in paths if path != "rest"]
    with_rest = "rest" in paths

    def chosen(record: dict[str, Any], envelope: dict[str, Any]) -> None:
        data = {name: value for name, value in record.items() if name not in used} if with_rest else {}
        for path, get in getters:
            value = get(record)
            if not path.endswith(".*"):
                data[path if path in record else path.rpartition(".")[2]] = value
            elif isinstance(value, dict):
                data |= value
            else:
                raise BadRecord(f"field {path[:-2]!r} is {value!r}, and --data {path} needs an object there")
        envelope["data"] = data

    return chosen
