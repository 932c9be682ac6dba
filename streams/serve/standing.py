"""How a worker stands: whether it is ready, and the whole truth that it knows, as one document."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from streams.control.record import Generation
from streams.control.status import GroupView, PartitionView
from streams.data.partition import PartitionStatus
from streams.serve.owners import LEFT_ALONE_S
from streams.serve.tending import Tended, Tending
from streams.types import RebuildProgress

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["SCHEMA", "readiness", "standing"]

SCHEMA = 1


def readiness(worker: Worker) -> list[str]:
    """Say what keeps this worker from serving its share of what is active; nothing where it does.

    Its share are the partitions of active generations that the groups have given to its agents. A partition is served
    once it has been close to its topic's end since it came here. One that has halted is served as it is, and so is one
    whose topic nobody answers for just now. Code that is new is ready once it is active, or nobody folds what is.
    """
    if worker.is_draining:
        return ["it is draining"]
    why = []
    for name, tending in worker.tendings.items():
        record = tending.record
        if record is None:
            why.append(f"{name}: {tending.error or 'the registry has not been read yet'}")
            continue
        if not tending.site.can_fold(record.live):
            # Others serve it, and what nobody folds is served as stale. But where workers are replaced one after the
            # other, the next one is not to go while this one's code has yet to become active.
            is_new = tending.site.code[1] not in record.past
            if is_new and worker.owners.alone_s(record.active) < LEFT_ALONE_S:
                why.append(f"{name}: {tending.waits_for}, and others fold it; this worker's code is not active yet")
            continue
        if record.live.halted:
            continue
        tended = tending.tended.get(record.active)
        if tended is None or (tended.job is None and not tended.error):
            why.append(f"{record.active}: it is being taken on")
        elif tended.error:
            why.append(f"{record.active}: {tended.error}")
        else:
            why += [f"{record.active}: {one}" for one in _unserved(worker, tended)]
    return why


def _unserved(worker: Worker, tended: Tended) -> list[str]:
    held = tended.status.partitions
    if not held and worker.observing.why_not and worker.served.was_all(tended.generation):
        return []  # no broker answers, and agents had to let go: what they had is served as it is
    if not held:
        seen = worker.observing.seen.get(tended.generation.id)
        owners = [] if seen is None else [one.owner for one in seen.view.partitions]
        # What the group has just given to an agent here, the agent says a moment later.
        settled = seen is not None and all(one is not None and one.address != worker.address for one in owners)
        return [] if settled else ["its group has given it no partition yet"]
    return [
        f"partition {number} is {why}"
        for number, one in sorted(held.items())
        if (why := worker.served.why_not(tended.generation, number, one))
    ]


def standing(worker: Worker) -> dict[str, Any]:
    """Give all that is known here, as a document of `SCHEMA`."""
    return {
        "schema": SCHEMA,
        "worker": {
            "name": worker.name,
            "address": worker.address,
            "version": version("refold"),
            "process": os.getpid(),
            "began_at": worker.began,
            "namespace": worker.settings.namespace,
            "is_leader": worker.leadership.is_leading,
            "not_a_member": worker.leadership.why_not,
            "is_draining": worker.is_draining,
            "ready": not readiness(worker),
            "faults": worker.faults(),
            "kafka": worker.observing.why_not,
        },
        "projections": {name: _projection(worker, tending) for name, tending in sorted(worker.tendings.items())},
        "at": datetime.now(UTC),
    }


def _projection(worker: Worker, tending: Tending) -> dict[str, Any]:
    record = tending.record
    document: dict[str, Any] = {"error": tending.error, "waits_for": tending.waits_for}
    if record is None:
        return document | {"active": None, "generations": {}}
    progress = worker.leadings[tending.site.name].progress
    if progress is None and record.running is not None:
        progress = worker.observing.progress(record.running.generation)
    return document | {
        "active": record.active,
        "wanted": record.wanted,
        "revision": record.revision,
        "rebuild": None if record.rebuild is None else msgspec.to_builtins(record.rebuild),
        "progress": None if progress is None else progress_json(progress),
        "waiting": None if record.waiting is None else msgspec.to_builtins(record.waiting),
        "generations": {one.id: _generation(worker, tending, one) for one in record.generations},
    }


def _generation(worker: Worker, tending: Tending, one: Generation) -> dict[str, Any]:
    tended = tending.tended.get(one.id)
    seen = worker.observing.seen.get(one.id)
    return {
        "phase": one.phase,
        "since": one.changed_at,
        "version": one.version,
        "fingerprint": one.fingerprint,
        "epoch": one.epoch,
        "group": one.group,
        "topic": one.topic,
        "kept_in": one.kept_in,
        "filling": None if seen is None or seen.view.filling is None else _filling(seen.view.filling, tended),
        "why": one.why,
        "halted": one.halted,
        "is_set_back": one.reset is not None,
        "code_here": tending.site.can_fold(one),
        "folded_here": tended is not None and tended.job is not None,
        "error": "" if tended is None else tended.error,
        "failures": 0 if tended is None else tended.failures,
        "agents": [] if tended is None else sorted(tended.pids),
        "lag": None if seen is None else seen.view.lag,
        "lag_seconds": None if seen is None else seen.view.lag_seconds(),
        "partitions_not_folded": worker.observing.added.get(one.id),
        "seen_seconds_ago": None if seen is None else round(seen.age_s, 3),
        "partitions": [] if seen is None else [_partition(view, tended) for view in seen.view.partitions],
        "standing_by": {} if tended is None else {number: _copy(one) for number, one in _copies(tended)},
    }


def _filling(view: GroupView, tended: Tended | None) -> dict[str, Any]:
    """Give how far the generation's own topic is filled from the event topic."""
    here = {} if tended is None else tended.filled.partitions
    return {
        "topic": view.topic,
        "group": view.group,
        "lag": view.lag,
        "partitions": [
            {
                "partition": one.partition,
                "end": one.end,
                "position": one.position,
                "lag": one.lag,
                "owner": None if one.owner is None else one.owner.client_id,
                "here": one.partition in here,
                "why": here[one.partition].why if one.partition in here else one.why,
            }
            for one in view.partitions
        ],
    }


def _copies(tended: Tended) -> list[tuple[str, PartitionStatus]]:
    return [(str(number), one) for number, one in sorted(tended.standing_by.partitions.items())]


def _copy(one: PartitionStatus) -> dict[str, Any]:
    return {"position": one.committed, "phase": one.phase, "why": one.why}


def _partition(view: PartitionView, tended: Tended | None) -> dict[str, Any]:
    own: PartitionStatus | None = None if tended is None else tended.status.partitions.get(view.partition)
    owner = view.owner
    return {
        "partition": view.partition,
        "low": view.low,
        "end": view.end,
        "position": view.position,
        "lag": view.lag,
        "models": view.models,
        "events": view.events,
        "declined": view.declined,
        "dead_letters": view.dead_letters,
        "skipped": view.skipped,
        "owner": None if owner is None else owner.client_id,
        "address": None if owner is None else owner.address,
        "here": own is not None,
        "phase": view.phase,
        "why": view.why,
        "snapshot": view.snapshot,
        "snapshot_at": None if view.snapshot_ms is None else datetime.fromtimestamp(view.snapshot_ms / 1000, UTC),
    }


def progress_json(progress: RebuildProgress) -> dict[str, Any]:
    """Give a replay's figures."""
    return {
        "percent": progress.completion_percentage(),
        "events": progress.events_processed,
        "events_per_second": progress.events_per_second,
        "remaining_offsets": progress.remaining_offsets,
        "dead_letters": progress.dead_letters,
        "skipped": progress.events_skipped,
        "started_at": progress.started_at,
        "estimated_completion": progress.estimated_completion,
        "waiting_for": progress.waiting_for,
    }
