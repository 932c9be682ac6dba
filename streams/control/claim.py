"""Claiming: from a projection, a topic, a directory and a group to a build that this process may fold, in one step.

Whoever comes second is refused with the first one named, and has changed nothing by then. On one machine that is the
directory's lock; between machines it is the group, whose offsets the broker lets nobody set while it has a member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.control.strategies import RebuildStrategy
from streams.control.target import Prepared, Target
from streams.data.agent import Job
from streams.data.build import Build, Manifest, RebuildRecord
from streams.data.checkpoint import KafkaCheckpointStore, Stamp, belongs, generation_id
from streams.data.claims import Claim
from streams.data.codec import check_tombstones
from streams.data.generation import RocksStore
from streams.data.history import check_complete
from streams.data.locks import FileLock
from streams.data.ownership import claimed_elsewhere, foreign_offset
from streams.data.partition import PartitionStatus, Phase
from streams.data.reader import ModelReader
from streams.data.serde import serde_for
from streams.data.source import KafkaEventStore
from streams.errors import ForeignOffset, GroupActive, StoreCorrupt
from streams.log import get_logger
from streams.types import Counts, Lag, Member, TopicInfo, Watermarks

__all__ = ["Claimed", "Ground", "claim_live", "claim_rebuild", "preflight"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is to be folded, from where and into what."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    store: RocksStore
    checkpoints: KafkaCheckpointStore
    settings: FoldSettings
    allow_incomplete: bool = False
    """Fold what is left where retention or compaction has taken events."""
    adopt: bool = False
    """The code or the codec changed, and that does not alter the models that are kept."""

    def __post_init__(self) -> None:
        check_tombstones(self.projection, self.events.codec)

    @property
    def name(self) -> str:
        """The projection's generation."""
        return generation_id(self.projection.name, self.projection.version)

    def job(self, topic: TopicInfo, build: Build, until: Mapping[int, int] | None = None) -> Job:
        """Describe the folding of a build."""
        return Job(
            projection=self.projection,
            events=self.events,
            topic=topic,
            build=build,
            group=self.checkpoints.group,
            settings=self.settings,
            allow_incomplete=self.allow_incomplete,
            until=until,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What this process may fold. Release the lock when that has ended."""

    job: Job
    lock: FileLock
    pinned: Mapping[int, Lag]
    """Where each partition's fold starts, where it is, and the topic's end as it was then."""
    figures: Mapping[int, PartitionStatus] = field(default_factory=dict)
    """Where each partition's store is now."""
    before: Counts = field(default_factory=Counts)
    """What the models had been folded of before the rebuild began."""


def claim_live(ground: Ground, *, adopt: bool = False) -> Claimed:
    """Claim the build that is current, or found the first one.

    1. Describe the topic; hold the directory.
    2. See that nobody folds the group into another directory.
    3. No build yet: found it (see `_found`). Otherwise see that it is of this projection, topic, code and codec, judge
       the offsets that somebody else may have set (see `_judge`), and join.

    Args:
        ground: What is to be folded.
        adopt: State that the code or the codec changed but the fold did not.

    Raises:
        GroupActive: The group is folded into another directory.
        HistoryIncomplete: Events are gone that the fold needs.
        ForeignOffset: Somebody set an offset that the state cannot honour, or the group is another projection's.
        ForeignStore, TopicChanged, CodeChanged, StoreLocked, StoreCorrupt, StorageError: See `Claim`.
        TopicNotFound, BrokerUnavailable: From Kafka.

    After any of them nothing was changed.
    """
    serde_for(ground.projection.model_type())
    # Step 1
    cluster, checkpoints = ground.events.cluster, ground.checkpoints
    topic = cluster.topic(ground.events.topic)
    wanted = Manifest.of(ground.projection, topic, ground.events.codec)
    with ground.store.claiming(f"run of {ground.name}", group=checkpoints.group) as claim:
        # Step 2
        committed = checkpoints.stamped(topic)
        found = claim.current()
        check_group(ground, claim, found, cluster.members(checkpoints.group), committed)
        watermarks = cluster.watermarks(topic)
        # Step 3
        if found is None:
            build = _found(ground, claim, topic, wanted, watermarks, committed)
        else:
            claim.check_owner(found.manifest, wanted)
            build = _judge(ground, claim, found, topic, wanted, watermarks, committed, adopt=adopt)
        lock = claim.join(build)
    pinned = {
        partition: Lag(start=marks.low, position=marks.low, target=marks.high)
        for partition, marks in watermarks.items()
    }
    return Claimed(job=ground.job(topic, build), lock=lock, pinned=pinned)


Committed = Mapping[int, tuple[int, Stamp | None]]


def check_group(
    ground: Ground, claim: Claim, found: Build | None, members: Iterable[Member], committed: Committed
) -> None:
    """Make sure that a group is this projection's, and folded into this directory alone.

    Raises:
        ForeignOffset: It is another projection's.
        GroupActive: A member folds it into another directory, or a rebuild there has just claimed it.
    """
    group, name = ground.checkpoints.group, ground.projection.name
    directory = None if found is None else found.manifest.directory
    stamps = [stamp for _, stamp in committed.values() if stamp is not None]
    for stamp in stamps:
        if not belongs(stamp.generation, name):
            raise ForeignOffset(
                f"Group {group!r} holds the positions of {stamp.generation!r}, and this is {ground.name!r}: two "
                "projections cannot share a group. Name another group (--group).",
                projection=name,
            )
    others = [member for member in members if member.directory != directory]
    if others:
        raise GroupActive(
            f"Group {group!r} is folded into another state directory than {ground.store.directory}, by "
            f"{', '.join(map(str, others))}. Nothing was changed. Stop these processes (SIGTERM drains them; "
            "one that was "
            "killed is dropped by the broker after its session timeout, "
            f"{ground.settings.session_timeout_s:g} s unless "
            "set otherwise), or name another group (--group).",
            projection=name,
        )
    for stamp in stamps:
        is_ours = stamp.directory == directory or claim.has_made(stamp.directory)
        if stamp.is_fresh_claim(ground.settings.session_timeout_s) and not is_ours:
            raise claimed_elsewhere(group, stamp, ground.store.directory, name)


def _found(
    ground: Ground,
    claim: Claim,
    topic: TopicInfo,
    wanted: Manifest,
    watermarks: Mapping[int, Watermarks],
    committed: Committed,
) -> Build:
    """Found the directory's first build.

    1. See that the topic has its whole history, and that no offset says otherwise.
    2. Make the build. Nobody sees it yet.
    3. Set the group's offsets to its beginning, which the broker does only while the group is empty.
    4. Make it current.

    A crash before step 4 leaves a directory that counts as empty, and offsets of a build that never was, which the next
    claim sets again.
    """
    # Step 1
    for partition, (position, stamp) in committed.items():
        if stamp is None and position > watermarks[partition].low:
            raise ForeignOffset(
                f"Somebody set group {ground.checkpoints.group!r} to {topic.name}[{partition}]@{position} "
                "(the commit has no "
                f"stamp of refold's), and there are no models in {ground.store.directory} that begin there. "
                "Set the group "
                "to the log's start (kafka-consumer-groups.sh --reset-offsets --to-earliest), or name another group. "
                "Nothing was changed.",
                projection=ground.projection.name,
                topic=topic.name,
                partition=partition,
                offset=position,
            )
    complete = check_complete(
        ground.events.cluster,
        topic,
        watermarks,
        projection=ground.projection.name,
        doing="A fold",
        allow_incomplete=ground.allow_incomplete,
    )
    # Steps 2 to 4
    build = claim.make(_incomplete(wanted, not complete), above=newest_build(committed))
    return _begin(ground, claim, build, {partition: marks.low for partition, marks in watermarks.items()})


def _begin(ground: Ground, claim: Claim, build: Build, positions: Mapping[int, int]) -> Build:
    """Set the group's offsets to where a build begins, and make it current; or remove it again."""
    try:
        ground.checkpoints.claim(ground.name, build, positions)
        return claim.switch(build)
    except BaseException:
        claim.abandon(build)
        raise


def _judge(
    ground: Ground,
    claim: Claim,
    found: Build,
    topic: TopicInfo,
    wanted: Manifest,
    watermarks: Mapping[int, Watermarks],
    committed: Committed,
    *,
    adopt: bool,
) -> Build:
    """Judge the group's offsets as a whole, and give the build to go on with.

    An offset without our stamp was set by somebody's tool (KIP-122). At the log's start it asks for that partition to
    be folded again; at the store's own position it changes nothing; anything else the models cannot honour, and then
    nothing is honoured. What is honoured becomes the next build, into which the other partitions are taken over as
    they are.
    """
    resets: dict[int, int] = {}
    positions: dict[int, int] = {}
    if any(stamp is None for _, stamp in committed.values()):
        positions = _positions(ground, found)
        for partition, (offset, stamp) in committed.items():
            low = watermarks[partition].low
            position = positions.get(partition, low)
            if stamp is not None or offset == position:
                continue
            if offset > low:
                raise foreign_offset(found, ground.checkpoints.group, partition, offset, position)
            resets[partition] = low
    kept = {partition: at for partition, at in positions.items() if partition not in resets}
    if kept or not resets:
        claim.check_identity(found.manifest, wanted)
        if adopt:
            found = claim.adopt(found, wanted)
        else:
            claim.check_code(found, wanted)
    if not resets and found.manifest.incomplete:
        return found
    complete = check_complete(
        ground.events.cluster,
        topic,
        {partition: watermarks[partition] for partition in resets},
        projection=ground.projection.name,
        doing=f"To honour the reset of {topic.name}{sorted(resets)}" if resets else "A fold",
        allow_incomplete=ground.allow_incomplete,
    )
    if not resets:
        return found
    claim.check_nobody_folds(found, "honour the offsets that somebody set")
    build = claim.make(_incomplete(wanted, found.manifest.incomplete or not complete), above=newest_build(committed))
    try:
        for partition in kept:
            claim.carry(found, build, partition)
    except BaseException:
        claim.abandon(build)
        raise
    log.warning("offsets.reset_honoured", topic=topic.name, group=ground.checkpoints.group, partitions=sorted(resets))
    return _begin(
        ground, claim, build, {partition: kept.get(partition, marks.low) for partition, marks in watermarks.items()}
    )


def _positions(ground: Ground, build: Build) -> dict[int, int]:
    with ModelReader(build, ground.projection) as reader:
        return {partition: state.position for partition, state in reader.states().items()}


def preflight(ground: Ground) -> None:
    """Look, without touching anything, whether a rebuild could begin.

    Raises:
        TopicNotFound, BrokerUnavailable: From Kafka.
        GroupActive: Somebody is in the group.
    """
    serde_for(ground.projection.model_type())
    ground.events.cluster.topic(ground.events.topic)
    ground.events.cluster.check_inactive(ground.checkpoints.group)


def claim_rebuild(ground: Ground, strategy: RebuildStrategy, check_cancelled: Callable[[], None]) -> Claimed:
    """Claim a directory and its group for a rebuild, and put state and offsets to where it begins.

    1. Hold the directory. See that it is this projection's, that nobody folds in it or in the group, and that the topic
       has its history; pin each partition's end.
    2. Let the strategy make the build, and note in it where the rebuild begins and ends. Nobody sees it yet.
    3. Set the group's offsets to its beginning, which the broker does only while the group is empty.
    4. Make it current: the instant at which the old models are gone. Join it.

    A crash before step 4 leaves the old build current, and offsets of one that never was: the store is right.

    Args:
        ground: What is to be rebuilt. The caller holds `RocksStore.rebuilding`.
        strategy: Where it begins, with what state.
        check_cancelled: Raises where the rebuild is not wanted any more.

    Raises:
        See `preflight` and `Claim`. Nothing was changed.
    """
    cluster, checkpoints = ground.events.cluster, ground.checkpoints
    with ground.store.claiming(f"rebuild of {ground.name}", group=checkpoints.group) as claim:
        # Step 1
        topic = cluster.topic(ground.events.topic)
        wanted = Manifest.of(ground.projection, topic, ground.events.codec)
        found = _found_for_rebuild(claim)
        if found is not None:
            claim.check_owner(found.manifest, wanted)
            claim.check_nobody_folds(found, "rebuild it")
        committed = checkpoints.stamped(topic)
        cluster.check_inactive(checkpoints.group)
        check_group(ground, claim, found, (), committed)
        watermarks = cluster.watermarks(topic)
        check_cancelled()
        # Step 2
        log.debug("rebuild.strategy_selected", projection=ground.projection.name, strategy=str(strategy))
        prepared = strategy.prepare(
            Target(
                projection=ground.projection,
                events=ground.events,
                topic=topic,
                claim=claim,
                found=found,
                wanted=wanted,
                watermarks=watermarks,
                above=newest_build(committed),
                allow_incomplete=ground.allow_incomplete,
                adopt=ground.adopt,
                check_cancelled=check_cancelled,
            )
        )
        record = prepared.resumes or _record(strategy, prepared, watermarks)
        try:
            check_cancelled()
            prepared.build.write_rebuild(msgspec.structs.replace(record, outcome="running", ended_at=None, error=None))
        except BaseException:
            claim.abandon(prepared.build)
            raise
        # Steps 3 and 4
        positions = {partition: state.position for partition, state in prepared.states.items()}
        build = _begin(ground, claim, prepared.build, positions)
        lock = claim.join(build)
    pinned = {
        partition: Lag(start=record.starts[partition], position=positions[partition], target=target)
        for partition, target in record.targets.items()
    }
    figures = {
        partition: PartitionStatus(
            position=state.position,
            committed=state.position,
            events=state.events,
            declined=state.declined,
            deleted=state.deleted,
            models=state.models,
            phase=Phase.OPENING,
        )
        for partition, state in prepared.states.items()
    }
    return Claimed(
        job=ground.job(topic, build, record.targets), lock=lock, pinned=pinned, figures=figures, before=record.before
    )


def _record(strategy: RebuildStrategy, prepared: Prepared, watermarks: Mapping[int, Watermarks]) -> RebuildRecord:
    """Pin where a rebuild begins and ends."""
    states = prepared.states
    return RebuildRecord(
        strategy=str(strategy),
        starts={partition: min(states[partition].position, marks.high) for partition, marks in watermarks.items()},
        targets={partition: marks.high for partition, marks in watermarks.items()},
        before=prepared.counts(),
        started_at=datetime.now(UTC),
    )


def _found_for_rebuild(claim: Claim) -> Build | None:
    try:
        return claim.current()
    except StoreCorrupt as error:
        log.warning("state.unreadable", why=str(error))
        return None


def newest_build(committed: Committed) -> int:
    """Give the highest number of a build that the group's offsets know."""
    return max((stamp.build for _, stamp in committed.values() if stamp is not None), default=0)


def _incomplete(wanted: Manifest, incomplete: bool) -> Manifest:
    return msgspec.structs.replace(wanted, incomplete=incomplete)
