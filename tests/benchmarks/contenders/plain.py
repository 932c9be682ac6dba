"""The fold in plain Python: what `bound` reads, folded into objects in a dict. Nothing is kept, and nobody is told.

What no fold in Python is faster than: it has the same models, touches as much memory, and has no store, no position and
no code between the events and the fold.
"""

from __future__ import annotations

import msgspec
import orjson

from tests.benchmarks.contenders.bound import batches, unavailable
from tests.benchmarks.contenders.job import Clock, Job, Outcome
from tests.benchmarks.contenders.refold import Order
from tests.benchmarks.workload import digest

__all__ = ["run", "unavailable"]


def run(job: Job) -> Outcome:
    """Read the topic once and fold every event."""
    clock = Clock()
    events, loads = 0, orjson.loads
    models: dict[str, Order] = {}
    for batch in batches(job):
        for message in batch:
            event, stream = loads(message.value()), message.key().decode()
            model = models.get(stream)
            if model is None:
                model = models[stream] = Order()
            data = event["data"]
            quantity = data["quantity"]
            model.items += 1
            model.quantity += quantity
            model.total_cents += quantity * data["price_cents"]
            model.last = event["id"]
        events += len(batch)
    outcome = clock.outcome(events)
    sha, count = digest((stream, msgspec.to_builtins(models[stream])) for stream in sorted(models))
    return msgspec.structs.replace(outcome, digest=sha, models=count)
