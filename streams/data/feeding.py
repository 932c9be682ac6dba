"""Records on their way into folds: decoded once, and folded by each of those that are to."""

from __future__ import annotations

from collections.abc import Sequence

from streams.data.codec import EventCodec, Outcome, Record, decoded
from streams.data.partition import HeldPartition
from streams.errors import CqrsError

__all__ = ["Feeding", "feed_all"]


class Feeding:
    """A slice of one held partition. What goes wrong in its folds is kept, and is none of the others'.

    Args:
        held: The partition.
        records: Those that are to be folded.
        is_cut: Whether the slice has more records, which are not: the first of them has failed before.
        end: See `Slice`.
        interrupts: Folding stops once something is put in here.
    """

    __slots__ = ("_interrupts", "end", "error", "held", "is_cut", "records")

    def __init__(
        self,
        held: HeldPartition,
        records: list[Record],
        *,
        is_cut: bool,
        end: int | None,
        interrupts: Sequence[object],
    ) -> None:
        self.held = held
        self.records = records
        self.is_cut = is_cut
        self.end = end
        self.error: CqrsError | None = None
        self._interrupts = interrupts

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be folded."""
        return self.error is not None or bool(self._interrupts)

    def begin(self, records: Sequence[Record], sizes: Sequence[int], record_ms: int) -> None:
        """Take in which records come, what their sizes are, and the last one's timestamp."""
        for fold in self.held.folds:
            fold.begin(records, sizes, record_ms)

    def fold(self, outcomes: Sequence[Outcome]) -> None:
        """Fold what some of the records came out as."""
        if self.is_over:
            return
        try:
            for fold in self.held.folds:
                fold.fold(outcomes)
        except CqrsError as error:
            self.error = error


def feed_all(codec: EventCodec, feedings: Sequence[Feeding]) -> None:
    """Decode records once, and have all fold them whose records they are.

    Args:
        codec: How they are read.
        feedings: Each of the same records, of which there is at least one.
    """
    records = feedings[0].records
    sizes, record_ms = list(map(len, records)), records[-1].timestamp()[1]
    for one in feedings:
        one.begin(records, sizes, record_ms)
    for outcomes in decoded(codec, records):
        for one in feedings:
            one.fold(outcomes)
        if all(one.is_over for one in feedings):
            return
