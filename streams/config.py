"""Settings: one typed object, from arguments and the environment, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from streams.errors import ConfigError

__all__ = ["FoldSettings", "KafkaSettings", "load"]


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
        "transactional.id": "nothing is written in transactions",
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
        """Give a librdkafka configuration: these settings, the user's own over them, and the address."""
        return {**settings, **self.kafka, "bootstrap.servers": self.bootstrap_servers}


class FoldSettings(BaseSettings):
    """How events are folded and how often the result is made durable."""

    model_config = SettingsConfigDict(env_prefix="REFOLD_", frozen=True, extra="forbid")

    cache_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    """Memory for decoded models, of all partitions that one process folds. Env: REFOLD_CACHE_BYTES."""
    checkpoint_events: PositiveInt | None = None
    """Events between two checkpoints, exactly. Unset: at least 100, and more while there is a backlog, so
    that checkpoints cost under 5 % of the time. Env: REFOLD_CHECKPOINT_EVENTS."""
    checkpoint_seconds: PositiveFloat = 5.0
    """The longest time between two checkpoints, which is what a crash costs to fold again.
    Env: REFOLD_CHECKPOINT_SECONDS."""
    session_timeout_s: PositiveFloat = 45.0
    """Silence after which the group gives a member's partitions to others (session.timeout.ms).
    Env: REFOLD_SESSION_TIMEOUT_S."""


def load(settings: type[S], **arguments: Any) -> S:
    """Read one settings class from arguments, then the environment, then its defaults.

    Args:
        settings: The class.
        arguments: Values that win over the environment; None means "not given".

    Raises:
        ConfigError: Everything that is wrong, in one message.
    """
    try:
        return settings(**{key: value for key, value in arguments.items() if value is not None})
    except SettingsError as error:
        raise ConfigError(f"Settings are wrong: {error}; REFOLD_KAFKA is a JSON object.") from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg'].lower()}"
            # Client settings may be secrets: their values are never shown.
            + ("" if "kafka" in item["loc"] else f" (got {item['input']!r})")
            for item in error.errors(include_url=False)
        )
        raise ConfigError(
            f"Settings are wrong: {wrong}. Each is read from REFOLD_<NAME>, and some from a flag too."
        ) from None


def default_state_dir() -> Path:
    """Give the directory for state where the user named none: `./.refold`."""
    return Path(".refold")
