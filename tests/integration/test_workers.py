"""Several agents fold one generation: in processes, supervised, and told as one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from projections.contract import Event
from streams.config import FoldSettings
from streams.errors import AgentDied, ConfigError, ProjectionError
from streams.types import RebuildProgress
from tests.integration.kit import Kit, Process, produce, tally_events, until
from tests.integration.slow import SlowTally
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]
QUICKLY = FoldSettings(session_timeout_s=6)


class DyingTally(Tally):
    """A fault in native code, at one kind of event."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "die":
            os._exit(9)
        return super().apply_to_model(model, event)


def agents_of(pid: int) -> list[int]:
    """The agents' processes that a process has started."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "agent_process"], capture_output=True, text=True, check=False
    )
    return [int(one) for one in found.stdout.split()]


@contextmanager
def watched(coordinator: Any) -> Iterator[list[RebuildProgress]]:
    """Every figure that a rebuild gives meanwhile."""
    seen: list[RebuildProgress] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            seen.append(coordinator.get_progress())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def is_monotone(seen: list[RebuildProgress]) -> bool:
    shares = [share for one in seen if (share := one.completion_percentage()) is not None]
    return shares == sorted(shares)


@pytest.mark.parametrize("partitions", [4, 8])
async def test_two_agents_share_the_partitions_of_one_rebuild(new_kit: NewKit, partitions: int) -> None:
    kit = new_kit(partitions=partitions, projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(300))
    coordinator = kit.coordinator(workers=2)
    owners: set[int | None] = set()
    with watched(coordinator) as seen:
        work = asyncio.create_task(coordinator.rebuild_from_beginning())
        while not work.done():
            await asyncio.sleep(0.2)
            owners |= {one.pid for one in kit.cluster.members(kit.group) if one.partitions}
        progress = await work
    assert (progress.events_processed, progress.completion_percentage()) == (300, 100.0)
    assert len(owners) == 2
    assert os.getpid() not in owners
    assert is_monotone(seen)
    assert kit.check() == 300
    await asyncio.to_thread(until, "them to leave the group", lambda: not kit.cluster.members(kit.group), 10)
    assert not agents_of(os.getpid())


async def test_agents_killed_at_random_are_started_again_and_nothing_is_lost_or_doubled(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4, projection=SlowTally(), settings=QUICKLY)
    produce(kit.bootstrap, kit.topic, tally_events(600))
    coordinator = kit.coordinator(workers=2)
    killed = 0
    with watched(coordinator) as seen:
        work = asyncio.create_task(coordinator.rebuild_from_beginning())
        while not work.done():
            await asyncio.sleep(random.uniform(0.5, 2.5))
            agents = agents_of(os.getpid())
            if agents and killed < 3 and not work.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(agents), signal.SIGKILL)
                    killed += 1
        progress = await work
    assert killed
    assert progress.completion_percentage() == 100.0
    assert is_monotone(seen)
    assert kit.check() == 600


async def test_an_agent_that_dies_again_and_again_is_given_up_with_the_reason(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2, projection=DyingTally(), settings=QUICKLY)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", envelope(2, "die"))], partition=0)
    produce(kit.bootstrap, kit.topic, [("b", envelope(1)), ("b", envelope(2, "die"))], partition=1)
    with pytest.raises(AgentDied, match=r"Agent \d of tally\.v1 has died 5 times.*exit code 9"):
        await kit.coordinator(workers=2).rebuild_from_beginning()
    assert not agents_of(os.getpid())
    kit.check()


async def test_an_event_that_fails_ends_the_rebuild_once_all_else_is_folded(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(400))
    produce(kit.bootstrap, kit.topic, [("bad", envelope(1, "fail"))], partition=3)
    with pytest.raises(ProjectionError, match="cannot fold e1"):
        await kit.coordinator(workers=2).rebuild_from_beginning()
    assert kit.check() == 400


def test_agents_die_with_whoever_started_them(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    slow = "tests.integration.slow:SlowTally"
    with kit.process("--yes", "--workers", "2", command="rebuild", projection=slow) as process:
        agents = two_agents_of(process)
        until("something to be folded", lambda: kit.store.current() and sum(kit.positions().values()))
        process.kill()
        until("the agents to be gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in agents))
    kit.check()


def two_agents_of(process: Process) -> list[int]:
    pid = process.process.pid
    until("two agents", lambda: len(agents_of(pid)) == 2)
    return agents_of(pid)


def test_ctrl_c_drains_all_agents(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    slow = "tests.integration.slow:SlowTally"
    with kit.process("--yes", "--workers", "2", command="rebuild", projection=slow) as process:
        agents = two_agents_of(process)
        until("something to be folded", lambda: kit.store.current() and sum(kit.positions().values()))
        for pid in [process.process.pid, *agents]:  # as a terminal sends it
            os.kill(pid, signal.SIGINT)
        assert process.wait() == 130
        assert "Traceback" not in process.output()
    assert kit.check() > 0
    until("them to have left the group", lambda: not kit.cluster.members(kit.group), 10)


def test_no_agents_are_no_choice(new_kit: NewKit) -> None:
    with pytest.raises(ConfigError, match="workers is 0"):
        new_kit().coordinator(workers=0)


def priorities(pid: int) -> set[int]:
    """The priorities of the threads that fold in an agent's process, and of those that they have started."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end while it is looked at
            if (task / "comm").read_text() == "refold-agent\n":
                found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    return found


def test_niced_agents_give_way(new_kit: NewKit) -> None:
    from streams.data.process_runner import ProcessRunner

    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(10))
    with kit.live() as agent:
        runner = ProcessRunner(agent.job, nice=7)
        runner.start()
        try:
            assert runner.pid is not None
            pid = runner.pid
            until("all to be folded", lambda: kit.lag() == 0)
            usual = os.getpriority(os.PRIO_PROCESS, 0)
            assert priorities(pid) == {usual + 7}
            # Whoever looks at the state sees the agent's own process.
            assert pid in {one.pid for one in kit.store.folding(agent.job.build)}
            # Once it is live it is as others are, which no privilege is needed for, and folds on.
            runner.renice(0)
            until("its priority", lambda: usual in priorities(pid))
            produce(kit.bootstrap, kit.topic, tally_events(10, first=10))
            until("more to be folded", lambda: kit.lag() == 0)
        finally:
            runner.stop()
            runner.result()
    assert kit.check() == 20
