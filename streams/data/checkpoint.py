"""Checkpoints: where a projection's positions are found by name, and the group's offsets as such a store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from streams.data.build import Build
from streams.data.source import KafkaEventStore
from streams.data.stamp import Pinned, Stamp
from streams.data.store import StoreState
from streams.errors import CheckpointError
from streams.types import Committed, ProjectionCheckpoint, TopicInfo

__all__ = ["CheckpointStore", "KafkaCheckpointStore", "belongs", "checkpoint_of", "generation_id"]


class CheckpointStore(Protocol):
    """Where a projection's positions can be found by name (reference: CheckpointStore)."""

    def load(self, name: str) -> ProjectionCheckpoint | None:
        """Give the last checkpoint; None where there is none."""
        ...

    def save(self, name: str, checkpoint: ProjectionCheckpoint) -> None:
        """Replace the checkpoint."""
        ...

    def delete(self, name: str) -> None:
        """Delete it; a missing one is as good as deleted."""
        ...


class KafkaCheckpointStore:
    """A projection's positions as its consumer group's committed offsets, each with our stamp.

    While an agent folds, it commits here behind its store, so what is here is never ahead of the models.
    Dashboards and Kafka's own tools read the same offsets.

    Args:
        group: The consumer group.
        events: The log that it folds.
    """

    def __init__(self, group: str, events: KafkaEventStore) -> None:
        self.group = group
        self._events = events

    def load(self, name: str) -> ProjectionCheckpoint | None:
        """Give the group's positions; None where the group has none, or none of ours.

        Raises:
            CheckpointError: The group belongs to another projection.
        """
        stamped = self._stamped()
        if not stamped:
            return None
        for _, stamp in stamped.values():
            self._check_name(name, stamp)
        newest = max((stamp for _, stamp in stamped.values()), key=lambda stamp: stamp.time_ms)
        return ProjectionCheckpoint(
            topic=self._events.topic,
            positions={partition: position for partition, (position, _) in stamped.items()},
            last_event_id=newest.last_event_id,
            events_processed=sum(stamp.events for _, stamp in stamped.values()),
            generation=newest.generation,
            build=newest.build,
            directory=newest.directory,
            time=datetime.fromtimestamp(newest.time_ms / 1000, UTC),
        )

    def save(self, name: str, checkpoint: ProjectionCheckpoint) -> None:
        """Commit the checkpoint's positions for a group that nobody is a member of.

        Raises:
            CheckpointError: The checkpoint is of another topic, or of another projection.
            BrokerError: The group has members.
        """
        if checkpoint.topic not in ("", self._events.topic):
            raise CheckpointError(
                f"A checkpoint of topic {checkpoint.topic!r} cannot be saved for group {self.group!r}, which folds "
                f"{self._events.topic!r}.",
                projection=name,
                topic=checkpoint.topic,
            )
        stamp = Stamp(
            generation=checkpoint.generation or name,
            build=checkpoint.build,
            directory=checkpoint.directory,
            fingerprint="",
            events=checkpoint.events_processed,
            last_event_id=checkpoint.last_event_id,
            time_ms=int((checkpoint.time or datetime.now(UTC)).timestamp() * 1000),
        )
        self._check_name(name, stamp)
        encoded = stamp.encode()
        # The count is of all partitions together, so only one of the stamps may carry it.
        rest = msgspec.structs.replace(stamp, events=0).encode()
        first = min(checkpoint.positions, default=None)
        self._events.cluster.commit(
            self.group,
            self._events.topic,
            {
                partition: Committed(position=position, metadata=encoded if partition == first else rest)
                for partition, position in checkpoint.positions.items()
            },
        )

    def delete(self, name: str) -> None:
        """Delete the group with its offsets.

        Raises:
            GroupActive: It has members, who are named.
            CheckpointError: The group belongs to another projection.
        """
        for _, stamp in self._stamped().values():
            self._check_name(name, stamp)
        self._events.cluster.delete_group(self.group)

    def stamped(self, topic: TopicInfo) -> dict[int, tuple[int, Stamp | None]]:
        """Give each partition's committed position, and its stamp; None where somebody else set the offset."""
        committed = self._events.cluster.committed(self.group, topic)
        return {partition: (found.position, Stamp.parse(found.metadata)) for partition, found in committed.items()}

    def claim(
        self,
        name: str,
        build: Build,
        positions: Mapping[int, int],
        states: Mapping[int, StoreState] | None = None,
        pinned: Mapping[int, Pinned] | None = None,
    ) -> None:
        """Set the group's offsets to where a build begins, with its stamps.

        The broker takes them only while nobody is in the group. So this is also how two machines cannot both do it.

        Args:
            name: The projection's generation.
            build: The build, which need not be current yet.
            positions: By partition.
            states: By partition, what is in its store by then; by default nothing.
            pinned: By partition, the rebuild that is about to begin.

        Raises:
            GroupActive: Somebody is in the group. Nothing was changed.
        """
        stamp = Stamp(
            generation=name,
            build=build.manifest.build,
            directory=build.manifest.directory,
            fingerprint=build.current.fingerprint,
        )
        self.reset(stamp, positions, states, pinned)

    def reset(
        self,
        stamp: Stamp,
        positions: Mapping[int, int],
        states: Mapping[int, StoreState] | None = None,
        pinned: Mapping[int, Pinned] | None = None,
    ) -> None:
        """Set the group's offsets to where a state is folded on; see `claim`.

        Args:
            stamp: Which state.
            positions: By partition.
            states: By partition, what is in its store by then; by default nothing.
            pinned: By partition, the rebuild that is about to begin.

        Raises:
            GroupActive: Somebody is in the group. Nothing was changed.
        """
        stamp = msgspec.structs.replace(stamp, time_ms=time.time_ns() // 1_000_000, claimed=True)
        wanted = {}
        for partition, position in positions.items():
            state = None if states is None else states[partition]
            own = msgspec.structs.replace(
                stamp,
                events=0 if state is None else state.events,
                declined=0 if state is None else state.declined,
                models=0 if state is None else state.models,
                pinned=None if pinned is None else pinned[partition],
            )
            wanted[partition] = Committed(position=position, metadata=own.encode())
        self._events.cluster.commit(self.group, self._events.topic, wanted)

    def _stamped(self) -> dict[int, tuple[int, Stamp]]:
        """Give each partition's position and stamp; an offset without our stamp is left out."""
        cluster = self._events.cluster
        committed = cluster.committed(self.group, cluster.topic(self._events.topic))
        return {
            partition: (found.position, stamp)
            for partition, found in committed.items()
            if (stamp := Stamp.parse(found.metadata)) is not None
        }

    def _check_name(self, name: str, stamp: Stamp) -> None:
        if not belongs(stamp.generation, name):
            raise CheckpointError(
                f"Group {self.group!r} holds the positions of {stamp.generation!r}, not of projection {name!r}: "
                "two projections cannot share a group. Name another group.",
                projection=name,
            )


def checkpoint_of(build: Build, generation: str, states: Mapping[int, StoreState]) -> ProjectionCheckpoint:
    """Give the checkpoint of a build as its stores are.

    Args:
        build: The build.
        generation: The projection's generation.
        states: What each of its stores says of itself.
    """
    newest = max(states.values(), key=lambda state: state.record_ms or 0, default=None)
    return ProjectionCheckpoint(
        topic=build.manifest.topic,
        topic_id=build.manifest.topic_id,
        positions={partition: state.position for partition, state in states.items()},
        last_event_id=None if newest is None else newest.last_event_id,
        events_processed=sum(state.events for state in states.values()),
        generation=generation,
        build=build.manifest.build,
        directory=build.manifest.directory,
        time=datetime.now(UTC),
    )


def generation_id(name: str, version: int) -> str:
    """Name a projection's generation: its name and version, as the reference's zero-downtime steps advise."""
    return f"{name}.v{version}"


def belongs(generation: str, name: str) -> bool:
    """Say whether a generation is of the projection of that name."""
    return generation == name or generation.rpartition(".v")[0] == name
