"""What an agent is given, and the figures that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.data.build import Build
from streams.data.partition import PartitionStatus
from streams.data.recovery import RecoveryPolicy, recovery_of
from streams.data.source import KafkaEventStore
from streams.data.stamp import Pinned
from streams.types import TopicInfo

__all__ = ["AgentStatus", "AnyJob", "Hold", "Job", "Repartition", "Work", "instance_of", "mark_of"]


def mark_of(topic_id: str) -> str:
    """Give what the group of those who fill a topic is marked with: another topic of that name is another one."""
    return blake2b(topic_id.encode(), digest_size=6).hexdigest()


def instance_of(whose: str, number: int) -> str:
    """Give the `group.instance.id` of one of somebody's agents."""
    return f"{whose}-{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is folded into what. It can be given to another process."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    topic: TopicInfo
    """As described when the build was claimed."""
    build: Build
    group: str
    generation: str
    """The id of the generation, for the stamps."""
    settings: FoldSettings
    allow_incomplete: bool = False
    """Begin a partition that has no store yet where the topic begins, also where its first events are gone."""
    until: Mapping[int, int] | None = None
    """The position at which each partition's fold ends, exactly; None: none ends."""
    pinned: Mapping[int, Pinned] | None = None
    """By partition, the rebuild that this is part of; None: of none."""
    recovery: RecoveryPolicy | None = None
    """What becomes of events that cannot be folded; None: what the settings say."""
    replay_ends: Mapping[int, int] = field(default_factory=dict)
    """By partition, the end that was pinned when the generation's replay began: what comes before it is a rebuild's."""
    instance: str = ""
    """By which the group knows the agent again that comes back (`group.instance.id`, KIP-345); "" where it is to be a
    new member each time."""
    stands_by: bool = False
    """Fold copies of partitions that others own; see `Standby`."""
    address: str = ""
    """Where the models are served that it folds, as host:port; "" where they are not."""
    repartition: Repartition | None = None
    """What fills the topic, where that is the generation's own."""

    @property
    def policy(self) -> RecoveryPolicy:
        """What becomes of events that cannot be folded."""
        return self.recovery or recovery_of(self.settings)

    def replay_end(self, partition: int) -> int:
        """Give the offset in front of which a partition's events are a rebuild's."""
        pinned = None if self.pinned is None else self.pinned.get(partition)
        return self.replay_ends.get(partition, 0) if pinned is None else pinned.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A wish that nothing more is repartitioned for a moment, so that two generations can be compared."""

    id: str
    """Which wish: whoever is held says so by it."""
    barrier: Mapping[int, int] | None = None
    """By partition of the event topic, where to be held; None: where they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repartition:
    """What is written once more, keyed by model, into which topic. It can be given to another process."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    """The event topic."""
    topic: TopicInfo
    """The same, as described when the generation was made."""
    into: TopicInfo
    group: str
    """The consumer group of those who do it: its offsets are the truth of how far they are."""
    generation: str
    """The id of the generation that folds what is written."""
    settings: FoldSettings
    recovery: RecoveryPolicy | None = None
    """What becomes of events whose model cannot be told; None: what the settings say."""
    ends: Mapping[int, int] = field(default_factory=dict)
    """By partition, the end that was pinned when a rebuild began: what comes before it is the rebuild's."""
    instance: str = ""
    """See `Job.instance`."""
    address: str = ""
    """Where the worker answers that does it, as host:port; "" where none does."""
    seat: str = ""
    """What is to be told apart from all others that do the same at once; one that comes back has it again."""

    @property
    def policy(self) -> RecoveryPolicy:
        """What becomes of events whose model cannot be told: skipped, or not passed."""
        return self.recovery or recovery_of(self.settings)

    @property
    def mark(self) -> str:
        """What the group's offsets and members carry, of this very topic that is written to."""
        return mark_of(self.into.id)


AnyJob: TypeAlias = Job | Repartition
"""What a process is given to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What agents have spent and met since they started; only ever more."""

    commits: int = 0
    """Checkpoints, each of all partitions that had moved."""
    commit_s: float = 0.0
    """What they took."""
    batches: int = 0
    """Batches of records that were decoded and applied."""
    apply_s: float = 0.0
    """What they took."""
    refused: int = 0
    """Commits that the group refused; each was sent again."""
    rebalances: int = 0
    """How often partitions came or went."""
    restarts: int = 0
    """How often an agent that had died was started again."""
    snapshots: int = 0
    """Snapshots of partitions that were sent to the repository."""
    snapshot_bytes: int = 0
    """What was sent for them."""
    snapshots_failed: int = 0
    """How often one could not be sent."""
    restored: int = 0
    """Partitions whose store came from the repository."""

    def __add__(self, other: Work) -> Work:
        return Work(
            commits=self.commits + other.commits,
            commit_s=self.commit_s + other.commit_s,
            batches=self.batches + other.batches,
            apply_s=self.apply_s + other.apply_s,
            refused=self.refused + other.refused,
            rebalances=self.rebalances + other.rebalances,
            restarts=self.restarts + other.restarts,
            snapshots=self.snapshots + other.snapshots,
            snapshot_bytes=self.snapshot_bytes + other.snapshot_bytes,
            snapshots_failed=self.snapshots_failed + other.snapshots_failed,
            restored=self.restored + other.restored,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What an agent has done so far; a snapshot that any thread may read."""

    partitions: dict[int, PartitionStatus] = field(default_factory=dict)
    """Those held now; after `run`, those that were held at its end."""
    events: int = 0
    """Events folded or declined by this agent since it started. One that had to be read again counts once."""
    models: int = 0
    """Models in the stores of the partitions held, as committed."""
    work: Work = field(default_factory=Work)
    rocksdb_bytes: int = 0
    """Memory that RocksDB takes for the stores held, as of some seconds ago: tables not yet written, blocks read, and
    what it knows of its files."""
    away_s: float = 0.0
    """For how long no broker has answered."""
