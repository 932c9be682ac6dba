"""The rebuild coordinator: one projection, one topic, one rebuild at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from projections.contract import CqrsProjection
from streams.cluster import Cluster
from streams.config import FoldSettings, load
from streams.control.progress import ProgressTracker
from streams.control.strategies import FromBeginning, RebuildStrategy, Target
from streams.data.agent import Agent, AgentStatus, PartitionStatus
from streams.data.checkpoint import KafkaCheckpointStore, Stamp
from streams.data.generation import Manifest, RocksStore
from streams.data.source import KafkaEventStore
from streams.errors import HistoryIncomplete, RebuildCancelled, at
from streams.log import get_logger
from streams.types import RebuildProgress, TopicInfo, Watermarks

__all__ = ["RebuildCoordinator"]

log = get_logger(__name__)

_OTHERS_S = 0.5


class RebuildCoordinator:
    """Rebuilds a projection's read models from its event log (reference: RebuildCoordinator).

    The rebuild runs as an agent of the projection's consumer group, on a thread of its own; every method may
    be called from any thread or task.

    Args:
        projection: What to fold.
        event_store: The log.
        read_model_store: Where models and positions are kept, together.
        checkpoint_store: The group whose committed offsets mirror the positions.
        settings: How to fold; by default from the environment.
        allow_incomplete: Fold what is left where retention or compaction has taken events; otherwise such a
            rebuild is refused before anything is changed.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        event_store: KafkaEventStore,
        read_model_store: RocksStore,
        checkpoint_store: KafkaCheckpointStore,
        *,
        settings: FoldSettings | None = None,
        allow_incomplete: bool = False,
    ) -> None:
        self._projection = projection
        self._events = event_store
        self._store = read_model_store
        self._checkpoints = checkpoint_store
        self._settings = settings or load(FoldSettings)
        self._allow_incomplete = allow_incomplete
        self._tracker: ProgressTracker | None = None
        self._guard = threading.Lock()
        self._agent: Agent | None = None
        self._cancelled = False

    async def rebuild_from_beginning(self) -> RebuildProgress:
        """Clear all models and checkpoints and fold every event again (reference: rebuild_from_beginning).

        Returns:
            The final figures.

        Raises:
            See `rebuild`.
        """
        return await self.rebuild(FromBeginning())

    async def rebuild(self, strategy: RebuildStrategy) -> RebuildProgress:
        """Rebuild, starting where the strategy says, up to the end that the topic has now.

        1. Check: the topic is there with its whole history, nobody folds in the group or the directory. Pin
           each partition's end.
        2. Let the strategy prepare state and positions.
        3. Fold, until every partition's position in the store has reached its pinned end.

        A crash, an error or a cancellation after step 2 leaves each partition's models true to its position;
        running the projection goes on from there.

        Args:
            strategy: Where to start, and with what state.

        Returns:
            The final figures; `completion_percentage()` is 100.0.

        Raises:
            GroupActive: The group has members. Nothing was changed.
            HistoryIncomplete: Events are gone that the rebuild needs. Nothing was changed.
            RebuildError: A rebuild of this state runs already. Nothing was changed.
            RebuildCancelled: `cancel` was called.
            EventError, ProjectionError: At an event that cannot be folded.
            BrokerError, StorageError: Kafka or the disk.
            asyncio.CancelledError: The task was cancelled: as `cancel`, then this.
        """
        work = asyncio.ensure_future(asyncio.to_thread(self._rebuild, strategy))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.cancel()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # seen: the cancellation is what the caller is told
            raise

    def get_progress(self) -> RebuildProgress:
        """Give the figures of the rebuild that runs, or of the last one. Immutable, and cheap to ask for."""
        tracker = self._tracker
        return RebuildProgress() if tracker is None else tracker.snapshot

    def cancel(self) -> None:
        """Ask the rebuild that runs to stop after the event it is at; it then raises RebuildCancelled.

        Without a rebuild it does nothing. What was folded is committed.
        """
        with self._guard:
            self._cancelled = True
            if self._agent is not None:
                self._agent.stop()

    def _rebuild(self, strategy: RebuildStrategy) -> RebuildProgress:
        self._cancelled = False
        with self._store.rebuilding():
            # Step 1
            cluster = self._events.cluster
            topic = cluster.topic(self._events.topic)
            watermarks = self._preflight(cluster, topic)
            log.debug("rebuild.strategy_selected", projection=self._projection.name, strategy=repr(strategy))
            # Step 2
            wanted = Manifest.of(self._projection, topic)
            manifest = strategy.prepare(Target(wanted=wanted, store=self._store, checkpoints=self._checkpoints))
            # Step 3
            tracker = ProgressTracker(
                {partition: marks.low for partition, marks in watermarks.items()},
                {partition: marks.high for partition, marks in watermarks.items()},
            )
            self._tracker = tracker
            progress = self._fold(topic, manifest, tracker)
            log.info(
                "rebuild.completed",
                projection=self._projection.name,
                events=progress.events_processed,
                seconds=round(progress.elapsed_seconds, 3),
            )
            return progress

    def _preflight(self, cluster: Cluster, topic: TopicInfo) -> dict[int, Watermarks]:
        cluster.check_inactive(self._checkpoints.group)
        watermarks = cluster.watermarks(topic)
        missing = [
            f"{at(topic.name, partition)} lacks its first {marks.low} offsets"
            for partition, marks in sorted(watermarks.items())
            if marks.low > 0
        ]
        if "compact" in cluster.topic_config(topic.name).get("cleanup.policy", ""):
            missing.append(f"{topic.name} is compacted, which keeps only the last event of each stream")
        if missing and not self._allow_incomplete:
            raise HistoryIncomplete(
                f"History is incomplete: {'; '.join(missing)}. A rebuild would give models without these events; "
                "nothing was changed. Allow it (allow_incomplete=True, --allow-incomplete) if you mean it.",
                projection=self._projection.name,
                topic=topic.name,
            )
        if missing:
            log.warning("rebuild.history_incomplete", topic=topic.name, missing=missing)
        return watermarks

    def _fold(self, topic: TopicInfo, manifest: Manifest, tracker: ProgressTracker) -> RebuildProgress:
        """Run an agent until the group has committed every target; whatever happens, close the tracker's books."""
        members = _Members(self._events.cluster, self._checkpoints.group, topic, manifest.epoch)

        def is_done(status: AgentStatus) -> bool:
            figures = members.figures(status)
            tracker.observe(figures)
            return all(figures[p].position >= lag.target for p, lag in tracker.snapshot.partitions.items())

        agent = Agent(
            self._projection,
            self._events,
            self._store,
            self._checkpoints.group,
            topic,
            manifest,
            self._settings,
            allow_incomplete=self._allow_incomplete,
            done=is_done,
        )
        try:
            with self._guard:
                self._agent = agent
                if self._cancelled:
                    agent.stop()
            try:
                agent.run()
            finally:
                with self._guard:
                    self._agent = None
            figures = members.figures(agent.status)
            if any(figures[p].committed < lag.target for p, lag in tracker.snapshot.partitions.items()):
                raise self._cancellation(sum(one.events for one in figures.values()))
        except BaseException as error:
            progress = tracker.ended(members.figures(agent.status), error)
            log.warning("rebuild.failed", projection=self._projection.name, why=progress.error)
            raise
        return tracker.ended(figures)

    def _cancellation(self, events: int) -> RebuildCancelled:
        return RebuildCancelled(
            f"The rebuild of {self._projection.name!r} was cancelled after {events} events. What was folded is "
            "committed; running the projection goes on from there.",
            projection=self._projection.name,
            topic=self._events.topic,
        )


class _Members:
    """The whole group's figures: our agent's, and what others have committed of partitions that are theirs now."""

    def __init__(self, cluster: Cluster, group: str, topic: TopicInfo, epoch: int) -> None:
        self._cluster = cluster
        self._group = group
        self._topic = topic
        self._epoch = epoch
        self._looked = -_OTHERS_S
        nothing = PartitionStatus(position=-1, committed=-1, events=0, declined=0)
        self._known = dict.fromkeys(range(topic.partitions), nothing)

    def figures(self, status: AgentStatus) -> dict[int, PartitionStatus]:
        """Give every partition's figures; those of other members are asked of Kafka, now and then."""
        self._known.update(status.partitions)
        missing = self._known.keys() - status.partitions.keys()
        if missing and time.monotonic() - self._looked >= _OTHERS_S:
            committed = self._cluster.committed(self._group, self._topic)
            for partition in missing & committed.keys():
                stamp = Stamp.parse(committed[partition].metadata)
                if stamp is not None and stamp.epoch == self._epoch:
                    position = committed[partition].position
                    self._known[partition] = PartitionStatus(
                        position=position, committed=position, events=stamp.events, declined=stamp.declined
                    )
            self._looked = time.monotonic()
        return self._known
