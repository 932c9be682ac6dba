"""A rebuild that is tried again: where that may help, and from where it was."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projections.contract import Event, TransientError
from streams import Retry
from streams.broker import EmbeddedBroker
from streams.config import FoldSettings, RecoverySettings
from streams.control.retry import is_transient
from streams.errors import (
    BrokerUnavailable,
    EventError,
    HistoryIncomplete,
    ProjectionError,
    RebuildCancelled,
    StorageError,
    StoreCorrupt,
)
from tests.integration.kit import Kit, produce, tally_events, until
from tests.support import Tally

NewKit = Callable[..., Kit]
QUICK = Retry(attempts=4, first_wait_s=0.05, ceiling_s=0.2)
ONCE = FoldSettings(recovery=RecoverySettings(attempts=1))
"""An agent does not try an event again by itself: the rebuild is tried again."""


class Moody(Tally):
    """Cannot fold one event at first."""

    name = "tally"
    fails_at = "e250"
    left = 0
    seen = 0

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        Moody.seen += 1
        if event.id == self.fails_at and Moody.left:
            Moody.left -= 1
            raise TransientError("the lookup is away")
        return super().apply_to_model(model, event)


def origin(kit: Kit) -> int:
    build = kit.store.current()
    assert build is not None
    return build.manifest.origin


async def test_event_that_can_be_folded_later_is_gone_on_at(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=Moody(), settings=ONCE)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    Moody.left, Moody.seen = 2, 0
    progress = await kit.coordinator(retry=QUICK).rebuild_from_beginning()
    assert (progress.events_processed, progress.completion_percentage()) == (500, 100.0)
    assert Moody.seen < 800  # what was committed is not folded again, but a batch that fails is
    assert (origin(kit), kit.build) == (1, 3)  # two went on with the first, and did not begin anew
    assert kit.check() == 500


async def test_what_will_not_pass_is_not_tried_again(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [*tally_events(50, first=1), ("stream-1", b"{oops")])
    with pytest.raises(EventError):
        await kit.coordinator(retry=QUICK).rebuild_from_beginning()
    assert kit.build == 1


async def test_last_attempt_says_what_ended_it(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=Moody(), settings=ONCE)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    Moody.left = 1000
    coordinator = kit.coordinator(retry=QUICK)
    with pytest.raises(ProjectionError, match=r"\[0\]@250: .*TransientError: the lookup is away") as raised:
        await coordinator.rebuild_from_beginning()
    assert raised.value.is_transient
    assert kit.build == QUICK.attempts
    progress = coordinator.get_progress()
    assert not progress.is_running
    assert "the lookup is away" in (progress.error or "")
    assert kit.positions() == {0: 250}
    Moody.left = 0


async def test_cancelling_while_it_waits_is_prompt_and_keeps_what_was_folded(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=Moody(), settings=ONCE)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    Moody.left = 1000
    coordinator = kit.coordinator(retry=Retry(attempts=3, first_wait_s=50))
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it waits", lambda: "attempt 2 of 3" in coordinator.get_progress().waiting_for)
    waiting = coordinator.get_progress()
    assert (waiting.is_running, waiting.events_processed) == (True, 250)
    coordinator.cancel()
    began = time.monotonic()
    with pytest.raises(RebuildCancelled, match="cancelled after 250 events") as raised:
        await work
    assert time.monotonic() - began < 25  # of a wait of 50
    assert raised.value.checkpoint.positions == {0: 250}
    again = asyncio.ensure_future(coordinator.rebuild_from_checkpoint())
    await asyncio.to_thread(until, "it waits", lambda: "attempt 2 of 3" in coordinator.get_progress().waiting_for)
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    assert not coordinator.get_progress().is_running
    Moody.left = 0
    await kit.coordinator().rebuild_from_checkpoint(raised.value.checkpoint)
    assert kit.check() == 500


@pytest.mark.slow
async def test_broker_that_comes_back_is_gone_on_with(
    private_broker: EmbeddedBroker, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit(
        private_broker.bootstrap_servers,
        "retry",
        "retry",
        tmp_path / "state",
        projection=Slow(),
        settings=FoldSettings(session_timeout_s=8),
        kafka_settings={"outage_limit_s": 1.0, "request_timeout_s": 2.0},
    )
    kit.cluster.create_topic("retry", 2)
    produce(kit.bootstrap, "retry", tally_events(1500, first=1))
    coordinator = kit.coordinator(retry=Retry(attempts=20, first_wait_s=0.5, ceiling_s=2))
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it folds", lambda: coordinator.get_progress().events_processed > 100)
    private_broker.kill()
    await asyncio.to_thread(until, "it waits", lambda: "attempt 4" in coordinator.get_progress().waiting_for)
    threading.Thread(target=private_broker.restart).start()
    progress = await work
    assert (progress.events_processed, progress.completion_percentage()) == (1500, 100.0)
    assert origin(kit) == 1
    assert kit.check() == 1500


class Slow(Tally):
    """2 ms an event."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        time.sleep(0.002)
        return super().apply_to_model(model, event)


def later() -> ProjectionError:
    error = ProjectionError("x")
    error.is_transient = True
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (BrokerUnavailable("x"), True),
        (StorageError("/s: RocksDB could not write: IO error: No space left on device."), True),
        (later(), True),
        (ProjectionError("x"), False),
        (StorageError("x"), False),
        (StoreCorrupt("x"), False),
        (HistoryIncomplete("x"), False),
        (RebuildCancelled("x"), False),
        (ValueError("x"), False),
    ],
)
def test_what_may_pass(error: Exception, transient: bool) -> None:
    assert is_transient(error) == transient


@pytest.mark.slow
def test_disk_that_is_full_for_a_while_is_gone_on_with(new_kit: NewKit, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs a mount namespace of one's own (unshare -rm), which is not allowed here")
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(60_000, streams=500))
    place = tmp_path / "disk"
    place.mkdir()
    command = ["unshare", "-rm", sys.executable, "-m", "tests.integration.full_disk"]
    done = subprocess.run(
        [*command, kit.bootstrap, kit.topic, kit.group, str(place)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "60000 events" in done.stdout
