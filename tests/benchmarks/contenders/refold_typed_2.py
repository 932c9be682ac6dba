"""Refold with the type of the events stated, and 2 agents; see `refold_typed`. Starting them is counted."""

from __future__ import annotations

from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold_typed import TypedOrderSummary

__all__ = ["run", "unavailable"]

unavailable = refold.unavailable


def run(job: Job) -> Outcome:
    """Rebuild once, and read the models back."""
    return refold.run(job, workers=2, projection=TypedOrderSummary())
