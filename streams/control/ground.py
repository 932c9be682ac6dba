"""What is claimed, and what every claim looks at: the projection, the topic, the directory and the group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.data.build import Build, Manifest
from streams.data.checkpoint import KafkaCheckpointStore, belongs, generation_id
from streams.data.claims import Claim
from streams.data.codec import check_tombstones
from streams.data.generation import StateStore
from streams.data.job import Job, Repartition
from streams.data.locks import FileLock
from streams.data.ownership import claimed_elsewhere
from streams.data.partition import PartitionStatus
from streams.data.recovery import RecoveryPolicy
from streams.data.source import KafkaEventStore
from streams.data.stamp import Pinned, Stamp
from streams.data.store import StoreState
from streams.errors import ConfigError, ForeignOffset, GroupActive
from streams.log import get_logger
from streams.types import Counts, Lag, Member, TopicInfo

__all__ = [
    "Claimed",
    "Committed",
    "Ground",
    "begin",
    "check_by_stream",
    "check_group",
    "check_own_topic",
    "incomplete",
    "newest_build",
]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is to be folded, from where and into what."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    store: StateStore
    checkpoints: KafkaCheckpointStore
    settings: FoldSettings
    allow_incomplete: bool = False
    """Fold what is left where retention or compaction has taken events."""
    generation: str | None = None
    """The generation's id; None for that of the code's name and version."""
    adopt: bool = False
    """The code or the codec changed, and that does not alter the models that are kept."""
    recovery: RecoveryPolicy | None = None
    """What becomes of events that cannot be folded; None: what the settings say."""
    replay_ends: Mapping[int, int] = field(default_factory=dict)
    """By partition, the end that was pinned when the generation's replay began, where that is not by this ground."""
    address: str = ""
    """Where the models are served that this process folds; see `Job`."""
    repartition: Repartition | None = None
    """How the events get into what is folded, where that is a topic of the generation's own."""

    def __post_init__(self) -> None:
        check_tombstones(self.projection, self.events.codec)

    @property
    def name(self) -> str:
        """The generation's id."""
        return self.generation or generation_id(self.projection.name, self.projection.version)

    def job(
        self,
        topic: TopicInfo,
        build: Build,
        until: Mapping[int, int] | None = None,
        pinned: Mapping[int, Pinned] | None = None,
    ) -> Job:
        """Describe the folding of a build; see `Job`."""
        return Job(
            projection=self.projection,
            events=self.events,
            topic=topic,
            build=build,
            group=self.checkpoints.group,
            generation=self.name,
            settings=self.settings,
            allow_incomplete=self.allow_incomplete,
            until=until,
            pinned=pinned,
            recovery=self.recovery,
            replay_ends=self.replay_ends,
            address=self.address,
            repartition=self.repartition,
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


Committed = Mapping[int, tuple[int, Stamp | None]]


def check_own_topic(ground: Ground) -> None:
    """Make sure that what is folded is keyed by model, where the projection wants that.

    Raises:
        ConfigError: It is the event topic.
    """
    if ground.projection.partition_by == "model" and ground.repartition is None:
        raise ConfigError(
            f'{ground.projection.name!r} has `partition_by = "model"`: each of its generations folds a topic of its '
            "own, which the registry knows. So it is folded by `refold run`, a worker, or `Generations`, and rebuilt "
            "beside what there is. Nothing was changed."
        )


def check_by_stream(projection: CqrsProjection[Any], doing: str) -> None:
    """Make sure that a stream's events feed no other models than its own.

    Args:
        projection: The projection.
        doing: What is to be done that rests on it, such as "A preview".

    Raises:
        ConfigError: Several streams feed one model.
    """
    if projection.partition_by == "model":
        raise ConfigError(
            f"{doing} folds the events of some streams, and models of {projection.name!r} are fed by several "
            "(partition_by = 'model'). Rebuild it as a whole, beside what there is, and compare (`refold rebuild "
            f"{projection.name}`). Nothing was changed."
        )


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


def begin(
    ground: Ground,
    claim: Claim,
    build: Build,
    positions: Mapping[int, int],
    states: Mapping[int, StoreState] | None = None,
    pinned: Mapping[int, Pinned] | None = None,
) -> Build:
    """Set the group's offsets to where a build begins, and make it current; or remove it again.

    See `KafkaCheckpointStore.claim`.
    """
    try:
        ground.checkpoints.claim(ground.name, build, positions, states, pinned)
        return claim.switch(build)
    except BaseException:
        claim.abandon(build)
        raise


def newest_build(committed: Committed) -> int:
    """Give the highest number of a build that the group's offsets know."""
    return max((stamp.build for _, stamp in committed.values() if stamp is not None), default=0)


def incomplete(wanted: Manifest, is_incomplete: bool) -> Manifest:
    """Say in a manifest whether the topic had lost events."""
    return msgspec.structs.replace(wanted, incomplete=is_incomplete)
