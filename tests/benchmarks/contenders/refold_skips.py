"""Refold, leaving out what cannot be folded: `on_error = skip`."""

from __future__ import annotations

from projections.contract import Event
from streams.cluster import Cluster
from streams.config import KafkaSettings, RecoverySettings
from streams.data.letterbox import ensure_topic
from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold import Order, OrderSummary

__all__ = ["picky", "run", "unavailable"]


class Picky(OrderSummary):
    """The benchmark's fold, which fails at some events once it has half changed the model."""

    def apply_to_model(self, model: Order | None, event: Event) -> Order | None:
        """Fold, or fail."""
        model = super().apply_to_model(model, event)
        if event.type == "Broken":
            raise ValueError(f"{event.id} is broken")
        return model


unavailable = refold.unavailable


def run(job: Job) -> Outcome:
    """Rebuild once."""
    return refold.run(job, projection=picky(job), on_error="skip", recovery=RecoverySettings(skip_budget=10**9))


def picky(job: Job) -> Picky:
    """Give a projection of this run's own, whose topic of dead letters is there, and empty."""
    projection = Picky()
    vars(projection)["name"] = f"picky-{job.group}"
    cluster = Cluster(KafkaSettings(bootstrap_servers=job.bootstrap_servers))
    ensure_topic(cluster, projection.name, cluster.topic(job.topic))
    return projection
