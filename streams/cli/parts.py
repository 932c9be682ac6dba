"""What a command works with, once its options are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projections.contract import CqrsProjection
from projections.registry import resolve
from streams.config import FoldSettings, KafkaSettings, SourceSettings
from streams.configfile import ConfigFile
from streams.control.rebuild import RebuildCoordinator
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.cloudevents import CloudEventsCodec
from streams.data.codec import EventCodec
from streams.data.generation import RocksStore
from streams.data.json_codec import JsonCodec
from streams.data.source import KafkaEventStore
from streams.errors import CodeChanged, ConfigError, RebuildCancelled

__all__ = ["Found", "Located", "Wired", "codec_of", "find_projection", "naming_commands", "stream_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A projection and its state on this machine."""

    projection: CqrsProjection[Any]
    store: RocksStore

    @property
    def name(self) -> str:
        """The projection's name."""
        return self.projection.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A projection, its state on this machine, and where its group is."""

    called: str
    """What the user calls it."""
    projection: CqrsProjection[Any]
    store: RocksStore
    kafka: KafkaSettings
    topic: str | None
    """As configured; the state knows it too."""
    group: str


@contextmanager
def naming_commands(called: str) -> Iterator[None]:
    """Name the exact commands in errors whose way out is one.

    Args:
        called: What the user calls the projection.
    """
    try:
        yield
    except CodeChanged as error:
        raise CodeChanged(
            f"{error} That is `refold rebuild {called}`, or `refold run {called} --adopt`.",
            projection=error.projection,
            topic=error.topic,
        ) from error
    except RebuildCancelled as error:
        named = RebuildCancelled(
            f"{error} `refold rebuild {called} --from checkpoint` goes on to the end of the rebuild, and "
            f"`refold run {called}` goes on for good.",
            projection=error.projection,
            topic=error.topic,
        )
        named.checkpoint = error.checkpoint
        raise named from error


def find_projection(projection: str, file: ConfigFile) -> CqrsProjection[Any]:
    """Find a projection by the name that the file gives it, a shipped one's, or as module:Class."""
    return resolve(file.class_of(projection) or projection, named=list(file.projections), beside=file.directory)


def stream_ids(text: str) -> list[str]:
    """Read the ids of streams: with commas between, or one a line of a file (`@FILE`).

    Raises:
        ConfigError: The file cannot be read, or an id is empty.
    """
    ids = text.split(",")
    if text.startswith("@"):
        try:
            ids = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{text[1:]} cannot be read as the ids of streams: {error}.") from error
    if not ids or "" in ids:
        raise ConfigError(f"{text!r} names no streams, or an empty one: write ID,ID or @FILE, with an id on each line.")
    return ids


def codec_of(source: SourceSettings) -> EventCodec:
    """Give the codec that the settings describe."""
    if source.codec == "cloudevents":
        return CloudEventsCodec(tombstones=source.tombstones)
    return JsonCodec(
        id=source.id_field,
        type=source.type_field,
        time=source.time_field,
        data=source.data_field or None,
        stream=source.stream_field or None,
        tombstones=source.tombstones,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """One projection, connected."""

    called: str
    """What the user calls it."""
    projection: CqrsProjection[Any]
    events: KafkaEventStore
    store: RocksStore
    checkpoints: KafkaCheckpointStore
    settings: FoldSettings
    allow_incomplete: bool

    def coordinator(self, **options: Any) -> RebuildCoordinator:
        """Give what rebuilds it.

        Args:
            options: Further ones of `RebuildCoordinator`.
        """
        return RebuildCoordinator(
            self.projection,
            self.events,
            self.store,
            self.checkpoints,
            settings=self.settings,
            allow_incomplete=self.allow_incomplete,
            **options,
        )
