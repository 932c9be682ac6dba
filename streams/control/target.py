"""What a strategy works on, and what it gives: a build that nobody sees yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from projections.contract import CqrsProjection
from streams.data.build import Build, Manifest, RebuildRecord
from streams.data.claims import Claim
from streams.data.history import check_complete, check_readable
from streams.data.reader import ModelReader
from streams.data.snapshots import Snapshot, listed
from streams.data.source import KafkaEventStore
from streams.data.store import StoreState
from streams.errors import CheckpointError, CodeChanged, at
from streams.log import get_logger
from streams.types import Counts, TopicInfo, Watermarks

__all__ = ["Prepared", "Target"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A build that is ready to be made current, and where it begins."""

    build: Build
    states: Mapping[int, StoreState]
    """By partition, what its store says of itself; of one that is not there yet, what it will."""
    resumes: RebuildRecord | None = None
    """The rebuild that this one goes on with: its pinned ends and its counts hold."""

    def counts(self) -> Counts:
        """Give what the models have been folded of."""
        states = self.states.values()
        return Counts(
            events=sum(state.events for state in states),
            declined=sum(state.declined for state in states),
            deleted=sum(state.deleted for state in states),
            left_out=sum(state.dead_letters + state.skipped for state in states),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a strategy works on. Nobody folds in it: the group has no members and the directory is held."""

    projection: CqrsProjection[Any]
    events: KafkaEventStore
    topic: TopicInfo
    claim: Claim
    found: Build | None
    """The build that is current, and stays so until the rebuild begins; None where there is none that can be read."""
    wanted: Manifest
    """What is to be folded; its number and directory do not matter."""
    watermarks: Mapping[int, Watermarks]
    """What each partition still has."""
    above: int
    """The new build's number is greater than this."""
    allow_incomplete: bool = False
    adopt: bool = False
    """The code or the codec changed, and that does not alter the models that are kept."""
    check_cancelled: Callable[[], None] = lambda: None
    """Raises where the rebuild is not wanted any more; to be called where preparing takes long."""
    _states: dict[int, StoreState] = field(default_factory=dict)

    def empty(self) -> Prepared:
        """Make a build without models, to be folded from the topic's beginning.

        Raises:
            HistoryIncomplete: Events are gone, and that is not allowed.
            StorageError: The disk.
        """
        complete = self._check_complete(compaction_only=False)
        wanted = msgspec.structs.replace(self.wanted, incomplete=not complete)
        build = self.claim.make(wanted, above=self.above)
        return Prepared(
            build=build, states={number: build.fresh(number, marks.low) for number, marks in self.watermarks.items()}
        )

    def states(self) -> Mapping[int, StoreState]:
        """Give where the stores of the build that is current are.

        Raises:
            CheckpointError: There is none.
            StoreCorrupt, StorageError: It cannot be read.
        """
        if self.found is None:
            raise self.refusal(
                f"There are no models in {self.claim.directory} to go on from. Rebuild from the beginning "
                "(FromBeginning, `--from beginning`)."
            )
        if not self._states:
            with ModelReader(self.found, None) as reader:
                self._states.update(reader.states())
            for number, marks in self.watermarks.items():
                self._states.setdefault(number, self.found.fresh(number, marks.low))
        return self._states

    def kept(self, positions: Mapping[int, int] | None = None, *, resumes: RebuildRecord | None = None) -> Prepared:
        """Make a build that goes on with the models that there are.

        1. See that they are of this projection, topic, code and codec, and that the topic still has what follows.
        2. See that they are exactly of these positions. Where they are ahead, go on with the newest snapshot that is
           not: what lies between it and the positions is folded again.
        3. Make the build, and take each partition's store over: hard links, where RocksDB can.

        Args:
            positions: By partition, where to go on; where nothing is said, from where the models are.
            resumes: The rebuild that is gone on with.

        Raises:
            CheckpointError: There are no models, or they are not of these positions.
            ForeignStore, TopicChanged, CodeChanged: They are of something else.
            HistoryIncomplete, TopicChanged: The topic has not what follows.
            StoreLocked, StoreCorrupt, StorageError: They cannot be taken over.
        """
        # Step 1
        states, found = self.states(), self.found
        assert found is not None
        self.claim.check_identity(found.manifest, self.wanted)
        if not self.adopt:
            self.claim.check_code(found, self.wanted)
        wanted = {number: (positions or {}).get(number, state.position) for number, state in states.items()}
        for number, position in wanted.items():
            start = position if found.has(number) or self.allow_incomplete else 0
            check_readable(self.topic, number, start, self.watermarks[number], self.projection.name)
        if not found.manifest.incomplete:
            self._check_complete(compaction_only=True)
        # Step 2
        for number, position in wanted.items():
            if states[number].position < position:
                raise self._behind(number, states[number].position, position)
        ahead = {number: position for number, position in wanted.items() if states[number].position > position}
        if ahead and not self.projection.idempotent:
            return self.restored(self._snapshot_at(wanted, *next(iter(ahead.items()))))
        if ahead:
            log.info("rebuild.folds_again", topic=self.topic.name, begins=ahead)
        # Step 3
        manifest = msgspec.structs.replace(self.wanted, incomplete=found.manifest.incomplete)
        build = self.claim.make(manifest, above=self.above, origin=found.manifest.origin)
        try:
            for number in found.partitions():
                self.claim.carry(found, build, number, position=wanted[number])
        except BaseException:
            self.claim.abandon(build)
            raise
        return Prepared(
            build=build,
            states={
                number: msgspec.structs.replace(
                    state, build=build.manifest.build, directory=build.manifest.directory, position=wanted[number]
                )
                for number, state in states.items()
            },
            resumes=resumes,
        )

    def restored(self, snapshot: Snapshot) -> Prepared:
        """Make a build of a snapshot's models, which are gone on with from its positions.

        Raises:
            CheckpointError, CodeChanged: They are of something else.
            HistoryIncomplete, TopicChanged: The topic has not what follows.
            StoreCorrupt, StorageError: They cannot be read or copied.
        """
        name = self.projection.name
        if not self._is_ours(snapshot):
            raise self.refusal(
                f"Snapshot {snapshot.id} is of {snapshot.of.projection!r} and topic {snapshot.of.topic!r} (id "
                f"{snapshot.of.topic_id}, {snapshot.of.partitions} partitions), and not of {name!r} and "
                f"{self.topic.name!r} as it is now."
            )
        before = (snapshot.of.version, snapshot.of.fingerprint, snapshot.of.codec)
        if not self.adopt and before != (self.wanted.version, self.wanted.fingerprint, self.wanted.codec):
            raise CodeChanged(
                f"Snapshot {snapshot.id} was folded by other code, or read otherwise. Going on would mix two folds. "
                "Rebuild from the beginning, or adopt it (`--adopt`) if its models are as you want them. Nothing was "
                "changed.",
                projection=name,
                topic=self.topic.name,
            )
        for number, marks in self.watermarks.items():
            if number in snapshot.positions or not self.allow_incomplete:
                check_readable(self.topic, number, snapshot.positions.get(number, 0), marks, name)
        if not snapshot.of.incomplete:
            self._check_complete(compaction_only=True)
        build = self.claim.make(
            msgspec.structs.replace(self.wanted, incomplete=snapshot.of.incomplete), above=self.above
        )
        try:
            states = self.claim.snapshots.restore(snapshot, build)
        except BaseException:
            self.claim.abandon(build)
            raise
        log.info("snapshot.restored", id=snapshot.id, positions=snapshot.positions)
        for number, marks in self.watermarks.items():
            states.setdefault(number, build.fresh(number, marks.low))
        return Prepared(build=build, states=states)

    def _is_ours(self, snapshot: Snapshot) -> bool:
        of, wanted = snapshot.of, self.wanted
        return (of.projection, of.topic, of.topic_id, of.partitions) == (
            wanted.projection,
            wanted.topic,
            wanted.topic_id,
            wanted.partitions,
        )

    def _snapshot_at(self, positions: Mapping[int, int], partition: int, position: int) -> Snapshot:
        """Find the newest snapshot from which folding can go on to these positions."""
        snapshots = self.claim.snapshots.all()
        usable = [one for one in snapshots if self._is_ours(one) and one.reaches(positions)]
        if usable:
            return max(usable, key=lambda one: (sum(one.positions.values()), one.id))
        found = self.states()[partition].position
        raise self.refusal(
            f"The models of {at(self.topic.name, partition)} are of position {found}, and the rebuild is to begin at "
            f"{position}: {found - position} offsets would be folded twice. No snapshot is of that position or an "
            f"earlier one in every partition. {listed(snapshots)} Rebuild from the beginning, or state `idempotent = "
            "True` in the projection, if folding an event again changes nothing.",
            partition=partition,
            offset=position,
        )

    def _behind(self, partition: int, found: int, wanted: int) -> CheckpointError:
        return self.refusal(
            f"The models of {at(self.topic.name, partition)} are of position {found}, and the rebuild is to begin at "
            f"{wanted}: what lies between would be skipped. Go on from where they are (`--from checkpoint`), or "
            "rebuild from the beginning.",
            partition=partition,
            offset=wanted,
        )

    def refusal(self, why: str, **where: Any) -> CheckpointError:
        """Give the error of a strategy that cannot begin, before anything was changed.

        Args:
            why: What is wrong and what to do, in whole sentences.
            where: partition, offset or event_id.
        """
        return CheckpointError(
            f"{why} Nothing was changed.", projection=self.projection.name, topic=self.topic.name, **where
        )

    def _check_complete(self, *, compaction_only: bool) -> bool:
        return check_complete(
            self.events.cluster,
            self.topic,
            self.watermarks,
            projection=self.projection.name,
            doing="A rebuild",
            allow_incomplete=self.allow_incomplete,
            compaction_only=compaction_only,
        )
