"""Topics that generations have of their own: made, filled up to the ends that a rebuild has pinned, and removed."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

import msgspec

from streams.cluster import Cluster
from streams.control.record import Generation
from streams.control.replay import Replay
from streams.control.site import Site
from streams.data.history import check_complete
from streams.data.job import mark_of
from streams.errors import BrokerError, OffsetsPending, TopicChanged, TransactionHangs
from streams.types import RebuildProgress, TopicInfo, Watermarks

__all__ = ["HANGS_S", "Filling", "Stages", "check_source", "filling_of", "make_topic", "remove_topic", "staged"]

HANGS_S = 60.0
"""No transaction takes so long: Kafka ends one after 10 s (`transaction.timeout.ms`), and looks every 10 s for such
(`transaction.abort.timed.out.transaction.cleanup.interval.ms`)."""
_FOREVER = str(2**63 - 1)
_ROOM_BYTES = 64 << 10
_OLDEST = "message.timestamp.before.max.ms"
_NEWEST = "message.timestamp.after.max.ms"


def make_topic(cluster: Cluster, name: str, source: TopicInfo) -> TopicInfo:
    """Make the topic that a generation folds, of as many partitions as the event topic has; one that is there stays.

    What the event topic takes, it takes too: records as large, with headers beside, and with the timestamps that they
    have. It keeps them until they are deleted.

    Raises:
        BrokerError: From Kafka.
    """
    known = cluster.topic_config(source.name)
    config = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "message.timestamp.type": "CreateTime",
        "max.message.bytes": str(int(known.get("max.message.bytes", 1 << 20)) + _ROOM_BYTES),
    }
    config |= {key: _FOREVER for key in (_OLDEST, _NEWEST) if key in known}  # since Kafka 3.6
    cluster.create_topic(name, source.partitions, config)
    return cluster.topic(name)


def remove_topic(cluster: Cluster, generation: Generation) -> bool:
    """Remove a generation's own topic, with the group of those who fill it; False: they go on just now.

    Raises:
        BrokerError: From Kafka.
    """
    if generation.source is None:
        return True
    if cluster.members(generation.topic):
        return False
    cluster.delete_group(generation.topic)
    cluster.delete_topic(generation.topic)
    return True


def check_source(site: Site, generation: Generation) -> dict[int, Watermarks]:
    """Give where the event topic begins and ends, of which a generation's own topic is to be made.

    Raises:
        TopicChanged: It is another one than that of which the generation was to be.
        HistoryIncomplete: It lacks events.
        TopicNotFound, BrokerError: From Kafka.
    """
    cluster, source = site.events.cluster, generation.source
    assert source is not None
    topic = cluster.topic(source.topic)
    if topic.id != source.topic_id:
        raise TopicChanged(
            f"{topic.name} is not the topic any more that {generation.id} was to be made of (id {source.topic_id}, now "
            f"{topic.id}). Rebuild again.",
            projection=site.name,
            topic=topic.name,
        )
    marks = cluster.watermarks(topic)
    check_complete(
        cluster, topic, marks, projection=site.name, doing="A rebuild", allow_incomplete=site.allow_incomplete
    )
    return marks


def filling_of(generation: Generation) -> Generation:
    """Give a generation that stands for the filling of another one's own topic: its group, and what that reads."""
    source = generation.source
    assert source is not None
    return msgspec.structs.replace(
        generation,
        topic=source.topic,
        topic_id=source.topic_id,
        partitions=source.partitions,
        source=None,
        group=generation.topic,
        targets=source.targets,
        state=mark_of(generation.topic_id),
        epoch=0,
    )


class Filling:
    """Looks at how far a generation's own topic is filled, and bears with a transaction for as long as one may last.

    Args:
        cluster: Kafka.
        generation: The one whose topic it is.
    """

    def __init__(self, cluster: Cluster, generation: Generation) -> None:
        self._cluster = cluster
        self._of = generation
        self._replay: Replay | None = None
        self._since_s: float | None = None

    def look(self) -> Replay:
        """Ask Kafka, and give what it says.

        Raises:
            OffsetsPending: A transaction that has not ended may move it.
            TransactionHangs: It has not for longer than any may last.
            BrokerError: From Kafka; where that was asked before, nothing is known anew, and nothing is raised.
        """
        try:
            if self._replay is None:
                self._replay = Replay(self._cluster, filling_of(self._of))
            self._replay.look()
        except OffsetsPending as why:
            now = time.monotonic()
            self._since_s = now if self._since_s is None else self._since_s
            if now - self._since_s < HANGS_S:
                raise
            raise TransactionHangs(
                f"The topic of {self._of.id} cannot be filled any further: {why} It has not ended for {HANGS_S:g} s. "
                "Nothing else is changed: rebuild again, which makes another topic."
            ) from why
        except BrokerError:
            self._since_s = None  # while brokers are away, nobody ends any
            raise
        self._since_s = None
        return self._replay

    @property
    def progress(self) -> RebuildProgress | None:
        """The figures as of the last look; None before the first."""
        return None if self._replay is None else self._replay.progress


class Stages:
    """Follows a generation's rebuild through its stages, from outside; see `Replay`.

    Args:
        cluster: Kafka.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._of: tuple[str, int] = ("", 0)
        self._replay: Replay | None = None
        self.progress: RebuildProgress | None = None
        """The figures as of the last look; None while nothing is known."""

    def look(self, generation: Generation) -> None:
        """Ask Kafka how far it is.

        Args:
            generation: It, as the registry has it by now.

        Raises:
            BrokerError: From Kafka; where that was asked before, nothing is known anew, and nothing is raised.
        """
        is_filled = generation.source is None or generation.phase not in ("new", "repartitioning")
        one = generation if is_filled else filling_of(generation)
        if not one.targets or one.reset is not None:
            return
        if self._replay is None or self._of != (one.group, one.epoch):
            self._replay, self._of = Replay(self._cluster, one), (one.group, one.epoch)
        with suppress(OffsetsPending):
            self._replay.look()
        progress = self._replay.progress
        self.progress = progress if generation.source is None else staged(progress, 1 + is_filled)


def staged(progress: RebuildProgress, stage: int) -> RebuildProgress:
    """Give the figures of one of the two stages as those of the whole."""
    return replace(progress, stage=stage, stages=2)
