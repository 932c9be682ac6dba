"""The loop over events: each into its model. Every line in it runs once for each event of history."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from projections.contract import CqrsProjection, Event
from streams.data.cache import MISSING, ModelCache
from streams.data.failures import NotItsStream

__all__ = ["Loop", "Ran"]


class Ran(NamedTuple):
    """How far the loop has come."""

    folded: int
    """Events that are in their models, or were declined; the one after them has failed, if one has."""
    declined: int
    deleted: int
    """Events at which `apply_to_model` gave None."""
    error: BaseException | None
    """What ended it in front of an event, whose model may be half changed."""
    was_loaded: bool
    """Whether the model of the event that it ended at was loaded for it, and so was until then as in the store."""


class Loop:
    """Folds events until they end, one fails, or an interrupt comes.

    Args:
        projection: The user's code.
        cache: The models.
        interrupts: See Fold.
    """

    def __init__(self, projection: CqrsProjection[Any], cache: ModelCache, interrupts: Sequence[object]) -> None:
        self._projection = projection
        self._cache = cache
        self._interrupts = interrupts
        self._is_async = inspect.iscoroutinefunction(projection.apply_to_model)
        self._runs_on: asyncio.AbstractEventLoop | None = None

    def run(self, events: Sequence[Event]) -> Ran:
        """Fold; at least one event."""
        if not self._is_async:
            return self._run(events)
        if self._runs_on is None:
            self._runs_on = asyncio.new_event_loop()
        return self._runs_on.run_until_complete(self._run_async(events))

    def _run(self, events: Sequence[Event]) -> Ran:
        extract, apply = self._projection.extract_model_id, self._projection.apply_to_model
        any_stream = self._projection.partition_by is not None
        dirty, load, interrupts = self._cache.dirty, self._cache.load, self._interrupts
        get = dirty.get
        event = events[0]
        loaded: Event | None = None
        declined = deleted = 0
        try:
            for event in events:
                model_id = extract(event)
                if model_id is None:
                    declined += 1
                else:
                    if not any_stream and model_id != event.stream:
                        raise NotItsStream(model_id)
                    model = get(model_id, MISSING)
                    if model is MISSING:
                        model = load(model_id)
                        loaded = event
                    changed = apply(model, event)
                    if changed is not model:
                        dirty[model_id] = changed
                    if changed is None:
                        deleted += 1
                if interrupts:
                    break
        except BaseException as error:  # noqa: BLE001  (told as what it is by whoever called)
            return Ran(_index(events, event), declined, deleted, error, loaded is event)
        return Ran(_index(events, event) + 1, declined, deleted, None, loaded is event)

    async def _run_async(self, events: Sequence[Event]) -> Ran:
        """The same for an `async def apply_to_model`. A copy, because an await costs more than the rest."""
        extract, apply = self._projection.extract_model_id, cast(Any, self._projection.apply_to_model)
        any_stream = self._projection.partition_by is not None
        dirty, load, interrupts = self._cache.dirty, self._cache.load, self._interrupts
        event = events[0]
        loaded: Event | None = None
        declined = deleted = 0
        try:
            for event in events:
                model_id = extract(event)
                if model_id is None:
                    declined += 1
                else:
                    if not any_stream and model_id != event.stream:
                        raise NotItsStream(model_id)
                    model = dirty.get(model_id, MISSING)
                    if model is MISSING:
                        model = load(model_id)
                        loaded = event
                    changed = await apply(model, event)
                    if changed is not model:
                        dirty[model_id] = changed
                    if changed is None:
                        deleted += 1
                if interrupts:
                    break
        except BaseException as error:  # noqa: BLE001  (told as what it is by whoever called)
            return Ran(_index(events, event), declined, deleted, error, loaded is event)
        return Ran(_index(events, event) + 1, declined, deleted, None, loaded is event)

    def close(self) -> None:
        """Close the loop that async code ran on."""
        if self._runs_on is not None:
            self._runs_on.close()


def _index(events: Sequence[Event], event: Event) -> int:
    """Say where in a sequence an event is; mostly it is the last one."""
    if events[-1] is event:
        return len(events) - 1
    return next(index for index, one in enumerate(events) if one is event)
