"""What a topic still has, and what follows from that for a fold. Everything here only looks."""

from __future__ import annotations

from collections.abc import Mapping

from streams.cluster import Cluster
from streams.errors import BrokerError, HistoryIncomplete, TopicChanged, TopicNotFound, at
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

__all__ = ["TopicWatch", "check_complete", "check_readable"]

log = get_logger(__name__)


def check_complete(
    cluster: Cluster,
    topic: TopicInfo,
    watermarks: Mapping[int, Watermarks],
    *,
    projection: str,
    doing: str,
    allow_incomplete: bool,
    compaction_only: bool = False,
) -> bool:
    """Make sure that a topic still has every event from its beginning. Say whether it has.

    Args:
        cluster: Where it is.
        topic: The topic.
        watermarks: Those of the partitions that are to be folded from their beginning.
        projection: The projection's name.
        doing: What is about to be done, such as "A rebuild".
        allow_incomplete: Only log what is missing.
        compaction_only: The front of a partition may be gone: it was folded before.

    Raises:
        HistoryIncomplete: It has not, and that is not allowed. Nothing was changed.
    """
    missing = [
        f"{at(topic.name, partition)} lacks its first {marks.low} offsets"
        for partition, marks in sorted(watermarks.items())
        if marks.low > 0 and not compaction_only
    ]
    if "compact" in cluster.topic_config(topic.name).get("cleanup.policy", ""):
        missing.append(f"{topic.name} is compacted, which keeps only the last event of each stream")
    if missing and not allow_incomplete:
        raise HistoryIncomplete(
            f"History is incomplete: {'; '.join(missing)}. {doing} would give models without these events; nothing was "
            "changed. Allow it (allow_incomplete=True, --allow-incomplete) if you mean it.",
            projection=projection,
            topic=topic.name,
        )
    if missing:
        log.warning("history.incomplete", topic=topic.name, missing=missing)
    return not missing


def check_readable(topic: TopicInfo, partition: int, position: int, watermarks: Watermarks, projection: str) -> None:
    """Make sure that a partition can be read from a position on.

    Raises:
        HistoryIncomplete: It begins after the position.
        TopicChanged: It ends before it.
    """
    where, low, high = at(topic.name, partition), watermarks.low, watermarks.high
    if position < low:
        raise HistoryIncomplete(
            f"{where} begins at offset {low}, and the models are of position {position}: {low - position} offsets are "
            "gone unfolded (retention or a deletion). The state is kept as it is. Rebuilding folds what is left, if "
            "you allow it to be incomplete (--allow-incomplete).",
            projection=projection,
            topic=topic.name,
            partition=partition,
            offset=position,
        )
    if position > high:
        raise TopicChanged(
            f"{where} ends at {high}, and the models are of position {position}: the topic lost its tail or was made "
            "again. Rebuild from the beginning.",
            topic=topic.name,
            partition=partition,
            offset=position,
        )


class TopicWatch:
    """Finds a topic that was deleted and made again while it was read.

    Args:
        cluster: Where it is.
        topic: As it was described at first.
        projection: The projection's name.
    """

    def __init__(self, cluster: Cluster, topic: TopicInfo, projection: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self._projection = projection
        self._is_sure = True

    def has_read(self) -> None:
        """Note that there are records that may be another topic's."""
        self._is_sure = False

    def is_same(self) -> bool:
        """Make sure that the records read so far are of the topic as described. False: nobody answers.

        Raises:
            TopicChanged: It was made again under the same name, and records of the new one may have been read.
            TopicNotFound: It is gone.
        """
        if self._is_sure:
            return True
        try:
            found = self._cluster.topic(self._topic.name)
        except TopicNotFound:
            raise
        except BrokerError as error:
            log.warning("topic.unverified", topic=self._topic.name, why=str(error))
            return False
        if found.id != self._topic.id:
            raise TopicChanged(
                f"{found.name} was deleted and made again while it was folded (topic id {self._topic.id}, now "
                f"{found.id}). Nothing of the new topic was committed, and the models are as of the old one. "
                "To fold the new one, rebuild from the beginning.",
                projection=self._projection,
                topic=found.name,
            )
        self._is_sure = True
        return True
