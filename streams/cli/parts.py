"""What a command works with, once its options are read."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from projections.contract import CqrsProjection, Event
from projections.registry import ResolveError, resolve
from streams.config import FoldSettings, KafkaSettings, SourceSettings
from streams.configfile import ConfigFile
from streams.control.generations import Generations
from streams.control.place import Place, active_place, note, try_note
from streams.control.rebuild import RebuildCoordinator
from streams.control.record import Record
from streams.control.registry import Registry
from streams.control.site import Site
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.cloudevents import CloudEventsCodec
from streams.data.codec import EventCodec
from streams.data.files import FILES
from streams.data.generation import StateStore
from streams.data.json_codec import JsonCodec
from streams.data.source import KafkaEventStore
from streams.data.stores import Kind
from streams.errors import BrokerError, BrokerUnavailable, CodeChanged, ConfigError, CqrsError, RebuildCancelled
from streams.log import get_logger

__all__ = [
    "Absent",
    "Found",
    "Located",
    "Wired",
    "codec_of",
    "find_coded",
    "find_or_absent",
    "find_projection",
    "naming_commands",
    "stream_ids",
]

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Located:
    """A projection, and where it is. What the registry says of it is asked for when it is first needed."""

    called: str
    """What the user calls it."""
    projection: CqrsProjection[Any]
    kafka: KafkaSettings
    registry: Registry
    state_dir: Path
    """The state of all generations."""
    kind: Kind = FILES
    """What models are kept in that are not in files."""
    given_group: str | None = None
    """The group that was named; None for the registry's, or the default."""
    topic: str | None = None
    """As configured; the state knows it too."""

    @property
    def name(self) -> str:
        """The projection's name."""
        return self.projection.name

    @property
    def code(self) -> CqrsProjection[Any] | None:
        """The projection, where its code is on this machine."""
        return None if isinstance(self.projection, Absent) else self.projection

    @cached_property
    def record(self) -> Record | None:
        """What the registry says of it; None where it is not there yet.

        Raises:
            BrokerError: The registry cannot be read.
        """
        return self.registry.get(self.name)

    @cached_property
    def place(self) -> Place:
        """Where the active generation is, or is to be."""
        return active_place(self.record, self.projection, self.state_dir, self.given_group, self.kind)

    @property
    def store(self) -> StateStore:
        """The active generation's state."""
        return self.place.store

    @property
    def group(self) -> str:
        """The active generation's group."""
        return self.place.group


@dataclass(frozen=True, kw_only=True)
class Found(Located):
    """A projection and its models, to be read.

    Where no broker answers, the generation that this machine knew last is taken for active, and a warning says so.
    """

    @cached_property
    def record(self) -> Record | None:
        """What the registry says of it, or said when this machine last asked."""
        try:
            return self.registry.get(self.name)
        except BrokerUnavailable as error:
            record = self.registry.last_known(self.name)
            read = "the first generation" if record is None else f"generation {record.active}, the last one known"
            log.warning("registry.unreachable", projection=self.name, read=read, why=str(error))
            return record


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


class Absent(CqrsProjection[dict[str, Any]]):
    """A projection whose code is not on this machine: what the registry and its groups tell of it can be told, and what
    is a wish alone can be wished.
    """

    @classmethod
    def of(cls, record: Record) -> Absent:
        """Give what stands in for a projection of the registry."""
        kind = type(cls.__name__, (cls,), {"name": record.projection, "version": record.live.version})
        found: Absent = kind()
        return found

    def extract_model_id(self, event: Event) -> str | None:
        """Never called."""
        raise NotImplementedError(f"the code of {self.name!r} is not on this machine")

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        """Never called."""
        raise NotImplementedError(f"the code of {self.name!r} is not on this machine")


def find_or_absent(projection: str, file: ConfigFile, registry: Registry) -> CqrsProjection[Any]:
    """Find a projection by its code, or where that is not on this machine, by its name in the registry.

    Raises:
        ResolveError: There is none; near names are told, those of the registry too.
        BrokerError: The registry cannot be read.
    """
    try:
        return find_projection(projection, file)
    except ResolveError as error:
        records = registry.all()
        if projection in records:
            return Absent.of(records[projection])
        near = difflib.get_close_matches(projection, records, 3, 0.5)
        if near:
            raise ResolveError(f"{error} The registry knows {', '.join(near)}.") from error
        raise


def find_coded(projection: str, file: ConfigFile, registry: Registry) -> CqrsProjection[Any]:
    """Find a projection by its code.

    Raises:
        ResolveError: It is not on this machine; whether the registry knows the name is told.
    """
    try:
        return find_projection(projection, file)
    except ResolveError as error:
        with contextlib.suppress(BrokerError):
            if projection in registry.all():
                raise ResolveError(
                    f"The registry knows {projection!r}, and its code is not on this machine. Do this where it is, as "
                    "module:Class or named in refold.toml; or ask a worker that has it: POST "
                    f"/v1/projections/{projection}/rebuild, or its page."
                ) from error
        raise


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


@dataclass(frozen=True, kw_only=True)
class Wired(Located):
    """One projection, connected."""

    events: KafkaEventStore
    settings: FoldSettings
    allow_incomplete: bool

    @property
    def base_group(self) -> str:
        """The group from which those of all generations are named."""
        return self.group if self.record is None else self.record.group

    @property
    def checkpoints(self) -> KafkaCheckpointStore:
        """The active generation's group."""
        return KafkaCheckpointStore(self.group, self.events)

    def site(self) -> Site:
        """Give what all its generations have in common."""
        return Site(
            projection=self.projection,
            events=self.events,
            registry=self.registry,
            state_dir=self.state_dir,
            kind=self.kind,
            settings=self.settings,
            group=self.given_group,
            allow_incomplete=self.allow_incomplete,
        )

    def generations(self) -> Generations:
        """Give what may be done with them."""
        return Generations(
            self.projection,
            self.events,
            registry=self.registry,
            state_dir=self.state_dir,
            kind=self.kind,
            group=self.given_group,
            settings=self.settings,
            allow_incomplete=self.allow_incomplete,
        )

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
            generation=self.place.generation,
            **options,
        )

    def note(self) -> None:
        """Note in the registry what the active generation's state says of itself.

        Raises:
            BrokerError: It cannot be written.
        """
        note(self.registry, self.record, self.place, self.name, self.base_group)
        self._show()

    def try_note(self) -> None:
        """The same, where a rebuild has ended, of whose end this must not be in the way."""
        try_note(self.registry, self.record, self.place, self.name, self.base_group)
        self._show()

    def _show(self) -> None:
        try:
            self.site().show()
        except CqrsError as error:
            log.warning("view.not_replaced", projection=self.name, why=str(error))
