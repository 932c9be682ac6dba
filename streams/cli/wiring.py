"""From a command's options to the objects that do its work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from projections.contract import CqrsProjection
from projections.registry import resolve
from streams.config import FoldSettings, KafkaSettings, load
from streams.data.checkpoint import KafkaCheckpointStore, generation_id
from streams.data.codec import CloudEventsCodec, EventCodec, JsonCodec
from streams.data.generation import RocksStore
from streams.data.source import KafkaEventStore

__all__ = ["Codec", "FoldOptions", "Wired"]


class Codec(StrEnum):
    """How records are read as events."""

    JSON = "json"
    CLOUDEVENTS = "cloudevents"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """What every command that folds or reads models takes."""

    topic: Annotated[str, Parameter(env_var="REFOLD_TOPIC")]
    """The event topic."""
    bootstrap_servers: Annotated[str | None, Parameter(env_var="REFOLD_BOOTSTRAP_SERVERS")] = None
    """Kafka, as host:port[,host:port…]; by default 127.0.0.1:9092."""
    state_dir: Annotated[Path, Parameter(env_var="REFOLD_STATE_DIR")] = Path(".refold")
    """Where read models are kept, in one directory for each projection and version."""
    group: Annotated[str | None, Parameter(env_var="REFOLD_GROUP")] = None
    """The consumer group; by default refold.PROJECTION.vVERSION."""
    codec: Annotated[Codec, Parameter(env_var="REFOLD_CODEC")] = Codec.JSON
    """How records are read: a JSON envelope, or CloudEvents."""
    id_field: str = "id"
    """JSON envelope: the field with the event's id."""
    type_field: str = "type"
    """JSON envelope: the field with the event's type."""
    time_field: str = "time"
    """JSON envelope: the field with the event's time."""
    data_field: str | None = "data"
    """JSON envelope: the field with the payload; empty for the whole object."""
    stream_field: str | None = None
    """JSON envelope: the field with the stream; by default the record's key is the stream."""
    checkpoint_events: int | None = None
    """Events between two checkpoints, exactly; by default from 100 on, as the load allows."""
    cache_bytes: int | None = None
    """Memory for decoded models."""
    allow_incomplete: bool = False
    """Fold what is left where the topic has lost events."""

    def wire(self, projection: str) -> Wired:
        """Build what the command works with.

        Args:
            projection: A shipped projection's name, or module:Class.

        Raises:
            ConfigError: A setting is wrong.
            LookupError: There is no such projection.
        """
        found = resolve(projection)
        kafka = load(KafkaSettings, bootstrap_servers=self.bootstrap_servers)
        generation = generation_id(found.name, found.version)
        events = KafkaEventStore(self.topic, codec=self._codec(), kafka=kafka)
        settings = load(FoldSettings, checkpoint_events=self.checkpoint_events, cache_bytes=self.cache_bytes)
        return Wired(
            projection=found,
            events=events,
            store=RocksStore(self.state_dir / generation),
            checkpoints=KafkaCheckpointStore(self.group or f"refold.{generation}", events),
            settings=settings,
            allow_incomplete=self.allow_incomplete,
        )

    def _codec(self) -> EventCodec:
        if self.codec is Codec.CLOUDEVENTS:
            return CloudEventsCodec()
        return JsonCodec(
            id=self.id_field,
            type=self.type_field,
            time=self.time_field,
            data=self.data_field or None,
            stream=self.stream_field or None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """One projection, connected."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    store: RocksStore
    checkpoints: KafkaCheckpointStore
    settings: FoldSettings
    allow_incomplete: bool
