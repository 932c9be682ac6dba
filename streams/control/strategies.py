"""Where a rebuild starts, and with what models (reference: RebuildStrategy)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from streams.control.refolding import Refolding
from streams.control.search import Search
from streams.control.target import Prepared, Target
from streams.data.build import RebuildRecord
from streams.data.checkpoint import belongs
from streams.errors import CheckpointError, at
from streams.log import get_logger
from streams.types import ProjectionCheckpoint

log = get_logger(__name__)

__all__ = [
    "FromBeginning",
    "FromCheckpoint",
    "FromEvent",
    "FromPosition",
    "FromSnapshot",
    "FromTime",
    "RebuildStrategy",
    "SpecificStreams",
]

_NAMED = 5


@runtime_checkable
class RebuildStrategy(Protocol):
    """Makes the build that a rebuild folds. Called before the first event is read.

    What it makes is seen by nobody until all of it is there: then it becomes current in one step, and the build before
    it is removed. `str(strategy)` is what the rebuild's record calls it.
    """

    def prepare(self, target: Target) -> Prepared:
        """Make the build: `target.empty()`, or `target.kept(…)`, or one of its own.

        Whatever it raises ends the rebuild; what it has made is to be removed by then.
        """
        ...


@dataclass(frozen=True, slots=True)
class FromBeginning:
    """No models, from the first offset of each partition (reference: FromBeginning)."""

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class."""
        return target.empty()

    def __str__(self) -> str:
        return "from the beginning"


@dataclass(frozen=True, slots=True)
class FromCheckpoint:
    """The models as they are at a checkpoint, and the events after it (reference: FromCheckpoint).

    Where a rebuild had not come to its end, this one goes on with it, to the ends that were pinned then. Otherwise it
    folds what is new.

    The models must be exactly of the checkpoint. Where they are ahead of it, in the same fold, they are gone on with:
    what would be folded is in them already.

    Args:
        checkpoint: From `RebuildCancelled.checkpoint` or a `CheckpointStore`; None for where the models are.
    """

    checkpoint: ProjectionCheckpoint | None = None

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class.

        Raises:
            CheckpointError: It is of something else, or not where the models are.
        """
        states = target.states()
        assert target.found is not None
        positions = None if self.checkpoint is None else self._positions(self.checkpoint, target)
        record = target.found.rebuild()
        return target.kept(positions, resumes=record if record is not None and record.is_unfinished(states) else None)

    def _positions(self, checkpoint: ProjectionCheckpoint, target: Target) -> dict[int, int]:
        """Check that a checkpoint is of these models, and give where to go on."""
        name = target.projection.name
        manifest = target.wanted
        if checkpoint.last_event_id is None and not checkpoint.build:
            raise self._refused(target, "it has no event: it is of a projection that has folded nothing")
        if not belongs(checkpoint.generation, name):
            raise self._refused(target, f"it is of {checkpoint.generation!r}")
        if checkpoint.topic != manifest.topic:
            raise self._refused(target, f"it is of topic {checkpoint.topic!r}, and this folds {manifest.topic!r}")
        if checkpoint.topic_id not in ("", manifest.topic_id):
            raise self._refused(
                target,
                f"topic {manifest.topic!r} was deleted and made again since (id {checkpoint.topic_id}, now "
                f"{manifest.topic_id})",
            )
        beyond = [number for number in checkpoint.positions if number not in target.watermarks]
        if beyond:
            raise self._refused(target, f"the topic has no partition {', '.join(map(str, beyond))}")
        same_fold = self._is_same_fold(checkpoint, target)
        states = target.states()
        return {
            number: max(position, states[number].position) if same_fold else position
            for number, position in checkpoint.positions.items()
        }

    @staticmethod
    def _is_same_fold(checkpoint: ProjectionCheckpoint, target: Target) -> bool:
        """Whether the models went on from the checkpoint, by the same code."""
        assert target.found is not None
        now, current = target.found.manifest, target.found.current
        return (
            checkpoint.directory == now.directory
            and now.origin <= checkpoint.build <= now.build
            and (now.fingerprint, now.codec) == (current.fingerprint, current.codec)
        )

    @staticmethod
    def _refused(target: Target, why: str) -> CheckpointError:
        return target.refusal(f"The checkpoint cannot be gone on from: {why}. Use FromBeginning (`--from beginning`).")

    def __str__(self) -> str:
        return "from a checkpoint"


@dataclass(frozen=True, slots=True)
class FromEvent:
    """The models as they are right after one event, and the events that follow (reference: FromEvent).

    In the event's own partition it begins behind it. Partitions have no order among each other, so the others begin at
    the first record that Kafka stamped with its time or a later one.

    An id that is a UUIDv7 or a ULID carries its time, and is looked for around it first; any other in the whole topic.

    Args:
        event_id: The event's id, as the codec gives it.
        skew: How far the time in an id may be from its record's timestamp, to be found at once.
    """

    event_id: str
    skew: timedelta = timedelta(minutes=10)

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class.

        Raises:
            CheckpointError: There is no such event, and where was looked is said; or the models are not of there.
        """
        search = Search(target.events, target.topic, target.watermarks, self.event_id, target.check_cancelled)
        found = search.find(self.skew)
        if found is None:
            raise target.refusal(
                f"There is no event {self.event_id!r} in {target.topic.name}: {search.how_far()}.",
                event_id=self.event_id,
            )
        log.info("event.found", event_id=self.event_id, where=at(target.topic.name, found.partition, found.offset))
        positions = target.events.cluster.positions_at(target.topic, found.record_ms)
        return FromPosition(positions | {found.partition: found.offset + 1}).prepare(target)

    def __str__(self) -> str:
        return f"from event {self.event_id}"


@dataclass(frozen=True, slots=True)
class FromPosition:
    """The models as they are at these positions, and the events from there on.

    Args:
        positions: By partition, the next offset to fold; a partition that is not named goes on from where its models
            are.
    """

    positions: Mapping[int, int]

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class.

        Raises:
            CheckpointError: There is no such partition or offset, or the models are not of these positions.
        """
        for number, position in self.positions.items():
            marks = target.watermarks.get(number)
            if marks is None or not marks.low <= position <= marks.high:
                has = "has no such partition" if marks is None else f"has offsets {marks.low} to {marks.high}"
                raise target.refusal(
                    f"There is no {at(target.topic.name, number, position)} to begin at: the topic {has}.",
                    partition=number,
                    offset=position,
                )
        return target.kept(self.positions)

    def __str__(self) -> str:
        return "from " + ", ".join(f"{number}@{position}" for number, position in sorted(self.positions.items()))


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """The models of a snapshot, and the events after it.

    Args:
        id: The snapshot's.
        only_restore: Fold nothing; running the projection goes on from there.
    """

    id: str
    only_restore: bool = False

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class.

        Raises:
            CheckpointError: There is no such snapshot, or it is of something else.
        """
        prepared = target.restored(target.claim.snapshots.get(self.id))
        if not self.only_restore:
            return prepared
        here = {number: state.position for number, state in prepared.states.items()}
        nothing = RebuildRecord(
            strategy=str(self), starts=here, targets=here, before=prepared.counts(), started_at=datetime.now(UTC)
        )
        return replace(prepared, resumes=nothing)

    def __str__(self) -> str:
        return f"from snapshot {self.id}"


@dataclass(frozen=True, slots=True)
class FromTime:
    """The models as they are at a time, and the records that Kafka has stamped with it or a later one.

    Args:
        time: When; without a zone it is this machine's time.
    """

    time: datetime

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class.

        Raises:
            CheckpointError: The models are not of that time.
        """
        positions = target.events.cluster.positions_at(target.topic, int(self.time.timestamp() * 1000))
        return FromPosition(positions).prepare(target)

    def __str__(self) -> str:
        return f"from {self.time.astimezone(UTC).isoformat(timespec='milliseconds')}"


@dataclass(frozen=True, slots=True, init=False)
class SpecificStreams:
    """The whole history of some streams, and no other model is touched (reference: SpecificStreams).

    Their models are folded from all their events, beside those that there are, and replaced in one batch at one
    position: that of the store, which is not folded on otherwise. It works while others fold, who then replace them in
    their own stores; each partition's at its position. Where nobody folds, all are replaced in one step.

    Without `partition_by` a stream is its model's id, and a model that the fold does not give any more is deleted. With
    it, the models are those that the streams' events are of now; of what other code has made of them under other ids,
    nothing is known, and nothing is deleted.

    Args:
        ids: The streams.
    """

    ids: frozenset[str]

    def __init__(self, ids: Iterable[str]) -> None:
        found = frozenset([ids] if isinstance(ids, str) else ids)
        if not found or "" in found:
            raise ValueError("SpecificStreams needs the ids of one or more streams")
        object.__setattr__(self, "ids", found)

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class.

        Raises:
            CheckpointError: There are no models, or one of the streams has neither events nor a model.
            EventError, ProjectionError: At an event that cannot be folded.
        """
        target.states()
        assert target.found is not None
        refolding = Refolding(
            target.projection, target.events, target.topic, target.found, self.ids, str(self), target.watermarks
        )
        with closing(refolding):
            refolding.read(target.check_cancelled)
            return refolding.prepared(target)

    def __str__(self) -> str:
        some = ", ".join(sorted(self.ids)[:_NAMED])
        return f"{len(self.ids):,} streams: {some}, …" if len(self.ids) > _NAMED else f"streams {some}"
