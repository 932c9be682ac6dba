"""The rebuild coordinator: one projection, one topic, one rebuild at a time."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any
from weakref import WeakSet

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from streams.config import FoldSettings
from streams.control.fold_run import FoldRun
from streams.control.ground import Ground
from streams.control.hooks import RebuildHook
from streams.control.own_ground import OwnGround
from streams.control.own_store_run import OwnStoreRun
from streams.control.reporters import ProgressReporter, reported
from streams.control.retry import Retry, retried
from streams.control.run import Run
from streams.control.strategies import FromBeginning, FromCheckpoint, RebuildStrategy, SpecificStreams
from streams.control.streams_run import StreamsRun
from streams.control.threads import stopped_with_its_task
from streams.data.checkpoint import CheckpointStore, KafkaCheckpointStore
from streams.data.generation import StateStore
from streams.data.read_models import ReadModelStore
from streams.data.recovery import RecoveryPolicy
from streams.data.runner import MakeRunner, ThreadRunner
from streams.data.source import KafkaEventStore
from streams.data.supervisor import supervised
from streams.errors import ConfigError
from streams.resolving import load
from streams.types import ProjectionCheckpoint, RebuildProgress

__all__ = ["RebuildCoordinator"]


class RebuildCoordinator:
    """Rebuilds a projection's read models from its event log (reference: RebuildCoordinator).

    The rebuild runs as an agent of the projection's consumer group, on threads of its own; every method may
    be called from any thread or task.

    Args:
        projection: What to fold.
        event_store: The log.
        read_model_store: Where models are kept. A `RocksStore` has the positions with them, and all that is here; so
            has an `AtomicReadModelStore` of your own. With any other `ReadModelStore`, models are written first and
            then the checkpoint: being killed in between has events folded again into models that have them already
            (at least once). Into a store of your own, one thread of this process folds, in no group; it takes
            FromBeginning, FromCheckpoint and SpecificStreams, and an event that cannot be folded halts it.
        checkpoint_store: With a `RocksStore`, the group whose committed offsets mirror the positions. With a store of
            your own, any `CheckpointStore`: it mirrors the positions, or, where that is not atomic, is where they are.
        settings: How to fold; by default from the environment.
        allow_incomplete: Fold what is left where retention or compaction has taken events; otherwise such a
            rebuild is refused before anything is changed.
        generation: The generation's id; by default that of the code's name and version.
        adopt: Keep models that other code has folded, where a strategy keeps them; otherwise that is refused.
        snapshot_every: Events between two snapshots while a rebuild runs, of which the newest three are kept; None for
            none (reference: Incremental Snapshots).
        retry: How often to try again where what ended a rebuild may pass (see `is_transient`); None: never.
        workers: How many agents fold, as members of the group that share its partitions (reference: Parallel
            Processing): 1 on a thread of this process; more, each in a process of its own, supervised (`Supervisor`).
        runner: Where the agent runs, if not so: `ProcessRunner`, or one of your own.
        recovery: What becomes of events that cannot be folded; by default what the settings say.
        reporters: Who is told of the progress of each rebuild (see `ProgressReporter`).
        hooks: Who is told of what becomes of each rebuild (see `RebuildHook`).
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        event_store: KafkaEventStore,
        read_model_store: StateStore | ReadModelStore[Any],
        checkpoint_store: CheckpointStore,
        *,
        settings: FoldSettings | None = None,
        allow_incomplete: bool = False,
        generation: str | None = None,
        adopt: bool = False,
        snapshot_every: int | None = None,
        retry: Retry | None = None,
        workers: int = 1,
        runner: MakeRunner | None = None,
        recovery: RecoveryPolicy | None = None,
        reporters: Sequence[ProgressReporter] = (),
        hooks: Sequence[RebuildHook] = (),
    ) -> None:
        settings = settings or load(FoldSettings)
        self._ground: Ground | OwnGround
        if isinstance(read_model_store, StateStore):
            if not isinstance(checkpoint_store, KafkaCheckpointStore):
                raise ConfigError(
                    "RocksStore has its positions with the models, and mirrors them to a consumer group: give a "
                    f"KafkaCheckpointStore, and not a {type(checkpoint_store).__qualname__}."
                )
            self._ground = Ground(
                projection=projection,
                events=event_store,
                store=read_model_store,
                checkpoints=checkpoint_store,
                settings=settings,
                allow_incomplete=allow_incomplete,
                generation=generation,
                adopt=adopt,
                recovery=recovery,
            )
        elif not isinstance(read_model_store, ReadModelStore):
            raise ConfigError(
                f"{type(read_model_store).__qualname__} is no ReadModelStore: derive it from that, and give it "
                "upsert, get, delete, clear and iterate."
            )
        else:
            asked = {"workers": workers > 1, "runner": runner, "recovery": recovery, "snapshot_every": snapshot_every}
            if named := [name for name, is_asked in asked.items() if is_asked]:
                raise ConfigError(
                    f"{', '.join(named)}: that is for RocksStore. Into {type(read_model_store).__qualname__} one "
                    "thread folds, without dead letters and snapshots."
                )
            self._ground = OwnGround(
                projection=projection,
                events=event_store,
                models=read_model_store,
                checkpoints=checkpoint_store,
                settings=settings,
                allow_incomplete=allow_incomplete,
                generation=generation,
                adopt=adopt,
            )
        if workers < 1:
            raise ConfigError(f"workers is {workers}: at least one has to fold.")
        fingerprint(projection)  # a service may live long: what is loaded now is what it will fold with
        self._make_runner = runner or (ThreadRunner if workers == 1 else supervised(workers))
        self._snapshot_every = snapshot_every
        self._retry = retry
        self._reporters, self._hooks = tuple(reporters), tuple(hooks)
        self._runs: WeakSet[Run] = WeakSet()
        """Those that run or are about to; one whose coroutine nobody awaits goes with it."""
        self._newest: Run | None = None

    def rebuild_from_beginning(self) -> Coroutine[Any, Any, RebuildProgress]:
        """Fold every event again, into an empty build (reference: rebuild_from_beginning).

        Returns:
            The final figures.

        Raises:
            See `rebuild`.
        """
        return self.rebuild(FromBeginning())

    def rebuild_from_checkpoint(
        self, checkpoint: ProjectionCheckpoint | None = None
    ) -> Coroutine[Any, Any, RebuildProgress]:
        """Fold what comes after a checkpoint, over the models as they are (reference: rebuild_from_checkpoint).

        A rebuild that was cancelled, killed or failed goes on, and ends where it was to end.

        Args:
            checkpoint: From `RebuildCancelled.checkpoint`, or a `CheckpointStore`; None for where the models are.

        Returns:
            The final figures.

        Raises:
            CheckpointError: The checkpoint is of nothing yet (`ProjectionCheckpoint.initial()`: use FromBeginning), of
                another projection or topic, or its offsets are gone; or the models are not of it. Nothing was changed.
            CodeChanged: The models were folded by other code; see `adopt`. Nothing was changed.
            See `rebuild`.
        """
        return self.rebuild(FromCheckpoint(checkpoint))

    def rebuild(self, strategy: RebuildStrategy) -> Coroutine[Any, Any, RebuildProgress]:
        """Rebuild, starting where the strategy says, up to the end that the topic has now.

        1. Check: the topic is there, nobody folds in the group or the directory.
        2. Let the strategy make the next build, pin each partition's end, reset the group's offsets to where the build
           begins, and make it current.
        3. Fold, until every partition's position in the store has reached its pinned end, and no further.

        A crash, an error or a cancellation after step 2 leaves each partition's models true to its position;
        running the projection goes on from there. Before, it leaves everything as it was.

        Args:
            strategy: Where to start, and with what state.

        Returns:
            The final figures; `completion_percentage()` is 100.0.

        Raises:
            GroupActive, StoreLocked: Somebody folds in the group or the directory. Nothing was changed.
            HistoryIncomplete: Events are gone that the rebuild needs. Nothing was changed.
            RebuildRunning: A rebuild of this state runs already. Nothing was changed.
            RebuildCancelled: `cancel` was called; its `checkpoint` is where to go on.
            CheckpointError: A strategy that keeps the models cannot begin where it is to. Nothing was changed.
            EventError, ProjectionError: At an event that cannot be folded, once the other partitions are done.
            ModelSplit: Events of one model are on several partitions.
            BrokerError, StorageError: Kafka or the disk.
            asyncio.CancelledError: The task was cancelled: as `cancel`, then this.
        """
        run = self._new_run(strategy)
        if self._retry is None:
            work = self._await(run)
        else:
            work = retried(self._retry, strategy, self._new_run, self._await, run)
        if not (self._reporters or self._hooks):
            return work
        return reported(self._reporters, self.get_progress, work, self._hooks)

    def _new_run(self, strategy: RebuildStrategy) -> Run:
        run: Run
        if isinstance(self._ground, OwnGround):
            run = OwnStoreRun(self._ground, strategy)
        elif isinstance(strategy, SpecificStreams):
            run = StreamsRun(self._ground, strategy)
        else:
            run = FoldRun(self._ground, strategy, self._make_runner, self._snapshot_every)
        self._runs.add(run)
        self._newest = run
        return run

    async def _await(self, run: Run) -> RebuildProgress:
        run.begin()
        try:
            return await stopped_with_its_task(run.rebuild, run.cancel)
        finally:
            self._runs.discard(run)

    def get_progress(self) -> RebuildProgress:
        """Give the figures of the rebuild that runs, or of the last one. Immutable, and cheap to ask for."""
        run = self._newest
        return RebuildProgress() if run is None else run.progress

    def cancel(self) -> None:
        """Ask the rebuild that runs, or is about to, to stop after the event it is at; it raises RebuildCancelled.

        Without a rebuild it does nothing. What was folded is committed.
        """
        for run in list(self._runs):
            run.cancel()
