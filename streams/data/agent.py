"""The agent: one process's loop over one generation. Live folding and replay are the same code.

topic → decode → fold → store → commit, for each partition that the group gives this member.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.data.assignment import Assignment, check_history
from streams.data.checkpoint import Pace, Stamp, generation_id
from streams.data.collector import rare_collections
from streams.data.fold import Fold, ModelCannotBeStored
from streams.data.generation import Manifest, RocksStore
from streams.data.serde import serde_for
from streams.data.source import KafkaEventStore, Slice, Subscription
from streams.data.store import RocksPartition
from streams.errors import (
    CqrsError,
    EventError,
    ProjectionError,
)
from streams.log import get_logger
from streams.types import Committed, TopicInfo, Watermarks

__all__ = ["Agent", "AgentStatus", "PartitionStatus"]

log = get_logger(__name__)

_IDLE_S = 0.1
_MIRROR_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStatus:
    """How far one partition is folded."""

    position: int
    """The next offset to fold."""
    committed: int
    """The position in the store, with its models."""
    events: int
    """Events folded or declined since this epoch began."""
    declined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What an agent has done so far; a snapshot that any thread may read."""

    partitions: dict[int, PartitionStatus] = field(default_factory=dict)
    """Those held now; after `run`, those that were held at its end."""
    events: int = 0
    """Events folded or declined by this agent since it started. One that had to be read again counts once."""
    models: int = 0
    """Models in the stores of the partitions held, as committed."""


class Agent:
    """One member of a generation's consumer group.

    `run` blocks; `stop`, `interrupt` and `status` may be called from any thread.

    Args:
        projection: The user's code.
        events: The topic.
        store: The generation's state directory.
        group: Its consumer group.
        topic: The topic as described when the caller checked it.
        manifest: What the directory is of, as `RocksStore.claim` or `clear` gave it.
        settings: How to fold.
        allow_incomplete: Begin at the first offset that is left where the front of a partition is gone.
        done: Asked after each batch, with the status; True commits and ends `run`.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        events: KafkaEventStore,
        store: RocksStore,
        group: str,
        topic: TopicInfo,
        manifest: Manifest,
        settings: FoldSettings,
        *,
        allow_incomplete: bool = False,
        done: Callable[[AgentStatus], bool] | None = None,
    ) -> None:
        self._projection = projection
        self._events = events
        self._store = store
        self._group = group
        self._topic = topic
        self._manifest = manifest
        self._settings = settings
        self._allow_incomplete = allow_incomplete
        self._done = done
        self._serde = serde_for(projection.model_type())
        self._generation = generation_id(projection.name, projection.version)
        self._held: dict[int, _Held] = {}
        self._pace = Pace(settings)
        self._interrupts: list[str] = []
        self._released_events = 0
        self._unmirrored: set[int] = set()
        self._mirrored_s = 0.0
        self._status = AgentStatus()

    @property
    def status(self) -> AgentStatus:
        """The figures as of the last batch."""
        return self._status

    def stop(self) -> None:
        """Ask `run` to end: the event being folded is finished, everything is committed, the group is left."""
        self._interrupts.append("stop")

    def run(self) -> None:
        """Fold until stopped or done.

        1. Join the group; partitions come and go inside `poll`.
        2. Poll a batch, fold it, take a checkpoint when one is due.
        3. At the end, or at an error: commit what is whole, leave the group, close the stores.

        A crash anywhere leaves each store as of its last commit; the next start seeks there.

        Raises:
            EventError, ProjectionError: At a record that cannot be folded, once all before it is committed.
            CqrsError: See `Subscription.poll` and `Assignment.open`.
        """
        with rare_collections():
            self._run()

    def _run(self) -> None:
        # Step 1
        self._subscription = Subscription(
            self._events, self._group, self, session_timeout_s=self._settings.session_timeout_s
        )
        log.debug("agent.started", projection=self._projection.name, group=self._group, topic=self._topic.name)
        clean = False
        try:
            # Step 2
            while not self._interrupts:
                pending = sum(held.fold.pending for held in self._held.values())
                slices = self._subscription.poll(_IDLE_S, self._pace.room(pending))
                self._fold(slices)
                self._checkpoint_if_due(idle=not any(piece.records for piece in slices))
                self._publish()
                if self._is_done():
                    break
            clean = True
        except CqrsError:
            # Every error of ours leaves the folds whole: what failed was settled or discarded where it failed.
            clean = True
            raise
        finally:
            # Step 3
            self._close(clean)

    def _is_done(self) -> bool:
        """Ask whether this was all; only what is in the stores counts, so commit before saying yes."""
        if self._done is None or not self._done(self._status):
            return False
        self._checkpoint(wait=True)
        self._publish()
        return self._done(self._status)

    def _close(self, clean: bool) -> None:
        try:
            if clean and self._held:
                self._checkpoint(wait=True)
                self._publish()
        finally:
            for held in self._held.values():
                held.fold.close()
            self._held.clear()
            self._subscription.close()
            log.debug("agent.stopped", projection=self._projection.name, group=self._group)

    # Folding

    def _fold(self, slices: Sequence[Slice]) -> None:
        rewound: set[int] = set()
        for piece in slices:
            held = self._held.get(piece.partition)
            if held is None or piece.partition in rewound:
                continue  # revoked, or read again from further back, since this was fetched
            if piece.refused is not None:
                self._read_on(piece.partition, held, piece.refused)
                continue
            try:
                settled = held.take(piece)
            except (EventError, ProjectionError) as error:
                # Models of this batch may be half changed: begin again at the store's position, and end
                # in front of the record that failed.
                held.fold.discard()
                held.halt = error
                self._subscription.rewind(piece.partition)
                rewound.add(piece.partition)
                continue
            if settled is not None:
                raise settled
            if self._interrupts:
                return  # the rest of the batch was not folded, and the positions say so

    def _read_on(self, partition: int, held: _Held, why: str) -> None:
        """Find out why a partition could not be read from its position on; if it can, try again.

        A broker says so too of a position that is fine, while the partition's leader is only just finding out its
        end.
        """
        watermarks = self._events.cluster.watermarks(self._topic)
        check_history(self._manifest, partition, held.fold.position, watermarks[partition])
        log.warning("source.read_again", partition=partition, position=held.fold.position, why=why)
        self._subscription.rewind(partition)

    def _checkpoint_if_due(self, *, idle: bool) -> None:
        moved = [held for held in self._held.values() if held.fold.has_moved]
        share = self._settings.cache_bytes // max(1, len(self._held))
        for held in self._held.values():
            held.fold.evict(share)
        if moved:
            pending = sum(held.fold.pending for held in moved)
            changed = sum(held.fold.changed for held in moved)
            if self._pace.is_due(pending, changed, idle=idle) or any(held.fold.is_full(share) for held in moved):
                self._checkpoint()
        self._mirror()

    def _checkpoint(self, *, wait: bool = False) -> None:
        """Commit every fold that moved: its store first, then the group's offsets behind it."""
        began = time.monotonic()
        models = sum(held.fold.changed for held in self._held.values())
        for partition, held in list(self._held.items()):
            if held.fold.has_moved and not self._commit(partition, held):
                held.fold.carefully = True
                self._subscription.rewind(partition)
        self._pace.taken(began, models)
        self._mirror(wait=wait)

    def _commit(self, partition: int, held: _Held) -> bool:
        """Commit one fold to its store. False: a model cannot be stored, and the fold is back at its last commit."""
        try:
            held.fold.commit()
        except ModelCannotBeStored as error:
            log.warning("fold.read_again", partition=partition, position=held.fold.committed, why=str(error))
            held.fold.discard()
            return False
        held.fold.carefully = False
        self._unmirrored.add(partition)
        return True

    def _mirror(self, *, wait: bool = False) -> None:
        now = time.monotonic()
        self._unmirrored |= self._subscription.take_refused() & self._held.keys()
        if self._unmirrored and (wait or now - self._mirrored_s >= _MIRROR_S):
            committed = {
                partition: self._stamped(self._held[partition].store)
                for partition in self._unmirrored
                if partition in self._held
            }
            self._unmirrored.clear()
            self._mirrored_s = now
            self._subscription.commit(committed, wait=wait)

    def _stamped(self, store: RocksPartition) -> Committed:
        state = store.state
        stamp = Stamp(
            generation=self._generation,
            epoch=state.epoch,
            fingerprint=self._manifest.fingerprint,
            events=state.events,
            declined=state.declined,
            last_event_id=state.last_event_id,
            time_ms=time.time_ns() // 1_000_000,
        )
        return Committed(position=state.position, metadata=stamp.encode())

    def _publish(self) -> None:
        self._status = AgentStatus(
            partitions={
                partition: PartitionStatus(
                    position=held.fold.position,
                    committed=held.fold.committed,
                    events=held.fold.events,
                    declined=held.fold.declined,
                )
                for partition, held in self._held.items()
            },
            events=self._released_events + sum(held.fold.events - held.events_before for held in self._held.values()),
            models=sum(held.store.state.models for held in self._held.values()),
        )

    # Partitions: called by the subscription from within `poll`

    def assigned(self, partitions: Sequence[int]) -> dict[int, int]:
        """Open the stores of partitions that the group gave us; their positions are where reading begins.

        1. Look at what the group has committed, and at what the topic still has.
        2. Open each store, waiting a bounded time for an owner that is just closing it; see `Assignment.open`.

        A crash in between has written nothing but empty stores.
        """
        # Step 1
        committed = self._events.cluster.committed(self._group, self._topic)
        watermarks = self._events.cluster.watermarks(self._topic)
        positions = {}
        for partition in partitions:
            # Step 2
            store = Assignment(
                manifest=self._manifest,
                group=self._group,
                partition=partition,
                committed=committed.get(partition),
                watermarks=watermarks.get(partition, Watermarks(low=0, high=0)),
                allow_incomplete=self._allow_incomplete,
            ).open(self._store)
            fold = Fold(self._projection, self._events.codec, self._serde, store, self._interrupts)
            self._held[partition] = _Held(fold, store, fold.events)
            self._unmirrored.add(partition)
            positions[partition] = fold.position
        log.info("partitions.assigned", projection=self._projection.name, positions=positions)
        return positions

    def position(self, partition: int) -> int:
        """Give the next offset to fold."""
        return self._held[partition].fold.position

    def revoked(self, partitions: Sequence[int]) -> None:
        """Commit these partitions to their stores and to the group, and close them: the next owner waits."""
        going = [partition for partition in partitions if partition in self._held]
        for partition in going:
            held = self._held[partition]
            if held.fold.has_moved:
                self._commit(partition, held)
        self._mirror(wait=True)
        self._release(going)

    def lost(self, partitions: Sequence[int]) -> None:
        """Close these partitions without writing: another member may be folding them already."""
        for partition in partitions:
            if partition in self._held:
                self._held[partition].fold.discard()
        self._release([partition for partition in partitions if partition in self._held])

    def _release(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            held = self._held.pop(partition)
            self._released_events += held.store.state.events - held.events_before
            self._unmirrored.discard(partition)
            held.fold.close()
        if partitions:
            log.info("partitions.released", projection=self._projection.name, partitions=list(partitions))


@dataclass(slots=True)
class _Held:
    """One partition that this agent folds."""

    fold: Fold
    store: RocksPartition
    events_before: int
    halt: EventError | ProjectionError | None = None
    """Why the fold is to end, and where, while everything before that record is folded again."""

    def take(self, piece: Slice) -> EventError | ProjectionError | None:
        """Fold one slice. Gives `halt` once everything in front of its record is folded.

        Raises:
            EventError, ProjectionError: A record cannot be folded.
        """
        if self.halt is None:
            if piece.end is not None:
                self.fold.skip_to(piece.end)
            else:
                self.fold.fold(piece.records)
            return None
        stop = self.halt.offset or 0
        before = [record for record in piece.records if record.offset() < stop]
        if before:
            self.fold.fold(before)
        return self.halt if len(before) < len(piece.records) else None
