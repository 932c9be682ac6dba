"""Versions of one projection: what it was, a fix of it, and ones that are not as they should be."""

from __future__ import annotations

import os
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projections.contract import Event, TransientError
from projections.flights import Aircraft, AircraftLog
from projections.orders import Order, OrderSummary
from tests.support import Tally


class Fixed(Tally):
    """Corrects the models of some streams, and of no others."""

    name = "tally"
    version = 2

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model = super().apply_to_model(model, event)
        if model is not None and event.stream.endswith("7"):
            model["fixed"] = True
        return model


class Mended(Tally):
    """What failed is put right."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        return super().apply_to_model(model, as_good(event))


def as_good(event: Event) -> Event:
    """The same event, of a type at which nothing fails."""
    if event.type not in ("fail", "unstorable"):
        return event
    return Event(
        event.id, "add", event.stream, event.recorded_at, event.data, None, event.topic, event.partition, event.offset
    )


class Passing(Tally):
    """Fails at some events the first times that this process folds them, and says that it may pass."""

    name = "tally"

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "fail":
            self.times[event.offset] += 1
            if self.times[event.offset] <= event.data["times"]:
                raise TransientError("the answer is not there yet")
        return super().apply_to_model(model, as_good(event))


class Refactored(Tally):
    """Other code, and the same fold."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        folded = super().apply_to_model(model, event)
        return None if folded is None else {**folded}


class SlowFixed(Fixed):
    """The same, and takes 10 ms an event."""

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        time.sleep(0.01)
        return super().apply_to_model(model, event)


class Held(Fixed):
    """The same, and folds nothing before there is a file at REFOLD_TEST_GATE."""

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        while not Path(os.environ["REFOLD_TEST_GATE"]).exists():
            time.sleep(0.01)
        return super().apply_to_model(model, event)


class Expecting(Fixed):
    """Says which models the fix is to change."""

    def validate(self, old: Any | None, new: Any | None) -> bool:
        if old is None or new is None:
            return False
        return bool({key: value for key, value in new.items() if key != "fixed"} == old)


class Impure(Tally):
    """Reads something that is not in the event."""

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model = super().apply_to_model(model, event)
        if model is not None and event.stream == "stream-3":
            model["sum"] += random.randint(1, 1000)
        return model


class Halting(Tally):
    """Cannot fold one kind of event, which the corrected code can."""

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "odd":
            raise ValueError("odd")
        return super().apply_to_model(model, event)


class FixedAircraftLog(AircraftLog):
    """Corrects one aircraft in a hundred."""

    name = "aircraft-log"
    version = 2

    def apply_to_model(self, model: Aircraft | None, event: Event) -> Aircraft | None:
        fresh = model is None
        model = super().apply_to_model(model, event)
        if model is not None and fresh and is_one_in_a_hundred(event.stream):
            model.scheduled += 1000
        return model


class FixedOrderSummary(OrderSummary):
    """Corrects one order in a hundred."""

    name = "order-summary"
    version = 2

    def apply_to_model(self, model: Order | None, event: Event) -> Order | None:
        model = super().apply_to_model(model, event)
        if model is not None and is_one_in_a_hundred(event.stream):
            model.paid_cents = -1
        return model


def is_one_in_a_hundred(stream: str) -> bool:
    """Whether it is corrected."""
    return zlib.crc32(stream.encode()) % 100 == 0


class Asked(Tally):
    """Readers may ask for some of its models."""

    name = "tally"

    @dataclass
    class Query:
        least: int = 0
        ends: str = ""
        fails: bool = False

    def matches(self, model: dict[str, Any], query: Query) -> bool:
        if query.fails:
            raise KeyError("no such thing")
        return bool(model["sum"] >= query.least and str(model["digest"]).endswith(query.ends))
