"""Settings: what they are, what they are by default, and which values they may have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from streams.memory import process_share

__all__ = [
    "Codec",
    "FoldSettings",
    "KafkaSettings",
    "OnChange",
    "OnError",
    "RecoverySettings",
    "SourceSettings",
    "StateSettings",
    "Tombstones",
    "WorkerSettings",
]


OURS: Mapping[str, str] = MappingProxyType(
    {
        "auto.commit.interval.ms": "the store's position is the truth, and is mirrored behind it",
        "auto.offset.reset": "a position that is gone is an error",
        "bootstrap.servers": "set REFOLD_BOOTSTRAP_SERVERS",
        "client.id": "it tells the members of a group apart",
        "enable.auto.commit": "the store's position is the truth, and is mirrored behind it",
        "enable.auto.offset.store": "the store's position is the truth, and is mirrored behind it",
        "enable.idempotence": "a load delivers each event once",
        "enable.partition.eof": "the true end of a partition comes from it",
        "group.id": "set REFOLD_GROUP",
        "group.protocol": "partitions are handed over cooperatively",
        "group.remote.assignor": "partitions are handed over cooperatively",
        "heartbeat.interval.ms": "set REFOLD_SESSION_TIMEOUT_S",
        "isolation.level": "aborted transactions are no events",
        "metadata.broker.list": "set REFOLD_BOOTSTRAP_SERVERS",
        "partition.assignment.strategy": "partitions are handed over cooperatively",
        "session.timeout.ms": "set REFOLD_SESSION_TIMEOUT_S",
        "transactional.id": "the registry's writers are told apart by it",
    }
)
"""Client settings that are not the user's, and why."""


class KafkaSettings(BaseSettings):
    """Where Kafka is, and how its clients are to be set up."""

    model_config = SettingsConfigDict(env_prefix="REFOLD_", frozen=True, extra="forbid")

    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1)
    """`host:port[,host:port…]`. Env: REFOLD_BOOTSTRAP_SERVERS."""
    kafka: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """Further librdkafka client settings, as JSON, for example SASL and TLS; not those that the engine's guarantees
    rest on (`OURS`). Env: REFOLD_KAFKA."""
    request_timeout_s: PositiveFloat = 10.0
    """How long to wait for a broker's answer before saying that it is away. Env: REFOLD_REQUEST_TIMEOUT_S."""
    outage_limit_s: PositiveFloat = 300.0
    """How long a running fold waits, logging, for brokers that went away, or for a partition that another process
    still has open. Env: REFOLD_OUTAGE_LIMIT_S."""

    @field_validator("kafka")
    @classmethod
    def _only_connections(cls, kafka: dict[str, Any]) -> dict[str, Any]:
        ours = [f"{key} ({OURS[key]})" for key in kafka if key in OURS]
        if ours:
            raise ValueError(f"refold sets these itself, since its guarantees rest on them: {', '.join(ours)}")
        return kafka

    def client(self, **settings: Any) -> dict[str, Any]:
        """Give a librdkafka configuration: these settings, the user's own over them, and the address.

        A broker that comes back is found within a second: librdkafka's own 10 s are as long as an answer is waited for.
        """
        return {"reconnect.backoff.max.ms": 1000, **settings, **self.kafka, "bootstrap.servers": self.bootstrap_servers}


OnChange = Literal["ask", "rebuild", "adopt"]
"""ask: refuse, and say so in the registry; whoever has the old code goes on. rebuild: make a new generation beside the
active one. adopt: go on with its models, stating that the change does not alter the fold."""


OnError = Literal["halt", "skip", "dead-letter"]
"""What becomes of an event that cannot be folded. halt: its partition is folded no further. skip: it is kept as a dead
letter, and what follows is folded without it. dead-letter: later events of its model wait behind it."""
_Kinds = Literal["undecodable", "failed", "unstorable"]


class RecoverySettings(BaseModel):
    """What becomes of events that cannot be folded, where one word for all is too little."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    live: OnError | dict[_Kinds, OnError] | None = None
    """While events are folded as they come: for all kinds of failure, or by kind; by default `on_error`."""
    rebuild: OnError | dict[_Kinds, OnError] | None = None
    """The same for events in front of the end that a rebuild has pinned."""
    skip_budget: Annotated[int, Field(ge=0)] = 100
    """How many events may be skipped in each partition of a generation; the next one halts it."""
    attempts: PositiveInt = 5
    """How often an event is tried at which the projection raises `TransientError`."""


class FoldSettings(BaseSettings):
    """How events are folded and how often the result is made durable."""

    model_config = SettingsConfigDict(env_prefix="REFOLD_", frozen=True, extra="forbid")

    cache_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    """Memory for decoded models, of all partitions that one process folds. Env: REFOLD_CACHE_BYTES."""
    memory_limit_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    """What one process that folds may take of memory all in all: decoded models have what the rest leaves of it, where
    `cache_bytes` is not given. Of a worker: what it and its agents take together. Env: REFOLD_MEMORY_LIMIT_BYTES."""
    checkpoint_events: PositiveInt | None = None
    """Events between two checkpoints, exactly. Unset: at least 100, and more while there is a backlog, so
    that checkpoints cost under 5 % of the time. Env: REFOLD_CHECKPOINT_EVENTS."""
    checkpoint_seconds: PositiveFloat = 5.0
    """The longest time between two checkpoints, which is what a crash costs to fold again.
    Env: REFOLD_CHECKPOINT_SECONDS."""
    on_error: OnError = "halt"
    """What an event does that cannot be folded. Env: REFOLD_ON_ERROR."""
    recovery: RecoverySettings = RecoverySettings()
    """The same in detail, as a table in the file or as JSON. Env: REFOLD_RECOVERY."""
    rate: str | None = None
    """How fast one process folds events of a rebuild at most: events/s (`20000`), bytes of values/s (`5MB`; kB, MB, GB,
    KiB, MiB, GiB), or both with a comma between; what is live is folded as it comes. Env: REFOLD_RATE."""
    snapshot_repository: Annotated[str | None, Field(pattern=r"[a-z0-9]+://.+")] = None
    """Where snapshots of each partition are kept for whoever folds it next, on this machine or on another one:
    file:///path (a shared volume), s3://bucket/prefix, gs://…, az://…. Env: REFOLD_SNAPSHOT_REPOSITORY."""
    snapshot_repository_config: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """Settings of that store, as obstore names them, as JSON: endpoint, region, aws_server_side_encryption, …, and of
    its HTTP client. Credentials come from the environment too (AWS_ACCESS_KEY_ID, …).
    Env: REFOLD_SNAPSHOT_REPOSITORY_CONFIG."""
    snapshot_seconds: PositiveFloat = 300.0
    """The time from one snapshot of a partition to the next, where enough events were folded meanwhile for it to be
    worth while (10,000). Env: REFOLD_SNAPSHOT_SECONDS."""
    snapshots_kept: PositiveInt = 2
    """How many snapshots of a partition are kept. Env: REFOLD_SNAPSHOTS_KEPT."""
    on_change: OnChange = "ask"
    """What a run does whose code is not the active generation's. Env: REFOLD_ON_CHANGE."""
    session_timeout_s: PositiveFloat = 45.0
    """Silence after which the group gives a member's partitions to others (session.timeout.ms).
    Env: REFOLD_SESSION_TIMEOUT_S."""

    @field_validator("rate")
    @classmethod
    def _is_rate(cls, rate: str | None) -> str | None:
        _rates(rate)
        return rate

    @property
    def models_bytes(self) -> int:
        """Memory for decoded models of one process.

        Raises:
            ConfigError: `memory_limit_bytes` is too little.
        """
        if self.memory_limit_bytes is None or "cache_bytes" in self.model_fields_set:
            return self.cache_bytes
        goes_on = self.on_error != "halt" or self.recovery != RecoverySettings()
        return process_share(self.memory_limit_bytes, keeps_letters=goes_on)

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """Events and bytes a second of `rate`; None for any number."""
        return _rates(self.rate)


_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _rates(rate: str | None) -> tuple[float | None, float | None]:
    events = size = None
    for part in [] if rate is None else rate.split(","):
        found = re.fullmatch(r"\s*([0-9_]+(?:\.[0-9]+)?)\s*(B|kB|MB|GB|KiB|MiB|GiB)?(?:/s)?\s*", part)
        if found is None or float(found[1]) <= 0:
            raise ValueError("a rate is a number of events (20000) or of bytes (5MB), or both with a comma between")
        if found[2] is None:
            events = float(found[1])
        else:
            size = float(found[1]) * _UNITS[found[2]]
    return events, size


class StateSettings(BaseSettings):
    """Where read models are kept, and what is known of them."""

    model_config = SettingsConfigDict(env_prefix="REFOLD_", frozen=True, extra="forbid")

    state_dir: Path = Path(".refold")
    """One directory in it for each generation of a projection. Env: REFOLD_STATE_DIR."""
    store: Literal["files", "postgres"] = "files"
    """What the models of new generations are kept in: files is RocksDB in the state directory. Env: REFOLD_STORE."""
    dsn: SecretStr = SecretStr("")
    """PostgreSQL, as a connection string of libpq's (https://www.postgresql.org/docs/current/libpq-connect.html); what
    it leaves out, PGHOST, PGPASSWORD, PGSERVICE and their like say. Env: REFOLD_DSN."""
    pg_schema: str = Field("refold", pattern=r"[a-z_][a-z0-9_]{0,62}")
    """The schema there that tables and views are in; made where it is missing. Env: REFOLD_PG_SCHEMA."""
    pg_reader: str = ""
    """A role there that may read the views; by default whoever is granted that by you. Env: REFOLD_PG_READER."""
    registry: str = Field("refold.registry", min_length=1)
    """The compacted topic in which the generations of all projections are kept. Env: REFOLD_REGISTRY."""


class WorkerSettings(BaseSettings):
    """How a worker presents itself, and how much it runs."""

    model_config = SettingsConfigDict(env_prefix="REFOLD_", frozen=True, extra="forbid")

    namespace: str = Field("default", pattern=r"[A-Za-z0-9._-]+")
    """The fleet's name: workers of one namespace elect one leader, by topic refold.NAMESPACE.commands.
    Env: REFOLD_NAMESPACE."""
    worker_name: str | None = Field(None, pattern=r"[A-Za-z0-9._-]+")
    """This worker's name, which no other has; by default from its host and process. Env: REFOLD_WORKER_NAME."""
    http_host: str = "127.0.0.1"
    """Where the HTTP interface listens; 0.0.0.0 for everywhere. Env: REFOLD_HTTP_HOST."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Its port; 0 for any that is free. Env: REFOLD_HTTP_PORT."""
    advertised_address: str | None = Field(None, pattern=r".+:[0-9]+")
    """host:port by which other workers and clients reach it; by default the host's name where it listens everywhere,
    and otherwise where it listens. Env: REFOLD_ADVERTISED_ADDRESS."""
    agents_per_generation: PositiveInt = 1
    """Processes that fold each generation here. Env: REFOLD_AGENTS_PER_GENERATION."""
    replay_cache_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    """Memory for decoded models of a process that replays a generation beside a live one, where that is to be another
    than `cache_bytes`; it keeps to it until it is started again. Env: REFOLD_REPLAY_CACHE_BYTES."""
    memory_limit_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    """What this worker and its agents may take of memory together: each agent's cache is a part of it, where
    `cache_bytes` is not given. Env: REFOLD_MEMORY_LIMIT_BYTES."""
    admin_tokens: Path | None = None
    """A file of bearer tokens, one a line, of those who may give commands; it is read again when it changes. Without
    one, commands are taken only where the interface listens on this machine alone. Env: REFOLD_ADMIN_TOKENS."""
    read_tokens: Path | None = None
    """The same for reading; without one, everybody may who reaches it. Env: REFOLD_READ_TOKENS."""
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """A port of its own for commands, where models are not read; by default they are taken at `http_port`.
    Env: REFOLD_ADMIN_PORT."""
    admin_host: str | None = None
    """Where `admin_port` listens; by default where the other one does. Env: REFOLD_ADMIN_HOST."""
    admin_names: Annotated[tuple[str, ...], NoDecode] = ()
    """Names, with commas between, in client certificates by which commands are taken, without a token.
    Env: REFOLD_ADMIN_NAMES."""
    tls_certificate: Path | None = None
    """A PEM file with this worker's certificate, read again when it changes; without one it speaks plain HTTP.
    Env: REFOLD_TLS_CERTIFICATE."""
    tls_key: Path | None = None
    """The PEM file with its private key. Env: REFOLD_TLS_KEY."""
    tls_authority: Path | None = None
    """A PEM file with the authority by which clients' and other workers' certificates are checked. Clients that show
    none are let in all the same, as far as nothing else is asked of them. Env: REFOLD_TLS_AUTHORITY."""
    read_certificates: bool = False
    """Reading needs a certificate, or a token where there are some. Env: REFOLD_READ_CERTIFICATES."""
    static_membership: bool = False
    """The groups know this worker's agents again, by `worker_name`, when it is started again within the session timeout
    (KIP-345): then they fold their partitions on, and no others are moved. One that ends for good has its partitions
    wait for that time. Env: REFOLD_STATIC_MEMBERSHIP."""
    standbys: NonNegativeInt = 0
    """How many other workers keep a copy of each partition of an active generation near the topic's end, for the case
    that its owner dies. Env: REFOLD_STANDBYS."""
    drain_seconds: PositiveFloat = 25.0
    """How long agents may take to commit and leave once the worker is to end. Env: REFOLD_DRAIN_SECONDS."""

    @field_validator("admin_names", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given


Codec = Literal["json", "cloudevents"]
"""How records are read as events."""
Tombstones = Literal["halt", "skip", "delete-model"]
"""What a record with a null value does: it is no event, and halts its partition; it is declined; it deletes the model
whose id is its key."""


class SourceSettings(BaseSettings):
    """What is folded, as which group, and how its records are read."""

    model_config = SettingsConfigDict(env_prefix="REFOLD_", frozen=True, extra="forbid")

    topic: str | None = Field(None, min_length=1)
    """The event topic. Env: REFOLD_TOPIC."""
    group: str | None = Field(None, min_length=1)
    """The consumer group; by default refold.PROJECTION.vVERSION. Env: REFOLD_GROUP."""
    codec: Codec = "json"
    """Env: REFOLD_CODEC."""
    id_field: str = "id"
    """JSON envelope: the field with the event's id. Env: REFOLD_ID_FIELD."""
    type_field: str = "type"
    """JSON envelope: the field with the event's type. Env: REFOLD_TYPE_FIELD."""
    time_field: str = "time"
    """JSON envelope: the field with the event's time. Env: REFOLD_TIME_FIELD."""
    data_field: str = "data"
    """JSON envelope: the field with the payload; empty for the whole object. Env: REFOLD_DATA_FIELD."""
    stream_field: str = ""
    """JSON envelope: the field with the stream; by default the record's key is the stream.
    Env: REFOLD_STREAM_FIELD."""
    tombstones: Tombstones = "halt"
    """Env: REFOLD_TOMBSTONES."""
