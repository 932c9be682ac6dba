"""Settings: typed, from flags, the environment and a file, checked whole before anything starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from streams.configfile import ConfigFile, near
from streams.errors import ConfigError
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
    "known_variables",
    "load",
    "resolve_settings",
    "unknown_variables",
    "variable",
]


S = TypeVar("S", bound=BaseSettings)

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


def load(settings: type[S], **arguments: Any) -> S:
    """Read one settings class from arguments, then the environment, then its defaults.

    Args:
        settings: The class.
        arguments: Values that win over the environment; None means "not given".

    Raises:
        ConfigError: Everything that is wrong, in one message.
    """
    (found,) = resolve_settings([settings], arguments=arguments)
    assert isinstance(found, settings)
    return found


def resolve_settings(
    kinds: Iterable[type[BaseSettings]],
    *,
    flags: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    file: ConfigFile | None = None,
    projection: str | None = None,
    required: Iterable[str] = (),
) -> list[BaseSettings]:
    """Read several settings classes from flags, then the environment, then a file, then their defaults.

    Args:
        kinds: The classes.
        flags: Values from the command line, by setting; None means "not given".
        arguments: The same for a program's own; only in messages are they named otherwise.
        file: The configuration file.
        projection: Whose section of the file holds.
        required: Settings without which there is no going on.

    Returns:
        One object of each class, in order.

    Raises:
        ConfigError: Everything that is wrong, wherever it comes from, in one message.
    """
    kinds, file = list(kinds), file or ConfigFile()
    given = {key: value for key, value in {**(arguments or {}), **(flags or {})}.items() if value is not None}
    in_file = file.settings(projection)
    if ("on_error" in given or variable("on_error") in os.environ) and isinstance(in_file.get("recovery"), dict):
        # One word for all wins over what the file says of some.
        in_file["recovery"] = {
            key: value for key, value in in_file["recovery"].items() if key not in ("live", "rebuild")
        }
    wrong = file.unknown(projection, [key for kind in ALL for key in kind.model_fields])
    found: list[BaseSettings] = []

    def source(key: str) -> str:
        if key in given:
            return f"--{key.replace('_', '-')}" if flags is not None and key in flags else key
        if variable(key) in os.environ:
            return variable(key)
        return file.place(projection, key) if key in in_file else key

    for kind in kinds:
        values = {key: given[key] for key in kind.model_fields if key in given}
        values |= {
            key: in_file[key]
            for key in kind.model_fields
            if key in in_file and key not in given and variable(key) not in os.environ
        }
        if "kafka" in kind.model_fields and "kafka" in in_file and "kafka" not in values:
            values |= _both(in_file["kafka"])
        try:
            found.append(kind(**values))
        except SettingsError:
            wrong.append("REFOLD_KAFKA: it is not a JSON object")
        except ValidationError as error:
            wrong += [_one_error(source(str(item["loc"][0])), item) for item in error.errors(include_url=False)]
    known = {key for kind in kinds for key in kind.model_fields}
    # None of the program's own arguments may vanish; a flag is checked by whoever parses it.
    wrong += [f"{key}: there is no such setting{near(key, known)}" for key in arguments or {} if key not in known]
    for key in required:
        if not wrong and next((getattr(one, key) for one in found if key in type(one).model_fields), None) is None:
            where = f", or {key} in {file.path}" if file.path else ", or in refold.toml"
            wrong.append(f"{key}: it is needed. Give --{key.replace('_', '-')}, {variable(key)}{where}")
    if wrong:
        raise ConfigError(
            "Settings are wrong: " + wrong[0] if len(wrong) == 1 else "\n  ".join(["Settings are wrong:", *wrong])
        )
    return found


def _both(in_file: Any) -> dict[str, Any]:
    """Give a file's client settings with those of the environment over them; nothing where either is no object.

    Secrets are in the environment, and the rest is in a file.
    """
    try:
        in_environment = json.loads(os.environ[variable("kafka")])
    except ValueError:
        return {}
    if not isinstance(in_environment, dict) or not isinstance(in_file, Mapping):
        return {}
    return {"kafka": {**in_file, **in_environment}}


_SECRET = {"kafka", "snapshot_repository_config"}
"""Client settings may be secrets: their values are never shown."""


def _one_error(source: str, item: Any) -> str:
    path = ".".join(map(str, item["loc"][1:]))
    shown = "" if _SECRET & set(item["loc"]) else f" (got {item['input']!r})"
    said = item["msg"].removeprefix("Value error, ")
    return f"{source}{'.' if path else ''}{path}: {said[:1].lower()}{said[1:]}{shown}"


def variable(key: str) -> str:
    """Give the environment variable of a setting."""
    return f"REFOLD_{key.upper()}"


ALL: tuple[type[BaseSettings], ...] = (KafkaSettings, FoldSettings, StateSettings, SourceSettings, WorkerSettings)
_OTHER_VARIABLES = (
    "REFOLD_BROKER_DATA_DIR",
    "REFOLD_BROKER_PORT",
    "REFOLD_CONFIG",
    "REFOLD_LOG",
    "REFOLD_LOG_FORMAT",
    "REFOLD_LOG_LEVEL",
    "REFOLD_MAVEN_REPOSITORY",
)
_SERVICE_LINK = re.compile(r"REFOLD_(\w+_)?(SERVICE_(HOST|PORT)|PORT)(_\w+)?")
"""What Kubernetes sets for a service that is called refold."""


def known_variables() -> set[str]:
    """Name every variable of the environment that refold reads."""
    return {*_OTHER_VARIABLES, *(variable(key) for kind in ALL for key in kind.model_fields)}


def unknown_variables() -> list[str]:
    """Name the variables of the environment that look like ours and that nothing reads, each with the nearest."""
    known = known_variables()
    return [
        f"{name}{near(name, known)}"
        for name in sorted(os.environ)
        if name.startswith("REFOLD_") and name not in known and not _SERVICE_LINK.fullmatch(name)
    ]
