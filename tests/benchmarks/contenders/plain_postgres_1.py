"""The same with a transaction for each event, as the first version of such a consumer mostly has it."""

from __future__ import annotations

from tests.benchmarks.contenders import plain_postgres
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold_postgres import unavailable

__all__ = ["run", "unavailable"]


def run(job: Job) -> Outcome:
    """Fold the topic once."""
    return plain_postgres.run(job, events_per_commit=1)
