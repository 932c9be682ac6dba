"""Refold, leaving out what cannot be folded: `on_error = skip`."""

from __future__ import annotations

from projections.contract import Event
from streams.config import RecoverySettings
from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold import Order, OrderSummary

__all__ = ["Picky", "run", "unavailable"]


class Picky(OrderSummary):
    """The benchmark's fold, which fails at some events once it has half changed the model."""

    name = "bench-picky"

    def apply_to_model(self, model: Order | None, event: Event) -> Order | None:
        """Fold, or fail."""
        model = super().apply_to_model(model, event)
        if event.type == "Broken":
            raise ValueError(f"{event.id} is broken")
        return model


unavailable = refold.unavailable


def run(job: Job) -> Outcome:
    """Rebuild once."""
    return refold.run(job, projection=Picky(), on_error="skip", recovery=RecoverySettings(skip_budget=10**9))
