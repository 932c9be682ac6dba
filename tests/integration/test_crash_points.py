"""Histories, strategies, crash points: whatever step a rebuild dies at, models are the fold of what is before them.

`REFOLD_CRASH_EXAMPLES` makes it longer.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from streams import Snapshots
from streams.config import FoldSettings
from tests.integration.crasher import DIED, Job
from tests.integration.kit import Kit, produce, until
from tests.integration.test_streams import spoil
from tests.support import envelope

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

EXAMPLES = int(os.environ.get("REFOLD_CRASH_EXAMPLES", "14"))
QUICKLY = {"REFOLD_SESSION_TIMEOUT_S": "1", "REFOLD_CHECKPOINT_EVENTS": "3"}
STREAMS = [f"stream-{number}" for number in range(5)]
EVENTS = st.lists(st.tuples(st.sampled_from(STREAMS), st.sampled_from(["add", "add", "drop", "ignore"])), max_size=25)
KINDS = ["beginning", "checkpoint", "position", "snapshot", "restore", "streams", "take"]
DEATHS: Counter[str] = Counter()


class Written:
    """What has been written to the topic."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self.events = 0

    def write(self, events: list[tuple[str, str]]) -> None:
        first, self.events = self.events, self.events + len(events)
        produce(
            self._kit.bootstrap,
            self._kit.topic,
            [(stream, envelope(first + number, kind)) for number, (stream, kind) in enumerate(events)],
        )


def die(job: Job, at: int, *, before: bool) -> bool:
    """Run it until it dies; say whether it did."""
    dying = msgspec.structs.replace(job, dies_at=at, dies_before=before)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.crasher", msgspec.json.encode(dying)],
        env={**os.environ, **QUICKLY},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, DIED), done.stderr
    return done.returncode == DIED


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    kind=st.sampled_from(KINDS),
    first=EVENTS,
    second=EVENTS,
    third=EVENTS,
    partitions=st.integers(1, 3),
    at=st.integers(1, 30),
    before=st.booleans(),
)
def check_crash(
    new_kit: Callable[..., Kit],
    kind: str,
    first: list[tuple[str, str]],
    second: list[tuple[str, str]],
    third: list[tuple[str, str]],
    partitions: int,
    at: int,
    before: bool,
) -> None:
    kit = new_kit(partitions=partitions, settings=FoldSettings(session_timeout_s=2))
    kit = dataclasses.replace(kit, state_dir=kit.state_dir / uuid.uuid4().hex)
    written = Written(kit)
    # A history with models and a snapshot in its middle
    written.write([*((stream, "add") for stream in STREAMS), *first])
    kit.fold_all()
    build = kit.store.current()
    assert build is not None
    taken = Snapshots(kit.store.directory).take(build, wait_s=10)
    assert taken is not None
    middle = kit.positions()
    written.write(second)
    kit.fold_all()
    written.write(third)
    truth = kit.raw()
    spoilt = [stream for stream in STREAMS[:2] if kind == "streams"]
    spoil(kit, spoilt)
    wrong = kit.raw()
    # Death
    job = Job.of(
        kit,
        kind,
        positions=middle,
        snapshot=taken.id,
        streams=spoilt,
    )
    DEATHS[kind] += die(job, at, before=before)
    # What is there
    until("the group is empty", lambda: not kit.cluster.members(kit.group))
    if kind == "streams":
        assert all(raw in (truth.get(key), wrong.get(key)) for key, raw in kit.raw().items())
    else:
        kit.check()
    for snapshot in Snapshots(kit.store.directory).all():
        Snapshots(kit.store.directory).verify(snapshot)
    # Once more, and on
    job.run()
    if kind not in ("restore", "streams", "take"):
        assert kit.positions() == kit.ends()
    elif kind == "restore":
        assert kit.positions() == middle
    kit.check()
    kit.fold_all()
    assert kit.check() == written.events
    left = {path.name for path in kit.store.directory.iterdir()}
    assert left <= {"current.json", "claim.lock", "rebuild.lock", "builds", "snapshots", "refolds"}
    assert [path.name for path in (kit.store.directory / "builds").iterdir()] == [str(kit.build)]


def test_rebuild_may_die_at_any_step(new_kit: Callable[..., Kit]) -> None:
    DEATHS.clear()
    check_crash(new_kit)
    assert sum(DEATHS.values()) > EXAMPLES / 3, f"few died: {DEATHS}"
