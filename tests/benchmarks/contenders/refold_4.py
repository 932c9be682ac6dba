"""Refold with 4 agents, each in a process of its own; see `refold`. Starting them is counted."""

from __future__ import annotations

from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome

__all__ = ["run", "unavailable"]

unavailable = refold.unavailable


def run(job: Job) -> Outcome:
    """Rebuild once, and read the models back."""
    return refold.run(job, workers=4)
