"""The aircraft projections count what the flight events say."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec

from projections.contract import Event
from projections.flights import Aircraft, AircraftLog, AircraftMonth, AircraftMonths, Airport, Airports

FLIGHT = {"flight": "UA1", "carrier": "UA", "tail": "N1", "origin": "EWR", "dest": "IAH"}


def event(kind: str, at: str = "2013-01-31T10:00:00Z", **more: Any) -> Event:
    data = {**FLIGHT, **more}
    return Event(f"{kind}-{at}", kind, data["tail"] or "flight-UA1", at, data, None, "flights", 0, 0)


def log(*events: Event, model: Aircraft | None = None) -> Aircraft:
    for one in events:
        model = AircraftLog().apply_to_model(model, one)
    assert model is not None
    return model


def months(*events: Event) -> dict[str, AircraftMonth | None]:
    projection = AircraftMonths()
    models: dict[str, AircraftMonth | None] = {}
    for one in events:
        model_id = projection.extract_model_id(one)
        if model_id is not None:
            models[model_id] = projection.apply_to_model(models.get(model_id), one)
    return models


SCHEDULED = event("FlightScheduled", "2013-01-30T10:00:00Z")
DEPARTED = event("FlightDeparted", delay_minutes=20)
ARRIVED = event("FlightArrived", "2013-01-31T13:50:00Z", delay_minutes=-3, air_minutes=200)


def test_a_flight_counts_once_at_each_of_its_events() -> None:
    aircraft = log(SCHEDULED, DEPARTED, ARRIVED)
    assert (aircraft.scheduled, aircraft.flown, aircraft.arrived, aircraft.cancelled) == (1, 1, 1, 0)
    assert aircraft.legs == {"EWR-IAH": 1}
    assert aircraft.carriers == {"UA": 1}
    assert aircraft.airports == {"EWR": 1, "IAH": 1}


def test_hours_in_the_air_are_derived_from_whole_minutes() -> None:
    aircraft = log(ARRIVED, event("FlightArrived", delay_minutes=0, air_minutes=130))
    assert aircraft.air_minutes == 330
    assert aircraft.air_hours == 5.5


def test_early_flights_do_not_make_up_for_late_ones() -> None:
    aircraft = log(DEPARTED, event("FlightDeparted", delay_minutes=-9), event("FlightDeparted", delay_minutes=50))
    assert aircraft.departure_delay_minutes == 70
    assert aircraft.worst_departure_delay_minutes == 50
    late = log(ARRIVED, event("FlightArrived", delay_minutes=7, air_minutes=1), model=aircraft)
    assert (late.arrival_delay_minutes, late.worst_arrival_delay_minutes) == (7, 7)


def test_an_arrival_without_figures_counts_as_an_arrival_only() -> None:
    aircraft = log(event("FlightArrived", delay_minutes=None, air_minutes=None))
    assert (aircraft.arrived, aircraft.air_minutes, aircraft.arrival_delay_minutes) == (1, 0, 0)


def test_an_aircraft_is_seen_where_it_departs_and_arrives_and_not_where_it_is_planned() -> None:
    aircraft = log(SCHEDULED, DEPARTED, ARRIVED, event("FlightCancelled", "2013-02-03T00:00:00Z"))
    assert (aircraft.first_seen_airport, aircraft.first_seen_at) == ("EWR", "2013-01-31T10:00:00Z")
    assert (aircraft.last_seen_airport, aircraft.last_seen_at) == ("IAH", "2013-01-31T13:50:00Z")
    assert aircraft.cancelled == 1


def test_a_flight_without_an_aircraft_is_declined_by_both() -> None:
    nobody = event("FlightCancelled", tail=None)
    assert AircraftLog().extract_model_id(nobody) is None
    assert AircraftMonths().extract_model_id(nobody) is None
    assert AircraftLog().extract_model_id(DEPARTED) == "N1"


def test_each_month_has_a_model_of_its_own_named_after_the_stream() -> None:
    models = months(SCHEDULED, DEPARTED, event("FlightArrived", "2013-02-01T01:00:00Z", delay_minutes=1, air_minutes=9))
    assert models == {
        "N1/2013-01": AircraftMonth(departures=1, late_departures=1, days_flown=1, last_day_flown="2013-01-31"),
        "N1/2013-02": AircraftMonth(arrivals=1, air_minutes=9),
    }
    assert AircraftMonths.partition_by == "stream"


def test_a_day_with_two_departures_is_one_day_flown_and_fifteen_minutes_are_late() -> None:
    models = months(
        event("FlightDeparted", "2013-01-01T10:00:00Z", delay_minutes=14),
        event("FlightDeparted", "2013-01-01T20:00:00Z", delay_minutes=15),
        event("FlightDeparted", "2013-01-02T10:00:00Z", delay_minutes=0),
        event("FlightCancelled", "2013-01-03T10:00:00Z"),
    )
    month = models["N1/2013-01"]
    assert month is not None
    assert (month.departures, month.days_flown, month.late_departures, month.cancellations) == (3, 2, 1, 1)


def test_a_time_in_milliseconds_falls_into_its_month_too() -> None:
    departed = msgspec.structs.replace(DEPARTED, recorded_at=1359626400000)
    assert list(months(departed)) == ["N1/2013-01"]


def test_a_model_that_went_through_json_folds_on_identically() -> None:
    straight = log(SCHEDULED, DEPARTED, ARRIVED, DEPARTED)
    stored: Aircraft | None = None
    for one in (SCHEDULED, DEPARTED, ARRIVED, DEPARTED):
        stored = msgspec.json.decode(msgspec.json.encode(log(one, model=stored)), type=Aircraft)
    assert stored == straight


def airports(*events: Event) -> dict[str, Airport | None]:
    projection = Airports()
    models: dict[str, Airport | None] = {}
    for one in events:
        model_id = projection.extract_model_id(one)
        if model_id is not None:
            models[model_id] = projection.apply_to_model(models.get(model_id), one)
    return models


def test_an_airport_counts_what_every_aircraft_does_there() -> None:
    other = event("FlightDeparted", "2013-02-01T08:00:00Z", tail="N2", delay_minutes=0, dest="BOS")
    models = airports(SCHEDULED, DEPARTED, ARRIVED, other, event("FlightCancelled", tail=None))
    assert models["EWR"] == Airport(
        departures=2,
        late_departures=1,
        cancellations=1,
        destinations={"IAH": 1, "BOS": 1},
        days={"2013-01-31": 1, "2013-02-01": 1},
        first_event_at="2013-01-31T10:00:00Z",
        last_event_at="2013-02-01T08:00:00Z",
    )
    assert models["IAH"] == Airport(
        arrivals=1,
        days={"2013-01-31": 1},
        first_event_at=str(ARRIVED.recorded_at),
        last_event_at=str(ARRIVED.recorded_at),
    )


def test_an_airport_is_the_same_in_whatever_order_its_aircraft_come() -> None:
    events = [
        DEPARTED,
        event("FlightDeparted", "2013-02-01T08:00:00Z", tail="N2", delay_minutes=0),
        event("FlightCancelled", "2013-02-02T08:00:00Z", tail="N3"),
        event("FlightDeparted", "2013-01-30T08:00:00Z", tail="N4", delay_minutes=90, dest="BOS"),
    ]
    for order in permutations(events):
        assert airports(*order) == airports(*events)


def test_airports_are_fed_by_several_streams() -> None:
    assert Airports.partition_by == "model"
