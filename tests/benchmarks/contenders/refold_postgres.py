"""Refold with its models in PostgreSQL: one rebuild from the beginning, as `refold` does it."""

from __future__ import annotations

import os

import streams
from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome

__all__ = ["DSN", "run", "unavailable"]

DSN = "REFOLD_BENCH_DSN"
"""The variable with the server's connection string."""


def unavailable() -> str | None:
    """Say so where no server is named."""
    return None if os.environ.get(DSN) else f"{DSN} names no server"


def run(job: Job) -> Outcome:
    """Rebuild once, and read the models back."""
    schema = f"bench_{job.group.replace('-', '_')}".lower()
    return refold.run(job, store=streams.PostgresStore(job.path("state"), os.environ[DSN], schema=schema))
