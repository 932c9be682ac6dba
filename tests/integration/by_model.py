"""A projection whose models every stream feeds, and versions of it."""

from __future__ import annotations

import time
from typing import Any

from projections.contract import CqrsProjection, Event, TransientError

BY_MODEL = "tests.integration.by_model:Remainders"
FIXED = "tests.integration.by_model:FixedRemainders"
SLOW = "tests.integration.by_model:SlowRemainders"


class Remainders(CqrsProjection[dict[str, Any]]):
    """Per remainder and hundred of the event's number: how many came, and a sum in which each counts once.

    Nothing in it depends on the order of events of different streams. `fail` is of no model that could be told, `later`
    of one that can be told at the third try, `odd` cannot be folded, `ignore` is declined.
    """

    name = "remainders"
    partition_by = "model"
    tries = 0

    def extract_model_id(self, event: Event) -> str | None:
        if event.type == "later":
            type(self).tries += 1
            if type(self).tries < 3:
                raise TransientError("not yet")
        if event.type == "fail":
            raise ValueError("whose is it?")
        return None if event.type == "ignore" else f"remainder-{int(event.id[1:]) % 101}"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "odd":
            raise ValueError("odd")
        model = model or {"count": 0, "sum": 0}
        return {"count": model["count"] + 1, "sum": model["sum"] + int(event.id[1:]) ** 2}


class FixedRemainders(Remainders):
    """Corrects one model, and no other."""

    name = "remainders"
    version = 2

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model = super().apply_to_model(model, event)
        if model is not None and int(event.id[1:]) % 101 == 7:
            model["fixed"] = True
        return model


class SlowRemainders(FixedRemainders):
    """The same, and takes its time."""

    name = "remainders"

    def extract_model_id(self, event: Event) -> str | None:
        time.sleep(0.0005)
        return super().extract_model_id(event)
