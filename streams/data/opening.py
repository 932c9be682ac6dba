"""Opening a partition: whether this process is to fold it, whether it can be read, and its store."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streams.cluster import Cluster
from streams.data.answering import Answering
from streams.data.fold import Fold
from streams.data.history import check_readable
from streams.data.job import Job
from streams.data.letterbox import Letterbox
from streams.data.letters import Letters
from streams.data.ownership import check_members, check_offset
from streams.data.partition import HeldPartition
from streams.data.repository import Repository
from streams.data.rescue import Rescue
from streams.data.restoring import PATIENCE_S, WORTH, Restore
from streams.data.serde import Serde
from streams.data.stamp import Stamp
from streams.data.store import StoreState
from streams.data.stores import OpenStore
from streams.data.typed import typed
from streams.errors import DiskFull, TopicChanged, at
from streams.log import get_logger
from streams.types import Committed, Watermarks

__all__ = ["Opener"]

log = get_logger(__name__)


class Opener:
    """Opens the partitions that one process is given. `look` comes before `open`.

    Args:
        job: What is folded into what.
        serde: How models are stored.
        cluster: Kafka, which is not waited for long.
        letterbox: The topic of dead letters.
        interrupts: See Fold.
    """

    def __init__(
        self, job: Job, serde: Serde, cluster: Cluster, letterbox: Letterbox, interrupts: Sequence[object]
    ) -> None:
        self._job = job
        self._serde = serde
        self._cluster = cluster
        self._letterbox = letterbox
        self._interrupts = interrupts
        self._is_proven = False
        self._committed: dict[int, Committed] = {}
        self._watermarks: dict[int, Watermarks] = {}

    def doubt(self) -> None:
        """Note that the group has changed: whether it is folded into this directory alone is to be seen again."""
        self._is_proven = False

    def look(self) -> None:
        """Look at what the group has committed, who is in it, and what the topic still has.

        Raises:
            GroupActive: A member folds it into another directory.
            TopicNotFound, TopicChanged, BrokerError: From Kafka.
        """
        job = self._job
        self._committed = self._cluster.committed(job.group, job.topic)
        if not self._is_proven:
            members = self._cluster.members(job.group)
            check_members(members, job.group, job.build, self._committed, patience_s=job.settings.session_timeout_s)
            self._is_proven = True
        self._watermarks = self._cluster.watermarks(job.topic)

    def restore(self, held: HeldPartition) -> Restore | None:
        """Have a partition's store come from the snapshot repository, where others have folded it much further.

        What the group was told of it says so. Where that says nothing, or the topic has no longer what a fold from its
        beginning needs, it is looked for a snapshot all the same.

        Returns:
            It, on its way; None where there is nothing to wait for.
        """
        job, number = self._job, held.number
        if not job.build.is_in_files:
            return None
        if job.settings.snapshot_repository is None or held.restore is not None or held.fold is not None:
            return None
        if number not in self._watermarks:
            return None
        marks, committed = self._watermarks[number], self._committed.get(number)
        is_here = job.build.has(number)
        here = job.build.stores.state(number).position if is_here else marks.low
        known, _ = self._reached(committed)
        is_gone = marks.low > (here if is_here else 0)
        if not is_gone and known - here < WORTH and (is_here or committed is not None):
            return None
        repository = Repository.of(job.settings, job.build.counts_as)
        assert repository is not None
        # Where nothing else can be done, it is waited for however long it takes.
        patience_s = math.inf if is_gone else PATIENCE_S
        last = marks.high if job.until is None else min(marks.high, job.until.get(number, marks.high))
        first = marks.low if is_gone else max(marks.low, here + WORTH)
        if first > last:
            return None
        return Restore(repository, job.build, job.topic.name, number, (first, last), patience_s)

    def place(self, held: HeldPartition) -> StoreState | None:
        """Put a store in its place that has come from the snapshot repository; give its state, None where none has.

        Raises:
            DiskFull: It had no space; it is fetched once more.
            StorageError: See `Restore.place`.
        """
        restore = held.restore
        if restore is None or held.fold is not None:
            return None
        try:
            state = restore.place()
        except DiskFull:
            held.restore = None
            raise
        if state is not None:
            log.info(
                "snapshot.restored",
                where=at(self._job.topic.name, held.number, state.position),
                models=state.models,
                megabytes=round(restore.came_bytes / 1e6, 1),
                seconds=round(restore.seconds, 2),
            )
        return state

    def open(self, held: HeldPartition) -> bool:
        """Open a partition's store, if it is not, and see that its topic has what follows. Say whether it was opened.

        A new store begins at the topic's first offset.

        Raises:
            StoreLocked: Another process still has it open.
            CqrsError: It cannot be folded on.
        """
        job = self._job
        marks = self._watermarks[held.number] if held.number in self._watermarks else self._is_new(held.number)
        is_opened = held.fold is None
        if is_opened:
            if not job.build.has(held.number) and not (job.allow_incomplete or job.build.manifest.incomplete):
                check_readable(job.topic, held.number, 0, marks, job.projection.name)
            store = job.build.open(held.number, marks.low, owns=True)
            until = None if job.until is None else job.until.get(held.number)
            fold = Fold(job.projection, self._serde, store, self._interrupts, until=until)
            try:
                fold.rescue = self._rescue(held.number, store, fold)
            except BaseException:
                fold.close()
                raise
            held.opened(store, fold)
            held.answering = Answering(fold, fold.rescue, typed(job.events.codec, job.projection))
            committed = self._committed.get(held.number)
            check_offset(job.build, job.group, held.number, committed, store.state.position)
            held.reached = self._reached(committed)
        assert held.fold is not None
        check_readable(job.topic, held.number, held.fold.position, marks, job.projection.name)
        return is_opened

    def _rescue(self, number: int, store: OpenStore, fold: Fold) -> Rescue:
        """Give what is done with events that cannot be folded."""
        job = self._job
        letters = Letters(job.projection, job.group, job.topic.name, store)
        if job.policy.keeps or letters.waiting or letters.dropped:
            for told, offset in self._letterbox.open(number, store.state.letters):
                letters.saw(told, offset)
            self._letterbox.prepare()
        return Rescue(
            job.projection,
            self._serde,
            fold.cache,
            job.events.codec,
            job.policy,
            letters,
            job.generation,
            job.group,
            job.replay_end(number),
        )

    def _reached(self, committed: Committed | None) -> tuple[int, int]:
        stamp = None if committed is None else Stamp.parse(committed.metadata)
        manifest = self._job.build.manifest
        if committed is None or stamp is None or (stamp.directory, stamp.build) != (manifest.directory, manifest.build):
            return 0, 0
        return stamp.reached(committed.position)

    def _is_new(self, partition: int) -> Watermarks:
        raise TopicChanged(
            f"{at(self._job.topic.name, partition)} is new: the topic had {self._job.topic.partitions} partitions when "
            "this state was begun, and keys have moved between them. Rebuild from the beginning.",
            topic=self._job.topic.name,
            partition=partition,
        )
