"""What commands take: their options, and how these are read."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from cyclopts import Parameter
from pydantic_settings import BaseSettings

from streams.adapters.kinds import kind_of
from streams.cli.parts import Found, Located, Wired, codec_of, find_coded, find_or_absent, find_projection
from streams.cluster import Cluster
from streams.config import FoldSettings, KafkaSettings, SourceSettings, StateSettings
from streams.configfile import ConfigFile
from streams.control.registry import Registry
from streams.data.source import KafkaEventStore
from streams.errors import NotReady
from streams.log import get_logger
from streams.objects import Objects
from streams.resolving import resolve_settings, unknown_variables, variable

__all__ = [
    "ClientOptions",
    "Flag",
    "FoldOptions",
    "GroupOptions",
    "Options",
    "PlaceOptions",
    "RunOptions",
    "WorkerOptions",
    "warn_of_unknown_variables",
]

log = get_logger(__name__)

S = TypeVar("S", bound=BaseSettings)

_READER_S = 2.0
"""How long a reader waits for the registry, before it goes by what this machine knew last."""

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
"""What is said or not."""
ProjectionName = Annotated[
    str, Parameter(help="A projection that refold.toml names, a shipped one's name, or module:Class.")
]

# Flags are text here, whatever they mean: all that is wrong with them is said together with all that is wrong in the
# environment and the file, by those who know (`streams.resolving`).


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes."""

    config: Annotated[str | None, Parameter(env_var="REFOLD_CONFIG")] = None
    """The configuration file; by default the first refold.toml from the current directory upwards."""

    def said(self) -> dict[str, Any]:
        """Give those that were given, as flags or variables, for another process; places as whole paths."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {key: str(Path(found[key]).absolute()) for key in ("config", "state_dir") if found.get(key)}
        return {key: value for key, value in {**found, **paths}.items() if value is not None}

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
class PlaceOptions(ClientOptions):
    """What every command takes that looks at state and at groups."""

    state_dir: Annotated[str | None, Parameter(env_var="REFOLD_STATE_DIR")] = None
    """Where read models are kept, in one directory for each generation of a projection; by default .refold."""
    store: Annotated[str | None, Parameter(env_var="REFOLD_STORE")] = None
    """What new generations are kept in: files, which is RocksDB in the state directory (the default), or postgres."""
    dsn: Annotated[str | None, Parameter(env_var="REFOLD_DSN")] = None
    """PostgreSQL's connection string; what it leaves out, PGHOST, PGPASSWORD and their like say."""
    pg_schema: Annotated[str | None, Parameter(env_var="REFOLD_PG_SCHEMA")] = None
    """The schema there that tables and views are in; by default refold."""
    pg_reader: Annotated[str | None, Parameter(env_var="REFOLD_PG_READER")] = None
    """A role there that is granted the views."""
    registry: Annotated[str | None, Parameter(env_var="REFOLD_REGISTRY")] = None
    """The topic that says which generation of a projection is active; by default refold.registry."""

    def find(self, projection: str) -> Found:
        """Find a projection and the state of its active generation.

        Raises:
            ConfigError: All that is wrong.
            ResolveError: There is no such projection.
        """
        file = self.file()
        kafka, state = self.settings(file, KafkaSettings, StateSettings, projection=projection)
        found = find_projection(projection, file)
        registry = Registry(Cluster(kafka).within(_READER_S), state.registry, copies=state.state_dir)
        return Found(
            called=projection,
            projection=found,
            kafka=kafka,
            registry=registry,
            state_dir=state.state_dir,
            kind=kind_of(state),
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GroupOptions(PlaceOptions):
    """What every command takes that looks at a projection's group."""

    topic: Annotated[str | None, Parameter(env_var="REFOLD_TOPIC")] = None
    """The event topic."""
    group: Annotated[str | None, Parameter(env_var="REFOLD_GROUP")] = None
    """The consumer group; by default refold.PROJECTION.vVERSION. Further generations' are named from it."""

    def locate(self, projection: str, *, offline: bool = False) -> Located:
        """Find a projection, its active generation's state, and where its group is.

        Args:
            projection: Which one.
            offline: Where no broker answers, go by what this machine knew last; see `Found`.

        Raises:
            ConfigError: All that is wrong.
            ResolveError: There is no such projection.
        """
        file = self.file()
        kafka, state, source = self.settings(file, KafkaSettings, StateSettings, SourceSettings, projection=projection)
        found = find_or_absent(projection, file, Registry(Cluster(kafka), state.registry))
        located = Found if offline else Located
        return located(
            called=projection,
            projection=found,
            kafka=kafka,
            registry=Registry(Cluster(kafka), state.registry, copies=state.state_dir),
            state_dir=state.state_dir,
            kind=kind_of(state),
            given_group=source.group,
            topic=source.topic,
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
    on_error: Annotated[str | None, Parameter(env_var="REFOLD_ON_ERROR")] = None
    """What becomes of an event that cannot be folded: halt its partition (the default), skip it, or dead-letter, which
    keeps it and has later events of its model wait behind it."""
    rate: Annotated[str | None, Parameter(env_var="REFOLD_RATE")] = None
    """How fast one process folds events of a rebuild at most: events/s (20000), bytes/s (5MB), or both (20000,5MB)."""
    tombstones: Annotated[str | None, Parameter(env_var="REFOLD_TOMBSTONES")] = None
    """What a record with a null value does: halt its partition (the default), skip, or delete-model by its key."""
    checkpoint_events: Annotated[str | None, Parameter(env_var="REFOLD_CHECKPOINT_EVENTS")] = None
    """Events between two checkpoints, exactly; by default from 100 on, as the load allows."""
    cache_bytes: Annotated[str | None, Parameter(env_var="REFOLD_CACHE_BYTES")] = None
    """Memory for decoded models."""
    memory_limit_bytes: Annotated[str | None, Parameter(env_var="REFOLD_MEMORY_LIMIT_BYTES")] = None
    """What one process that folds may take of memory all in all; of a worker, it and its agents together."""
    snapshot_repository: Annotated[str | None, Parameter(env_var="REFOLD_SNAPSHOT_REPOSITORY")] = None
    """Where snapshots are kept of each partition, for whoever folds it next: file:///path, s3://bucket/prefix, gs://…."""
    snapshot_seconds: Annotated[str | None, Parameter(env_var="REFOLD_SNAPSHOT_SECONDS")] = None
    """The time from one of them to the next; by default 300."""
    snapshots_kept: Annotated[str | None, Parameter(env_var="REFOLD_SNAPSHOTS_KEPT")] = None
    """How many of each partition are kept there; by default 2."""
    allow_incomplete: Flag = False
    """Fold what is left where the topic has lost events."""

    def wire(self, projection: str, *, known: bool = False, coded: bool = True) -> Wired:
        """Build what the command works with.

        Args:
            projection: A configured or shipped projection's name, or module:Class.
            known: Where no topic is named, take the one that the registry has of the active generation.
            coded: The projection's code is needed; otherwise its name in the registry is enough.

        Raises:
            ConfigError: All that is wrong in flags, environment and file.
            ResolveError: There is no such projection.
        """
        file = self.file()
        kafka, folding, state, source = self.settings(
            file,
            KafkaSettings,
            FoldSettings,
            StateSettings,
            SourceSettings,
            projection=projection,
            required=() if known else ("topic",),
        )
        if folding.snapshot_repository is not None:  # so that it is told here, and not by each agent
            Objects(folding.snapshot_repository, folding.snapshot_repository_config)
        registry = Registry(Cluster(kafka), state.registry, copies=state.state_dir)
        found = (find_coded if coded else find_or_absent)(projection, file, registry)
        topic = source.topic
        if topic is None:
            record = registry.get(found.name)
            if record is None:
                raise NotReady(f"{found.name!r} has no generation yet: `refold run {projection}` makes the first one.")
            topic = record.live.event_topic
        events = KafkaEventStore(topic, codec=codec_of(source), kafka=kafka)
        return Wired(
            called=projection,
            projection=found,
            kafka=kafka,
            registry=registry,
            state_dir=state.state_dir,
            kind=kind_of(state),
            given_group=source.group,
            topic=topic,
            events=events,
            settings=folding,
            allow_incomplete=self.allow_incomplete,
        )


def warn_of_unknown_variables() -> None:
    """Warn of variables of the environment that look like ours, and that nobody reads."""
    unknown = unknown_variables()
    if unknown:
        log.warning("settings.unknown_variables", variables=", ".join(unknown))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions(FoldOptions):
    """What a command takes that folds for good."""

    on_change: Annotated[str | None, Parameter(env_var="REFOLD_ON_CHANGE")] = None
    """Where the active generation is of other code: ask, which ends here and says so (the default); rebuild, beside it;
    or adopt, which goes on with its models."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkerOptions(RunOptions):
    """What a worker takes."""

    namespace: Annotated[str | None, Parameter(env_var="REFOLD_NAMESPACE")] = None
    """The fleet's name: its workers elect one leader; by default default."""
    worker_name: Annotated[str | None, Parameter(env_var="REFOLD_WORKER_NAME")] = None
    """This worker's name, which no other has; by default from its host and process."""
    http_host: Annotated[str | None, Parameter(env_var="REFOLD_HTTP_HOST")] = None
    """Where its HTTP interface listens; by default 127.0.0.1, and 0.0.0.0 for everywhere."""
    http_port: Annotated[str | None, Parameter(env_var="REFOLD_HTTP_PORT")] = None
    """Its port; by default 8080, and 0 for any that is free."""
    advertised_address: Annotated[str | None, Parameter(env_var="REFOLD_ADVERTISED_ADDRESS")] = None
    """host:port by which others reach it; by default where it listens."""
    agents_per_generation: Annotated[str | None, Parameter(env_var="REFOLD_AGENTS_PER_GENERATION")] = None
    """Processes that fold each generation here; by default 1."""
    replay_cache_bytes: Annotated[str | None, Parameter(env_var="REFOLD_REPLAY_CACHE_BYTES")] = None
    """Memory for decoded models of a process that replays; by default as --cache-bytes."""
    admin_tokens: Annotated[str | None, Parameter(env_var="REFOLD_ADMIN_TOKENS")] = None
    """A file of bearer tokens, one a line, of those who may give commands."""
    read_tokens: Annotated[str | None, Parameter(env_var="REFOLD_READ_TOKENS")] = None
    """The same for reading; by default everybody may who reaches it."""
    admin_port: Annotated[str | None, Parameter(env_var="REFOLD_ADMIN_PORT")] = None
    """A port of its own for commands; by default they are taken at the HTTP port."""
    admin_host: Annotated[str | None, Parameter(env_var="REFOLD_ADMIN_HOST")] = None
    """Where that listens; by default where the other one does."""
    admin_names: Annotated[str | None, Parameter(env_var="REFOLD_ADMIN_NAMES")] = None
    """Names, with commas between, in client certificates by which commands are taken, without a token."""
    tls_certificate: Annotated[str | None, Parameter(env_var="REFOLD_TLS_CERTIFICATE")] = None
    """This worker's certificate (PEM); without one it speaks plain HTTP."""
    tls_key: Annotated[str | None, Parameter(env_var="REFOLD_TLS_KEY")] = None
    """Its private key (PEM)."""
    tls_authority: Annotated[str | None, Parameter(env_var="REFOLD_TLS_AUTHORITY")] = None
    """The authority (PEM) by which clients' and other workers' certificates are checked."""
    read_certificates: Annotated[str | None, Parameter(env_var="REFOLD_READ_CERTIFICATES")] = None
    """true: reading needs a certificate of that authority, or a token where there are some."""
    static_membership: Annotated[str | None, Parameter(env_var="REFOLD_STATIC_MEMBERSHIP")] = None
    """true: the groups know its agents again by the worker's name when it is started again within the session timeout;
    then no partition is moved meanwhile."""
    standbys: Annotated[str | None, Parameter(env_var="REFOLD_STANDBYS")] = None
    """How many other workers keep a copy of each partition, for the case that its owner dies; by default 0."""
    drain_seconds: Annotated[str | None, Parameter(env_var="REFOLD_DRAIN_SECONDS")] = None
    """How long agents may take to commit and leave once it is to end; by default 25."""
