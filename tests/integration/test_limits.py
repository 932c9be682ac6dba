"""Limits hold: how fast a rebuild is. (Memory: `unit/memory_probe.py`; a full disk: `test_trouble.py`.)"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from streams.config import FoldSettings
from streams.errors import RebuildCancelled
from tests.integration.kit import Kit, produce, tally_events, until

NewKit = Callable[..., Kit]


@pytest.mark.parametrize(("rate", "at_least_s"), [("1000", 1.3), ("20kB", 1.0), ("1000000,20kB", 1.0)])
async def test_a_rebuild_is_no_faster_than_it_may_be(new_kit: NewKit, rate: str, at_least_s: float) -> None:
    kit = new_kit(partitions=2, settings=FoldSettings(rate=rate))
    events = tally_events(1500)
    produce(kit.bootstrap, kit.topic, events)
    size = sum(len(value) for _, value in events)
    assert size > 60_000, "so that 20 kB/s take more than a second"
    began = time.monotonic()
    progress = await kit.coordinator().rebuild_from_beginning()
    assert time.monotonic() - began >= at_least_s
    assert progress.events_processed == kit.check() == 1500


async def test_one_that_is_slowed_down_is_cancelled_at_once(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings(rate="1"))
    produce(kit.bootstrap, kit.topic, tally_events(500))
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it to fold", lambda: coordinator.get_progress().events_processed)
    coordinator.cancel()
    with pytest.raises(RebuildCancelled):
        await work
    assert 0 < kit.check() < 500


def test_what_is_live_is_folded_as_it_comes(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings(rate="1"))
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.fold_all()  # at 1 event/s it would take half an hour
    assert kit.check() == 2000
