"""Having two generations that fold topics of their own be as of the same positions of the event topic.

Their own topics have the same events in different places, so there is no position at which both could be cut. But where
nothing more is written to either, and both have all up to the same positions of the event topic, their ends are such
places. So what fills them is held, for as long as it takes to look at these ends: by a wish in the registry, which
reaches every process that does it, wherever that is; and each says in its group's offsets that it is held.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from streams.control.place import topic_of
from streams.control.record import Generation, Holding, Record
from streams.control.repartitioning import filling_of
from streams.control.site import Site
from streams.data.job import Hold
from streams.data.stamp import Stamp
from streams.errors import BrokerError, NotReady, StoreLocked, at
from streams.log import get_logger

__all__ = ["Aligned", "aligned", "can_be_aligned", "wish_of"]

log = get_logger(__name__)

_LOOK_S = 0.05
_HOLD_S = 25.0
_SKEW = timedelta(minutes=5)
"""By so much clocks may differ."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Two generations whose own topics have the same events."""

    positions: Mapping[int, int]
    """By partition of the event topic, up to where."""
    ends: tuple[Mapping[int, int], Mapping[int, int]]
    """Of each of both, by partition of its own topic, where these end."""
    let_go: Callable[[], None]
    """Has both be filled again: nothing is to be held any more than what folds them."""


def wish_of(record: Record | None, generation: str) -> Hold | None:
    """Say whether what fills a generation's own topic is to be held."""
    holding = None if record is None else record.holding
    if holding is None or generation not in holding.generations:
        return None
    if holding.until + _SKEW < datetime.now(UTC):  # who wished it has died; what is held by it lets go by itself
        return None
    return Hold(id=holding.id, barrier=holding.barrier)


def can_be_aligned(one: Generation, other: Generation) -> bool:
    """Say whether both fold topics of their own."""
    return one.source is not None and other.source is not None


@contextmanager
def aligned(
    site: Site,
    before: Generation,
    after: Generation,
    wait_s: float,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Iterator[Aligned]:
    """Have two generations' own topics have the same events, until the block ends or they are let go.

    1. Have both be held where they are.
    2. Name the barrier: of each partition of the event topic the position of the one that is further. Wait until both
       are there.
    3. Wait until no transaction is open in either topic, and take their ends.

    A crash leaves a wish that nobody heeds for longer than half a minute.

    Args:
        site: The projection.
        before: The active generation.
        after: The other one.
        wait_s: How long to wait.
        check_cancelled: Raises where it is not wanted any more; called now and then.

    Raises:
        NotReady: They are not of the same event topic, or one of them cannot get to where the other one is.
        StoreLocked: It took too long.
        BrokerError: From Kafka.
    """
    one, other = before.source, after.source
    assert one is not None
    assert other is not None
    if one.topic_id != other.topic_id:
        raise NotReady(
            f"Generation {before.id} is of topic {one.topic} (id {one.topic_id}) and {after.id} of {other.topic} (id "
            f"{other.topic_id}): there are no positions at which both could be compared. `--verify none` switches "
            "without.",
            projection=site.name,
        )
    holding = Holding(
        id=secrets.token_hex(6),
        generations=(before.id, after.id),
        until=datetime.now(UTC) + timedelta(seconds=_HOLD_S),
    )
    fillings = [_Filling(site, generation, holding.id) for generation in (before, after)]
    deadline = time.monotonic() + wait_s

    def wait(what: Callable[[], bool], doing: str) -> None:
        while not what():
            check_cancelled()
            if time.monotonic() > deadline:
                raise StoreLocked(
                    f"{doing} in time: {'; '.join(filter(None, (one.missing for one in fillings)))}. Nothing was "
                    "compared.",
                    projection=site.name,
                )
            time.sleep(_LOOK_S)

    is_held = True

    def let_go() -> None:
        nonlocal is_held
        if is_held:
            is_held = False
            site.update(lambda record: _let_go(record, holding.id))

    # Step 1
    site.update(lambda record: replace(record, holding=holding))
    try:
        wait(lambda: all(one.look() for one in fillings), "What fills the topics of both was not held")
        # Step 2
        barrier = {
            number: max(one.held.get(number, 0) for one in fillings)
            for number in sorted(fillings[0].held | fillings[1].held)
        }
        site.update(lambda record: _at_barrier(record, replace(holding, barrier=barrier)))
        wait(lambda: all(one.look(barrier) for one in fillings), "What fills the topics of both did not get as far")
        # Step 3
        wait(lambda: all(one.is_settled() for one in fillings), "Transactions stayed open")
        # Whoever has just come, and had not heard of the wish, may have gone past it.
        wait(lambda: all(one.look(barrier) for one in fillings), "What fills the topics of both did not stay")
        log.debug("generations.aligned", generations=holding.generations, positions=barrier)
        yield Aligned(barrier, (fillings[0].ends, fillings[1].ends), let_go)
    finally:
        with suppress(BrokerError):
            let_go()


def _at_barrier(record: Record, holding: Holding) -> Record:
    known = record.holding
    return record if known is None or known.id != holding.id else replace(record, holding=holding)


def _let_go(record: Record, id_: str) -> Record:
    return record if record.holding is None or record.holding.id != id_ else replace(record, holding=None)


class _Filling:
    """What fills one generation's own topic, as its group tells it."""

    def __init__(self, site: Site, generation: Generation, wish: str) -> None:
        self._cluster = site.events.cluster
        self._projection = site.name
        self._generation = generation
        self._filling = filling_of(generation)
        self._topic = topic_of(self._filling)
        self._wish = wish
        self.held: dict[int, int] = {}
        """By partition of the event topic, where it is held."""
        self.ends: Mapping[int, int] = {}
        self.missing = ""
        """What is not held yet."""

    def look(self, barrier: Mapping[int, int] | None = None) -> bool:
        """Say whether all of it is held, and at the barrier where there is one.

        Raises:
            NotReady: A partition will not get there.
        """
        topic = self._cluster.topic(self._topic.name)
        committed = self._cluster.committed(self._filling.group, topic)
        stamps = {number: Stamp.parse(one.metadata) for number, one in committed.items()}
        is_filled = bool(self._cluster.members(self._filling.group))
        missing = []
        for number in range(topic.partitions):
            stamp = stamps.get(number)
            position = committed[number].position if number in committed else 0
            to = position if barrier is None else barrier.get(number, 0)
            halted = "" if stamp is None else stamp.halted or ""
            if is_filled and not halted and (stamp is None or stamp.held != self._wish or position < to):
                missing.append(f"{at(topic.name, number)} of {self._generation.id}")
                continue
            if barrier is not None and position > to:
                raise StoreLocked(
                    f"{at(topic.name, number)} of {self._generation.id} is at {position}, and was held at {to}: "
                    "another process fills its topic by now.",
                    projection=self._projection,
                )
            if position < to:
                raise NotReady(
                    f"{at(topic.name, number)} is read no further than to {position} for {self._generation.id}, and "
                    f"the other generation has come to {to}: {halted or 'nobody folds it'}.",
                    projection=self._projection,
                )
            self.held[number] = position
        self.missing = ", ".join(missing)
        return not missing

    def is_settled(self) -> bool:
        """Say whether its own topic has nothing that may still become visible; then `ends` are known."""
        own = topic_of(self._generation)
        stable = {number: marks.high for number, marks in self._cluster.watermarks(own).items()}
        self.missing = f"of {own.name}"
        self.ends = stable
        return stable == self._cluster.ends(own)
