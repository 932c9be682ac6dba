"""Comparing two generations while both are folded: copies of both, as of the same positions, are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from projections.contract import CqrsProjection
from streams.control.aligning import Aligned
from streams.control.compare import Comparison, Report
from streams.control.runs import Models
from streams.data.build import read_record
from streams.data.cut import UNFOLDED, Held
from streams.errors import NotReady, StoreLocked, at
from streams.log import get_logger
from streams.types import TopicInfo

__all__ = ["REPORT", "Side", "SideCut", "last_report", "verify"]

log = get_logger(__name__)

REPORT = "report.json"
_LOOK_S = 0.02
_TRIES = 4
_PAUSE_S = 1.5
"""Until the next try: what nobody folds may just be between two who do."""


class SideCut(Protocol):
    """One generation, held and then copied at a barrier, until the block ends that it was asked for in; see `Cut`."""

    def partitions(self) -> Iterable[int]:
        """Give the partitions that it has models of."""
        ...

    def held(self) -> Mapping[int, Held]:
        """Give where partitions are held, as far as it is known."""
        ...

    def set_barrier(self, positions: Mapping[int, int]) -> None:
        """Say where to copy each partition; may be said again, with fewer of them."""
        ...

    def copied(self, positions: Mapping[int, int]) -> set[int]:
        """Give which partitions are copied."""
        ...

    def models(self, partition: int) -> Models:
        """Give the models of one that is."""
        ...


class Side(Protocol):
    """One of the two generations, wherever its models are."""

    @property
    def generation(self) -> str:
        """Its id."""
        ...

    @property
    def projection(self) -> str:
        """The projection's name."""
        ...

    @property
    def topic(self) -> TopicInfo:
        """What it is folded from."""
        ...

    def cut(self) -> AbstractContextManager[SideCut]:
        """Ask for a cut, for the time of the block; then nothing of it is left, and all goes on as before."""
        ...

    def keep(self, report: Report) -> None:
        """Keep what was found of it."""
        ...


def verify(
    before: Side,
    after: Side,
    *,
    validate: CqrsProjection[Any] | None = None,
    shown: int = 20,
    wait_s: float = 30.0,
    align: Callable[[float], AbstractContextManager[Aligned]] | None = None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Report:
    """Compare two generations of one topic as of the same positions, and note the report beside the new one.

    0. Where they fold topics of their own, have these have the same events (see `aligning`).
    1. Have both be held where they are, by whoever folds them (see `cut`).
    2. Name the barrier: the ends of these topics, or of each partition the position of the one that is further. A
       partition that cannot get there, since it has halted or nobody folds it, is not compared, and the report says
       why. (One that is handed over just then is folded by nobody for a moment: it is looked at again, for some
       seconds.)
    3. Wait until both are copied at the barrier. They go on being folded by then.
    4. Compare the copies (see `Comparison`), and remove them.

    A crash leaves nothing that anybody heeds.

    Args:
        before: The active generation.
        after: The other one.
        validate: The projection whose `validate` is asked of each difference; None: none is.
        shown: How many models of each kind are shown.
        wait_s: How long to wait for those who fold.
        align: Has topics of their own have the same events, within so many seconds; None: they fold the event topic.
        check_cancelled: Raises where it is not wanted any more; called now and then.

    Raises:
        NotReady: They are not of the same topic.
        StoreLocked: Whoever has a store open does not answer in time.
        ProjectionError: `validate` raised.
        BuildChanged, StorageError: The state.
    """
    one, other = before.topic, after.topic
    if one.partitions != other.partitions or (align is None and one.id != other.id):
        raise NotReady(
            f"Generation {before.generation} is of topic {one.name} (id {one.id}, {one.partitions} partitions) "
            f"and {after.generation} of {other.name} (id {other.id}, {other.partitions}): there are no "
            "positions at which both could be compared. `--verify none` switches without.",
            projection=before.projection,
        )
    with _copied(before, after, wait_s, align, check_cancelled) as (barriers, positions, not_compared, cuts):
        comparison = Comparison(shown=shown, validate=validate)
        for number in sorted(barriers[0]):
            was, now = (cut.models(number) for cut in cuts)
            comparison.add(number, was, now, check_cancelled)
    report = Report(
        before=before.generation,
        after=after.generation,
        positions=dict(positions),
        summary=comparison.summary(not_compared),
        differences=comparison.differences,
    )
    after.keep(report)
    return report


def last_report(directory: Path) -> Report | None:
    """Give the last report on a generation; None where there is none.

    Args:
        directory: The generation's state directory.
    """
    return read_record(directory / REPORT, Report)


@contextmanager
def _copied(
    before: Side,
    after: Side,
    wait_s: float,
    align: Callable[[float], AbstractContextManager[Aligned]] | None,
    check_cancelled: Callable[[], None],
) -> Iterator[tuple[list[dict[int, int]], Mapping[int, int], dict[int, str], list[SideCut]]]:
    """Give both sides' barriers, the positions that these are, what is not compared, and both sides' cuts."""
    for tries_left in reversed(range(_TRIES)):
        with ExitStack() as stack:
            same = None if align is None else stack.enter_context(align(wait_s))
            cuts = [stack.enter_context(side.cut()) for side in (before, after)]
            # Whoever folds is held meanwhile, so one try must not take long.
            deadline = time.monotonic() + wait_s / _TRIES
            try:
                held = _held((before, after), cuts, deadline, check_cancelled)
                barriers, not_compared = _barriers((before, after), held, None if same is None else same.ends)
                again = "" if not tries_left else _handed_over(not_compared)
                if not again:
                    for cut, barrier in zip(cuts, barriers, strict=True):
                        cut.set_barrier(barrier)
                    if same is not None:
                        same.let_go()
                    again = _wait_for_copies((before, after), cuts, barriers, not_compared, deadline, check_cancelled)
                if not again and tries_left:
                    again = _handed_over(not_compared)
            except StoreLocked as error:
                if not tries_left:
                    raise
                again = str(error)
            if not again:
                yield barriers, barriers[0] if same is None else same.positions, not_compared, cuts
                return
        log.debug("verify.again", projection=before.projection, why=again)
        if tries_left:
            time.sleep(_PAUSE_S)
    raise StoreLocked(f"No positions could be agreed on: {again}. Try again.", projection=before.projection)


def _handed_over(not_compared: Mapping[int, str]) -> str:
    """Say which partitions may just be between two who fold them; "" where none is."""
    return "; ".join(why for why in not_compared.values() if why.endswith(UNFOLDED))


def _held(
    sides: tuple[Side, Side], cuts: list[SideCut], deadline: float, check_cancelled: Callable[[], None]
) -> list[Mapping[int, Held]]:
    """Wait until every partition of both is held."""
    while True:
        check_cancelled()
        found = [cut.held() for cut in cuts]
        missing = [
            f"{at(side.topic.name, number)} of {side.generation}"
            for side, cut, known in zip(sides, cuts, found, strict=True)
            for number in cut.partitions()
            if number not in known
        ]
        if not missing:
            return list(found)
        if time.monotonic() > deadline:
            raise StoreLocked(
                f"{', '.join(missing)} could not be looked at: the process that has it open does not answer. Is it "
                "rebuilding, or stopped? Nothing was compared.",
                projection=sides[0].projection,
            )
        time.sleep(_LOOK_S)


def _barriers(
    sides: tuple[Side, Side], held: list[Mapping[int, Held]], ends: tuple[Mapping[int, int], Mapping[int, int]] | None
) -> tuple[list[dict[int, int]], dict[int, str]]:
    """Name both sides' positions, and why some partitions have none.

    Args:
        sides: Both.
        held: Where each is held.
        ends: Where each is to be; None: where the one is that is further.
    """
    barriers: list[dict[int, int]] = [{}, {}]
    not_compared: dict[int, str] = {}
    for number in range(sides[0].topic.partitions):
        pair = [known.get(number) for known in held]
        if pair == [None, None]:
            continue  # nobody has folded anything of it
        furthest = max(one.position for one in pair if one is not None)
        wanted = (furthest, furthest) if ends is None else (ends[0][number], ends[1][number])
        why = [
            f"{side.generation} has no models of it"
            if one is None
            else f"{side.generation} stays at {one.position}, behind {position}: {one.why}"
            for side, one, position in zip(sides, pair, wanted, strict=True)
            if one is None or (one.why and one.position < position)
        ]
        if why:
            not_compared[number] = "; ".join(why)
        else:
            barriers[0][number], barriers[1][number] = wanted
    return barriers, not_compared


def _wait_for_copies(
    sides: tuple[Side, Side],
    cuts: list[SideCut],
    barriers: list[dict[int, int]],
    not_compared: dict[int, str],
    deadline: float,
    check_cancelled: Callable[[], None],
) -> str:
    """Wait until both sides are copied at their barriers; take those out of it that turn out not to get there.

    Returns:
        What is further than the barrier by now, so that another one is to be named; "" where nothing is.
    """
    while True:
        check_cancelled()
        missing = []
        for side, cut, barrier in zip(sides, cuts, barriers, strict=True):
            told = cut.held()
            for number in set(barrier) - cut.copied(barrier):
                where = f"{at(side.topic.name, number)} of {side.generation}"
                missing.append(where)
                if number not in told:
                    continue
                if told[number].position > barrier[number]:
                    return f"{where} is at {told[number].position} already"
                if told[number].why and told[number].position < barrier[number]:
                    not_compared[number] = (
                        f"{side.generation} stays at {told[number].position}, in front of {barrier[number]}: "
                        f"{told[number].why}"
                    )
                    for one, there in zip(cuts, barriers, strict=True):
                        del there[number]
                        one.set_barrier(there)
                    break
        if not missing:
            return ""
        if time.monotonic() > deadline:
            raise StoreLocked(
                f"{', '.join(missing)} did not come to where both are to be compared in time. Nothing was compared.",
                projection=sides[0].projection,
            )
        time.sleep(_LOOK_S)
