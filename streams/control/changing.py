"""What the ways have in common in which a projection's record may change; see `transitions` and `wishes`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from streams.control.record import Generation, Phase, Rebuild, Record, Step
from streams.errors import NotReady, RebuildRunning
from streams.types import RebuildProgress

__all__ = [
    "at_phase",
    "check_none_runs",
    "green_of",
    "moved",
    "named",
    "running",
    "stepped",
    "unfolded",
    "with_generation",
    "with_past",
]

_PAST_KEPT = 50
_STEPS_KEPT = 100


def named(facts: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    """Give what a new generation is of, with the name of its own topic, where it is to have one."""
    return facts if facts.get("source") is None else {**facts, "topic": f"{group}.{facts['topic']}"}


def with_generation(record: Record, generation: Generation) -> Record:
    """Give the record with a generation as it is now."""
    return replace(
        record, generations=tuple(generation if one.id == generation.id else one for one in record.generations)
    )


def moved(record: Record, green: Generation, phase: Phase) -> Record:
    """Give the record with the rebuild's generation in another phase."""
    rebuild = record.rebuild
    assert rebuild is not None, "it is being made"
    return replace(with_generation(record, at_phase(green, phase)), rebuild=stepped(rebuild, phase))


def at_phase(generation: Generation, phase: Phase, why: str | None = None) -> Generation:
    """Give a generation in another phase."""
    if generation.phase == phase:
        return generation
    return replace(generation, phase=phase, changed_at=datetime.now(UTC), why=generation.why if why is None else why)


def stepped(rebuild: Rebuild, what: str) -> Rebuild:
    """Note what a rebuild has come to."""
    if rebuild.steps and rebuild.steps[-1].what == what:
        return rebuild
    return replace(rebuild, steps=(*rebuild.steps, Step(what=what, at=datetime.now(UTC)))[-_STEPS_KEPT:])


def with_past(record: Record, replaced: Generation) -> Record:
    """Note that a generation's code was replaced."""
    past = [one for one in record.past if one != replaced.fingerprint]
    return replace(record, past=(*past, replaced.fingerprint)[-_PAST_KEPT:])


def green_of(record: Record, rebuild_id: str) -> Generation | None:
    """Give the generation that a rebuild makes; None where that rebuild does not run any more."""
    found = record.running
    return record.find(found.generation) if found is not None and found.id == rebuild_id else None


def running(record: Record, what: str) -> Rebuild:
    """Give the rebuild that is under way.

    Args:
        record: The record.
        what: What it is to be, for the error.

    Raises:
        NotReady: None is.
    """
    if record.running is None:
        raise NotReady(
            f"No rebuild of {record.projection!r} is under way that could be {what}: {record.active} is active. "
            "Nothing was changed.",
            projection=record.projection,
        )
    return record.running


def check_none_runs(record: Record) -> None:
    """Make sure that no rebuild runs.

    Raises:
        RebuildRunning: One does; it is named.
    """
    under_way = record.running
    if under_way is None:
        return
    green = record.find(under_way.generation)
    at = "paused" if under_way.is_paused else "gone" if green is None else green.phase
    raise RebuildRunning(
        f"{record.projection!r} is being rebuilt already: generation {under_way.generation} is "
        f"{'rebuilt in place' if under_way.is_in_place else at} since "
        f"{under_way.began_at:%Y-%m-%d %H:%M:%S} UTC, begun by {under_way.by}. `refold resume {record.projection}` "
        f"goes on with it, and `refold cancel {record.projection}` gives it up. Nothing was changed.",
        projection=record.projection,
    )


def unfolded(record: Record, progress: RebuildProgress) -> Record:
    """Note how many events of a rebuild are not in their models."""
    assert record.rebuild is not None
    return replace(
        record,
        rebuild=replace(record.rebuild, dead_letters=progress.dead_letters, skipped=progress.events_skipped),
    )
