"""Live folding: an agent that goes on from where the state is, until it is stopped."""

from __future__ import annotations

from typing import Any

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.data.agent import Agent
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.generation import Manifest, RocksStore
from streams.data.source import KafkaEventStore

__all__ = ["live_agent"]


def live_agent(
    projection: CqrsProjection[Any],
    events: KafkaEventStore,
    store: RocksStore,
    checkpoints: KafkaCheckpointStore,
    settings: FoldSettings,
    *,
    adopt: bool = False,
    allow_incomplete: bool = False,
) -> Agent:
    """Give an agent for the state as it is; a new state begins at the topic's beginning. `run` it.

    Args:
        projection: What to fold.
        events: The topic.
        store: The state; made if there is none.
        checkpoints: The consumer group.
        settings: How to fold.
        adopt: State that the code changed but the fold did not.
        allow_incomplete: Begin where the topic begins, also where its first events are gone.

    Raises:
        TopicNotFound, BrokerUnavailable: From Kafka.
        ForeignStore, TopicChanged, CodeChanged, StoreCorrupt: See `RocksStore.claim`.
    """
    topic = events.cluster.topic(events.topic)
    manifest = store.claim(Manifest.of(projection, topic), adopt=adopt)
    return Agent(
        projection,
        events,
        store,
        checkpoints.group,
        topic,
        manifest,
        settings,
        allow_incomplete=allow_incomplete,
    )
