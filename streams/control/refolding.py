"""Some streams, folded again beside the models that there are, and put in their models' place."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from projections.contract import CqrsProjection
from streams.control.target import Prepared, Target
from streams.data.build import Build, RebuildRecord
from streams.data.handover import Handovers, Swapped, swap
from streams.data.letter import Mark
from streams.data.letterbox import Letterbox
from streams.data.reader import ModelReader
from streams.data.refold import Refold
from streams.data.source import KafkaEventStore
from streams.data.split import split_error
from streams.errors import BrokerError, CheckpointError, RebuildCancelled, RebuildError, StoreLocked, TopicChanged, at
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

__all__ = ["Refolding"]

log = get_logger(__name__)

_NEAR = 1_000
_ROUNDS = 10
_LOOK_S = 0.05
_OPEN_S = 0.5


class Refolding:
    """The streams of one rebuild.

    Args:
        projection: The user's code.
        events: The topic.
        topic: The same, described.
        build: Whose models they are.
        ids: The streams.
        called: What the rebuild's record calls it.
        watermarks: What each partition has.
        interrupts: When something is put in here, by any thread, it stops after the event that it is at.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        events: KafkaEventStore,
        topic: TopicInfo,
        build: Build,
        ids: Collection[str],
        called: str,
        watermarks: Mapping[int, Watermarks],
        interrupts: Sequence[object] = (),
    ) -> None:
        self._projection = projection
        self._events = events
        self._topic = topic
        self._build = build
        self._ids = ids
        self._called = called
        with ModelReader(build, None) as reader:
            self.starts = {number: watermarks[number].low for number in reader.states()}
            """By partition that has models, where its history begins."""
            self.positions = {number: state.position for number, state in reader.states().items()}
            """By partition, where its models were when this was last looked at."""
            dropped = reader.dropped()
            where = {stream: reader.partition_of(stream) for stream in ids} if projection.partition_by is None else {}
        self._known = {stream for stream, number in where.items() if number is not None}
        wanted = {
            number: [stream for stream in ids if where.get(stream, number) in (None, number)] for number in self.starts
        }
        wanted = {number: streams for number, streams in wanted.items() if streams}
        self._refold = Refold(
            projection,
            events,
            wanted,
            {number: build.fresh(number, self.starts[number]) for number in wanted},
            dropped,
            interrupts,
        )

    @property
    def folds(self) -> Mapping[int, Any]:
        """By partition that is read, its fold."""
        return self._refold.folds

    def close(self) -> None:
        """Let go of what user code ran on."""
        for fold in self.folds.values():
            fold.close()

    @property
    def events(self) -> int:
        """How many events were folded."""
        return self._refold.events

    def read_at(self, positions: Mapping[int, int], check: Callable[[], None]) -> None:
        """Fold the streams, up to these positions.

        Raises:
            See `read`.
        """
        self._refold.read_to({number: positions[number] for number in self.folds}, check)
        self._check()

    def read(self, check: Callable[[], None]) -> None:
        """Fold the streams, up to where the models are about now.

        Args:
            check: Called now and then; what it raises ends it.

        Raises:
            CheckpointError: One of them has neither events nor a model.
            ModelSplit: One of their models is on two partitions.
            EventError, ProjectionError: At an event that cannot be folded.
            HistoryIncomplete, BrokerUnavailable, BrokerError: See `scan`.
        """
        for _ in range(_ROUNDS):
            ends = {number: self.positions[number] for number in self.folds}
            self._refold.read_to(ends, check)
            self._look()
            if all(self.positions[number] - end <= _NEAR for number, end in ends.items()):
                break
        self._check()

    def _look(self) -> None:
        with ModelReader(self._build, None) as reader:
            self.positions.update({number: state.position for number, state in reader.states().items()})

    def _check(self) -> None:
        unknown = sorted(set(self._ids) - self._known - set().union(*(fold.seen for fold in self.folds.values())))
        if unknown:
            raise CheckpointError(
                f"{self._topic.name} has no event of {', '.join(map(repr, unknown))} up to where the models of "
                f"{self._projection.name!r} are, and there is no model of that id. Nothing was changed.",
                projection=self._projection.name,
                topic=self._topic.name,
            )
        owners: dict[str, int] = {}
        for number, fold in sorted(self.folds.items()):
            for model_id, raw in fold.kept.models.items():
                if raw is not None and owners.setdefault(model_id, number) != number:
                    raise split_error(self._projection.name, self._topic.name, model_id, owners[model_id], number)

    def prepared(self, target: Target) -> Prepared:
        """Make a build of the models that there are, with those of the streams in their place. Nobody folds.

        Raises:
            See `read`, and `Target.kept`.
        """
        prepared = target.kept()
        states = dict(prepared.states)
        try:
            self._refold.read_to({number: states[number].position for number in self.folds}, target.check_cancelled)
            self._check()
            for number, fold in self.folds.items():
                store = prepared.build.open(number, self.starts[number])
                try:
                    self._tell(swap(store, fold.kept.models, fold.streams))
                    states[number] = store.state
                finally:
                    store.close()
        except BaseException:
            target.claim.abandon(prepared.build)
            raise
        here = {number: state.position for number, state in states.items()}
        done = replace(prepared, states=states)
        nothing = RebuildRecord(
            strategy=self._called,
            starts=here,
            targets=here,
            before=done.counts(),
            started_at=datetime.now(UTC),
        )
        return replace(done, resumes=nothing)

    def hand_over(
        self, purpose: str, check: Callable[[str], None], replaced: Callable[[int], None] = lambda _: None
    ) -> None:
        """Have those who fold put them in place, each partition at its position.

        Args:
            purpose: Who asks.
            check: Called now and then with what is waited for; what it raises ends it.
            replaced: Called for each partition that nobody folds, whose models were replaced from here.

        Raises:
            RebuildError: Somebody could not: some partitions may have theirs, and the message says which.
            BuildChanged: The models are somebody else's by now.
            RebuildCancelled: Likewise.
        """
        done: set[int] = set()
        opened_s = time.monotonic()
        try:
            with Handovers.asking(self._build, purpose) as asking:
                for number, fold in self.folds.items():
                    asking.give(number, fold)
                while waiting := sorted(self.folds.keys() - done):
                    check(f"whoever folds {', '.join(at(self._topic.name, number) for number in waiting)}")
                    self._build.check_current()
                    for number in waiting:
                        outcome = asking.outcome(number)
                        if outcome is not None and outcome.error is not None:
                            raise RebuildError(outcome.error)
                        if outcome is not None:
                            done.add(number)
                    if time.monotonic() - opened_s > _OPEN_S:
                        here = self._replace_unheld(self.folds.keys() - done, lambda: check(""))
                        for number in here:
                            replaced(number)
                        done |= here
                        opened_s = time.monotonic()
                    time.sleep(_LOOK_S)
        except (RebuildError, RebuildCancelled) as error:
            where = ", ".join(at(self._topic.name, number) for number in sorted(done))
            why = "The rebuild was cancelled." if isinstance(error, RebuildCancelled) else str(error)
            raise type(error)(
                f"{why} {f'The models of {where} were replaced before.' if done else 'No model was replaced.'}",
                projection=self._projection.name,
                topic=self._topic.name,
            ) from error

    def _tell(self, swapped: Swapped) -> None:
        """Say in the topic of dead letters that those of the streams are in their models now; nobody else will."""
        if not swapped.letters:
            return
        cluster, name, group = self._events.cluster, self._projection.name, swapped.letters[0].group
        box = Letterbox(self._events.kafka, cluster, name, group, self._topic)
        try:
            box.write(Mark.of(letter, "folded") for letter in swapped.letters)
        except BrokerError as error:  # they are folded all the same, and asking for them says so again
            log.warning("dead_letters.not_written", count=len(swapped.letters), why=str(error))
        finally:
            box.close()

    def _check_topic(self) -> None:
        """Make sure that what was read is of the topic that the models are of.

        Raises:
            TopicChanged: It was deleted and made again meanwhile.
        """
        found = self._events.cluster.topic(self._topic.name)
        if found.id != self._topic.id:
            raise TopicChanged(
                f"{found.name} was deleted and made again while streams of it were folded again (topic id "
                f"{self._topic.id}, now {found.id}). Their models were not replaced. Rebuild from the beginning.",
                projection=self._projection.name,
                topic=found.name,
            )

    def _replace_unheld(self, partitions: Iterable[int], check: Callable[[], None]) -> set[int]:
        """Replace the models of partitions that no process has open (any more)."""
        done = set()
        for number in partitions:
            try:
                store = self._build.open(number, self.starts[number])
            except StoreLocked:
                continue
            try:
                self._refold.read_to({number: store.state.position}, check)
                self._check_topic()
                self._tell(swap(store, self.folds[number].kept.models, self.folds[number].streams))
                done.add(number)
            finally:
                store.close()
        return done
