"""A projection with all that its generations have in common: log, registry, and where their state is."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from streams.config import FoldSettings
from streams.control.ground import Ground
from streams.control.place import Place, active_place, place_of
from streams.control.record import Generation, Record, Source
from streams.control.registry import Registry
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.codec import EventCodec, describe
from streams.data.files import FILES
from streams.data.job import Repartition
from streams.data.routed import Routed
from streams.data.source import KafkaEventStore
from streams.data.stores import Kind, Shown
from streams.errors import NotReady
from streams.types import TopicInfo

__all__ = ["Site"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One projection, by the code that this process has of it."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    registry: Registry
    state_dir: Path
    """One directory in it for each generation."""
    settings: FoldSettings
    kind: Kind = FILES
    """What the models of new generations are to be kept in."""
    group: str | None = None
    """From which the groups of all generations are named; None for what the registry says, or the default."""
    allow_incomplete: bool = False

    @property
    def name(self) -> str:
        """The projection's name."""
        return self.projection.name

    @property
    def validates(self) -> bool:
        """Whether the projection says which differences it expects."""
        return type(self.projection).validate is not CqrsProjection.validate

    def record(self) -> Record:
        """Give what the registry says.

        Raises:
            NotReady: Nothing yet.
            BrokerError: It cannot be read.
        """
        record = self.registry.get(self.name)
        if record is None:
            raise NotReady(
                f"{self.name!r} has no generation yet: `refold run {self.name}` makes the first one. Nothing was "
                "changed.",
                projection=self.name,
            )
        return record

    def update(self, change: Callable[[Record], Record]) -> Record:
        """Change what the registry says; see `Registry.update`."""

        def changed(record: Record | None) -> Record:
            return change(self.record() if record is None else record)

        return self.registry.update(self.name, changed)

    def show(self) -> bool:
        """Have those who read where models are kept see the active generation's; say whether there is one.

        Raises:
            StorageError: They see what they saw before.
            BrokerError: The registry cannot be read.
        """

        if self.kind == FILES or self.registry.get(self.name) is None:
            return False
        shown: list[Shown] = []

        def choose() -> Shown | None:
            record = self.registry.get(self.name)
            if record is None or record.live.kept_in != self.kind.name:
                return None
            build = self.place(record.live).store.peek()
            if build is None:
                return None
            shown.append(Shown(build.stores, build.fresh(0, 0)))
            return shown[0]

        self.kind.show(self.name, choose)
        return bool(shown)

    def active(self, record: Record | None) -> Place:
        """Give where the active generation is, or is to be."""
        return active_place(record, self.projection, self.state_dir, self.group, self.kind)

    def place(self, generation: Generation) -> Place:
        """Give where a generation is."""
        return place_of(generation, self.state_dir, self.kind)

    def ground(self, place: Place) -> Ground:
        """Give what a generation is folded from and into."""
        events = self.events_of(place)
        return Ground(
            projection=self.projection,
            events=events,
            repartition=self._repartition(place),
            store=place.store,
            checkpoints=KafkaCheckpointStore(place.group, events),
            settings=self.settings,
            allow_incomplete=self.allow_incomplete,
            generation=place.generation,
            replay_ends=place.replay_ends,
        )

    def events_of(self, place: Place) -> KafkaEventStore:
        """Give what a generation folds: the event topic, or its own."""
        if place.own_topic is None:
            return self.events
        return KafkaEventStore(place.own_topic.name, codec=self.codec, kafka=self.events.kafka)

    def _repartition(self, place: Place) -> Repartition | None:
        own, source = place.own_topic, place.source
        if own is None or source is None:
            return None
        return Repartition(
            projection=self.projection,
            events=self.events,
            topic=TopicInfo(name=source.topic, id=source.topic_id, partitions=source.partitions),
            into=own,
            group=own.name,
            generation=place.generation,
            settings=self.settings,
            ends=source.targets,
        )

    @property
    def is_repartitioned(self) -> bool:
        """Whether generations of this code fold topics of their own."""
        return self.projection.partition_by == "model"

    @cached_property
    def codec(self) -> EventCodec:
        """How generations of this code read what they fold."""
        return Routed(self.events.codec, self.events.topic) if self.is_repartitioned else self.events.codec

    @cached_property
    def code(self) -> tuple[int, str, str]:
        """What this process folds with: the code's version and fingerprint, and the codec."""
        return self.projection.version, fingerprint(self.projection), describe(self.codec)

    def facts(self) -> dict[str, Any]:
        """Describe what a new generation would be of: this code, folding this topic.

        Where it is to have a topic of its own, that has yet to be made, and named by the generation's group
        (`named`).
        """
        topic = self.events.cluster.topic(self.events.topic)
        version, own, codec = self.code
        facts = {
            "version": version,
            "fingerprint": own,
            "codec": codec,
            "topic": topic.name,
            "topic_id": topic.id,
            "partitions": topic.partitions,
            "kept_in": self.kind.name,
        }
        if self.is_repartitioned:
            source = Source(topic=topic.name, topic_id=topic.id, partitions=topic.partitions)
            facts |= {"topic": f"repartition-{secrets.token_hex(3)}", "topic_id": "", "source": source}
        return facts

    def can_fold(self, generation: Generation) -> bool:
        """Say whether a generation is of the code that this process has."""
        return (generation.version, generation.fingerprint, generation.codec) == self.code
