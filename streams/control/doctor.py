"""One pass over everything that a projection rests on. Everything here only looks.

Each finding is ok, a warning or a failure, and those that are not ok name the way out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from streams.cluster import Cluster
from streams.control.place import place_of
from streams.control.record import Generation, Record
from streams.control.registry import Registry
from streams.control.status import view_state
from streams.data.snapshots import Snapshots
from streams.data.stamp import Stamp
from streams.errors import CqrsError, at
from streams.types import TopicInfo

__all__ = ["Finding", "Known", "State", "check_cluster", "check_disk", "check_projection", "check_registry"]

State = Literal["ok", "warning", "failure"]

_AHEAD_S = 5.0
"""Clocks that differ by less are said to agree."""
_TIGHT = 1.2
_TOPIC_NEEDS = ("READ", "DESCRIBE", "DESCRIBE_CONFIGS")
_GROUP_NEEDS = ("READ", "DESCRIBE", "DELETE")
_REGISTRY_NEEDS = ("READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, and how it is."""

    what: str
    state: State
    told: str
    """How it is, with the measured value."""
    advice: str = ""
    """The way out; "" where it is ok."""
    error: CqrsError | None = None
    """What a failure was, where an error tells it."""


def ok(what: str, told: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(what=what, state="ok", told=told)


def warning(what: str, told: str, advice: str) -> Finding:
    """Say that something is to be looked at."""
    return Finding(what=what, state="warning", told=told, advice=advice)


def failure(what: str, told: str, advice: str, error: CqrsError | None = None) -> Finding:
    """Say that something does not work."""
    return Finding(what=what, state="failure", told=told, advice=advice, error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A projection, as far as it is known."""

    called: str
    """What the user calls it."""
    projection: CqrsProjection[Any] | None = None
    """Its code, where it can be had here."""
    why_not: str = ""
    """Why it cannot."""
    topic: str | None = None
    """As configured."""
    record: Record | None = None


def _tried(what: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Give findings, the last of which is a failure where the look itself fails; its message names the way out."""
    try:
        yield from look()
    except CqrsError as error:
        yield failure(what, str(error), "", error)


def check_cluster(cluster: Cluster) -> Iterator[Finding]:
    """Look whether brokers answer; where they do not, nothing else can be asked of them."""
    where = cluster.settings.bootstrap_servers

    def look() -> Iterator[Finding]:
        began_s = time.perf_counter()
        found = cluster.describe_cluster()
        took_ms = (time.perf_counter() - began_s) * 1000
        count = f"{found.brokers} broker{'' if found.brokers == 1 else 's'}"
        yield ok("kafka", f"{count} of cluster {found.id} answer at {where}, in {took_ms:.0f} ms")

    yield from _tried("kafka", look)


def check_registry(cluster: Cluster, registry: Registry, topic: str, records: dict[str, Record]) -> Iterator[Finding]:
    """Look at the registry; what is in it is put into `records`."""

    def look() -> Iterator[Finding]:
        counts = cluster.topics()
        if topic not in counts:
            yield warning(
                "registry",
                f"there is no topic {topic!r}",
                "The first `refold run` or worker makes it; if there were some, --registry names another one.",
            )
            return
        policy = cluster.topic_config(topic).get("cleanup.policy", "")
        if policy != "compact" or counts[topic] != 1:
            yield failure(
                "registry",
                f"topic {topic!r} has cleanup.policy={policy} and {counts[topic]} partitions",
                f"It needs compact and one: `kafka-configs.sh --alter --topic {topic} --add-config "
                "cleanup.policy=compact`, or --registry names another one.",
            )
        records.update(registry.all())
        yield ok("registry", f"topic {topic!r} knows {len(records)} projections")
        yield from _allowed("registry", cluster.topic_operations(topic), _REGISTRY_NEEDS, f"topic {topic!r}")

    yield from _tried("registry", look)


def check_projection(cluster: Cluster, known: Known, state_dir: Path) -> Iterator[Finding]:
    """Look at one projection: its code, topic, groups, and what this machine has of it."""
    name = known.called
    yield from _code(known)
    topic = known.topic or (None if known.record is None else known.record.live.topic)
    if topic is None:
        yield warning(f"{name}: topic", "none is named", "Name it: topic in refold.toml, or --topic.")
        return
    yield from _tried(f"{name}: topic", lambda: _topic(cluster, known, topic))
    if known.record is None:
        yield warning(
            f"{name}: registry", "it has no generation yet", f"`refold run {name}` or a worker makes the first one."
        )
        return
    yield from _record(name, known.record)
    for one in known.record.generations:
        if one.state:
            yield from _tried(f"{one.id}: group", lambda one=one: _group(cluster, name, one))  # type: ignore[misc]
        yield from _store(name, one, state_dir)


def _code(known: Known) -> Iterator[Finding]:
    what = f"{known.called}: code"
    if known.projection is None:
        yield warning(what, known.why_not or "it is not on this machine", "Run this where the code is, to compare it.")
        return
    record, code = known.record, (known.projection.version, fingerprint(known.projection))
    if record is None or code == (record.live.version, record.live.fingerprint):
        yield ok(what, f"version {code[0]}" + ("" if record is None else f", as {record.active} was folded by"))
    else:
        yield warning(
            what,
            f"version {code[0]} is other code than {record.active} was folded by",
            f"`refold rebuild {known.called}`, or `refold run {known.called} --adopt` where the fold is the same.",
        )


def _topic(cluster: Cluster, known: Known, topic: str) -> Iterator[Finding]:
    what = f"{known.called}: topic"
    info = cluster.topic(topic)
    config, marks = cluster.topic_config(topic), cluster.watermarks(info)
    live = None if known.record is None else known.record.live
    if live is not None and live.topic == topic and live.topic_id != info.id:
        yield failure(
            what,
            f"{topic} was deleted and made again since {live.id} was folded (id {live.topic_id}, now {info.id})",
            f"`refold rebuild {known.called}` folds the new one.",
        )
    elif live is not None and live.topic == topic and live.partitions < info.partitions:
        yield failure(
            what,
            f"{topic} has {info.partitions} partitions, and {live.id} folds {live.partitions}",
            f"`refold rebuild {known.called}` takes the new ones in; until then their events are not folded.",
        )
    records = sum(one.high - one.low for one in marks.values())
    yield ok(what, f"{topic}, {info.partitions} partitions, up to {records:,} events")
    gone = {number: one.low for number, one in marks.items() if one.low}
    if gone:
        yield warning(
            f"{known.called}: history",
            f"{sum(gone.values()):,} offsets are gone, of partition {', '.join(map(str, sorted(gone)))}",
            "A rebuild from the beginning is refused, or incomplete with --allow-incomplete. Keep snapshots.",
        )
    elif "compact" in config.get("cleanup.policy", ""):
        yield warning(
            f"{known.called}: history",
            f"{topic} is compacted, which keeps only the last event of each stream",
            "A rebuild is refused unless --allow-incomplete says otherwise. Use cleanup.policy=delete for events.",
        )
    elif int(config.get("retention.ms") or -1) >= 0 or int(config.get("retention.bytes") or -1) >= 0:
        days = int(config.get("retention.ms") or -1) / 86_400_000
        kept = f"{days:g} days" if days >= 0 else f"{int(config['retention.bytes']):,} bytes a partition"
        yield warning(
            f"{known.called}: history",
            f"it is complete, and {topic} keeps events for {kept}",
            f"A projection is rebuilt from them: `kafka-configs.sh --alter --topic {topic} --add-config "
            "retention.ms=-1,retention.bytes=-1`, or keep snapshots.",
        )
    else:
        yield ok(f"{known.called}: history", "it is complete, and kept for ever")
    yield from _allowed(f"{known.called}: topic", cluster.topic_operations(topic), _TOPIC_NEEDS, f"topic {topic!r}")


def _record(name: str, record: Record) -> Iterator[Finding]:
    live, what = record.live, f"{name}: registry"
    if live.halted:
        yield failure(what, f"{live.id} is halted: {live.halted}", f"`refold describe {name}` says more.")
    if record.waiting is not None and record.waiting.fingerprint != live.fingerprint:
        yield warning(
            what,
            f"code of version {record.waiting.version} waits, of {record.waiting.by}",
            f"`refold rebuild {name}`, or `refold run {name} --adopt`.",
        )
    running = record.running
    if running is None:
        yield ok(what, f"{record.active} is active, of {len(record.generations)} generations")
    else:
        green = record.find(running.generation)
        phase = "paused" if running.is_paused else "gone" if green is None else green.phase
        waits = phase in ("paused", "waiting")
        yield (
            warning(
                what,
                f"{running.generation} is {phase}: {running.why or 'it waits for a person'}",
                f"`refold verify {name}`, `refold switch {name}`; or `refold resume {name}`, `refold cancel {name}`.",
            )
            if waits
            else ok(what, f"{running.generation} is made beside {record.active}: {phase}")
        )


def _group(cluster: Cluster, name: str, one: Generation) -> Iterator[Finding]:
    what = f"{one.id}: group"
    topic = TopicInfo(name=one.topic, id=one.topic_id, partitions=one.partitions)
    described, marks = cluster.describe(one.group), cluster.watermarks(topic)
    committed = cluster.committed(one.group, topic)
    stamps = {number: Stamp.parse(found.metadata) for number, found in committed.items()}
    foreign = sorted(number for number, stamp in stamps.items() if stamp is None)
    if foreign:
        where = ", ".join(at(one.topic, number, committed[number].position) for number in foreign)
        yield failure(
            f"{one.id}: offsets",
            f"somebody's tool set {where}",
            f"`refold reset-offsets {name} --to-earliest` asks for them to be folded again; or set them back.",
        )
    ahead_s = max((stamp.time_ms / 1000 - time.time() for stamp in stamps.values() if stamp is not None), default=0.0)
    if ahead_s > _AHEAD_S:
        yield warning(
            f"{one.id}: clock",
            f"its last commit was {ahead_s:.0f} s in the future, by this machine's clock",
            "Synchronise the clocks (NTP): times left, ages and claims are told by them.",
        )
    halted = {number: stamp.halted for number, stamp in stamps.items() if stamp is not None and stamp.halted}
    for number, why in sorted(halted.items()):
        yield failure(
            f"{one.id}: {at(one.topic, number)}", f"halted: {why}", "Correct the event's reading or the code."
        )
    lag = sum(max(0, mark.high - (committed[n].position if n in committed else mark.low)) for n, mark in marks.items())
    told = f"{described.state}, {len(described.members)} members, lag {lag:,} records"
    if one.is_folded and not described.members:
        yield warning(what, told, f"Nobody folds it: `refold run {name}` or a worker does.")
    else:
        yield ok(what, told)
    yield from _allowed(what, cluster.group_operations(one.group), _GROUP_NEEDS, f"group {one.group!r}")


def _store(name: str, one: Generation, state_dir: Path) -> Iterator[Finding]:
    what, place = f"{one.id}: state", place_of(one, state_dir)
    directory = place.store.directory
    try:
        state = view_state(place.store)
    except CqrsError as error:
        yield failure(
            what,
            str(error),
            f"`refold rebuild {name}`; a worker whose copy is damaged folds it again by itself.",
            error,
        )
        return
    if state is None:
        yield ok(what, f"none on this machine ({directory})")
        return
    if one.state and state.build.manifest.directory != one.state:
        yield warning(
            what,
            f"{directory} holds another state (id {state.build.manifest.directory}) than the registry's ({one.state})",
            "It is of another fold of the same name: name another --state-dir, or remove it.",
        )
    if state.has_died:
        yield failure(
            what, f"its rebuild ended without a word, in {directory}", f"`refold rebuild {name} --from checkpoint`."
        )
    else:
        yield ok(what, f"{state.models:,} models, {state.size_bytes:,} bytes in {directory}")
    snapshots = Snapshots(directory).all()
    if snapshots:
        age_h = (time.time() - snapshots[-1].taken_at.timestamp()) / 3600
        yield ok(f"{one.id}: snapshots", f"{len(snapshots)}, the newest {age_h:.1f} hours old")


def check_disk(state_dir: Path, records: Mapping[str, Record]) -> Iterator[Finding]:
    """Look whether there is room for the models that a rebuild makes beside those that there are."""
    if not state_dir.exists():
        yield ok("disk", f"no state on this machine ({state_dir.absolute()})")
        return
    free = shutil.disk_usage(state_dir).free
    largest, whose = 0, ""
    known = set()
    for record in records.values():
        for one in record.generations:
            known.add(one.directory)
            size = sum(path.stat().st_size for path in (state_dir / one.directory).rglob("*") if path.is_file())
            if size > largest:
                largest, whose = size, one.id
    told = f"{free:,} bytes are free for {state_dir.absolute()}"
    if largest * _TIGHT > free:
        yield warning("disk", f"{told}, and {whose} takes {largest:,}", "A rebuild needs as much again: add some.")
    else:
        yield ok("disk", f"{told}; the largest generation takes {largest:,}")
    strange = sorted(path.name for path in state_dir.iterdir() if path.is_dir() and path.name not in known)
    strange = [name for name in strange if (state_dir / name / "current.json").exists()]
    if strange and records:
        yield warning(
            "disk",
            f"{', '.join(strange)} in {state_dir.absolute()} is of no generation that the registry knows",
            "It may be of another registry (--registry); if not, it can be removed.",
        )


def _allowed(what: str, operations: frozenset[str] | None, needs: Iterable[str], where: str) -> Iterator[Finding]:
    """Look whether all is allowed that is needed; None: the cluster does not say."""
    missing = (
        [] if operations is None else [need for need in needs if need not in operations and "ALL" not in operations]
    )
    if missing:
        words = [need.title().replace("_", "") for need in missing]
        yield failure(
            what,
            f"not allowed: {', '.join(words)} on {where}",
            "`kafka-acls.sh --add --allow-principal User:NAME "
            + " ".join(f"--operation {word}" for word in words)
            + f" --{where.split()[0]} {where.split(maxsplit=1)[1]}`",
        )
