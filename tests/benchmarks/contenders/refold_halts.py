"""Refold with the projection of `refold_skips`, and the default settings: what it fails at is not in the topic."""

from __future__ import annotations

from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold_skips import picky

__all__ = ["run", "unavailable"]

unavailable = refold.unavailable


def run(job: Job) -> Outcome:
    """Rebuild once."""
    return refold.run(job, projection=picky(job))
