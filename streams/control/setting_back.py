"""Setting the group of a generation back, where it is folded again in place, or somebody's tool has set it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial

from streams.control.in_place import begun_in_place, halted, set_back
from streams.control.record import Generation, Rebuild, Record, Reset
from streams.control.replay import figures_of
from streams.control.site import Site
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.history import check_complete
from streams.data.stamp import Pinned, Stamp
from streams.data.store import StoreState
from streams.errors import HistoryIncomplete, at
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

__all__ = ["SettingBack"]

log = get_logger(__name__)

_JUDGE_S = 1.0


class SettingBack:
    """What a leader does to the offsets of a group that nobody is in.

    Args:
        site: The projection.
        update: Changes its record, as its leader.
        check_leading: Raises where this process does not lead any more.
    """

    def __init__(
        self, site: Site, update: Callable[[Callable[[Record], Record]], None], check_leading: Callable[[], None]
    ) -> None:
        self._site = site
        self._update = update
        self._check_leading = check_leading
        self._judged_s = -_JUDGE_S

    def set_back(self, running: Rebuild, one: Generation, reset: Reset) -> None:
        """Once nobody folds the generation any more, set its group back and say in the registry that it is folded anew.

        A crash between the two leaves offsets of the epoch to come, which the next leader sets again: until the
        registry says so, nobody folds.

        Raises:
            HistoryIncomplete: Events are gone that it needs. Nothing was changed.
            BrokerError: From Kafka.
        """
        site, cluster = self._site, self._site.events.cluster
        if cluster.members(one.group):
            return  # they drain
        topic = cluster.topic(one.topic)
        marks = cluster.watermarks(topic)
        self._check_complete(topic, {number: marks[number] for number in reset.partitions})
        stamp = Stamp(generation=one.id, build=reset.epoch, directory=one.state, fingerprint=reset.fingerprint)
        known = figures_of(cluster.committed(one.group, topic), one)
        positions: dict[int, int] = {}
        states: dict[int, StoreState] = {}
        pinned: dict[int, Pinned] = {}
        now_ms = time.time_ns() // 1_000_000
        for number, mark in marks.items():
            before = None if number in reset.partitions else known.get(number)
            start = positions[number] = mark.low if before is None else before.position
            states[number] = state = StoreState(
                directory=one.state,
                build=reset.epoch,
                partition=number,
                start=start,
                position=start,
                events=0 if before is None else before.events,
                declined=0 if before is None else before.declined,
                models=0 if before is None else before.models,
            )
            pinned[number] = Pinned(
                start=start,
                target=max(start, mark.high),
                events=state.events,
                declined=state.declined,
                since_ms=now_ms,
                since_position=start,
                since_events=state.events,
            )
        self._check_leading()
        if site.record().find(one.id) != one:
            return  # somebody else has taken the step
        KafkaCheckpointStore(one.group, site.events_of(site.place(one))).reset(stamp, positions, states, pinned)
        targets = {number: part.target for number, part in pinned.items()}
        self._update(partial(set_back, rebuild_id=running.id, targets=targets))
        log.warning("generation.set_back", generation=one.id, epoch=reset.epoch, partitions=list(reset.partitions))

    def judge(self, record: Record) -> None:
        """Judge offsets that somebody's tool has set in the active generation's group, while nobody is in it (KIP-122).

        At the log's start they ask for these partitions to be folded again. What else they may mean, the models cannot
        honour: the generation is halted until a person says. Others are not touched.

        Raises:
            BrokerError: From Kafka.
        """
        one = record.live
        if one.reset is not None or not one.state or record.running is not None:
            return
        if time.monotonic() - self._judged_s < _JUDGE_S:
            return
        self._judged_s = time.monotonic()
        cluster = self._site.events.cluster
        topic = cluster.topic(one.topic)
        stamped = KafkaCheckpointStore(one.group, self._site.events).stamped(topic)
        foreign = {number: position for number, (position, stamp) in stamped.items() if stamp is None}
        if not foreign or cluster.members(one.group):
            return
        marks = cluster.watermarks(topic)
        odd = {number: position for number, position in foreign.items() if position > marks[number].low}
        where = ", ".join(at(topic.name, number, position) for number, position in sorted((odd or foreign).items()))
        if odd:
            why = (
                f"somebody set group {one.group!r} to {where} (the commit has no stamp of refold's), which the models "
                "cannot honour. Set it to the log's start (kafka-consumer-groups.sh --reset-offsets --to-earliest) to "
                "have these partitions folded again, or say `keep-models` to have it go on from the models there are"
            )
            self._halt(one, why)
            return
        try:
            self._check_complete(topic, {number: marks[number] for number in foreign})
        except HistoryIncomplete as error:
            self._halt(one, f"somebody set group {one.group!r} to the log's start. {error} Or say `keep-models`")
            return
        why = f"somebody set group {one.group!r} to the log's start: {where}"
        rebuild_id = secrets.token_hex(8)
        begin = partial(
            begun_in_place, rebuild_id=rebuild_id, partitions=sorted(foreign), by="somebody's tool", why=why
        )
        self._update(begin)
        log.warning("offsets.reset_honoured", generation=one.id, partitions=sorted(foreign))

    def _halt(self, one: Generation, why: str) -> None:
        if why != one.halted:
            self._update(partial(halted, id=one.id, why=why))
            log.warning("generation.halted", generation=one.id, why=why)

    def _check_complete(self, topic: TopicInfo, marks: Mapping[int, Watermarks]) -> None:
        check_complete(
            self._site.events.cluster,
            topic,
            marks,
            projection=self._site.name,
            doing="A rebuild",
            allow_incomplete=self._site.allow_incomplete,
        )

    def forget_offsets(self) -> None:
        """Delete offsets that somebody has set: whoever folds next goes by the models, and tells the group anew.

        Raises:
            GroupActive: Somebody is in the group.
            BrokerError: From Kafka.
        """
        one = self._site.record().live
        if one.halted:
            self._check_leading()
            self._site.events.cluster.delete_group(one.group)
