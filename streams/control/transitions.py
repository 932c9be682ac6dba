"""How a projection's record may change: each function gives the record after one step, or says why it cannot be taken.

They are pure, and each is safe to be taken twice: a step that was taken already changes nothing. So any process may go
on where another one was killed (`Registry.update`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from streams.control.record import Done, Generation, Gone, Phase, Policy, Rebuild, Record, Step, Summary, Waiting
from streams.data.checkpoint import generation_id
from streams.errors import GenerationNotFound, NotReady, RebuildRunning

__all__ = [
    "check_none_runs",
    "green_of",
    "with_generation",
    "with_past",
    "adopted",
    "approved",
    "begun",
    "cancelled",
    "caught_up",
    "compared",
    "founded",
    "noted",
    "paused",
    "pinned",
    "remembered",
    "retired",
    "retiring",
    "running",
    "rolled_back",
    "stepped",
    "switched",
    "synced",
    "tended",
    "verified_again",
    "waits",
]

_GONE_KEPT = 20
_DONE_KEPT = 100
_PAST_KEPT = 50
_STEPS_KEPT = 100


def founded(record: Record | None, projection: str, group: str, directory: str, facts: Mapping[str, Any]) -> Record:
    """Note the first generation of a projection, by what its build says (`facts_of`)."""
    if record is not None:
        return record
    name = generation_id(projection, facts["version"])
    now = datetime.now(UTC)
    first = Generation(
        id=name,
        number=1,
        group=group,
        directory=directory,
        phase="active",
        why="the first one",
        made_at=now,
        changed_at=now,
        **facts,
    )
    return Record(projection=projection, group=group, generations=(first,), active=name, wanted=name, newest=1)


def synced(record: Record, id: str, facts: Mapping[str, Any]) -> Record:  # noqa: A002
    """Note what a generation's build says: the store is the truth, also where it was rebuilt in place or adopted."""
    found = record.find(id)
    if found is None:
        return record
    synced_ = replace(found, **facts)
    if found.state and (found.state, found.epoch) != (synced_.state, synced_.epoch):
        # Which of its partitions were begun anew is not known: other machines are to begin all of them.
        synced_ = replace(synced_, resets=dict.fromkeys(range(synced_.partitions), synced_.epoch))
    waiting = record.waiting
    is_settled = waiting is not None and waiting.fingerprint == synced_.fingerprint and id == record.active
    return replace(with_generation(record, synced_), waiting=None if is_settled else waiting)


def tended(record: Record, fleet: str) -> Record:
    """Note that the workers of a group see to the projection."""
    return record if record.fleet == fleet else replace(record, fleet=fleet)


def waits(record: Record, version: int, fingerprint: str, by: str) -> Record:
    """Note that code was refused which is not the active generation's."""
    known = record.waiting
    if known is not None and (known.version, known.fingerprint) == (version, fingerprint):
        return record
    return replace(record, waiting=Waiting(version=version, fingerprint=fingerprint, since=datetime.now(UTC), by=by))


def adopted(record: Record, version: int, fingerprint: str, codec: str) -> Record:
    """State that the active generation's models are those of other code too: the change does not alter the fold.

    From now on that code folds it, and what folded it before lets go.
    """
    live = record.live
    if (live.version, live.fingerprint, live.codec) == (version, fingerprint, codec):
        return record
    changed = replace(live, version=version, fingerprint=fingerprint, codec=codec)
    return replace(with_past(with_generation(record, changed), live), waiting=None)


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
        **facts,
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


def pinned(record: Record, rebuild_id: str, facts: Mapping[str, Any], targets: Mapping[int, int]) -> Record:
    """Note that the new generation has been made, and where its replay ends."""
    green = green_of(record, rebuild_id)
    if green is None or green.phase != "new":
        return record
    return _moved(record, replace(green, targets=dict(targets), **facts), "replaying")


def caught_up(record: Record, rebuild_id: str) -> Record:
    """Note that the new generation has folded all that it was to, and keeps up."""
    green = green_of(record, rebuild_id)
    if green is None or green.phase != "replaying":
        return record
    return _moved(record, green, "verifying")


def compared(record: Record, rebuild_id: str, report: Summary | None, refused: str = "") -> Record:
    """Note what the comparison found.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        report: In numbers; None where nothing was compared.
        refused: Why a person is to look at it before the switch; "" where nobody need.
    """
    green = green_of(record, rebuild_id)
    if green is None or green.phase not in ("verifying", "waiting"):
        return record
    record = _moved(record, green, "waiting" if refused else "ready")
    assert record.rebuild is not None
    return replace(record, rebuild=replace(record.rebuild, report=report, why=refused))


def noted(record: Record, rebuild_id: str, why: str) -> Record:
    """Note what the rebuild waits for, or what has stopped it."""
    found = record.running
    if found is None or found.id != rebuild_id or found.why == why:
        return record
    return replace(record, rebuild=replace(found, why=why))


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
    return _moved(record, green, "verifying")


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
    return _moved(record, green, "ready")


def switched(record: Record, rebuild_id: str) -> Record:
    """Make the new generation the active one, and keep the other for a while."""
    green = green_of(record, rebuild_id)
    if green is None or green.phase != "ready":
        return record
    rebuild, now = record.rebuild, datetime.now(UTC)
    assert rebuild is not None
    blue = _at(record.live, "kept", f"replaced by {green.id}")
    blue = replace(blue, kept_until=now + timedelta(seconds=rebuild.keep_s))
    record = with_generation(with_generation(record, blue), _at(green, "active"))
    ended = replace(rebuild, outcome="completed", ended_at=now, why="")
    return replace(with_past(record, blue), active=green.id, wanted=green.id, rebuild=ended)


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
    before = replace(_at(record.live, "kept", f"rolled back to {found.id}"), kept_until=until)
    after = replace(_at(found, "active", f"rolled back from {before.id}"), kept_until=None)
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
    return record if green is None else with_generation(record, _at(green, "retiring", "its rebuild was cancelled"))


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
                record = with_generation(record, _at(one, "retiring", why))
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
    return with_generation(record, _at(found, "retiring", why))


def retired(record: Record, id: str) -> Record:  # noqa: A002
    """Note that nothing of a generation is left."""
    found = record.find(id)
    if found is None or found.phase != "retiring":
        return record
    gone = Gone(
        id=id,
        version=found.version,
        directory=found.directory,
        group=found.group,
        why=found.why,
        at=datetime.now(UTC),
    )
    rest = tuple(one for one in record.generations if one.id != id)
    return replace(record, generations=rest, gone=(*record.gone, gone)[-_GONE_KEPT:])


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


def remembered(record: Record, done: Done) -> Record:
    """Note that a command has been handled."""
    if any(one.id == done.id for one in record.done):
        return record
    return replace(record, done=(*record.done, done)[-_DONE_KEPT:])


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


def stepped(rebuild: Rebuild, what: str) -> Rebuild:
    """Note what a rebuild has come to."""
    if rebuild.steps and rebuild.steps[-1].what == what:
        return rebuild
    return replace(rebuild, steps=(*rebuild.steps, Step(what=what, at=datetime.now(UTC)))[-_STEPS_KEPT:])


def with_past(record: Record, replaced: Generation) -> Record:
    """Note that a generation's code was replaced."""
    past = [one for one in record.past if one != replaced.fingerprint]
    return replace(record, past=(*past, replaced.fingerprint)[-_PAST_KEPT:])


def _moved(record: Record, green: Generation, phase: Phase) -> Record:
    """Give the record with the rebuild's generation in another phase."""
    rebuild = record.rebuild
    assert rebuild is not None, "it is being made"
    return replace(with_generation(record, _at(green, phase)), rebuild=stepped(rebuild, phase))


def _at(generation: Generation, phase: Phase, why: str | None = None) -> Generation:
    if generation.phase == phase:
        return generation
    return replace(generation, phase=phase, changed_at=datetime.now(UTC), why=generation.why if why is None else why)


def with_generation(record: Record, generation: Generation) -> Record:
    """Give the record with a generation as it is now."""
    return replace(
        record, generations=tuple(generation if one.id == generation.id else one for one in record.generations)
    )
