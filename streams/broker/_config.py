"""The embedded broker's server.properties."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from streams.broker._ports import HOST
from streams.errors import ConfigError

__all__ = ["Setting", "check_settings", "properties"]

Setting = str | int | float | bool

_DEFAULTS: dict[str, Setting] = {
    # A topic that nobody made is an error to show, not a topic to make.
    "auto.create.topics.enable": False,
    # One node: every replica is the leader.
    "default.replication.factor": 1,
    "min.insync.replicas": 1,
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    # Kafka's own 50 partitions each would be most of what such a broker opens at its start.
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.num.partitions": 4,
    "share.coordinator.state.topic.num.partitions": 4,
    # A killed broker is let in again when the controller has given its former self up: after 9 s by default.
    "broker.session.timeout.ms": 3_000,
    "broker.heartbeat.interval.ms": 500,
    # Groups form at once, and tests of lost members need not wait for a minute.
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1_000,
    "group.consumer.min.session.timeout.ms": 1_000,
    "group.consumer.min.heartbeat.interval.ms": 100,
    # What happens to a log in hours elsewhere (retention, compaction) is looked for every second here.
    "log.initial.task.delay.ms": 1_000,
    "log.retention.check.interval.ms": 1_000,
    "log.cleaner.backoff.ms": 1_000,
    # The cleaner takes this from the heap at its start; the default of 128 MB is for terabytes.
    "log.cleaner.dedupe.buffer.size": 16 << 20,
}


def _own(log_dir: Path, port: int, controller_port: int) -> dict[str, Setting]:
    """Give the settings that the embedded broker decides; the same keys for any arguments."""
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "log.dirs": str(log_dir),
    }


def check_settings(settings: Mapping[str, Setting]) -> None:
    """Refuse settings that the embedded broker decides itself.

    Raises:
        ConfigError: Names them all.
    """
    taken = sorted(settings.keys() & _own(Path(), 0, 0).keys())
    if taken:
        raise ConfigError(
            f"The embedded broker decides {', '.join(taken)} itself (got {taken[0]}={settings[taken[0]]!r}). "
            "Leave them out; port and data_dir say where it listens and where it keeps its data."
        )


def properties(log_dir: Path, port: int, controller_port: int, settings: Mapping[str, Setting]) -> str:
    """Write server.properties.

    Args:
        log_dir: Kafka's log.dirs, absolute.
        port: For clients.
        controller_port: For the controller, which listens beside the broker in the same process.
        settings: The user's own, over the defaults.

    Raises:
        ConfigError: A path that Kafka would read as several.
    """
    if "," in str(log_dir):
        raise ConfigError(f"Kafka takes a comma in a path for the end of it: {log_dir}. Give another data directory.")
    values = {**_DEFAULTS, **settings, **_own(log_dir, port, controller_port)}
    return "".join(f"{_escape(key)}={_escape(_text(value))}\n" for key, value in values.items())


def _text(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _escape(text: str) -> str:
    """Write a text as java.util.Properties reads it: Latin-1, with escapes in UTF-16 units for the rest."""
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(chr(code) if 32 < code < 127 and chr(code) != "\\" else f"\\u{code:04x}" for code in codes)
