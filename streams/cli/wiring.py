"""What commands take: their options, and how these are read."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, cast

from cyclopts import Parameter
from pydantic_settings import BaseSettings

from streams.cli.parts import Found, Located, Wired, codec_of, find_projection
from streams.config import (
    FoldSettings,
    KafkaSettings,
    SourceSettings,
    StateSettings,
    resolve_settings,
    unknown_variables,
    variable,
)
from streams.configfile import ConfigFile
from streams.data.checkpoint import KafkaCheckpointStore, generation_id
from streams.data.generation import RocksStore
from streams.data.source import KafkaEventStore
from streams.log import get_logger

__all__ = [
    "ClientOptions",
    "Flag",
    "FoldOptions",
    "GroupOptions",
    "Options",
    "PlaceOptions",
    "StateOptions",
    "warn_of_unknown_variables",
]

log = get_logger(__name__)

S = TypeVar("S", bound=BaseSettings)

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
"""What is said or not."""
ProjectionName = Annotated[
    str, Parameter(help="A projection that refold.toml names, a shipped one's name, or module:Class.")
]

# Flags are text here, whatever they mean: all that is wrong with them is said together with all that is wrong in the
# environment and the file, by those who know (`streams.config`).


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes."""

    config: Annotated[str | None, Parameter(env_var="REFOLD_CONFIG")] = None
    """The configuration file; by default the first refold.toml from the current directory upwards."""

    def file(self) -> ConfigFile:
        """Read the configuration file, and warn of variables that nobody reads."""
        warn_of_unknown_variables()
        return ConfigFile.find(self.config)

    def settings(
        self,
        file: ConfigFile,
        *kinds: type[BaseSettings],
        projection: str | None = None,
        required: tuple[str, ...] = (),
    ) -> list[Any]:
        """Read settings from this command's flags, the environment and the file.

        Raises:
            ConfigError: All that is wrong.
        """
        known = {key for kind in kinds for key in kind.model_fields}
        flags = {field.name: getattr(self, field.name) for field in fields(self) if field.name in known}
        # The parser fills in variables of the environment, which then are no flags.
        flags = {key: value for key, value in flags.items() if value != os.environ.get(variable(key))}
        return resolve_settings(kinds, flags=flags, file=file, projection=projection, required=required)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClientOptions(Options):
    """What every command takes that talks to Kafka."""

    bootstrap_servers: Annotated[str | None, Parameter(env_var="REFOLD_BOOTSTRAP_SERVERS")] = None
    """Kafka, as host:port[,host:port…]; by default 127.0.0.1:9092."""

    def kafka(self) -> KafkaSettings:
        """Read where Kafka is.

        Raises:
            ConfigError: All that is wrong.
        """
        (kafka,) = self.settings(self.file(), KafkaSettings)
        return cast(KafkaSettings, kafka)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StateOptions(Options):
    """What every command takes that reads models."""

    state_dir: Annotated[str | None, Parameter(env_var="REFOLD_STATE_DIR")] = None
    """Where read models are kept, in one directory for each projection and version; by default .refold."""

    def find(self, projection: str) -> Found:
        """Find a projection and its state.

        Raises:
            ConfigError: All that is wrong.
            ResolveError: There is no such projection.
        """
        file = self.file()
        (state,) = self.settings(file, StateSettings, projection=projection)
        found = find_projection(projection, file)
        return Found(projection=found, store=RocksStore(state.state_dir / generation_id(found.name, found.version)))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlaceOptions(ClientOptions, StateOptions):
    """What every command takes that looks at state and at groups."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GroupOptions(PlaceOptions):
    """What every command takes that looks at a projection's group."""

    topic: Annotated[str | None, Parameter(env_var="REFOLD_TOPIC")] = None
    """The event topic."""
    group: Annotated[str | None, Parameter(env_var="REFOLD_GROUP")] = None
    """The consumer group; by default refold.PROJECTION.vVERSION."""

    def locate(self, projection: str) -> Located:
        """Find a projection, its state, and where its group is.

        Raises:
            ConfigError: All that is wrong.
            ResolveError: There is no such projection.
        """
        file = self.file()
        found = find_projection(projection, file)
        kafka, state, source = self.settings(file, KafkaSettings, StateSettings, SourceSettings, projection=projection)
        generation = generation_id(found.name, found.version)
        return Located(
            called=projection,
            projection=found,
            store=RocksStore(state.state_dir / generation),
            kafka=kafka,
            topic=source.topic,
            group=source.group or f"refold.{generation}",
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FoldOptions(GroupOptions):
    """What every command takes that folds."""

    codec: Annotated[str | None, Parameter(env_var="REFOLD_CODEC")] = None
    """How records are read: json, an envelope (the default), or cloudevents."""
    id_field: Annotated[str | None, Parameter(env_var="REFOLD_ID_FIELD")] = None
    """JSON envelope: the field with the event's id; by default id."""
    type_field: Annotated[str | None, Parameter(env_var="REFOLD_TYPE_FIELD")] = None
    """JSON envelope: the field with the event's type; by default type."""
    time_field: Annotated[str | None, Parameter(env_var="REFOLD_TIME_FIELD")] = None
    """JSON envelope: the field with the event's time; by default time."""
    data_field: Annotated[str | None, Parameter(env_var="REFOLD_DATA_FIELD")] = None
    """JSON envelope: the field with the payload; by default data, and empty for the whole object."""
    stream_field: Annotated[str | None, Parameter(env_var="REFOLD_STREAM_FIELD")] = None
    """JSON envelope: the field with the stream; by default the record's key is the stream."""
    tombstones: Annotated[str | None, Parameter(env_var="REFOLD_TOMBSTONES")] = None
    """What a record with a null value does: halt its partition (the default), skip, or delete-model by its key."""
    checkpoint_events: Annotated[str | None, Parameter(env_var="REFOLD_CHECKPOINT_EVENTS")] = None
    """Events between two checkpoints, exactly; by default from 100 on, as the load allows."""
    cache_bytes: Annotated[str | None, Parameter(env_var="REFOLD_CACHE_BYTES")] = None
    """Memory for decoded models."""
    allow_incomplete: Flag = False
    """Fold what is left where the topic has lost events."""

    def wire(self, projection: str) -> Wired:
        """Build what the command works with.

        Args:
            projection: A configured or shipped projection's name, or module:Class.

        Raises:
            ConfigError: All that is wrong in flags, environment and file.
            ResolveError: There is no such projection.
        """
        file = self.file()
        found = find_projection(projection, file)
        kafka, folding, state, source = self.settings(
            file,
            KafkaSettings,
            FoldSettings,
            StateSettings,
            SourceSettings,
            projection=projection,
            required=("topic",),
        )
        generation = generation_id(found.name, found.version)
        events = KafkaEventStore(source.topic, codec=codec_of(source), kafka=kafka)
        return Wired(
            called=projection,
            projection=found,
            events=events,
            store=RocksStore(state.state_dir / generation),
            checkpoints=KafkaCheckpointStore(source.group or f"refold.{generation}", events),
            settings=folding,
            allow_incomplete=self.allow_incomplete,
        )


def warn_of_unknown_variables() -> None:
    """Warn of variables of the environment that look like ours, and that nobody reads."""
    unknown = unknown_variables()
    if unknown:
        log.warning("settings.unknown_variables", variables=", ".join(unknown))
