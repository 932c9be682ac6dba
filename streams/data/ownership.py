"""Whose a consumer group is: its members and its committed offsets against the build that a process is to fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from streams.data.build import Build
from streams.data.checkpoint import belongs, generation_id
from streams.data.stamp import Stamp
from streams.errors import ForeignOffset, GroupActive, at
from streams.log import get_logger
from streams.types import Committed, Member

__all__ = ["check_members", "check_offset", "claimed_elsewhere", "foreign_offset"]

log = get_logger(__name__)


def check_members(
    members: Iterable[Member], group: str, build: Build, committed: Mapping[int, Committed], *, patience_s: float
) -> None:
    """Make sure that nobody else folds this group into another state directory.

    Of two directories the one stays that the committed offsets are of. Where they are of neither, it is the one whose
    id comes first: both sides see the same, and one of them stays.

    Args:
        members: Who is in the group, this process among them.
        group: The group.
        build: What this process folds into.
        committed: The group's offsets.
        patience_s: For so long a claim counts as much as a member.

    Raises:
        GroupActive: Somebody does, or has just claimed to, and stays; it is named.
    """
    ours = build.manifest.directory
    stamps = [stamp for one in committed.values() if (stamp := Stamp.parse(one.metadata)) is not None]
    for stamp in stamps:
        if stamp.directory != ours and stamp.is_fresh_claim(patience_s):
            raise claimed_elsewhere(group, stamp, build.root, build.manifest.projection)
    others = [member for member in members if member.directory != ours]
    if not others:
        return
    owners = {stamp.directory for stamp in stamps}
    first = [other for other in others if other.directory in owners or other.directory is None]
    if not first and ours not in owners:
        first = [other for other in others if (other.directory or "") < ours]
    if first:
        raise GroupActive(
            f"Group {group!r} is folded into another state directory than {build.root}, by "
            f"{', '.join(map(str, first))}. A group's partitions are shared out, so each would get a part of "
            "the models. "
            "Give all processes of the group the same state directory, or this one another group (--group). "
            "Nothing was "
            "changed.",
            projection=build.manifest.projection,
            topic=build.manifest.topic,
        )
    log.warning("group.intruder", group=group, members=list(map(str, others)))


def check_offset(build: Build, group: str, partition: int, committed: Committed | None, position: int) -> None:
    """Make sure that a committed offset is our own mirror of a store's position, and nobody else's wish.

    Our stamp, or no commit: the store is right, also where it is behind (a disk was lost, a copy restored). No stamp:
    somebody's tool set the offset (KIP-122). At the store's own position it changes nothing.

    Raises:
        ForeignOffset: It is something else. What may be honoured is honoured when nobody folds (see `control.claim`).
    """
    manifest = build.manifest
    if committed is None or committed.position == position:
        return
    stamp = Stamp.parse(committed.metadata)
    if stamp is None:
        raise foreign_offset(build, group, partition, committed.position, position)
    if not belongs(stamp.generation, manifest.projection):
        raise ForeignOffset(
            f"Group {group!r} holds the position of {stamp.generation!r} at {at(manifest.topic, partition)}, "
            "and this is "
            f"{generation_id(manifest.projection, manifest.version)!r}: two projections cannot share a group. Name "
            "another group (--group).",
            projection=manifest.projection,
            topic=manifest.topic,
            partition=partition,
        )
    if (stamp.directory, stamp.build) == (manifest.directory, manifest.build):
        if committed.position > position:  # another machine has folded it since, or this copy was restored
            log.info(
                "state.behind_the_groups",
                where=at(manifest.topic, partition),
                state=position,
                group=committed.position,
            )
    else:
        log.warning(
            "state.not_the_groups",
            where=at(manifest.topic, partition),
            state=position,
            group=committed.position,
            build=manifest.build,
            groups_build=stamp.build,
        )


def claimed_elsewhere(group: str, stamp: Stamp, root: Path, projection: str) -> GroupActive:
    """Say that a group was claimed for another state directory a moment ago."""
    return GroupActive(
        f"Group {group!r} was claimed {stamp.age_s():.0f} s ago for build {stamp.build} in another state directory (id "
        f"{stamp.directory}) than {root}. Nothing was changed. Name another group, or try again when that has ended.",
        projection=projection,
    )


def foreign_offset(build: Build, group: str, partition: int, offset: int, position: int) -> ForeignOffset:
    """Say that somebody set an offset that the models cannot honour, and what can be done."""
    topic = build.manifest.topic
    return ForeignOffset(
        f"Somebody set group {group!r} to {at(topic, partition, offset)} (the commit has no stamp of "
        "refold's), but the "
        f"models there are of position {position}; folding on from another offset would lose or double events. To "
        "rebuild, set the group to the log's start (kafka-consumer-groups.sh --reset-offsets --to-earliest) "
        "while nobody "
        f"folds; to go on from the models, set it to {position}. Nothing was changed.",
        projection=build.manifest.projection,
        topic=topic,
        partition=partition,
        offset=offset,
    )
