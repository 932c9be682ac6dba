"""Live folding: an agent that goes on from where the state is, until it is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.control.claim import claim_live
from streams.control.ground import Ground
from streams.data.agent import Agent
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.generation import StateStore
from streams.data.source import KafkaEventStore

__all__ = ["live_agent"]


@contextmanager
def live_agent(
    projection: CqrsProjection[Any],
    events: KafkaEventStore,
    store: StateStore,
    checkpoints: KafkaCheckpointStore,
    settings: FoldSettings,
    *,
    adopt: bool = False,
    allow_incomplete: bool = False,
    generation: str | None = None,
) -> Iterator[Agent]:
    """Claim the state as it is, for the time of the block, and give the agent to `run` in it.

    A new state begins at the topic's beginning.

    Args:
        projection: What to fold.
        events: The topic.
        store: The state; made if there is none.
        checkpoints: The consumer group.
        settings: How to fold.
        adopt: State that the code or the codec changed but the fold did not.
        allow_incomplete: Begin where the topic begins, also where its first events are gone.
        generation: The generation's id; by default that of the code's name and version.

    Raises:
        See `claim_live`.
    """
    ground = Ground(
        projection=projection,
        events=events,
        store=store,
        checkpoints=checkpoints,
        settings=settings,
        allow_incomplete=allow_incomplete,
        generation=generation,
    )
    claimed = claim_live(ground, adopt=adopt)
    with claimed.lock:
        yield Agent(claimed.job)
