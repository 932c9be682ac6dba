"""Taking part in a generation that several machines fold: each has copies of the partitions that it was given."""

from __future__ import annotations

from collections.abc import Mapping

from streams.control.ground import Claimed, Ground, incomplete
from streams.control.record import Generation
from streams.control.restored import of_use, repository_of
from streams.data.build import Build, Manifest
from streams.data.checkpoint import belongs
from streams.data.claims import Claim
from streams.data.history import check_complete
from streams.data.serde import serde_for
from streams.data.stamp import Pinned, Stamp
from streams.errors import ForeignOffset, ForeignStore, at
from streams.log import get_logger
from streams.types import Lag, TopicInfo

__all__ = ["claim_share"]

log = get_logger(__name__)


def claim_share(ground: Ground, generation: Generation) -> Claimed:
    """Claim this machine's copy of a generation's state, as the registry has it.

    What is folded by whom is the group's to say. A partition that comes here for the first time is folded from its
    beginning; one that was here before goes on where it was.

    1. Hold the directory. See that the group is this projection's.
    2. No copy yet: make one, with the state's id and epoch. One of an earlier epoch: make the next one, with those
       partitions taken over that have gone on since. Otherwise see that it is of this topic; where the registry says
       that other code was adopted for it, so does the copy from now on.
    3. Join.

    A crash leaves the copy as it was, or the next one complete.

    Args:
        ground: What is to be folded.
        generation: It, as the registry has it; of the code that this process has.

    Raises:
        ForeignStore: The directory holds another state, or one of a later epoch than the registry's.
        ForeignOffset: The group is another projection's.
        HistoryIncomplete: There is no copy here, nor in the snapshot repository, and the topic has lost events that one
            needs.
        TopicChanged, StoreLocked, StoreCorrupt, StorageError: See `Claim`.
        TopicNotFound, BrokerUnavailable: From Kafka.

    After any of them nothing was changed.
    """
    serde_for(ground.projection.model_type())
    cluster = ground.events.cluster
    topic = cluster.topic(ground.events.topic)
    wanted = Manifest.of(ground.projection, topic, ground.events.codec)
    # Step 1
    with ground.store.claiming(f"worker folding {ground.name}", group=ground.checkpoints.group) as claim:
        stamps, positions = _stamps(ground, topic)
        # Step 2
        found = claim.current()
        if found is None:
            build = _found(ground, claim, topic, wanted, generation)
        else:
            claim.check_identity(found.manifest, wanted)
            _check_state(ground, found, generation)
            # That the registry has this code is what was asked before. So where the copy has not, it was adopted since.
            found = claim.adopt(found, wanted)
            build = found if found.manifest.build == generation.epoch else _next(claim, found, wanted, generation)
        # Step 3
        lock = claim.join(build)
    # Who folds on in a rebuild that has not come to its end keeps its figures.
    pinned = _pinned(stamps, build) if _is_rebuilt(positions, stamps) else None
    return Claimed(job=ground.job(topic, build, pinned=pinned), lock=lock, pinned=_lags(stamps))


def _is_rebuilt(positions: Mapping[int, int], stamps: Mapping[int, Stamp]) -> bool:
    return any(stamp.pinned is not None and positions[one] < stamp.pinned.target for one, stamp in stamps.items())


def _stamps(ground: Ground, topic: TopicInfo) -> tuple[dict[int, Stamp], dict[int, int]]:
    stamped = ground.checkpoints.stamped(topic)
    foreign = {partition: position for partition, (position, stamp) in stamped.items() if stamp is None}
    if foreign:
        where = ", ".join(at(topic.name, partition, position) for partition, position in sorted(foreign.items()))
        raise ForeignOffset(
            f"Somebody set group {ground.checkpoints.group!r} to {where} (the commit has no stamp of refold's): the "
            "leader is to say what that means. Nothing was changed.",
            projection=ground.projection.name,
            topic=topic.name,
        )
    stamps = {partition: stamp for partition, (_, stamp) in stamped.items() if stamp is not None}
    for stamp in stamps.values():
        if not belongs(stamp.generation, ground.projection.name):
            raise ForeignOffset(
                f"Group {ground.checkpoints.group!r} holds the positions of {stamp.generation!r}, and this is "
                f"{ground.name!r}: two projections cannot share a group. Name another group (group in refold.toml).",
                projection=ground.projection.name,
            )
    return stamps, {partition: position for partition, (position, _) in stamped.items()}


def _found(ground: Ground, claim: Claim, topic: TopicInfo, wanted: Manifest, generation: Generation) -> Build:
    watermarks = ground.events.cluster.watermarks(topic)
    gone = {number: marks for number, marks in watermarks.items() if marks.low > 0}
    fetched = of_use(repository_of(ground.settings, wanted.projection, generation), gone) if gone else {}
    complete = check_complete(
        ground.events.cluster,
        topic,
        {number: marks for number, marks in watermarks.items() if number not in fetched},
        projection=ground.projection.name,
        doing="A copy of its state",
        allow_incomplete=ground.allow_incomplete,
    )
    manifest = incomplete(wanted, not complete)
    return claim.switch(claim.make(manifest, above=generation.epoch - 1, state=generation.state))


def _check_state(ground: Ground, found: Build, generation: Generation) -> None:
    manifest = found.manifest
    if (manifest.directory, manifest.build) == (generation.state, generation.epoch):
        return
    if manifest.directory != generation.state:
        what = f"another state (id {manifest.directory}) than the registry knows of {ground.name} ({generation.state})"
    elif manifest.build > generation.epoch:
        what = f"build {manifest.build} of {ground.name}, and the registry knows {generation.epoch}"
    else:
        return
    raise ForeignStore(
        f"{ground.store.directory} holds {what}. Remove the directory, and it is folded again from the topic; or name "
        "another one (--state-dir), or the registry that it is of (--registry). Nothing was changed.",
        projection=ground.projection.name,
    )


def _next(claim: Claim, found: Build, wanted: Manifest, generation: Generation) -> Build:
    claim.check_nobody_folds(found, "take part in the rebuild")
    was = found.manifest.build
    manifest = incomplete(wanted, found.manifest.incomplete)
    build = claim.make(manifest, above=generation.epoch - 1, state=generation.state)
    try:
        for partition in found.partitions():
            if generation.resets.get(partition, 0) <= was:
                claim.carry(found, build, partition)
    except BaseException:
        claim.abandon(build)
        raise
    log.info("state.next_epoch", directory=str(claim.directory), before=was, now=generation.epoch)
    return claim.switch(build)


def _pinned(stamps: Mapping[int, Stamp], build: Build) -> dict[int, Pinned] | None:
    manifest = build.manifest
    return {
        partition: stamp.pinned
        for partition, stamp in stamps.items()
        if stamp.pinned is not None and (stamp.directory, stamp.build) == (manifest.directory, manifest.build)
    } or None


def _lags(stamps: Mapping[int, Stamp]) -> dict[int, Lag]:
    return {
        partition: Lag(start=stamp.pinned.start, position=stamp.pinned.start, target=stamp.pinned.target)
        for partition, stamp in stamps.items()
        if stamp.pinned is not None
    }
