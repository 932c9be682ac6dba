"""Hooks are told of what becomes of a rebuild, and cannot end one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from streams import Generations, RebuildHook, RebuildProgress
from streams.config import FoldSettings
from streams.errors import EventError, HistoryIncomplete, RebuildCancelled
from tests.integration.kit import Kit, produce, tally_events, until
from tests.integration.versions import Fixed
from tests.support import envelope

NewKit = Callable[..., Kit]


class Heard(RebuildHook):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.letters = 0
        self.checkpoints = 0
        self.last: RebuildProgress | None = None

    def _hear(self, what: str, progress: RebuildProgress) -> None:
        if what not in self.said[-1:]:
            self.said.append(what)
        self.last = progress

    def started(self, progress: RebuildProgress) -> None:
        assert progress.partitions
        self._hear("started", progress)

    def progress(self, progress: RebuildProgress) -> None:
        self._hear("progress", progress)

    def checkpoint_saved(self, progress: RebuildProgress) -> None:
        assert progress.checkpoints > self.checkpoints
        self.checkpoints = progress.checkpoints

    def dead_letter(self, progress: RebuildProgress, count: int) -> None:
        self.letters += count

    def cancelled(self, progress: RebuildProgress) -> None:
        self._hear("cancelled", progress)

    def failed(self, progress: RebuildProgress, error: BaseException) -> None:
        self._hear(f"failed: {type(error).__name__}", progress)

    def completed(self, progress: RebuildProgress) -> None:
        self._hear("completed", progress)


class Broken(RebuildHook):
    """Fails at the first that it is told."""

    def __init__(self) -> None:
        self.calls = 0

    def started(self, progress: RebuildProgress) -> None:
        self.calls += 1
        raise RuntimeError("no pager")

    def completed(self, progress: RebuildProgress) -> None:
        self.calls += 1


async def test_hooks_hear_of_start_progress_checkpoints_letters_and_the_end(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2, settings=FoldSettings(on_error="skip", checkpoint_events=100, rate="2000"))
    produce(
        kit.bootstrap, kit.topic, [*tally_events(1500), ("stream-1", b"{torn"), ("stream-2", envelope(1501, "fail"))]
    )
    heard, broken = Heard(), Broken()
    progress = await kit.coordinator(hooks=[broken, heard]).rebuild_from_beginning()
    assert heard.said == ["started", "progress", "completed"]
    assert heard.last == progress
    assert heard.letters == progress.events_skipped == 2
    assert heard.checkpoints == progress.checkpoints >= 10
    assert broken.calls == 1, "who fails once is told no more"
    assert kit.store.current() is not None


async def test_hooks_hear_of_cancellation_failure_and_refusal(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings(rate="100"))
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    heard = Heard()
    coordinator = kit.coordinator(hooks=[heard])
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it to fold", lambda: "progress" in heard.said)
    coordinator.cancel()
    with pytest.raises(RebuildCancelled):
        await work
    assert heard.said == ["started", "progress", "cancelled"]
    # Halted at a record
    kit.settings = FoldSettings()
    produce(kit.bootstrap, kit.topic, [("a", b"{torn")])
    heard = Heard()
    with pytest.raises(EventError):
        await kit.coordinator(hooks=[heard]).rebuild_from_beginning()
    assert heard.said[0] == "started"
    assert heard.said[-1] == "failed: EventError"
    # Refused before anything was changed
    kit.delete_before(0, 10)
    heard = Heard()
    with pytest.raises(HistoryIncomplete):
        await kit.coordinator(hooks=[heard]).rebuild_from_beginning()
    assert heard.said == ["failed: HistoryIncomplete"]


async def test_hooks_hear_of_rebuilds_beside_the_live_version(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.refold_in_place()
    heard = Heard()
    options: dict[str, Any] = {"registry": kit.registry, "state_dir": kit.state_dir, "settings": kit.settings}
    generations = Generations(Fixed(), kit.events, hooks=[heard], **options)
    await generations.rebuild(policy="none", approve="auto", keep=timedelta(0), workers=0)
    assert heard.said[-1] == "completed"
    assert heard.said[0] == "started"
