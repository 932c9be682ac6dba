"""How a projection stands, told from outside: by its state on this machine, and by what its group has committed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from streams.cluster import Cluster
from streams.data.agent import AgentStatus
from streams.data.build import Build, RebuildRecord
from streams.data.generation import StateStore
from streams.data.locks import Holder
from streams.data.partition import Phase
from streams.data.stamp import Stamp
from streams.types import Committed, Member, TopicInfo, Watermarks

__all__ = ["GroupView", "PartitionView", "StateView", "view_group", "view_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionView:
    """How far one partition is folded, and by whom."""

    partition: int
    low: int
    """The first offset that the topic still has."""
    end: int
    """The topic's end: the last stable offset."""
    position: int | None = None
    """The next offset to fold; None where nothing is known to be folded."""
    events: int = 0
    declined: int = 0
    deleted: int = 0
    models: int = 0
    dead_letters: int = 0
    """Events that wait as dead letters."""
    skipped: int = 0
    """Events that were left out because they could not be folded."""
    last_event_id: str | None = None
    last_event_time: str | int | None = None
    record_ms: int | None = None
    """Kafka's timestamp of the record folded last."""
    owner: Member | None = None
    """The member that the group has given it to."""
    phase: str = ""
    """What it is in the process that holds it (`streams.data.partition.Phase`); "" where that is not known."""
    why: str = ""
    """Why it is restoring, stalled or halted."""
    snapshot: int | None = None
    """The position of its newest snapshot in the repository, as far as the process knows that holds it."""
    snapshot_ms: int | None = None
    """When that was sent, in milliseconds since 1970."""

    @property
    def done(self) -> int:
        """Offsets folded, of those that the topic still has."""
        return max(0, min(self.end, self.position or 0) - self.low)

    @property
    def lag(self) -> int:
        """Offsets in front of the end that are not folded."""
        return max(0, self.end - max(self.low, self.position or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """How far a group is."""

    topic: str
    group: str
    partitions: tuple[PartitionView, ...]
    """By number."""
    members: tuple[Member, ...] = ()
    gone: tuple[Member, ...] = ()
    """Members that the group still counts and whose process has ended: it waits for their session to time out."""
    filling: GroupView | None = None
    """Who fills the topic, where that is the generation's own: what has not got there is not folded either."""

    @property
    def lag(self) -> int:
        """Offsets that the group has still to fold, over all partitions, and those that have not got to its topic."""
        return sum(one.lag for one in self.partitions) + (0 if self.filling is None else self.filling.lag)

    @property
    def done(self) -> int:
        """Offsets that it has folded, of those that the topic still has."""
        return sum(one.done for one in self.partitions)

    @property
    def total(self) -> int:
        """Offsets that the topic still has."""
        return sum(one.end - one.low for one in self.partitions)

    @property
    def dead_letters(self) -> int:
        """Events that wait as dead letters, over all partitions."""
        return sum(one.dead_letters for one in self.partitions)

    @property
    def skipped(self) -> int:
        """Events that were left out because they could not be folded, over all partitions."""
        return sum(one.skipped for one in self.partitions)

    def lag_seconds(self, now_ms: int | None = None) -> float | None:
        """Give how old the oldest of the records folded last is, of partitions that have more to fold.

        0.0 where nothing has; None where a partition has folded nothing yet.
        """
        filled = () if self.filling is None else self.filling.partitions
        behind = [one.record_ms for one in (*self.partitions, *filled) if one.lag]
        if not behind:
            return 0.0
        if None in behind:
            return None
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return max(0.0, (now_ms - min(ms for ms in behind if ms is not None)) / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateView:
    """What a state directory holds."""

    directory: Path
    build: Build
    code_changed: bool | None
    """Whether the projection's code is other than what the state counts as the fold of; None: it was not looked at."""
    size_bytes: int
    models: int
    rebuild: RebuildRecord | None
    """The rebuild that made the build; None where none did."""
    rebuilding: Holder | None
    """Who is rebuilding it now."""
    folding: tuple[Holder, ...]
    """The processes of this machine that fold in it."""
    partitions: Mapping[int, PartitionView]
    """By number, without the topic's figures."""

    @property
    def has_died(self) -> bool:
        """Whether the rebuild that made the build ended without a word."""
        return self.rebuild is not None and self.rebuild.outcome == "running" and self.rebuilding is None


def view_state(store: StateStore, projection: CqrsProjection[Any] | None = None) -> StateView | None:
    """Look at a state directory; None where nothing was folded into it.

    Args:
        store: The directory.
        projection: Whose code to compare; None: none.

    Raises:
        StorageError, StoreCorrupt, ForeignStore: It cannot be read.
    """
    build = store.current()
    if build is None:
        return None
    with store.reader(projection) as reader:
        build, states = reader.build, reader.states()
    code = build.current
    return StateView(
        directory=store.directory,
        build=build,
        code_changed=None
        if projection is None
        else (code.version, code.fingerprint) != (projection.version, fingerprint(projection)),
        size_bytes=build.stores.size_bytes(),
        models=sum(state.models for state in states.values()),
        rebuild=build.rebuild(),
        rebuilding=store.rebuilder(),
        folding=tuple(store.folding(build)),
        partitions={
            number: PartitionView(
                partition=number,
                low=state.start,
                end=state.position,
                position=state.position,
                events=state.events,
                declined=state.declined,
                deleted=state.deleted,
                models=state.models,
                dead_letters=state.dead_letters,
                skipped=state.skipped,
                last_event_id=state.last_event_id,
                last_event_time=state.last_event_time,
                record_ms=state.record_ms,
            )
            for number, state in states.items()
        },
    )


def view_group(
    cluster: Cluster,
    topic: TopicInfo,
    group: str,
    *,
    build: Build | None = None,
    state: Mapping[int, PartitionView] | None = None,
    agent: AgentStatus | None = None,
    live: Iterable[Holder] | None = None,
    filling: tuple[TopicInfo, str] | None = None,
    watermarks: Mapping[int, Watermarks] | None = None,
    members: Sequence[Member] | None = None,
) -> GroupView:
    """Look at a whole group, from any process.

    Args:
        cluster: Kafka.
        topic: What it folds.
        group: The group.
        build: Only positions of this build count; None: of whichever.
        state: What is known from the stores of this machine, which are the truth.
        agent: What is known of the partitions that this process folds, which is the newest.
        live: The processes of this machine that fold in the build, by which members that are gone are known.
        filling: The event topic and the group of those who write it to this topic once more, where somebody does.
        watermarks: Where the topic begins and ends; by default it is asked.
        members: Who is in the group; by default it is asked.

    Raises:
        BrokerError: Kafka.
    """
    watermarks = cluster.watermarks(topic) if watermarks is None else watermarks
    committed = cluster.committed(group, topic)
    members = cluster.members(group) if members is None else members
    owners = {partition: member for member in members for partition in member.partitions}
    views = []
    for number, marks in sorted(watermarks.items()):
        view = _of_stamp(number, marks, committed.get(number), build)
        if state is not None and number in state:
            known = state[number]
            if view.position is None or (known.position or 0) >= view.position:
                view = _replace(known, low=marks.low, end=marks.high, phase=view.phase, why=view.why)
        if agent is not None and number in agent.partitions:
            own = agent.partitions[number]
            view = _replace(
                view,
                phase=str(own.phase),
                why=own.why,
                snapshot=own.snapshot,
                snapshot_ms=own.snapshot_ms,
                **(
                    {}
                    if own.committed < 0
                    else {
                        "position": own.committed,
                        "events": own.events,
                        "declined": own.declined,
                        "deleted": own.deleted,
                        "models": own.models,
                        "dead_letters": own.dead_letters,
                        "skipped": own.skipped,
                        "record_ms": own.record_ms,
                    }
                ),
            )
        views.append(_replace(view, owner=owners.get(number)))
    return GroupView(
        topic=topic.name,
        group=group,
        partitions=tuple(views),
        members=tuple(members),
        gone=tuple(_gone(members, build, live)),
        filling=None if filling is None else view_group(cluster, *filling),
    )


def _of_stamp(number: int, marks: Watermarks, committed: Committed | None, build: Build | None) -> PartitionView:
    stamp = None if committed is None else Stamp.parse(committed.metadata)
    bare = PartitionView(partition=number, low=marks.low, end=marks.high)
    if committed is None or stamp is None:
        return bare
    if build is not None and (stamp.directory, stamp.build) != (build.manifest.directory, build.manifest.build):
        return bare
    return _replace(
        bare,
        position=committed.position,
        events=stamp.events,
        declined=stamp.declined,
        models=stamp.models,
        dead_letters=stamp.dead_letters,
        skipped=stamp.skipped,
        last_event_id=stamp.last_event_id,
        last_event_time=stamp.last_event_time,
        record_ms=stamp.record_ms,
        phase="" if stamp.halted is None else str(Phase.HALTED),
        why=stamp.halted or "",
    )


def _gone(members: Iterable[Member], build: Build | None, live: Iterable[Holder] | None) -> Iterable[Member]:
    """Name the members that fold in this directory and whose process is none of those that have it open."""
    if build is None or live is None:
        return ()
    pids = {holder.pid for holder in live}
    mine = [one for one in members if one.directory == build.manifest.directory]
    return [one for one in mine if one.pid is not None and one.pid not in pids]


def _replace(view: PartitionView, **changes: Any) -> PartitionView:
    return dataclasses.replace(view, **changes)
