"""How far every generation's whole group is, asked of Kafka now and then, for status, readiness and metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from streams.cluster import Cluster
from streams.control.place import filling_group
from streams.control.record import Generation
from streams.control.repartitioning import Stages
from streams.control.site import Site
from streams.control.status import GroupView, view_group
from streams.data.agent import AgentStatus
from streams.data.peek import Peek
from streams.errors import CqrsError, OffsetsPending
from streams.log import get_logger
from streams.serve.owners import Owners
from streams.serve.served import Served
from streams.types import Member, RebuildProgress, TopicInfo, Watermarks

__all__ = ["Observed", "Observing", "Subject"]

log = get_logger(__name__)

_EVERY_S = 0.25
"""So that who is ready, and who holds what, is known as soon as a group has settled."""
_ASK_S = 3.0
_COUNT_S = 10.0
"""How often it is looked whether a topic has more partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A generation that is to be looked at."""

    site: Site
    generation: Generation
    status: AgentStatus
    """What this worker's agents say, which is newer than what the group was told."""
    filled: AgentStatus = field(default_factory=AgentStatus)
    """The same of those that fill the generation's own topic."""
    is_replayed: bool = False
    """Whether a rebuild of it runs, whose ends are pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A group as it was seen."""

    view: GroupView
    at_s: float
    """When, by the monotonic clock."""
    lag_s: Mapping[int, float] = field(default_factory=dict)
    """By partition of those that are held here, how old the next event to fold is; 0.0 where there is none. One whose
    next event is not known is not in it."""
    filling_lag_s: Mapping[int, float] = field(default_factory=dict)
    """The same of what is read here to fill the generation's own topic, by partition of the event topic."""

    @property
    def age_s(self) -> float:
        """How long ago."""
        return time.monotonic() - self.at_s


class Observing:
    """Looks at generations on a thread of its own.

    Args:
        subjects: Gives those that are to be looked at now.
        owners: Told of who is in the groups.
        served: Told of how far what is held here is.
    """

    def __init__(self, subjects: Callable[[], Iterable[Subject]], owners: Owners, served: Served) -> None:
        self._subjects = subjects
        self._served = served
        self._owners = owners
        self._peeks: dict[str, Peek] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refold-observing", daemon=True)
        self.seen: Mapping[str, Observed] = {}
        """By generation's id, as last seen; replaced as a whole."""
        self.added: dict[str, int] = {}
        """By generation's id, how many partitions its topic was given since it began: it does not fold them."""
        self._counted_s: dict[str, float] = {}
        self._replays: dict[str, Stages] = {}
        self.why_not = ""
        """Why Kafka could not be asked the last time; "" where it could."""
        self.beat_s = time.monotonic()
        """When the loop went round last."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end."""
        self._stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; say whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            self.beat_s = time.monotonic()
            seen, why_not = {}, ""
            for subject in self._subjects():
                one = subject.generation
                if one.source is not None and not one.topic_id:
                    continue  # its own topic is not made yet
                topic = TopicInfo(name=one.topic, id=one.topic_id, partitions=one.partitions)
                cluster = subject.site.events.cluster.within(_ASK_S)
                began_s = time.monotonic()
                self._served.note(one, subject.status.partitions)
                try:
                    # First what readers rest on: a group tells no offsets while a transaction holds them.
                    marks, members = cluster.watermarks(topic), cluster.members(one.group)
                    self._owners.note(one.id, members, began_s)
                    ends = {number: mark.high for number, mark in marks.items()}
                    self._served.look(one, subject.status.partitions, ends)
                    seen[one.id] = self._look(cluster, subject, marks, members)
                except CqrsError as error:
                    why_not = str(error)
                    if not isinstance(error, OffsetsPending):
                        self._owners.note_silence()
                    if one.id in self.seen:
                        seen[one.id] = self.seen[one.id]
                    continue
                self._follow(cluster, subject)
            for gone in set(self._replays) - set(seen):
                del self._replays[gone]
            self.seen, self.why_not = seen, why_not
        for peek in self._peeks.values():
            peek.close()

    def _look(
        self, cluster: Cluster, subject: Subject, marks: Mapping[int, Watermarks], members: Sequence[Member]
    ) -> Observed:
        one, now_s = subject.generation, time.monotonic()
        self._count(cluster, one)
        view = view_group(
            cluster,
            TopicInfo(name=one.topic, id=one.topic_id, partitions=one.partitions),
            one.group,
            agent=subject.status,
            filling=filling_group(one),
            watermarks=marks,
            members=members,
        )
        return self._observed(subject, view, now_s)

    def progress(self, generation: str) -> RebuildProgress | None:
        """Give how far a generation's replay is, by what its group was told; None where it is not replayed."""
        replay = self._replays.get(generation)
        return None if replay is None else replay.progress

    def _follow(self, cluster: Cluster, subject: Subject) -> None:
        """Follow a replay, which its leader does too; what cannot be seen now is looked at the next time."""
        one = subject.generation
        if not subject.is_replayed:
            self._replays.pop(one.id, None)
            return
        try:
            self._replays.setdefault(one.id, Stages(cluster)).look(one)
        except CqrsError as error:
            log.debug("replay.not_seen", generation=one.id, why=str(error))

    def _count(self, cluster: Cluster, one: Generation) -> None:
        """Look now and then whether a topic has partitions that nobody folds for this generation."""
        if time.monotonic() - self._counted_s.get(one.id, float("-inf")) < _COUNT_S:
            return
        now = cluster.topic(one.topic)
        self._counted_s[one.id] = time.monotonic()
        added = max(0, now.partitions - one.partitions) if now.id == one.topic_id else 0
        if added and self.added.get(one.id) != added:
            log.warning(
                "topic.partitions_added",
                topic=one.topic,
                generation=one.id,
                folded=one.partitions,
                partitions=now.partitions,
                advice="rebuild the projection: events of the new ones are not folded",
            )
        self.added[one.id] = added

    def _observed(self, subject: Subject, view: GroupView, now_s: float) -> Observed:
        before = self.seen.get(subject.generation.id)
        lag_s = self._lags(subject, subject.status, view, None if before is None else (before.view, before.at_s), now_s)
        filled_lag_s: dict[int, float] = {}
        if view.filling is not None:
            was = None if before is None or before.view.filling is None else (before.view.filling, before.at_s)
            filled_lag_s = self._lags(subject, subject.filled, view.filling, was, now_s)
        return Observed(view=view, at_s=now_s, lag_s=lag_s, filling_lag_s=filled_lag_s)

    def _lags(
        self,
        subject: Subject,
        status: AgentStatus,
        view: GroupView,
        before: tuple[GroupView, float] | None,
        now_s: float,
    ) -> dict[int, float]:
        """Say how old the next event of each partition is that is held here."""
        ends = {} if before is None else {one.partition: one.end for one in before[0].partitions}
        lags = {}
        for one in view.partitions:
            if one.partition not in status.partitions or one.position is None:
                continue
            if not one.lag:
                lags[one.partition] = 0.0
            elif before is not None and one.position >= ends.get(one.partition, one.end):
                lags[one.partition] = now_s - before[1]  # it came since
            else:
                written_ms = self._peek(subject, view.topic).written_ms(one.partition, one.position)
                if written_ms is not None:
                    lags[one.partition] = max(0.0, time.time() - written_ms / 1000)
        return lags

    def _peek(self, subject: Subject, topic: str) -> Peek:
        kafka = subject.site.events.kafka
        key = f"{kafka.bootstrap_servers}/{topic}"
        if key not in self._peeks:
            self._peeks[key] = Peek(kafka, topic)
        return self._peeks[key]
