"""Some streams of a partition, folded a second time by whoever folds the partition."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from projections.contract import CqrsProjection
from streams.data.codec import Outcome
from streams.data.handover import Asked, Handover
from streams.data.refold import MemoryStore, StreamsFold
from streams.data.serde import Serde
from streams.data.store import StoreState
from streams.errors import CqrsError

__all__ = ["Beside"]


class Beside(StreamsFold):
    """Goes on with what was handed over. A failure is kept for whoever asked, and is none of the partition's.

    Args:
        projection: The user's code.
        serde: How its models are stored.
        asked: Who asked.
        handover: What was handed over.
        fresh: The state of a store that has folded nothing, at the position of the handover.
        interrupts: See Fold.
        dropped: Offsets of events that are never to be folded.
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        serde: Serde,
        asked: Asked,
        handover: Handover,
        fresh: StoreState,
        interrupts: Sequence[object],
        dropped: Container[int],
    ) -> None:
        store = MemoryStore(fresh, handover.models)
        super().__init__(projection, serde, store, handover.streams, interrupts, dropped)
        self.asked = asked
        self.failure: CqrsError | None = None

    def fold(self, outcomes: Sequence[Outcome]) -> None:
        """See Fold, which this follows as far as it can."""
        if self.failure is None:
            try:
                super().fold(outcomes)
            except CqrsError as error:
                self.failure = error
