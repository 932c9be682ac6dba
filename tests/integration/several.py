"""Projections that are rebuilt together: two that others depend on, and one of them fails when it is told to."""

from __future__ import annotations

import os
from typing import Any

from projections.contract import Event
from tests.support import Tally


class Catalog(Tally):
    name = "catalog"


class Prices(Tally):
    """Fails at an event where REFOLD_TEST_FAILS says so."""

    name = "prices"
    depends_on = ("catalog",)

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if os.environ.get("TEST_FAILS") and event.offset == 100:
            raise ValueError("told to fail")
        return super().apply_to_model(model, event)


class Offers(Tally):
    name = "offers"
    depends_on = ("prices",)


class Alone(Tally):
    """Depends on nothing."""

    name = "alone"


class Needing(Tally):
    """Depends on what is none of the plan."""

    name = "needing"
    depends_on = ("tally",)


class Circular(Tally):
    name = "circular"
    depends_on = ("turning",)


class Turning(Tally):
    name = "turning"
    depends_on = ("circular",)
