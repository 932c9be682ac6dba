"""What a strategy works on, and what it gives: a build that nobody sees yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from projections.contract import CqrsProjection
from streams.cluster import Cluster
from streams.data.build import Build, Manifest, RebuildRecord
from streams.data.claims import Claim
from streams.data.history import check_complete, check_readable
from streams.data.reader import ModelReader
from streams.data.store import StoreState
from streams.errors import CheckpointError, at
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a strategy works on. Nobody folds in it: the group has no members and the directory is held."""

    projection: CqrsProjection[Any]
    cluster: Cluster
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
            raise CheckpointError(
                f"There are no models in {self.claim.directory} to go on from. Rebuild from the beginning "
                "(FromBeginning, `--from beginning`). Nothing was changed.",
                projection=self.projection.name,
                topic=self.topic.name,
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
        2. See that they are exactly of these positions.
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
            self._check_position(number, states[number].position, position)
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

    def _check_position(self, partition: int, found: int, wanted: int) -> None:
        where = at(self.topic.name, partition)
        facts: dict[str, Any] = {
            "projection": self.projection.name,
            "topic": self.topic.name,
            "partition": partition,
            "offset": wanted,
        }
        if found < wanted:
            raise CheckpointError(
                f"The models of {where} are of position {found}, and the rebuild is to begin at {wanted}: what lies "
                "between would be skipped. Go on from where they are (`--from checkpoint`), or rebuild from the "
                "beginning. Nothing was changed.",
                **facts,
            )
        if found > wanted and not self.projection.idempotent:
            raise CheckpointError(
                f"The models of {where} are of position {found}, and the rebuild is to begin at {wanted}: "
                f"{found - wanted} offsets would be folded twice. There is no snapshot of an earlier position. Rebuild "
                "from the beginning, or state `idempotent = True` in the projection, if folding an event again changes "
                "nothing. Nothing was changed.",
                **facts,
            )
        if found > wanted:
            log.info("rebuild.folds_again", where=where, begins=wanted, models_are_of=found)

    def _check_complete(self, *, compaction_only: bool) -> bool:
        return check_complete(
            self.cluster,
            self.topic,
            self.watermarks,
            projection=self.projection.name,
            doing="A rebuild",
            allow_incomplete=self.allow_incomplete,
            compaction_only=compaction_only,
        )
