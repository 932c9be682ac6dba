"""Claiming: from a projection, a topic, a directory and a group to a build that this process may fold, in one step.

Whoever comes second is refused with the first one named, and has changed nothing by then. On one machine that is the
directory's lock; between machines it is the group, whose offsets the broker lets nobody set while it has a member.
"""

from __future__ import annotations

from collections.abc import Mapping

from streams.control.ground import (
    Claimed,
    Committed,
    Ground,
    begin,
    check_group,
    check_own_topic,
    incomplete,
    newest_build,
)
from streams.control.restored import groups_state
from streams.data.build import Build, Manifest
from streams.data.claims import Claim
from streams.data.history import check_complete
from streams.data.ownership import foreign_offset
from streams.data.reader import ModelReader
from streams.data.serde import serde_for
from streams.data.stamp import Pinned
from streams.errors import ForeignOffset
from streams.log import get_logger
from streams.types import Lag, TopicInfo, Watermarks

__all__ = ["claim_live"]

log = get_logger(__name__)


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
        RepositoryError: Nothing is in the directory, and the snapshot repository does not answer.
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
        if found is None or adopt:
            check_own_topic(ground)
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
    # Who joins in a rebuild that another process of this machine has begun, keeps its figures.
    job = ground.job(topic, build, pinned=_parts(committed) if ground.store.rebuilder() is not None else None)
    return Claimed(job=job, lock=lock, pinned=pinned)


def _parts(committed: Committed) -> dict[int, Pinned]:
    return {
        partition: stamp.pinned
        for partition, (_, stamp) in committed.items()
        if stamp is not None and stamp.pinned is not None
    }


def _found(
    ground: Ground,
    claim: Claim,
    topic: TopicInfo,
    wanted: Manifest,
    watermarks: Mapping[int, Watermarks],
    committed: Committed,
) -> Build:
    """Found the directory's first build.

    0. Where the snapshot repository has the state that the group's offsets are of, take part in that again: agents
       fetch its partitions.
    1. See that the topic has its whole history, and that no offset says otherwise.
    2. Make the build. Nobody sees it yet.
    3. Set the group's offsets to its beginning, which the broker does only while the group is empty.
    4. Make it current.

    A crash before step 4 leaves a directory that counts as empty, and offsets of a build that never was, which the next
    claim sets again.
    """
    # Step 0
    restored = groups_state(ground, wanted, watermarks, committed)
    if restored is not None:
        manifest, fetched = restored
        complete = check_complete(
            ground.events.cluster,
            topic,
            {number: marks for number, marks in watermarks.items() if number not in fetched},
            projection=ground.projection.name,
            doing="A fold of the partitions that are not in the snapshot repository",
            allow_incomplete=ground.allow_incomplete or manifest.incomplete,
        )
        log.info("state.found_in_repository", generation=ground.name, partitions=sorted(fetched))
        manifest = incomplete(manifest, manifest.incomplete or not complete)
        return claim.switch(claim.make(manifest, above=manifest.build - 1, state=manifest.directory))
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
    build = claim.make(incomplete(wanted, not complete), above=newest_build(committed))
    return begin(ground, claim, build, {partition: marks.low for partition, marks in watermarks.items()})


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
    build = claim.make(incomplete(wanted, found.manifest.incomplete or not complete), above=newest_build(committed))
    try:
        for partition in kept:
            claim.carry(found, build, partition)
    except BaseException:
        claim.abandon(build)
        raise
    log.warning("offsets.reset_honoured", topic=topic.name, group=ground.checkpoints.group, partitions=sorted(resets))
    return begin(
        ground, claim, build, {partition: kept.get(partition, marks.low) for partition, marks in watermarks.items()}
    )


def _positions(ground: Ground, build: Build) -> dict[int, int]:
    with ModelReader(build, ground.projection) as reader:
        return {partition: state.position for partition, state in reader.states().items()}
