"""A lane: the partitions of one build that this process holds. Records in, checkpoints out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from streams.data.answers import Answers
from streams.data.commits import Commits
from streams.data.cutting import Cutting
from streams.data.feeding import Feeding, feed_all
from streams.data.fold import Fold
from streams.data.history import TopicWatch
from streams.data.job import AgentStatus, Job, Work
from streams.data.letterbox import Letterbox
from streams.data.mirror import Mirror
from streams.data.opening import Opener
from streams.data.partition import HeldPartition, Phase
from streams.data.polling import Slice
from streams.data.rescue import Unguarded
from streams.data.rocks import blocks_bytes
from streams.data.serde import serde_for
from streams.data.shipping import Shipping
from streams.data.typed import typed
from streams.errors import (
    BrokerError,
    BrokerUnavailable,
    CqrsError,
    DiskFull,
    EventError,
    ProjectionError,
    StorageError,
    StoreAway,
    StoreCorrupt,
    StoreLocked,
    TopicChanged,
    TopicNotFound,
    at,
)
from streams.log import get_logger
from streams.types import Committed

__all__ = ["Lane"]

log = get_logger(__name__)

_HANDOVER_S = 2.0
_ANSWER_S = 3.0
"""How long one question to Kafka may take: meanwhile nobody is asked whether to stop."""


class Reading(Protocol):
    """Starts and ends the reading of partitions; `Subscription` is one."""

    def read(self, partition: int, position: int) -> None:
        """Read a partition from a position on; where it was read already, anew."""
        ...

    def stop_reading(self, partition: int) -> None:
        """Read a partition no further."""
        ...


class Lane:
    """The folds of one build over the partitions that its process holds.

    Not thread-safe: one thread drives it.

    Args:
        job: What is folded into what.
        interrupts: When something is put in here, by any thread, folding stops after the event it is at.
    """

    def __init__(self, job: Job, interrupts: Sequence[object]) -> None:
        self._job = job
        self._interrupts = interrupts
        self._serde = serde_for(job.projection.model_type())
        self.codec = typed(job.events.codec, job.projection)
        """How records are read."""
        self._cluster = job.events.cluster.within(_ANSWER_S)
        self._held: dict[int, HeldPartition] = {}
        self._closed: list[HeldPartition] = []
        self._released_events = 0
        self._mirror = Mirror(job)
        self._letterbox = Letterbox(job.events.kafka, self._cluster, job.projection.name, job.group, job.topic)
        self._opener = Opener(job, self._serde, self._cluster, self._letterbox, interrupts)
        self._topic = TopicWatch(self._cluster, job.topic, job.projection.name)
        self._answers = Answers(job, self._serde, interrupts)
        self.commits = Commits(job, self._held, self._topic, self._mirror, self._letterbox, self._read, self._replace)
        """When and how what is folded is committed."""
        self._cutting = Cutting(job.build, self.commits.one_if_same, self._read, self._stop_reading)
        self.shipping = Shipping(job)
        """Sends snapshots to the repository."""
        self.restored = 0
        """Partitions whose store came from there."""
        self._reading: Reading
        self._again: set[int] = set()
        """Partitions of which nothing more of this batch is to be folded."""

    def begin(self, reading: Reading) -> None:
        """Say who reads. Nothing else may be called before."""
        self._reading = reading

    # What is held

    @property
    def is_waiting(self) -> bool:
        """Whether there is nothing to read yet."""
        return not self._held or any(held.phase in (Phase.OPENING, Phase.RESTORING) for held in self._held.values())

    @property
    def is_replaying(self) -> bool:
        """Whether some of what is held has still to come to the end that a rebuild has pinned."""
        return any(
            one.fold is not None and one.fold.position < self._job.replay_end(one.number) for one in self._held.values()
        )

    @property
    def errors(self) -> list[CqrsError]:
        """Why partitions have halted, of those held now; after `close`, of those that were held then."""
        held = self._held.values() if self._held else self._closed
        return [one.error for one in held if one.phase is Phase.HALTED and one.error is not None]

    def rocksdb_bytes(self) -> int:
        """Give the memory that RocksDB takes for all stores held."""
        own = [held.store.memory_bytes() for held in self._held.values() if held.store is not None]
        return sum(own) + blocks_bytes() if own else 0

    def status(self, away_s: float, work: Work, rocksdb_bytes: int) -> AgentStatus:
        """Give the figures."""
        partitions = {number: held.status() for number, held in self._held.items()}
        return AgentStatus(
            partitions=partitions,
            events=self._released_events
            + sum(held.fold.events - held.events_before for held in self._held.values() if held.fold is not None),
            models=sum(one.models for one in partitions.values()),
            work=work,
            rocksdb_bytes=rocksdb_bytes,
            away_s=away_s,
        )

    def is_done(self) -> bool:
        """Say whether there is nothing more to fold; only what is in the stores counts, so it commits first."""
        held = self._held.values()
        if held and all(one.phase is Phase.HALTED for one in held):
            return True
        if self._job.until is None or not all(one.is_settled for one in held):
            return False
        if any(one.phase is Phase.READY and one.answering is not None and one.answering.is_asked for one in held):
            return False
        if any(fold.has_moved for fold in self.commits.folds()):
            self.commits.all()
            if any(fold.has_moved for fold in self.commits.folds()) or not all(one.is_settled for one in held):
                return False  # not committed after all: it is read again
        # What others hold is theirs to end, and whoever started all of us knows when that is.
        return self._job.until.keys() <= self._held.keys()

    def hold(self, partitions: Iterable[int]) -> None:
        """Note partitions that are ours from now on; `advance` opens them."""
        for partition in partitions:
            self._held[partition] = HeldPartition(partition)
            self._opener.doubt()

    def finish(self, partitions: Iterable[int]) -> None:
        """Commit these partitions to their stores: they are to be released."""
        going = [self._held[partition] for partition in partitions if partition in self._held]
        moved = [held for held in going if held.fold is not None and held.fold.has_moved]
        if moved and self._topic.is_same():
            for held in moved:
                self.commits.one(held)

    def release(self, partitions: Iterable[int]) -> None:
        """Close these partitions' stores, without writing."""
        going = [partition for partition in partitions if partition in self._held]
        for partition in going:
            held = self._held.pop(partition)
            self._mirror.forget(partition)
            self._letterbox.close_partition(partition)
            self._close(held)
        if going:
            log.info("partitions.released", projection=self._job.projection.name, partitions=going)

    def _close(self, held: HeldPartition) -> None:
        if held.store is not None:
            self._released_events += held.store.state.events - held.events_before
        held.close()

    def advance(self) -> None:
        """Open partitions that are new, and try again where something was in the way.

        1. See that this process is the one to fold them, and look at what the group has committed and what the topic
           still has.
        2. Where the snapshot repository has a store that is much further than what is here, have it come; whoever
           waits for it is looked at again when it is there.
        3. Open each store. A new one begins at the topic's first offset.
        4. Read it, unless it is at its end already.

        A crash in between has written nothing but empty stores.
        """
        due = [held for held in self._held.values() if held.is_due()]
        if not due:
            return
        try:
            # Step 1
            self._opener.look()
        except (TopicNotFound, TopicChanged):
            raise
        except BrokerError as error:
            self._stall(due, error)
            return
        positions = {}
        for held in due:
            if held.is_to_be_reopened:
                self._close(held)
            try:
                # Step 2
                if (restore := self._opener.restore(held)) is not None:
                    held.restoring(restore)
                    continue
                if self._opener.place(held) is not None:
                    self.restored += 1
                # Step 3
                if self._opener.open(held):
                    self._mirror.note(held.number)
            except (StoreLocked, StoreAway, BrokerUnavailable) as error:
                self._stall([held], error)
            except DiskFull as error:
                held.stall(error)  # however long it takes: nothing is lost meanwhile
            except (StoreCorrupt, CqrsError) as error:
                if isinstance(error, StorageError) and not isinstance(error, StoreCorrupt):
                    raise
                self._halt(held, error)
            else:
                # Step 4
                assert held.fold is not None
                held.ready()
                positions[held.number] = held.fold.position
                if self._job.until is None:
                    self._cutting.look([held])  # before anything of it is read: it may be held already
                if not held.fold.is_at_end:
                    self._read(held)
        if positions:
            log.info("partitions.assigned", projection=self._job.projection.name, positions=positions)

    def _read(self, held: HeldPartition) -> None:
        self._reading.read(held.number, held.reads_from)

    def _stop_reading(self, held: HeldPartition) -> None:
        self._reading.stop_reading(held.number)

    def _stall(self, partitions: Iterable[HeldPartition], error: CqrsError) -> None:
        limit_s = self._job.events.kafka.outage_limit_s
        for held in partitions:
            was_told = held.phase is Phase.STALLED and held.is_told
            stalled_s = held.stall(error)
            if stalled_s > limit_s:
                self._halt(held, error)
            # One that stands by for it here is just letting go of it.
            held.is_told = was_told or not isinstance(error, StoreLocked) or stalled_s > _HANDOVER_S
            if held.is_told and not was_told:
                log.warning(
                    "partition.stalled",
                    where=at(self._job.topic.name, held.number),
                    limit_s=limit_s,
                    why=str(error),
                )

    def _halt(self, held: HeldPartition, error: CqrsError) -> None:
        """Fold a partition no further; whoever looks at the group's offsets is told why."""
        held.phase, held.error, held.halt = Phase.HALTED, error, None
        self._reading.stop_reading(held.number)
        self._answers.halted(held)
        if held.fold is not None:
            self._mirror.note(held.number)
        # Where nothing goes on, the error itself is about to be raised.
        goes_on = any(one.phase is not Phase.HALTED for one in self._held.values())
        (log.error if goes_on else log.debug)(
            "partition.halted", where=at(self._job.topic.name, held.number), why=str(error)
        )

    def answer_snapshots(self) -> None:
        """Copy what is held into the snapshots that somebody of this machine waits for."""
        if self._answers.is_due():
            self._answers.snapshots(self._held, self.commits.all)

    def with_letters(self) -> list[int]:
        """Name the partitions in whose stores dead letters wait."""
        return [one.number for one in self._held.values() if one.store is not None and one.store.state.dead_letters]

    # Folding

    def take(self, slices: Sequence[Slice]) -> None:
        """Fold what was read, as far as it is still ours and expected.

        A record that cannot be folded halts its partition, once everything before it is committed.
        """
        self.begin_batch()
        for piece in slices:
            feeding = self.feeding(piece)
            if feeding is not None:
                if feeding.records:
                    feed_all(self.codec, [feeding])
                self.fed(feeding)
            if self._interrupts:
                return  # the rest of the batch was not folded, and the positions say so

    # The same in parts, for several lanes that are fed by one read

    def begin_batch(self) -> None:
        """Begin with what was just read."""
        self._again.clear()

    def feeding(self, piece: Slice) -> Feeding | None:
        """Give what of a slice is to be folded here; None for nothing. `fed` follows."""
        held = self._held.get(piece.partition)
        if held is None or held.fold is None or held.phase is not Phase.READY or piece.partition in self._again:
            return None  # revoked, halted, or read again from further back, since this was fetched
        if piece.refused is not None:
            # A broker says so too of a position that is fine, while the partition's leader is only just finding
            # out its end. So look, and try again.
            log.warning("source.read_again", partition=held.number, position=held.fold.position, why=piece.refused)
            held.stall(BrokerUnavailable(f"{at(self._job.topic.name, held.number)}: {piece.refused}"))
            return None
        records = piece.records
        if held.halt is not None:
            stop = held.halt.offset or 0
            records = [record for record in records if record.offset() < stop]
        if records:
            self._topic.has_read()
        is_cut = len(records) < len(piece.records)
        return Feeding(held, records, is_cut=is_cut, end=piece.end, interrupts=self._interrupts)

    def fed(self, feeding: Feeding) -> None:
        """Go on from what has become of a slice; in front of a record that could not be folded, commit and halt.

        Raises:
            StorageError: The disk.
            BuildChanged, TopicChanged: See `Agent.run`.
        """
        held, fold, error = feeding.held, feeding.held.fold, feeding.error
        assert fold is not None
        try:
            if error is not None:
                raise error
            self._passed(feeding, held, fold)
        except Unguarded:
            fold.discard()
            self._read(held)
            self._again.add(held.number)
        except ProjectionError as failure:
            fold.discard()
            if failure.retry_in_s is not None:
                held.stall(failure, failure.retry_in_s)
                self._reading.stop_reading(held.number)
                where = at(self._job.topic.name, held.number, failure.offset)
                log.warning("event.tried_again", where=where, in_s=failure.retry_in_s, why=str(failure))
            else:
                held.halt = failure
                self._read(held)
            self._again.add(held.number)
        except EventError as failure:
            # Models of this batch may be half changed: begin again at the store's position, and halt in front of
            # the record that failed.
            fold.discard()
            held.halt = failure
            self._read(held)
            self._again.add(held.number)
        except StoreCorrupt as failure:
            fold.discard()
            self._halt(held, failure)
        except StoreAway as failure:
            self._reading.stop_reading(held.number)
            self.commits.away(held, failure)

    def _passed(self, feeding: Feeding, held: HeldPartition, fold: Fold) -> None:
        held.is_at_log_end = not feeding.records and feeding.end is not None
        if not feeding.records and feeding.end is not None:
            for one in held.folds:
                one.skip_to(feeding.end)
        if held.halt is not None and feeding.is_cut and not self._interrupts:
            if self._topic.is_same() and (not fold.has_moved or self.commits.one(held)):
                self._halt(held, held.halt)
            elif held.halt is not None:
                self._read(held)
        elif fold.is_at_end:
            self._reading.stop_reading(held.number)

    # What others ask for

    def answer(self) -> None:
        """Do what others of this machine ask of whoever has the stores open; see `Answers` and `Cutting`."""
        if not self._answers.is_due():
            return
        try:
            self._answer()
        except StoreAway as error:
            self.commits.all_away(error)

    def _answer(self) -> None:
        if self._job.until is None and self._cutting.look(self._held.values()):
            self._answers.look_soon()
        self._answers.snapshots(self._held, self.commits.all)
        self.shipping.look(self._held.values())
        for held in self._answers.take_up(self._held.values()):
            if held.phase is Phase.READY:
                self._read(held)
        for held in list(self._held.values()):
            self._replace(held)
        self._answer_letters()

    def _answer_letters(self) -> None:
        """Take in what the topic of dead letters says, and carry out what is asked there.

        Not while the models are to stay as they are at a cut, or some are about to be replaced.
        """
        for partition, said, offset in self._letterbox.poll():
            held = self._held.get(partition)
            if held is not None and held.fold is not None and held.fold.rescue is not None:
                held.fold.rescue.letters.saw(said, offset)
        for held in list(self._held.values()):
            if held.answering is None or held.phase is not Phase.READY or held.cut is not None or held.beside:
                continue
            try:
                if held.answering.advance():
                    self._answers.look_soon()
            except Unguarded:
                assert held.fold is not None
                held.fold.discard()
                self._read(held)

    def _replace(self, held: HeldPartition) -> None:
        """Replace the models of streams that were folded a second time, once both folds are at one position."""
        if held.is_level and self._topic.is_same():
            self._job.build.check_current()
            self._answers.replace(held)
            self.shipping.renew(held.number)

    def take_unmirrored(self, refused: Iterable[int]) -> dict[int, Committed]:
        """Give what the group is to be told: positions that were committed since it was last asked for.

        Args:
            refused: Partitions whose last commit the group refused: once more.
        """
        return self._mirror.take(refused, self._held)

    def close(self) -> None:
        """Close every store, without writing."""
        self._closed = list(self._held.values())
        self._held.clear()
        for held in self._closed:
            held.close()
        self._cutting.close()
        self.shipping.close()
        self._letterbox.close()
