"""Opening a partition: whether this process is to fold it, whether it can be read, and its store."""

from __future__ import annotations

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
from streams.data.rescue import Rescue
from streams.data.serde import Serde
from streams.data.stamp import Stamp
from streams.data.store import RocksPartition
from streams.errors import TopicChanged, at
from streams.types import Committed, Watermarks

__all__ = ["Opener"]


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
            store = job.build.open(held.number, marks.low)
            until = None if job.until is None else job.until.get(held.number)
            fold = Fold(job.projection, self._serde, store, self._interrupts, until=until)
            try:
                fold.rescue = self._rescue(held.number, store, fold)
            except BaseException:
                fold.close()
                raise
            held.opened(store, fold)
            held.answering = Answering(fold, fold.rescue, job.events.codec)
            committed = self._committed.get(held.number)
            check_offset(job.build, job.group, held.number, committed, store.state.position)
            held.reached = self._reached(committed)
        assert held.fold is not None
        check_readable(job.topic, held.number, held.fold.position, marks, job.projection.name)
        return is_opened

    def _rescue(self, number: int, store: RocksPartition, fold: Fold) -> Rescue:
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
