"""A rebuild that folds: a claimed build, an agent of the group, and the look at both until the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from streams.control.claim_rebuild import claim_rebuild, preflight
from streams.control.ground import Claimed, Ground
from streams.control.members import Members
from streams.control.periodic import PeriodicSnapshots
from streams.control.progress import ProgressTracker
from streams.control.run import Run, note_end
from streams.control.strategies import RebuildStrategy
from streams.data.agent import AgentStatus
from streams.data.build import Build
from streams.data.checkpoint import checkpoint_of
from streams.data.partition import PartitionStatus, Phase
from streams.data.reader import ModelReader
from streams.data.runner import MakeRunner, Runner
from streams.errors import ProjectionError, RebuildCancelled, at
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["FoldRun"]

log = get_logger(__name__)

_LOOK_S = 0.02
_SESSION_LOOK_S = 0.5
_TELL_S = 5.0
_WAITS_S = 4.0


class FoldRun(Run):
    """Makes the build that a strategy asks for, and folds it to the ends that the topic has then.

    Args:
        ground: What to rebuild.
        strategy: Where to start, and with what state.
        make_runner: Where the agent runs.
        snapshot_every: Events between two snapshots; None for none.
    """

    def __init__(
        self, ground: Ground, strategy: RebuildStrategy, make_runner: MakeRunner, snapshot_every: int | None = None
    ) -> None:
        super().__init__(ground.projection.name, ground.events.topic)
        self._ground = ground
        self._strategy = strategy
        self._make_runner = make_runner
        self._snapshot_every = snapshot_every
        self._told_s = 0.0
        self._waits_since = time.monotonic()

    def _rebuild(self) -> RebuildProgress:
        ground = self._ground
        self._check_cancelled()
        with ground.store.rebuilding(f"rebuild of {ground.name}"):
            self._wait_for_own_session()
            preflight(ground)
            claimed = claim_rebuild(ground, self._strategy, self._check_cancelled)
            with claimed.lock:
                done = sum(one.events for one in claimed.figures.values()) - claimed.before.events
                self._tracker = ProgressTracker(claimed.pinned, claimed.before, done)
                self._waits_since = time.monotonic()
                return self._fold(claimed, self._tracker)

    def _wait_for_own_session(self) -> None:
        """Wait until the group has dropped the member that the attempt before this one could not take out of it."""
        if self._follows is None:
            return
        cluster, group = self._ground.events.cluster, self._ground.checkpoints.group
        build = self._ground.store.current()
        directory = None if build is None else build.manifest.directory
        deadline = time.monotonic() + self._ground.settings.session_timeout_s + _TELL_S
        while time.monotonic() < deadline and any(one.directory == directory for one in cluster.members(group)):
            self._check_cancelled()
            self._before = replace(self._before, waiting_for="the session of the attempt before to end")
            time.sleep(_SESSION_LOOK_S)

    def _fold(self, claimed: Claimed, tracker: ProgressTracker) -> RebuildProgress:
        """Run an agent until the group has committed every target; whatever happens, close the tracker's books."""
        members = Members(claimed.job, claimed.pinned, claimed.figures)
        figures = members.figures(AgentStatus())
        try:
            runner = self._make_runner(claimed.job)
            runner.start()
            try:
                done = tracker.snapshot.events_processed
                with PeriodicSnapshots(claimed.job.build, self._snapshot_every, done) as periodic:
                    self._watch(runner, members, tracker, periodic)
            finally:
                runner.stop()
                while not runner.wait(_TELL_S):
                    log.debug("rebuild.draining", projection=self._ground.projection.name)
                figures = members.figures(runner.status)
            runner.result()
            self._check_done(claimed, figures)
            with self._ground.store.reader(self._ground.projection) as reader:
                if claimed.job.build.is_in_files:  # a database has one key for all partitions
                    reader.check_not_split()
                states = reader.states()
        except BaseException as error:
            note_end(claimed.job.build, tracker.ended(figures, error), error)
            raise
        folded = [state for state in states.values() if state.events > state.declined]
        if folded and all(state.gave_nothing for state in folded):
            log.warning(
                "rebuild.gave_no_models",
                method=f"{type(self._ground.projection).__qualname__}.apply_to_model",
                why="it gave None for every event, which deletes the model; is a `return model` missing?",
            )
        progress = tracker.ended(figures, states=states, checkpoints=runner.status.work.commits)
        note_end(claimed.job.build, progress)
        claimed.job.build.kind.finish(claimed.job.build.stores)
        return progress

    def _watch(self, runner: Runner, members: Members, tracker: ProgressTracker, periodic: PeriodicSnapshots) -> None:
        """Look on until the agent has ended, or the whole group is done, or the rebuild is cancelled."""
        while True:
            has_ended = runner.wait(_LOOK_S)
            status = runner.status
            figures = members.figures(status)
            tracker.observe(figures, self._waiting_for(members, status), status.work.commits)
            periodic.observe(tracker.snapshot.events_processed)
            done = all(
                one.is_halted or one.committed >= tracker.snapshot.partitions[partition].target
                for partition, one in figures.items()
            )
            if has_ended or done or self._cancelled.is_set():
                return

    def _waiting_for(self, members: Members, status: AgentStatus) -> str:
        """Say what the rebuild waits for and since when, once that takes longer than a rebalance does."""
        now = time.monotonic()
        what = members.waiting_for(status)
        if not what:
            self._waits_since = now
        waited_s = now - self._waits_since
        if waited_s < _WAITS_S:
            return ""
        if now - self._told_s >= _TELL_S:
            self._told_s = now
            log.warning("rebuild.waits", projection=self._ground.projection.name, seconds=round(waited_s), on=what)
        return f"{what}; for {waited_s:.0f} s by now"

    def _check_done(self, claimed: Claimed, figures: Mapping[int, PartitionStatus]) -> None:
        for partition, one in sorted(figures.items()):
            if one.phase is Phase.HALTED:  # in another process: one of ours has raised by now
                raise ProjectionError(
                    f"{at(claimed.job.topic.name, partition)} has halted in another member of the group: {one.why}",
                    projection=self._ground.projection.name,
                    topic=claimed.job.topic.name,
                    partition=partition,
                )
        if any(one.committed < claimed.pinned[partition].target for partition, one in figures.items()):
            events = sum(one.events for one in figures.values()) - claimed.before.events
            raise self._cancelled_at(claimed.job.build, events)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set() and self._follows is not None:
            build = self._ground.store.current()
            assert build is not None
            raise self._cancelled_at(build, self._before.events_processed)
        super()._check_cancelled()

    def _cancelled_at(self, build: Build, events: int) -> RebuildCancelled:
        name = self._ground.projection.name
        cancelled = RebuildCancelled(
            f"The rebuild of {name!r} was cancelled after {events:,} events. What was folded is committed.",
            projection=name,
            topic=self._ground.events.topic,
        )
        with ModelReader(build, None) as reader:
            cancelled.checkpoint = checkpoint_of(build, self._ground.name, reader.states())
        return cancelled
