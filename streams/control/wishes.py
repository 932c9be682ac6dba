"""How a projection's record changes by what a person or a program asks for; see `transitions`, which they are like."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from streams.control.changing import (
    at_phase,
    check_none_runs,
    moved,
    named,
    running,
    stepped,
    with_generation,
    with_past,
)
from streams.control.record import Done, Generation, Policy, Rebuild, Record, Step
from streams.data.checkpoint import generation_id
from streams.errors import GenerationNotFound, NotReady

__all__ = [
    "adopted",
    "approved",
    "begun",
    "cancelled",
    "paused",
    "remembered",
    "retiring",
    "rolled_back",
    "verified_again",
]

_DONE_KEPT = 100


def begun(
    record: Record,
    rebuild_id: str,
    facts: Mapping[str, Any],
    *,
    policy: Policy,
    approve: Any,
    keep_s: float,
    by: str,
    why: str,
) -> Record:
    """Begin a rebuild beside the active generation.

    Raises:
        RebuildRunning: One runs already; it is named.
    """
    under_way = record.running
    if under_way is not None and under_way.id == rebuild_id:
        return record
    check_none_runs(record)
    number, now = record.newest + 1, datetime.now(UTC)
    name = f"{generation_id(record.projection, facts['version'])}-{number}"
    green = Generation(
        id=name,
        number=number,
        group=f"{record.group}-{number}",
        directory=name,
        phase="new",
        why=why,
        made_at=now,
        changed_at=now,
        **named(facts, f"{record.group}-{number}"),
    )
    rebuild = Rebuild(
        id=rebuild_id,
        generation=name,
        replaces=record.active,
        policy=policy,
        approve=approve,
        keep_s=keep_s,
        began_at=now,
        by=by,
        steps=(Step(what="new", at=now),),
    )
    return replace(
        record,
        generations=(*record.generations, green),
        wanted=name,
        newest=number,
        rebuild=rebuild,
        waiting=None,
    )


def verified_again(record: Record) -> Record:
    """Have the new generation compared with the active one once more, as both are by now.

    Raises:
        NotReady: There is nothing to compare.
    """
    found = running(record, "compared")
    green = record.find(found.generation)
    if green is not None and green.phase == "verifying":
        return record
    if green is None or green.phase not in ("waiting", "ready"):
        at = "gone" if green is None else "active" if found.is_in_place else green.phase
        raise NotReady(
            f"Generation {found.generation} is {at}: there is nothing to compare yet. Nothing was changed.",
            projection=record.projection,
        )
    return moved(record, green, "verifying")


def approved(record: Record) -> Record:
    """Note that a person has approved what the comparison found.

    Raises:
        NotReady: There is nothing to approve.
    """
    found = record.running
    green = None if found is None else record.find(found.generation)
    if green is not None and green.phase == "ready":
        return record
    last = record.rebuild
    if last is not None and last.outcome == "completed" and last.generation == record.active:
        return record
    if green is None or green.phase != "waiting":
        what = "no rebuild of it is under way" if green is None else f"generation {green.id} is {green.phase}"
        raise NotReady(
            f"{record.projection!r} cannot be switched: {what}. `refold status {record.projection}` tells how far it "
            "is. Nothing was changed.",
            projection=record.projection,
        )
    return moved(record, green, "ready")


def rolled_back(record: Record, to: str | None, keep_s: float) -> Record:
    """Make a generation the active one that was so before, and keep the other for a while.

    Args:
        record: The record.
        to: Which one; None for the one that was active last.
        keep_s: For how long the other one is to be kept.

    Raises:
        GenerationNotFound: There is no such generation, or none that is kept.
    """
    if to is not None and to == record.active:
        return record
    found = record.kept if to is None else record.find(to)
    if found is None or found.phase != "kept":
        kept = ", ".join(one.id for one in record.generations if one.phase == "kept") or "none"
        raise GenerationNotFound(
            f"{record.projection!r} cannot be rolled back{'' if to is None else f' to {to}'}: what is kept is {kept}. "
            f"Active is {record.active}. Nothing was changed.",
            projection=record.projection,
        )
    until = datetime.now(UTC) + timedelta(seconds=keep_s)
    before = replace(at_phase(record.live, "kept", f"rolled back to {found.id}"), kept_until=until)
    after = replace(at_phase(found, "active", f"rolled back from {before.id}"), kept_until=None)
    record = with_generation(with_generation(record, before), after)
    record = with_past(record, before)
    return replace(record, active=after.id, wanted=after.id if record.running is None else record.wanted)


def paused(record: Record, *, is_paused: bool) -> Record:
    """Have the rebuild wait, or go on.

    Raises:
        NotReady: None runs.
    """
    found = running(record, "paused" if is_paused else "resumed")
    if found.is_in_place:
        raise NotReady(
            f"{record.active} is rebuilt in place: it is folded on like any live generation, and is neither paused nor "
            "resumed. Nothing was changed.",
            projection=record.projection,
        )
    green = record.find(found.generation)
    at = "paused" if is_paused or green is None else green.phase
    return replace(record, rebuild=stepped(replace(found, is_paused=is_paused), at))


def cancelled(record: Record, why: str = "cancelled") -> Record:
    """Give the rebuild up: its generation is to be removed, and everything else stays as it is.

    Raises:
        NotReady: None runs.
    """
    if record.running is None and record.rebuild is not None and record.rebuild.outcome == "cancelled":
        return record
    found = running(record, "cancelled")
    green = record.find(found.generation)
    if found.is_in_place:
        if green is None or green.reset is None:
            raise NotReady(
                f"{record.active} is rebuilt in place, and what it was before is no more: let it come to its end. "
                "Nothing was changed.",
                projection=record.projection,
            )
        ended = replace(found, is_cancelled=True, outcome="cancelled", ended_at=datetime.now(UTC), why=why)
        return replace(with_generation(record, replace(green, reset=None)), rebuild=ended)
    ended = replace(found, is_cancelled=True, outcome="cancelled", ended_at=datetime.now(UTC), why=why)
    record = replace(record, rebuild=ended, wanted=record.active)
    return (
        record if green is None else with_generation(record, at_phase(green, "retiring", "its rebuild was cancelled"))
    )


def retiring(record: Record, id: str | None, why: str) -> Record:  # noqa: A002
    """Have a generation removed: from now on nobody folds or reads it.

    Args:
        record: The record.
        id: Which one; None for all that are kept.
        why: Why.

    Raises:
        GenerationNotFound: There is no such generation.
        NotReady: It is active, or its rebuild runs.
    """
    if id is None:
        for one in record.generations:
            if one.phase == "kept":
                record = with_generation(record, at_phase(one, "retiring", why))
        return record
    found = record.find(id)
    if found is None:
        if any(one.id == id for one in record.gone):
            return record
        known = ", ".join(f"{one.id} ({one.phase})" for one in record.generations)
        raise GenerationNotFound(
            f"{record.projection!r} has no generation {id!r}: it has {known}. Nothing was changed.",
            projection=record.projection,
        )
    if found.phase == "retiring":
        return record
    if found.phase != "kept":
        way_out = "Switch first" if found.phase == "active" else f"`refold cancel {record.projection}` gives it up"
        raise NotReady(
            f"Generation {id} is {found.phase}, and only one that is kept can be retired. {way_out}. Nothing was "
            "changed.",
            projection=record.projection,
        )
    return with_generation(record, at_phase(found, "retiring", why))


def adopted(record: Record, version: int, fingerprint: str, codec: str) -> Record:
    """State that the active generation's models are those of other code too: the change does not alter the fold.

    From now on that code folds it, and what folded it before lets go.
    """
    live = record.live
    if (live.version, live.fingerprint, live.codec) == (version, fingerprint, codec):
        return record
    changed = replace(live, version=version, fingerprint=fingerprint, codec=codec)
    return replace(with_past(with_generation(record, changed), live), waiting=None)


def remembered(record: Record, done: Done) -> Record:
    """Note that a command has been handled."""
    if any(one.id == done.id for one in record.done):
        return record
    return replace(record, done=(*record.done, done)[-_DONE_KEPT:])
