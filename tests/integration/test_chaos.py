"""Two processes, one group, and whatever may happen to them: what must hold at every instant, holds.

A state machine draws what happens next. `REFOLD_CHAOS_EXAMPLES` and `REFOLD_CHAOS_STEPS` make it longer.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streams.broker import EmbeddedBroker
from tests.integration.kit import Kit, Process, produce, read_log, tally_events, until
from tests.support import envelope

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

EXAMPLES = int(os.environ.get("REFOLD_CHAOS_EXAMPLES", "4"))
STEPS = int(os.environ.get("REFOLD_CHAOS_STEPS", "14"))
PARTITIONS = 3
FAST = {"REFOLD_SESSION_TIMEOUT_S": "3", "REFOLD_REQUEST_TIMEOUT_S": "5"}
REFUSED = {3}
"""Somebody else folds there: the only reason for which a start may be refused here."""
SLOTS = st.sampled_from([0, 1])


class Chaos(RuleBasedStateMachine):
    """The model: what was written, and what runs. The rest is asked of the disk and of Kafka."""

    broker: EmbeddedBroker

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="refold-chaos-"))
        self.stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.kit = Kit(
            self.broker.bootstrap_servers, f"chaos-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex, self.directory / "a"
        )
        self.kit.cluster.create_topic(self.kit.topic, PARTITIONS)
        until("the topic is there", lambda: self.kit.topic in self.kit.cluster.topics())
        self.written = self.silences = self.waits = 0
        self.running: dict[int, Process] = {}
        self.kinds: dict[int, str] = {}
        self.targets: dict[int, dict[int, int]] = {}
        self.stopped: set[int] = set()
        self.replaced = False
        """The topic was made again, and no rebuild has begun since."""
        self.write(3000)

    # What happens

    @rule(count=st.sampled_from([1, 50, 4000]))
    def write(self, count: int) -> None:
        produce(self.kit.bootstrap, self.kit.topic, tally_events(count, streams=200, first=self.written))
        self.written += count

    @rule(slot=SLOTS, kind=st.sampled_from(["run", "run", "rebuild"]), elsewhere=st.booleans())
    def start(self, slot: int, kind: str, elsewhere: bool) -> None:
        if slot in self.running and self.running[slot].runs():
            return
        self.reap(slot)
        kit = self.kit
        if elsewhere and kind == "run":  # in another directory: only ever refused while anybody folds here
            if not any(one.runs() for one in self.running.values()):
                return
            kit = Kit(kit.bootstrap, kit.topic, kit.group, self.directory / f"elsewhere-{uuid.uuid4().hex[:6]}")
        arguments = ["--yes"] if kind == "rebuild" else []
        self.targets[slot] = self.kit.ends()
        self.kinds[slot] = kind if kit is self.kit else "elsewhere"
        self.running[slot] = self.stack.enter_context(
            kit.process(*arguments, "--checkpoint-events", "300", command=kind, env=FAST)
        )

    @precondition(lambda self: self.running)
    @rule(slot=SLOTS)
    def kill(self, slot: int) -> None:
        if slot in self.running and self.running[slot].runs():
            self.resume(slot)
            self.running[slot].kill()
            self.running.pop(slot)

    @precondition(lambda self: self.running)
    @rule(slot=SLOTS, number=st.sampled_from([signal.SIGTERM, signal.SIGINT]))
    def end(self, slot: int, number: signal.Signals) -> None:
        if slot in self.running and self.running[slot].runs():
            self.resume(slot)
            process = self.running[slot]
            # Before that, Python has not read the program yet, and the signal ends it as it ends any other.
            until("it has begun", lambda: process.output() or not process.runs())
            process.process.send_signal(number)
            process.wait(20)
            self.reap(slot, ended=True)

    @precondition(lambda self: self.running)
    @rule(slot=SLOTS)
    def stop(self, slot: int) -> None:
        if slot in self.running and self.running[slot].runs():
            self.running[slot].process.send_signal(signal.SIGSTOP)
            self.stopped.add(slot)

    @precondition(lambda self: self.stopped)
    @rule()
    def go_on(self) -> None:
        for slot in list(self.stopped):
            self.resume(slot)

    @precondition(lambda self: self.waits < 5 and any(one.runs() for one in self.running.values()))
    @rule(seconds=st.sampled_from([0.2, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.waits += 1
        time.sleep(seconds)  # let things happen

    @precondition(lambda self: self.silences < 3 and any(one.runs() for one in self.running.values()))
    @rule(seconds=st.sampled_from([0.5, 4.0]))
    def silence(self, seconds: float) -> None:
        self.silences += 1
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGSTOP)
        time.sleep(seconds)  # as long as the broker is to be silent
        os.kill(self.broker.pid, signal.SIGCONT)

    @precondition(lambda self: not self.running)
    @rule(partitions=st.sets(st.integers(0, PARTITIONS - 1), min_size=1))
    def reset(self, partitions: set[int]) -> None:
        if self.replaced or self.kit.cluster.members(self.kit.group) or not self.kit.committed():
            return
        admin = AdminClient({"bootstrap.servers": self.kit.bootstrap})
        wanted = [TopicPartition(self.kit.topic, partition, 0) for partition in partitions]
        admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(self.kit.group, wanted)])[
            self.kit.group
        ].result()

    @precondition(lambda self: not self.running)
    @rule()
    def replace_topic(self) -> None:
        self.kit.cluster.delete_topic(self.kit.topic)
        until("the topic is gone", lambda: self.kit.topic not in self.kit.cluster.topics())
        self.kit.cluster.create_topic(self.kit.topic, PARTITIONS)
        until("the topic is there", lambda: self.kit.topic in self.kit.cluster.topics())
        produce(self.kit.bootstrap, self.kit.topic, [(f"new-{n}", envelope(n)) for n in range(500)])
        self.written = 0
        self.replaced = True

    # What must hold

    def resume(self, slot: int) -> None:
        if slot in self.stopped:
            self.stopped.discard(slot)
            self.running[slot].process.send_signal(signal.SIGCONT)

    def reap(self, slot: int, *, ended: bool = False) -> None:
        """Judge a process that has ended."""
        process = self.running.pop(slot, None)
        if process is None:
            return
        code, kind, said = process.wait(), self.kinds[slot], process.output()
        if code == 7 and self.silences > 1 and "run.started" not in said and "build.current" not in said:
            return  # it began while the broker was silent, for longer than it waits for an answer
        assert "Traceback" not in said, said
        if kind == "elsewhere":
            assert code in {0, *REFUSED} if ended else code in REFUSED, said
        elif kind == "rebuild" and code == 0:
            positions = self.kit.positions()
            assert all(positions.get(p, 0) >= end for p, end in self.targets[slot].items()), said
            self.replaced = False
        elif kind == "rebuild":
            assert code in ({130, *REFUSED}), said
            if "build.current" in said:
                self.replaced = False
        else:
            assert code in ({0, *REFUSED} if not self.replaced else {0, 1, *REFUSED}), said

    @invariant()
    def models_are_the_fold_of_the_log(self) -> None:
        if not hasattr(self, "kit"):
            return
        for slot, process in list(self.running.items()):
            if not process.runs():
                self.reap(slot)
        build = self.kit.store.current() if self.kit.state_dir.exists() else None
        if build is None:
            return
        topic = self.kit.cluster.topic(self.kit.topic)
        if build.manifest.topic_id == topic.id:
            self.kit.check(read_log(self.kit.bootstrap, topic))

    def teardown(self) -> None:
        if not hasattr(self, "kit"):
            return
        try:
            for slot in list(self.running):
                self.end(slot, signal.SIGTERM)
                self.reap(slot, ended=True)
            until("the group is empty", lambda: not self.kit.cluster.members(self.kit.group))
            with self.kit.process("--yes", command="rebuild", env=FAST) as process:
                assert process.wait() == 0, process.output()
            log = read_log(self.kit.bootstrap, self.kit.cluster.topic(self.kit.topic))
            assert self.kit.check(log) == sum(map(len, log.values()))
        finally:
            self.stack.close()
            self.kit.cluster.delete_topic(self.kit.topic)


def test_whatever_happens_models_are_the_fold_of_the_log(private_broker: EmbeddedBroker) -> None:
    Chaos.broker = private_broker
    run_state_machine_as_test(
        Chaos,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.generate],  # the same steps do not hit the same instants again, so there is nothing to shrink
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.parametrize("seed", range(4))
def test_run_and_rebuild_started_at_once_never_end_with_success_elsewhere(
    new_kit: Callable[..., Kit], seed: int
) -> None:
    rng = random.Random(seed)
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=900))
    other = kit if seed % 2 else Kit(kit.bootstrap, kit.topic, kit.group, kit.state_dir.parent / "other")
    starts: list[tuple[float, Any]] = sorted([(0.0, "rebuild"), (rng.uniform(0, 1.5), "run")])
    with ExitStack() as stack:
        started: dict[str, Process] = {}
        before = 0.0
        for delay, command in starts:
            time.sleep(delay - before)  # the interleaving that is tried
            before = delay
            whose, arguments = (kit, ["--yes"]) if command == "rebuild" else (other, [])
            started[command] = stack.enter_context(
                whose.process(*arguments, "--checkpoint-events", "100", command=command, env=FAST)
            )
        code = started["rebuild"].wait()
        if code == 0:
            assert kit.check() == 20_000
        else:
            assert code == 3, started["rebuild"].output()
        if started["run"].runs():
            until("lag 0", lambda: kit.lag() == 0)
            assert started["run"].terminate() == 0
            assert other.check() == 20_000
        else:
            assert started["run"].wait() == 3, started["run"].output()
        assert code == 0 or started["run"].wait() == 0, "nobody folded"
