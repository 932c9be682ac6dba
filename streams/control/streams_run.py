"""A rebuild of some streams, while the others are folded on, or by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from streams.control.claim_rebuild import claim_rebuild
from streams.control.ground import Ground, check_by_stream, check_group
from streams.control.progress import ProgressTracker
from streams.control.refolding import Refolding
from streams.control.run import Run, note_end
from streams.control.strategies import SpecificStreams
from streams.control.target import Prepared, Target
from streams.data.build import Build, Manifest, RebuildRecord
from streams.data.history import check_complete
from streams.data.partition import PartitionStatus
from streams.data.reader import ModelReader
from streams.data.repository import Repository
from streams.data.serde import serde_for
from streams.errors import CheckpointError, CodeChanged, GroupActive, RepositoryError, StoreLocked, at
from streams.log import get_logger
from streams.types import Lag, RebuildProgress, TopicInfo, Watermarks

__all__ = ["StreamsRun"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    """What puts streams that are read already in their place."""

    strategy: SpecificStreams
    refolding: Refolding
    unfinished: RebuildRecord | None
    """The rebuild that made the models and has not come to its end: it can still be gone on with."""

    def prepare(self, target: Target) -> Prepared:
        prepared = self.refolding.prepared(target)
        return prepared if self.unfinished is None else replace(prepared, resumes=self.unfinished)

    def __str__(self) -> str:
        return str(self.strategy)


class StreamsRun(Run):
    """Folds some streams again, and puts their models in place.

    Nothing of it is kept before that: one that was interrupted is begun anew.

    Args:
        ground: What to rebuild.
        strategy: Which streams.
    """

    def __init__(self, ground: Ground, strategy: SpecificStreams) -> None:
        super().__init__(ground.projection.name, ground.events.topic)
        self._ground = ground
        self._streams = strategy
        self._interrupts: list[str] = []
        self._adopts = False  # then whoever might fold meanwhile would do so by other code

    def cancel(self) -> None:
        """Stop after the event at hand."""
        super().cancel()
        self._interrupts.append("cancel")

    @property
    def has_begun(self) -> bool:
        """Whether there is something to go on with: there never is."""
        return False

    def _rebuild(self) -> RebuildProgress:
        """Do it.

        1. See that the models are of this code and topic, and that the topic has its history.
        2. Fold the streams' events in memory, up to about where the models are. Nothing was changed so far.
        3. Where nobody folds: the next build is made of the models that there are, by hard links, with those of the
           streams in their place, and becomes current in one step.
        4. Otherwise: whoever has a partition's store open folds the streams on, beside the others, until both are at
           one position, and puts their models in place in one batch.

        A crash before step 3 has changed nothing. In step 4 each partition has the old models or the new ones.
        """
        ground = self._ground
        self._check_cancelled()
        with ground.store.rebuilding(f"rebuild of {ground.name}"):
            # Step 1
            topic, build, watermarks = self._look()
            # Step 2
            refolding = Refolding(
                ground.projection,
                ground.events,
                topic,
                build,
                self._streams.ids,
                str(self._streams),
                watermarks,
                self._interrupts,
            )
            tracker = self._track(refolding)
            try:
                check = self._checked(tracker, refolding)
                refolding.read(lambda: check(""))
                made = self._put_in_place(build, refolding, check)
            except BaseException as error:
                tracker.ended(_figures(refolding), error)
                raise
            finally:
                refolding.close()
            progress = tracker.ended(
                _figures(refolding, is_done=True), states={n: fold.kept.state for n, fold in refolding.folds.items()}
            )
            if made is not None:
                note_end(made, progress)
            return progress

    def _look(self) -> tuple[TopicInfo, Build, dict[int, Watermarks]]:
        """See that there are models whose streams can be folded again."""
        ground, cluster = self._ground, self._ground.events.cluster
        check_by_stream(ground.projection, "A rebuild from stream:")
        serde_for(ground.projection.model_type())
        topic = cluster.topic(ground.events.topic)
        wanted = Manifest.of(ground.projection, topic, ground.events.codec)
        with ground.store.claiming(f"rebuild of {ground.name}", group=ground.checkpoints.group) as claim:
            build = claim.current()
            if build is None:
                raise CheckpointError(
                    f"There are no models in {ground.store.directory} yet: fold the topic first. Nothing was changed.",
                    projection=ground.projection.name,
                    topic=topic.name,
                )
            claim.check_identity(build.manifest, wanted)
            members = cluster.members(ground.checkpoints.group)
            check_group(ground, claim, build, members, ground.checkpoints.stamped(topic))
            try:
                claim.check_code(build, wanted)
            except CodeChanged:
                if not ground.adopt:
                    raise
                claim.check_nobody_folds(build, "adopt it for other code")
                self._adopts = True
        watermarks = cluster.watermarks(topic)
        check_complete(
            cluster,
            topic,
            watermarks,
            projection=ground.projection.name,
            doing="Folding streams again",
            allow_incomplete=ground.allow_incomplete,
        )
        return topic, build, watermarks

    def _track(self, refolding: Refolding) -> ProgressTracker:
        self._tracker = ProgressTracker(
            {
                number: Lag(start=refolding.starts[number], position=refolding.starts[number], target=end)
                for number, end in refolding.positions.items()
                if number in refolding.folds
            },
        )
        return self._tracker

    def _checked(self, tracker: ProgressTracker, refolding: Refolding) -> Callable[[str], None]:
        def check(waiting_for: str) -> None:
            tracker.observe(_figures(refolding), waiting_for)
            self._check_cancelled()

        return check

    def _put_in_place(self, build: Build, refolding: Refolding, check: Callable[[str], None]) -> Build | None:
        """Put the models in place; give the build that was made for it, if one was."""
        ground = self._ground
        if self._adopts or not ground.store.folding(build):
            try:
                return self._switch(build, refolding)
            except (GroupActive, StoreLocked) as error:
                # Somebody has begun to fold, or the group still counts one who was killed: its positions stay as they
                # are, so neither is in the way.
                if self._adopts:
                    raise
                log.debug("rebuild.beside", projection=ground.projection.name, why=str(error))
        refolding.hand_over(f"rebuild of {ground.name}", check, lambda number: self._forget(build, number))
        return None

    def _forget(self, build: Build, partition: int) -> None:
        """Remove the snapshots of a partition from the repository: they have models from before."""
        try:
            repository = Repository.of(self._ground.settings, build.counts_as)
            if repository is not None:
                repository.forget(partition)
        except RepositoryError as error:
            log.warning(
                "snapshots.outdated",
                where=at(build.manifest.topic, partition),
                why=str(error),
                advice="They have these models as they were before: remove them.",
            )

    def _switch(self, build: Build, refolding: Refolding) -> Build | None:
        with ModelReader(build, None) as reader:
            record = build.rebuild()
            unfinished = record if record is not None and record.is_unfinished(reader.states()) else None
        claimed = claim_rebuild(self._ground, _Read(self._streams, refolding, unfinished), self._check_cancelled)
        claimed.lock.release()
        if unfinished is None:
            return claimed.job.build
        claimed.job.build.write_rebuild(unfinished)
        return None


def _figures(refolding: Refolding, *, is_done: bool = False) -> dict[int, PartitionStatus]:
    return {
        number: PartitionStatus(
            position=fold.position,
            committed=fold.position if is_done else -1,
            events=fold.events,
            declined=fold.declined,
            deleted=fold.deleted,
        )
        for number, fold in refolding.folds.items()
    }
