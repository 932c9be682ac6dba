"""When and how the folds of a lane are committed to their stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from streams.data.cache import ModelCannotBeStored
from streams.data.fold import Fold
from streams.data.history import TopicWatch
from streams.data.job import Job
from streams.data.letterbox import Letterbox
from streams.data.letters import Letters
from streams.data.mirror import Mirror
from streams.data.pace import Pace
from streams.data.partition import HeldPartition, Phase
from streams.data.split import HeldElsewhere, SplitWatch
from streams.errors import BrokerUnavailable, DiskFull, StorageError, StoreAway, StoreLocked
from streams.log import get_logger

__all__ = ["Commits"]

log = get_logger(__name__)

_LIVE_MS = 2000
"""Folded so soon after it was written, by Kafka's timestamps, an event is live."""
_FULL_S = 1.0
"""How long after a write that the disk had no space for the next one is tried."""
_TELL_FULL_S = 30.0
_SILENT_S = 1.0
"""How long after nobody has answered nobody is asked, so that several partitions do not wait one after the other."""
_ALONG = 0.1
"""Where one fold has no more room, those go along whose changed models take more than this share of theirs."""
_IN_TURN = 500
"""Of so many changed models on, live partitions are committed one after the other, so that each pause is short."""
_MANY = 5000
"""So many models take longer to read from a log than whoever asks for one of them should wait."""


class Commits:
    """Commits the folds of the partitions that a process holds.

    Args:
        job: What is folded into what.
        held: The partitions, by number; looked at anew each time.
        topic: Tells whether what was read is of the same topic still.
        mirror: Is told of what was committed.
        letterbox: Takes what is said of events that cannot be folded.
        read: Has a partition read from where it is to be read.
        committed: Is called after each commit of a partition.
    """

    def __init__(
        self,
        job: Job,
        held: Mapping[int, HeldPartition],
        topic: TopicWatch,
        mirror: Mirror,
        letterbox: Letterbox,
        read: Callable[[HeldPartition], None],
        committed: Callable[[HeldPartition], None],
    ) -> None:
        self._job = job
        self._held = held
        self._topic = topic
        self._mirror = mirror
        self._letterbox = letterbox
        self._read = read
        self._committed = committed
        self._pace = Pace(job.settings)
        self._splits = SplitWatch(job.build)
        self._is_behind = True
        self._has_caught_up = False
        self._turns: list[int] = []
        """Partitions that the checkpoint under way has yet to come to, where it takes one after the other."""
        self._turn_s = 0.0
        self._turn_models = 0
        self._models_bytes = job.settings.models_bytes
        self._told_full_s = -_TELL_FULL_S
        self._silent_to_s = 0.0
        self.taken = 0
        """Checkpoints so far."""
        self.taken_s = 0.0
        """What they took."""

    def folds(self) -> list[Fold]:
        """Give the folds of the partitions whose stores are open."""
        return [held.fold for held in self._held.values() if held.fold is not None]

    @property
    def room(self) -> int | None:
        """How many events may be folded before a checkpoint must be taken; None for any number."""
        return self._pace.room(sum(fold.pending for fold in self.folds()))

    def if_due(self, *, idle: bool) -> None:
        """Keep the caches to their limit, and take a checkpoint where its time has come.

        Args:
            idle: Nothing is waiting to be folded.
        """
        folds = self.folds()
        share = self._models_bytes // max(1, len(folds))
        moved = [fold for fold in folds if fold.has_moved]
        fullness = {fold: fold.keep_to(share) for fold in folds}
        self._send()
        if self._turns:
            self._next_turn()
            while idle and self._turns:
                self._next_turn()
        elif moved and not self._took(moved, idle=idle) and max(fullness.values()) > 1:
            self._take([held for held in self._held.values() if held.fold and fullness[held.fold] > _ALONG])
        for held in self._held.values():
            if held.fold is not None and not held.fold.has_moved:
                self._settle(held, 0)  # its last commit may have come before its end was seen
        # Where an end was set, whoever set it compares, at it.
        if not moved and idle and self._splits.is_behind and self._job.until is None:
            self._splits.compare({one.number: one.store.ids() for one in self._held.values() if one.store is not None})

    def _took(self, moved: Sequence[Fold], *, idle: bool) -> bool:
        """Take a checkpoint where its time has come, or begin to; say whether it had."""
        changed = sum(fold.changed for fold in moved)
        newest_ms = max(fold.record_ms or 0 for fold in moved)
        # At the end of a backlog nothing waits either, and others wait to see that it is over.
        is_live = time.time() * 1000 - newest_ms < _LIVE_MS or self._is_at_ends()
        if not self._pace.is_due(sum(fold.pending for fold in moved), changed, idle=idle, is_live=is_live):
            return False
        if is_live and not self._is_behind and self._pace.every is None and changed >= _IN_TURN:
            self._turns = [number for number, held in self._held.items() if held.fold in moved]
            self._turn_s, self._turn_models = 0.0, changed
            self._next_turn()
        else:
            self.all()
        self._note_live(is_live=is_live)
        return True

    def _next_turn(self) -> None:
        """Commit one partition of the checkpoint under way: events of all of them are folded again in between."""
        before_s, held = self.taken_s, self._held.get(self._turns.pop())
        if held is not None and held.fold is not None and held.fold.has_moved:
            self._take([held])
        self._turn_s += self.taken_s - before_s
        if not self._turns:
            self._pace.taken(time.monotonic() - self._turn_s, self._turn_models)

    def _note_live(self, *, is_live: bool) -> None:
        self._has_caught_up = self._has_caught_up or (is_live and self._is_behind)
        self._is_behind = not is_live

    def take_caught_up(self) -> bool:
        """Say whether a backlog has come to its end since this was last asked: somebody may wait to hear of it."""
        caught_up, self._has_caught_up = self._has_caught_up, False
        return caught_up

    def _is_at_ends(self) -> bool:
        return all(held.is_at_log_end for held in self._held.values() if held.phase is Phase.READY)

    def all(self) -> None:
        """Commit every fold that moved, unless nobody answers whether what was read is of the same topic still.

        Raises:
            BuildChanged, StorageError: See `one`.
            TopicChanged, TopicNotFound: It is not.
        """
        began = time.monotonic()
        models = sum(fold.changed for fold in self.folds())
        self._turns = []
        self._take(self._held.values())
        self._pace.taken(began, models)

    def _take(self, partitions: Iterable[HeldPartition]) -> None:
        """Commit the folds of some partitions, as far as they moved."""
        began = time.monotonic()
        models = 0
        if self._topic.is_same():
            folds = {held.number: held.fold for held in self._held.values() if held.fold is not None}
            moved = [one for one in partitions if one.number in folds and folds[one.number].has_moved]
            moved = [one for one in moved if one.phase is not Phase.HALTED]
            models = sum(folds[held.number].changed for held in moved)
            self._say(moved)  # at once: each waits for the brokers
            for held in moved:
                if self._job.build.is_in_files:  # a database has one key for all partitions
                    self._splits.look(held.number, folds)
                self.one(held)
        self.taken += 1
        took_s = time.monotonic() - began
        self.taken_s += took_s
        log.debug("checkpoint.saved", group=self._job.group, models=models, seconds=round(took_s, 4))

    def one(self, held: HeldPartition) -> bool:
        """Commit one fold to its store.

        False: a model cannot be stored, and the fold is back at its last commit; or what it keeps of events that cannot
        be folded could not be written to their topic; or the disk is full. Then it is to be tried again.

        Raises:
            BuildChanged: Another build, or other code, is current by now.
            StorageError: The store.
        """
        fold = held.fold
        assert fold is not None
        self._job.build.check_current()
        if not self._say([held]):
            return False
        changed = fold.changed
        try:
            fold.commit()
        except ModelCannotBeStored as error:
            log.info("fold.read_again", partition=held.number, position=fold.committed, why=str(error))
            fold.discard()
            fold.carefully = True
            if held.phase is Phase.READY:
                self._read(held)
            return False
        except (DiskFull, StoreAway, StoreLocked) as error:
            self.away(held, error)
            return False
        except HeldElsewhere as found:
            raise self._splits.error(found.model_id, *sorted((held.number, found.other))) from found
        fold.carefully = False
        self._settle(held, changed)
        self._mirror.note(held.number)
        self._committed(held)
        return True

    def away(self, held: HeldPartition, error: StorageError) -> None:
        """Fold a partition no further until its store is opened anew, from where it is then; that is tried soon.

        RocksDB takes nothing more after a write that failed, also once there is space again; a database's connection is
        gone, or somebody else has the partition by now.
        """
        if held.fold is not None and held.phase is not Phase.HALTED:
            held.fold.discard()
            held.is_to_be_reopened = True
            held.stall(error, _FULL_S)
            self._tell(held, error)

    def all_away(self, error: StorageError) -> None:
        """The same of all partitions: what they have in common does not answer."""
        for held in self._held.values():
            self.away(held, error)

    def _tell(self, held: HeldPartition, error: StorageError) -> None:
        """Log that the store takes nothing, now and then while it does not."""
        if time.monotonic() - self._told_full_s >= _TELL_FULL_S:
            self._told_full_s = time.monotonic()
            what = "disk.full" if isinstance(error, DiskFull) else "store.away"
            log.warning(what, partition=held.number, again_in_s=_FULL_S, why=str(error))

    def _send(self) -> None:
        """Have new dead letters be on their way while folding goes on."""
        if time.monotonic() >= self._silent_to_s:
            for letters in map(_letters, self.folds()):
                if letters is not None and letters.outbox.is_waiting:
                    self._letterbox.send(letters.outbox.to_send())

    def _say(self, partitions: Iterable[HeldPartition]) -> bool:
        """Have the topic of dead letters know before the stores' positions pass their events; say whether it does."""
        saying = [letters for one in partitions if (letters := _letters(one.fold)) is not None and letters.saying]
        # All arrive together, or it is not known which have.
        unsure = [letters for fold in self.folds() if (letters := _letters(fold)) is not None and letters.outbox.unsure]
        if not (saying or unsure):
            return True
        if time.monotonic() < self._silent_to_s:
            return False  # somebody has waited for an answer just now
        count = sum(letters.outbox.unsure for letters in unsure) + sum(len(letters.saying) for letters in saying)
        try:
            for letters in unsure:
                self._letterbox.send(letters.outbox.to_send())
            self._letterbox.write(chain.from_iterable(letters.saying for letters in saying))
        except BrokerUnavailable as error:
            self._silent_to_s = time.monotonic() + _SILENT_S
            for letters in unsure:
                letters.outbox.not_arrived()
            log.warning("dead_letters.not_written", count=count, why=str(error))
            return False
        for letters in unsure:
            letters.outbox.arrived()
        for letters in saying:
            letters.said()
        return True

    def _settle(self, held: HeldPartition, changed: int) -> None:
        """Where a backlog ends, have whoever opens the store to read it find tables rather than a long log.

        Mostly that is before anybody is told of the commit, and so before anybody reads it here.
        """
        if held.unsettled is None or held.store is None:
            return
        held.unsettled += changed
        if held.is_at_log_end:
            if held.unsettled > _MANY:
                held.store.settle()
            held.unsettled = None

    def one_if_same(self, held: HeldPartition) -> bool:
        """Commit one fold, unless nobody answers whether what was read is of the same topic still; see `one`."""
        return self._topic.is_same() and self.one(held)


def _letters(fold: Fold | None) -> Letters | None:
    return None if fold is None or fold.rescue is None else fold.rescue.letters
