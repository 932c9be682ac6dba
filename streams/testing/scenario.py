"""Given these events, when those happen, then the models are so: one projection, without a broker."""

from __future__ import annotations

from typing import Any, Self

from projections.contract import CqrsProjection
from streams.data.codec import EventCodec
from streams.data.fold import Fold, feed
from streams.data.refold import MemoryStore
from streams.data.serde import serde_for
from streams.data.typed import typed
from streams.diff import ABSENT, changes
from streams.testing.log import Given, MemoryLog

__all__ = ["Scenario"]

_SHOWN = 10


class Scenario:
    """One projection, folded over events in memory by the engine's own fold.

    Events go through the codec and models through the store, so what would fail in production fails here: an id that is
    not the stream, a model that would not come back as it went in.

        Scenario(Baskets()).given(added(2)).when(added(1)).then("basket-1", Basket(items=3))

    Args:
        projection: The projection.
        codec: How records are read; by default a JSON envelope.
    """

    def __init__(self, projection: CqrsProjection[Any], *, codec: EventCodec | None = None) -> None:
        self.projection = projection
        self.log = MemoryLog(codec=codec)
        self._codec = typed(self.log.codec, projection)
        self._serde = serde_for(projection.model_type())
        self._store = MemoryStore.fresh(0, 0)
        self._fold = Fold(projection, self._serde, self._store)

    def given(self, *events: Given) -> Self:
        """Have had events happen.

        Raises:
            ProjectionError, EventError: One of them cannot be folded.
        """
        return self.when(*events)

    def when(self, *events: Given) -> Self:
        """Have events happen, and fold them; what cannot be folded raises.

        Raises:
            ProjectionError, EventError: At the first that cannot be folded; the models are as they were before all of
                these.
        """
        self.log.append(*events)
        left = [one for one in self.log.records[0] if one.offset() >= self._fold.position]
        self._fold.carefully = True
        try:
            if left:
                feed(self._codec, left, (self._fold,))
            self._fold.commit()
        except BaseException:
            self._fold.discard()
            del self.log.records[0][self._fold.position :]
            raise
        return self

    @property
    def models(self) -> dict[str, Any]:
        """Every model by its id, as it comes back from the store."""
        return {id_: self._serde.decode(raw) for id_, raw in self._store.models.items() if raw is not None}

    @property
    def declined(self) -> int:
        """How many events were declined: their model id was None."""
        return self._fold.declined

    def then(self, model_id: str, expected: Any) -> Self:
        """Make sure that a model is so.

        Args:
            model_id: Its id.
            expected: The model; None where there is to be none.

        Raises:
            AssertionError: It is not; each field that differs is told.
        """
        found = self.models.get(model_id)
        if found != expected:
            raise AssertionError(_told(model_id, self._json(expected), self._json(found), self.models))
        return self

    def then_nothing(self, model_id: str) -> Self:
        """Make sure that there is no model of this id; see `then`."""
        return self.then(model_id, None)

    def then_models(self, expected: dict[str, Any]) -> Self:
        """Make sure that these are all models there are; see `then`."""
        for model_id in sorted({*expected, *self.models}):
            self.then(model_id, expected.get(model_id))
        return self

    def _json(self, model: Any) -> Any:
        import orjson

        return ABSENT if model is None else orjson.loads(self._serde.encode(model))


def _told(model_id: str, expected: Any, found: Any, models: dict[str, Any]) -> str:
    if found is ABSENT:
        there = ", ".join(map(repr, sorted(models)[:_SHOWN])) or "none"
        return f"there is no model {model_id!r}; there are: {there}"
    if expected is ABSENT:
        return f"there is a model {model_id!r}, and there is to be none: {found!r}"
    lines = [
        f"  {change.path or '/'}: expected {change.before!r}, and it is {change.after!r}".replace("UNSET", "nothing")
        for change in changes(expected, found)
    ]
    return "\n".join([f"model {model_id!r} is not as expected:", *lines])
