"""How a projection's record changes where its active generation is itself folded again; see `transitions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from msgspec.structs import replace

from streams.control.changing import check_none_runs, green_of, stepped, unfolded, with_generation, with_past
from streams.control.record import Rebuild, Record, Reset, Step
from streams.errors import NotReady
from streams.types import RebuildProgress

__all__ = ["begun_in_place", "completed", "halted", "set_back"]


def begun_in_place(
    record: Record,
    rebuild_id: str,
    *,
    partitions: Iterable[int] | None = None,
    code: tuple[int, str, str] | None = None,
    by: str,
    why: str,
) -> Record:
    """Begin a rebuild of the active generation itself: from now on nobody folds it, until its group is set back.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        partitions: Which are folded again; None for all.
        code: The code by which (version, fingerprint, codec); None for what it is of. All are folded again by other
            code.
        by: Who asked.
        why: Why.

    Raises:
        RebuildRunning: One runs already; it is named.
        NotReady: It has a topic of its own, which other code may fill otherwise.
    """
    under_way = record.running
    if under_way is not None and under_way.id == rebuild_id:
        return record
    check_none_runs(record)
    live, now = record.live, datetime.now(UTC)
    own = (live.version, live.fingerprint, live.codec)
    if live.source is not None and code not in (None, own):
        raise NotReady(
            f"{live.id} folds a topic of its own, keyed by model, and other code may key events otherwise: it is "
            f"rebuilt beside (`refold rebuild {record.projection}`), with a topic of its own. Nothing was changed.",
            projection=record.projection,
        )
    every = range(live.partitions)
    chosen = every if partitions is None or (code is not None and code != own) else sorted(partitions)
    version, fingerprint, codec = code or own
    reset = Reset(epoch=live.epoch + 1, partitions=tuple(chosen), version=version, fingerprint=fingerprint, codec=codec)
    rebuild = Rebuild(
        id=rebuild_id,
        generation=live.id,
        replaces=live.id,
        policy="none",
        keep_s=0.0,
        began_at=now,
        by=by,
        why=why,
        steps=(Step(what="setting-back", at=now),),
    )
    return replace(with_generation(record, replace(live, reset=reset, halted="")), rebuild=rebuild, waiting=None)


def set_back(record: Record, rebuild_id: str, targets: Mapping[int, int]) -> Record:
    """Note that the group of a generation that is rebuilt in place has been set back: it is folded again from now on.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        targets: By partition, the end as pinned by then.
    """
    one = green_of(record, rebuild_id)
    if one is None or one.reset is None:
        return record
    reset = one.reset
    changed = replace(
        one,
        version=reset.version,
        fingerprint=reset.fingerprint,
        codec=reset.codec,
        epoch=reset.epoch,
        resets=one.resets | dict.fromkeys(reset.partitions, reset.epoch),
        targets=dict(targets),
        reset=None,
    )
    record = with_generation(record if changed.fingerprint == one.fingerprint else with_past(record, one), changed)
    assert record.rebuild is not None, "it is one that runs"
    return replace(record, rebuild=stepped(record.rebuild, "replaying"))


def completed(record: Record, rebuild_id: str, progress: RebuildProgress) -> Record:
    """Note that a rebuild in place has come to its pinned ends, with these figures."""
    one, rebuild = green_of(record, rebuild_id), record.rebuild
    if one is None or rebuild is None or not rebuild.is_in_place or one.reset is not None:
        return record
    record = replace(record, rebuild=replace(rebuild, outcome="completed", ended_at=datetime.now(UTC), why=""))
    return unfolded(record, progress)


def halted(record: Record, id: str, why: str) -> Record:  # noqa: A002
    """Have a generation folded no further until a person has seen to it; "" has it folded again."""
    one = record.find(id)
    return record if one is None or one.halted == why else with_generation(record, replace(one, halted=why))
