"""Records that cross the seams."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import nextafter

__all__ = [
    "ClusterInfo",
    "Committed",
    "Counts",
    "GroupDescription",
    "Lag",
    "Member",
    "ProjectionCheckpoint",
    "RebuildProgress",
    "TopicInfo",
    "Watermarks",
]

_CLIENT_ID = re.compile(r"refold-([0-9a-f]+)-([0-9]+)(?:@(.+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicInfo:
    """A topic as the broker describes it."""

    name: str
    id: str
    """Kafka's topic id (KIP-516): another one under the same name is another topic."""
    partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInfo:
    """A cluster as its brokers describe it."""

    id: str
    brokers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermarks:
    """The first offset that a partition still has, and the next that it will stably give out."""

    low: int
    """The log start offset: above 0, that many offsets at the front are gone."""
    high: int
    """The last stable offset: what a read_committed consumer can reach now (KIP-98)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A group's committed offset of one partition, which is a position: the next offset to read."""

    position: int
    metadata: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of a consumer group."""

    client_id: str
    host: str
    partitions: tuple[int, ...]
    assigned: tuple[tuple[str, int], ...] = ()
    """The same with their topics, where these were asked for."""
    instance_id: str | None = None
    """Its group.instance.id (KIP-345), where it was asked for and is a static member."""

    @staticmethod
    def client_id_of(directory: str, pid: int, address: str = "") -> str:
        """Give the client id by which the group knows a process of ours: what it folds into, and which it is.

        Args:
            directory: The id of the state directory.
            pid: The process; 0 for a static member, which the group goes on telling as it joined first.
            address: Where its models are served, as host:port; "" where they are not.
        """
        return f"refold-{directory}-{pid}{'@' if address else ''}{address}"

    @property
    def directory(self) -> str | None:
        """The id of the state directory that it folds into; None for a member that is none of ours."""
        found = _CLIENT_ID.fullmatch(self.client_id)
        return None if found is None else found[1]

    @property
    def pid(self) -> int | None:
        """The process's id; None for a static member, and for one that is none of ours."""
        found = _CLIENT_ID.fullmatch(self.client_id)
        return None if found is None else int(found[2]) or None

    @property
    def address(self) -> str | None:
        """Where the models of its partitions are served, as host:port; None where they are not."""
        found = _CLIENT_ID.fullmatch(self.client_id)
        return None if found is None else found[3]

    def __str__(self) -> str:
        """Name it, for an error's message."""
        found = _CLIENT_ID.fullmatch(self.client_id)
        who = self.client_id if found is None else "refold"
        process = "" if self.pid is None else f", process {self.pid}"
        host = self.host.lstrip("/")
        return f"{who} on {host}{process} (partitions {', '.join(map(str, self.partitions)) or 'none'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription:
    """A consumer group as its coordinator describes it."""

    group: str
    state: str
    """Kafka's word: Stable, Empty, Dead (there is none), PreparingRebalance, CompletingRebalance, …"""
    assignor: str = ""
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Events, counted."""

    events: int = 0
    """Folded or declined."""
    declined: int = 0
    deleted: int = 0
    """Those at which `apply_to_model` gave None."""
    left_out: int = 0
    """Those that wait as dead letters or were skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionCheckpoint:
    """How far a projection has folded its log."""

    topic: str = ""
    topic_id: str = ""
    """Kafka's topic id; "" where it is not known."""
    positions: dict[int, int] = field(default_factory=dict)
    """Partition → position, the next offset to fold."""
    last_event_id: str | None = None
    """The id of the event folded last, of any partition; None where none was."""
    events_processed: int = 0
    """Events folded or declined since the build's beginning; a count, not a position."""
    generation: str = ""
    build: int = 0
    """Which fold of the generation from its beginning; 1 is the first."""
    directory: str = ""
    """The id of the state directory that the models are in."""
    time: datetime | None = None
    """When it was taken, aware, UTC."""

    @classmethod
    def initial(cls) -> ProjectionCheckpoint:
        """Give the checkpoint of a projection that has folded nothing."""
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """One partition's part of a rebuild, in offsets."""

    start: int
    position: int
    """The next offset to fold."""
    target: int
    """The end as pinned when the rebuild began."""

    @property
    def remaining(self) -> int:
        """Offsets still in front of the target; 0 once it is reached or passed."""
        return max(0, self.target - self.position)


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildProgress:
    """A rebuild at one instant (reference: RebuildProgress). Immutable: ask again for newer figures.

    Percentage and ETA come from offsets against the ends pinned at the start, which transaction markers and
    compaction cannot upset; events are counted as they are folded, and are a count only.
    """

    total_events: int | None = None
    """Events in the rebuild; None until it has finished, since offsets are not events: a topic with
    transactions or compaction has fewer events than offsets. `total_offsets` is the known bound."""
    events_processed: int = 0
    """Events read and folded or declined, each once."""
    models_updated: int = 0
    """Events that are in a model: `events_processed` less those that the projection declined, that wait as dead letters
    or were skipped."""
    started_at: datetime | None = None
    """Aware, UTC; None before the first rebuild."""
    estimated_completion: datetime | None = None
    """Aware, UTC; None until there is a rate, and after the end."""
    events_per_second: float = 0.0
    """Over the last seconds while running; over the whole rebuild once it has ended."""
    is_running: bool = False
    error: str | None = None
    """What ended the rebuild before its end."""
    waiting_for: str = ""
    """What keeps the rebuild from going on just now, and for how long it may; "" where nothing does."""
    models: int | None = None
    """Models that the rebuild gave; None until it has finished."""
    models_deleted: int = 0
    """Events at which `apply_to_model` gave None."""
    events_declined: int = 0
    """Events that the projection declined."""
    dead_letters: int = 0
    """Events that wait as dead letters, because they could not be folded or come after one of their model that could
    not. A rebuild that leaves any is completed, and is no plain success."""
    events_skipped: int = 0
    """Events that were left out because they could not be folded; likewise."""
    checkpoints: int = 0
    """Commits of models and positions, by agents of the process that runs the rebuild."""
    elapsed_seconds: float = 0.0
    partitions: dict[int, Lag] = field(default_factory=dict)
    """Those of the stage that is under way."""
    stage: int = 1
    """Which stage is under way; 2 where events were written once more before, keyed by model, and are folded now."""
    stages: int = 1
    """How many there are; each counts as much as the other."""

    @property
    def total_offsets(self) -> int:
        """Offsets between the start and the pinned end, over all partitions."""
        return sum(max(0, lag.target - lag.start) for lag in self.partitions.values())

    @property
    def remaining_offsets(self) -> int:
        """Offsets still to read; the rebuild's lag."""
        return sum(lag.remaining for lag in self.partitions.values())

    @property
    def share(self) -> tuple[int, int]:
        """How much is done, of how much: offsets, counting each stage as the one that is under way."""
        total = self.total_offsets
        done = total - self.remaining_offsets
        if self.stage < self.stages:  # and a topic without events counts too
            total, done = max(1, total), done if total else 1
        return (self.stage - 1) * total + done, self.stages * total

    @property
    def is_whole(self) -> bool:
        """Whether every event is in its model, but for those that the projection declined."""
        return not (self.dead_letters or self.events_skipped)

    def completion_percentage(self) -> float | None:
        """Give the percentage done, 0 to 100; None before a rebuild has pinned its ends.

        100.0 exactly when every partition has reached its pinned end, and never before.
        """
        if self.started_at is None or (not self.partitions and self.is_running):
            return None
        done, total = self.share
        return 100.0 if done == total else min(100.0 * done / total, nextafter(100.0, 0.0))

    def estimated_seconds_left(self, now: datetime | None = None) -> float | None:
        """Give the seconds until `estimated_completion`, at least 0; None where there is no estimate."""
        if self.estimated_completion is None:
            return None
        return max(0.0, (self.estimated_completion - (now or datetime.now(UTC))).total_seconds())
