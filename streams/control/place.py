"""Where a generation is: its state on this machine, and its consumer group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from projections.contract import CqrsProjection
from streams.control.record import Generation, Record, Source, facts_of
from streams.control.registry import Registry
from streams.control.transitions import founded, synced
from streams.data.checkpoint import generation_id
from streams.data.files import FILES
from streams.data.generation import StateStore
from streams.data.stores import Kind
from streams.errors import BrokerError, ConfigError
from streams.log import get_logger
from streams.types import TopicInfo

__all__ = ["Place", "active_place", "filling_group", "first_place", "note", "place_of", "topic_of", "try_note"]

log = get_logger(__name__)

_NOTE_S = 10.0
"""How long it is tried: what is noted is the mirror of what is there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one generation is."""

    generation: str
    """Its id."""
    store: StateStore
    group: str
    replay_ends: Mapping[int, int] = field(default_factory=dict)
    """By partition, the end that was pinned when its replay began."""
    own_topic: TopicInfo | None = None
    """The topic with the same events keyed by model, where it folds that."""
    source: Source | None = None
    """Where that topic's events come from."""


def place_of(generation: Generation, state_dir: Path, kind: Kind = FILES) -> Place:
    """Give where a generation of the registry is, on this machine or in a database.

    Args:
        generation: The generation.
        state_dir: The state directory of all generations.
        kind: What those are kept in that are not files.

    Raises:
        ConfigError: It is kept in something that was not named.
    """
    if generation.kept_in not in (FILES.name, kind.name):
        raise ConfigError(
            f"The models of {generation.id} are kept in {generation.kept_in}, and no database was named: set "
            f"REFOLD_STORE={generation.kept_in} and REFOLD_DSN (store and dsn in refold.toml)."
        )
    return Place(
        generation=generation.id,
        store=StateStore(
            state_dir / generation.directory,
            FILES if generation.kept_in == FILES.name else kind,
            generation.group,
        ),
        group=generation.group,
        replay_ends=generation.targets,
        own_topic=None if generation.source is None else topic_of(generation),
        source=generation.source,
    )


def topic_of(generation: Generation) -> TopicInfo:
    """Describe what a generation folds, as the registry has it."""
    return TopicInfo(name=generation.topic, id=generation.topic_id, partitions=generation.partitions)


def filling_group(generation: Generation) -> tuple[TopicInfo, str] | None:
    """Give what is read to fill a generation's own topic, and by which group; None where it has none."""
    source = generation.source
    if source is None:
        return None
    return TopicInfo(name=source.topic, id=source.topic_id, partitions=source.partitions), generation.topic


def first_place(
    projection: CqrsProjection[object], state_dir: Path, group: str | None = None, kind: Kind = FILES
) -> Place:
    """Give where a projection's first generation is to be.

    Args:
        projection: The projection.
        state_dir: The state directory of all generations.
        group: The group; by default refold.PROJECTION.vVERSION.
        kind: What its models are to be kept in.
    """
    name = generation_id(projection.name, projection.version)
    group = group or f"refold.{name}"
    return Place(generation=name, store=StateStore(state_dir / name, kind, group), group=group)


def active_place(
    record: Record | None,
    projection: CqrsProjection[object],
    state_dir: Path,
    group: str | None = None,
    kind: Kind = FILES,
) -> Place:
    """Give where the generation is that is active, or is to be the first one.

    Raises:
        ConfigError: Another group was named than the registry's.
    """
    if record is None:
        return first_place(projection, state_dir, group, kind)
    if group is not None and group != record.group:
        raise ConfigError(
            f"The registry knows {record.projection!r} by group {record.group!r}, and --group (REFOLD_GROUP, group in "
            f"refold.toml) says {group!r}. Say the same, or nothing; for a second, separate fold of the same "
            "projection name another registry (--registry)."
        )
    return place_of(record.live, state_dir, kind)


def note(registry: Registry, record: Record | None, place: Place, projection: str, group: str) -> Record | None:
    """Note in the registry what a generation's state says of itself; where it has no record yet, found it.

    The store is the truth, and this the mirror of it. A crash before it leaves that to whoever comes next.

    Args:
        registry: The registry.
        record: What it says, as read before.
        place: Where the generation is.
        projection: The projection's name.
        group: The group from which those of further generations are named.

    Returns:
        The record; None where there is neither one nor state.

    Raises:
        BrokerError: The registry cannot be written.
    """
    build = place.store.current()
    if build is None:
        return record
    facts = facts_of(build)

    def change(found: Record | None) -> Record:
        known = founded(found, projection, group, place.store.directory.name, facts)
        return synced(known, place.generation, facts)

    if record is not None and change(record) == record:
        return record
    return registry.update(projection, change, limit_s=_NOTE_S)


def try_note(registry: Registry, record: Record | None, place: Place, projection: str, group: str) -> None:
    """Do the same where something else has come to its end, which this must not hide."""
    try:
        note(registry, record, place, projection, group)
    except BrokerError as error:
        log.warning("registry.not_written", projection=projection, why=str(error))
