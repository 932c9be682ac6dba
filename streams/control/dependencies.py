"""Whether the projections that another one depends on are current."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from streams.cluster import Cluster
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
        topic = cluster.topic(live.topic)
        barrier = {number: marks.high for number, marks in cluster.watermarks(topic).items() if marks.high > marks.low}
        deadline = time.monotonic() + wait_s
        while True:
            check_cancelled()
            committed = cluster.committed(live.group, topic)
            behind = {
                number: position - (committed[number].position if number in committed else 0)
                for number, position in barrier.items()
                if number not in committed or committed[number].position < position
            }
            if not behind:
                break
            if time.monotonic() > deadline or not cluster.members(live.group):
                where = ", ".join(f"{at(live.topic, number)} by {count:,}" for number, count in sorted(behind.items()))
                raise NotReady(
                    f"{projection!r} depends on {name!r}, which is not current: {live.id} is behind at {where}. "
                    f"`refold run {name}` folds it on. Nothing was changed.",
                    projection=projection,
                )
            time.sleep(_LOOK_S)
        log.info("dependency.current", projection=projection, on=name, generation=live.id)
