"""Transactions that have not ended: why nobody is told a group's offsets, where a transaction may move them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.calls import QUIET
from streams.config import KafkaSettings
from streams.errors import OffsetsPending, at

__all__ = ["offsets_pending"]

_ASK_S = 2.0
_ASK_ONE_S = 0.3


def offsets_pending(settings: KafkaSettings, group: str, wanted: Sequence[TopicPartition]) -> OffsetsPending | None:
    """Say, of offsets that were not told within a call's time, whether a transaction holds them; None: that is not why.

    Kafka answers who asks for stable offsets (KIP-447) only that he is to ask again, which librdkafka does until its
    time is over; who does not ask for stable ones is answered at once.

    Args:
        settings: Where the cluster is.
        group: The group.
        wanted: What was asked for.
    """
    config = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_uncommitted"}
    with closing(Consumer(settings.client(log_level=QUIET, **config))) as consumer:
        try:
            consumer.committed(list(wanted), timeout=_ASK_S)
        except KafkaException:
            return None
    config["isolation.level"] = "read_committed"
    held: list[str] = []
    with closing(Consumer(settings.client(log_level=QUIET, **config))) as consumer:
        for where in wanted:
            try:
                consumer.committed([where], timeout=_ASK_ONE_S if held else 2 * _ASK_ONE_S)
            except KafkaException:
                held.append(at(where.topic, where.partition))
            if len(held) == 3:
                break
    if not held:
        return None  # any more: it may be asked again
    return OffsetsPending(
        f"Kafka does not tell where group {group!r} is in {', '.join(held)}: a transaction that "
        "moves it there has not ended. One whose writer is gone is ended by Kafka within 20 s: ask again then. One "
        'that does not end within a minute never does: its end was lost with a broker (docs/by-model.md, "A '
        'transaction that never ends").'
    )
