"""Claiming a directory and its group for a rebuild."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from streams.control.ground import Claimed, Ground, begin, check_group, check_own_topic, newest_build
from streams.control.strategies import RebuildStrategy
from streams.control.target import Prepared, Target
from streams.data.build import Build, Manifest, RebuildRecord
from streams.data.claims import Claim
from streams.data.partition import PartitionStatus
from streams.data.serde import serde_for
from streams.data.stamp import Pinned
from streams.errors import StoreCorrupt
from streams.log import get_logger
from streams.types import Lag, TopicInfo, Watermarks

__all__ = ["claim_rebuild", "ends_of", "preflight"]

log = get_logger(__name__)


def preflight(ground: Ground) -> None:
    """Look, without touching anything, whether a rebuild could begin.

    Raises:
        TopicNotFound, BrokerUnavailable: From Kafka.
        GroupActive: Somebody is in the group.
    """
    serde_for(ground.projection.model_type())
    check_own_topic(ground)
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
        watermarks = ends_of(ground, topic)
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
        parts = _pinned(record, prepared)
        build = begin(ground, claim, prepared.build, positions, prepared.states, parts)
        lock = claim.join(build)
    pinned = {
        partition: Lag(start=record.starts[partition], position=positions[partition], target=target)
        for partition, target in record.targets.items()
    }
    figures = {partition: PartitionStatus.of(state) for partition, state in prepared.states.items()}
    return Claimed(
        job=ground.job(topic, build, record.targets, parts),
        lock=lock,
        pinned=pinned,
        figures=figures,
        before=record.before,
    )


def ends_of(ground: Ground, topic: TopicInfo) -> Mapping[int, Watermarks]:
    """Give where a rebuild begins and ends: of a topic of the generation's own, behind transactions that are open too,
    since what comes behind one may have been committed already.
    """
    marks = ground.events.cluster.watermarks(topic)
    if ground.repartition is None:
        return marks
    ends = ground.events.cluster.ends(topic)
    return {number: replace(one, high=max(one.high, ends[number])) for number, one in marks.items()}


def _pinned(record: RebuildRecord, prepared: Prepared) -> dict[int, Pinned]:
    """Give each partition's part of a rebuild.

    What had been folded before it is known of all partitions together; so the first one carries it.
    """
    now_ms = time.time_ns() // 1_000_000
    first = min(record.targets, default=0)
    return {
        number: Pinned(
            start=record.starts[number],
            target=target,
            events=record.before.events if number == first else 0,
            declined=record.before.declined if number == first else 0,
            since_ms=now_ms,
            since_position=prepared.states[number].position,
            since_events=prepared.states[number].events,
        )
        for number, target in record.targets.items()
    }


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
