"""A projection that takes its time."""

from __future__ import annotations

import time
from typing import Any

from projections.contract import Event
from tests.support import Tally


class SlowTally(Tally):
    """20 ms an event."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        time.sleep(0.02)
        return super().apply_to_model(model, event)


class StuckTally(Tally):
    """An event that does not end."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        print("stuck", flush=True)
        while True:
            time.sleep(0.1)
