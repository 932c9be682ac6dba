"""What a rebuild into a `ReadModelStore` folds, and where its models are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from streams.config import FoldSettings
from streams.control.ground import check_by_stream
from streams.data.checkpoint import CheckpointStore, belongs, generation_id
from streams.data.codec import check_tombstones
from streams.data.history import check_complete, check_readable
from streams.data.keeping import Keeping, keeping
from streams.data.read_models import Position, ReadModelStore
from streams.data.recovery import recovery_of
from streams.data.serde import Serde, serde_for
from streams.data.source import KafkaEventStore
from streams.errors import CheckpointError, CodeChanged, ConfigError, at
from streams.types import ProjectionCheckpoint, TopicInfo, Watermarks

__all__ = ["OwnGround", "Seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnGround:
    """What is to be folded, from where, and into which store of the user's.

    Raises:
        ConfigError: The settings keep dead letters, which only `RocksStore` does.
    """

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    models: ReadModelStore[Any]
    checkpoints: CheckpointStore
    settings: FoldSettings
    allow_incomplete: bool = False
    generation: str | None = None
    adopt: bool = False

    def __post_init__(self) -> None:
        check_tombstones(self.projection, self.events.codec)
        if recovery_of(self.settings).keeps:
            raise ConfigError(
                f"{self.store} keeps no dead letters: an event that cannot be folded halts a rebuild into it. Leave "
                "on_error at halt, have the projection give the model as it was, or use RocksStore."
            )

    @property
    def name(self) -> str:
        """The generation's id."""
        return self.generation or generation_id(self.projection.name, self.projection.version)

    @property
    def store(self) -> str:
        """What errors call the store."""
        return type(self.models).__qualname__

    def look(self, *, is_resumed: bool) -> Seen:
        """See that there is a topic with its history, and how the store is written to.

        Raises:
            TopicNotFound, BrokerError: Kafka.
            HistoryIncomplete: Events are gone.
            ConfigError: Models of the projection's type cannot be stored.
        """
        check_by_stream(self.projection, "A rebuild into a store of one's own")
        cluster = self.events.cluster
        topic = cluster.topic(self.events.topic)
        marks = cluster.watermarks(topic)
        check_complete(
            cluster,
            topic,
            marks,
            projection=self.projection.name,
            doing="A rebuild",
            allow_incomplete=self.allow_incomplete,
            compaction_only=is_resumed,
        )
        code = fingerprint(self.projection)
        where = keeping(self.models, self.checkpoints, self.projection.name, self.name, code)
        return Seen(self, topic, marks, where, serde_for(self.projection.model_type()))


@dataclass(frozen=True, slots=True)
class Seen:
    """What there was when a rebuild began."""

    ground: OwnGround
    topic: TopicInfo
    marks: Mapping[int, Watermarks]
    where: Keeping
    serde: Serde

    @property
    def ends(self) -> dict[int, int]:
        """By partition, the end that the rebuild is to come to."""
        return {number: one.high for number, one in self.marks.items()}

    def fresh(self) -> dict[int, Position]:
        """Give the positions of a fold that begins."""
        return {
            number: Position(
                topic=self.topic.name,
                topic_id=self.topic.id,
                partition=number,
                start=one.low,
                offset=one.low,
                code=self.where.code,
            )
            for number, one in self.marks.items()
        }

    def kept(self, asked: ProjectionCheckpoint | None) -> dict[int, Position]:
        """Give the positions that models are folded on from.

        Args:
            asked: A checkpoint that they are to have reached; what they have beyond it is not folded again.

        Raises:
            CheckpointError: There are none, or they are of something else.
            CodeChanged: They are of other code.
            HistoryIncomplete, TopicChanged: The topic has not what comes next.
        """
        found = self.where.resume()
        if not found:
            raise self._refusal(f"{self.ground.store} has no models of it that could be gone on with")
        for number, one in found.items():
            if one.topic != self.topic.name or one.topic_id not in ("", self.topic.id):
                raise self._refusal(
                    f"The models are of topic {one.topic!r} (id {one.topic_id}), and this folds {self.topic.name!r} "
                    f"(id {self.topic.id})"
                )
            if number not in self.marks:
                raise self._refusal(f"The models are of a partition {number}, which {self.topic.name} has not")
            if one.code != self.where.code and not self.ground.adopt:
                raise CodeChanged(
                    f"The models were folded by other code ({one.code}) than this ({self.where.code}). Rebuild from "
                    "the beginning, or say that the change does not alter them (adopt=True). Nothing was changed.",
                    projection=self.ground.projection.name,
                    topic=self.topic.name,
                )
            check_readable(self.topic, number, one.offset, self.marks[number], self.ground.projection.name)
        if asked is not None:
            self._check_reached(asked, found)
        return self.fresh() | dict(found)

    def _check_reached(self, asked: ProjectionCheckpoint, found: Mapping[int, Position]) -> None:
        if not asked.positions:
            raise self._refusal("The checkpoint is of a projection that has folded nothing")
        if not belongs(asked.generation, self.ground.projection.name):
            raise self._refusal(f"The checkpoint is of {asked.generation!r}")
        for number, offset in asked.positions.items():
            has = found[number].offset if number in found else 0
            if has < offset:
                raise self._refusal(
                    f"The checkpoint is of {at(self.topic.name, number, offset)}, and the models are of {has}"
                )

    def _refusal(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{why}. Rebuild from the beginning (FromBeginning). Nothing was changed.",
            projection=self.ground.projection.name,
            topic=self.topic.name,
        )
