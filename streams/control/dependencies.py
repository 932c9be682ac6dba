"""Whether the projections that another one depends on are current."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from streams.cluster import Cluster
from streams.control.place import filling_group, topic_of
from streams.control.record import Generation
from streams.control.registry import Registry
from streams.errors import NotReady, at
from streams.log import get_logger

__all__ = ["wait_until_current"]

log = get_logger(__name__)

_LOOK_S = 0.2


def wait_until_current(
    cluster: Cluster,
    registry: Registry,
    projection: str,
    names: Iterable[str],
    *,
    wait_s: float = 60.0,
    check_cancelled: Callable[[], None] = lambda: None,
) -> None:
    """Wait until projections have folded all that their topics have now.

    Args:
        cluster: Kafka, where all of them are.
        registry: Which says what is active of each.
        projection: Whose dependencies they are.
        names: The projections.
        wait_s: How long to wait for each, while somebody folds it.
        check_cancelled: Raises where it is not wanted any more; called now and then.

    Raises:
        NotReady: One has no generation, or does not get there in time; it is named, with how far it is.
        TopicNotFound, BrokerError: From Kafka.
    """
    for name in names:
        record = registry.get(name)
        if record is None:
            raise NotReady(
                f"{projection!r} depends on {name!r}, of which the registry knows no generation: fold it first "
                f"(`refold run {name}`). Nothing was changed.",
                projection=projection,
            )
        live = record.live
        # What has to get to a topic of its own first is folded from there.
        filling = filling_group(live)
        parts = [(topic_of(live), live.group)] if filling is None else [filling, (topic_of(live), live.group)]
        for topic, group in parts:
            _wait(cluster, projection, name, live, topic.name, group, time.monotonic() + wait_s, check_cancelled)
        log.info("dependency.current", projection=projection, on=name, generation=live.id)


def _wait(
    cluster: Cluster,
    projection: str,
    on: str,
    live: Generation,
    topic: str,
    group: str,
    deadline: float,
    check_cancelled: Callable[[], None],
) -> None:
    """Wait until a group has come to where its topic ends now."""
    info = cluster.topic(topic)
    # Of a topic of its own, behind open transactions too: what comes behind one may have been committed already.
    ends = {} if live.source is None or topic == live.event_topic else cluster.ends(info)
    barrier = {
        number: max(marks.high, ends.get(number, 0))
        for number, marks in cluster.watermarks(info).items()
        if max(marks.high, ends.get(number, 0)) > marks.low
    }
    while True:
        check_cancelled()
        committed = cluster.committed(group, info)
        behind = {
            number: position - (committed[number].position if number in committed else 0)
            for number, position in barrier.items()
            if number not in committed or committed[number].position < position
        }
        if not behind:
            return
        if time.monotonic() > deadline or not cluster.members(group):
            where = ", ".join(f"{at(topic, number)} by {count:,}" for number, count in sorted(behind.items()))
            raise NotReady(
                f"{projection!r} depends on {on!r}, which is not current: {live.id} is behind at {where}. "
                f"`refold run {on}` folds it on. Nothing was changed.",
                projection=projection,
            )
        time.sleep(_LOOK_S)
