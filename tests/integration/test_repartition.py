"""Events written once more, keyed by model: each exactly once, whatever dies when, and in its partition's order."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Message, TopicPartition

from streams.broker import EmbeddedBroker
from streams.config import FoldSettings
from streams.data.job import Hold, Repartition
from streams.data.partition import Phase
from streams.data.process_runner import ProcessRunner
from streams.data.recovery import recovery_of
from streams.data.repartition import Repartitioner
from streams.data.routed import ORIGIN, Origin
from streams.data.stamp import Stamp
from streams.data.transactions import Transactions, Undone
from streams.errors import BrokerUnavailable, EventError, ForeignOffset, HistoryIncomplete, ProjectionError
from streams.types import Committed
from tests.integration.by_model import Remainders
from tests.integration.kit import Kit, produce, read_log, tally_events, until
from tests.support import envelope

_KILLS = 8
SETTINGS = FoldSettings(session_timeout_s=6)


class Source:
    """An event topic, and one that it is written to once more."""

    def __init__(self, kit: Kit, partitions: int) -> None:
        self.kit = kit
        name = f"{kit.group}.repartition"
        kit.cluster.create_topic(name, partitions, {"retention.ms": "-1"})
        self.job = Repartition(
            projection=Remainders(),
            events=kit.events,
            topic=kit.cluster.topic(kit.topic),
            into=kit.cluster.topic(name),
            group=f"{kit.group}.source",
            generation="remainders.v1",
            settings=SETTINGS,
            seat="seat",
        )

    def written(self) -> dict[int, list[Message]]:
        """What readers see of it, once no transaction is open: a commit is told before its markers are everywhere."""
        until("no transaction to be open", self._is_stable)
        return read_log(self.kit.bootstrap, self.job.into)

    def _is_stable(self) -> bool:
        marks = self.kit.cluster.watermarks(self.job.into)
        return {number: one.high for number, one in marks.items()} == self.kit.cluster.ends(self.job.into)

    def check(self, expected: int | None = None) -> int:
        """Check that each event is there once, with its model's key, as it was, and in its partition's order."""
        log = {(one.partition(), one.offset()): one for one in _all(read_log(self.kit.bootstrap, self.job.topic))}
        declined = {where for where, one in log.items() if b'"ignore"' in one.value()}
        seen: set[tuple[int, int]] = set()
        home: dict[bytes, int] = {}
        for partition, records in self.written().items():
            last: dict[int, int] = {}
            for record in records:
                origin = Origin.of(record)
                where = (origin.partition, origin.offset)
                assert where not in seen, f"{where} is there twice"
                seen.add(where)
                was = log[where]
                assert (record.value(), origin.key, record.timestamp()) == (was.value(), was.key(), was.timestamp())
                assert last.get(origin.partition, -1) < origin.offset, "out of its partition's order"
                last[origin.partition] = origin.offset
                assert home.setdefault(record.key(), partition) == partition, "a model is on two partitions"
        assert seen == log.keys() - declined
        assert expected is None or len(log) == expected
        return len(seen)

    def positions(self) -> dict[int, int]:
        return {one: two.position for one, two in self.kit.cluster.committed(self.job.group, self.job.topic).items()}

    def until_done(self, deadline_s: float = 60.0) -> None:
        """Wait until the group has passed all that there is."""
        ends = self.kit.ends()

        def is_done() -> bool:
            # Kafka does not tell them while a transaction waits for its end, and one may be left to its timeout.
            with contextlib.suppress(BrokerUnavailable):
                return self.positions() == ends
            return False

        until("all was repartitioned", is_done, deadline_s)


@pytest.fixture
def source(new_kit: Callable[..., Kit]) -> Source:
    return Source(new_kit(3, projection=Remainders()), 4)


@contextmanager
def repartitioning(job: Repartition) -> Iterator[Repartitioner]:
    """One that runs on a thread, until the block ends."""
    one = Repartitioner(job)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            one.run()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield one
    finally:
        one.stop()
        thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_each_event_is_there_once_with_its_models_key(source: Source) -> None:
    produce(source.kit.bootstrap, source.kit.topic, tally_events(5_000))
    with repartitioning(source.job) as one:
        source.until_done()
        figures = one.status.partitions
    assert source.check(5_000) == sum(part.events - part.declined for part in figures.values())
    with repartitioning(source.job):  # it goes on where it was
        produce(source.kit.bootstrap, source.kit.topic, tally_events(500, first=5_000))
        source.until_done()
    source.check(5_500)


def test_headers_come_along_and_where_it_was(source: Source) -> None:
    kit = source.kit
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), (None, envelope(2)), (b"\xff:1", envelope(3))], partition=1)
    policy = recovery_of(FoldSettings(on_error="skip"))
    with repartitioning(replace(source.job, recovery=policy)):
        source.until_done()
    found = {Origin.of(one).offset: one for one in _all(source.written())}
    assert [Origin.of(found[offset]) for offset in sorted(found)] == [
        Origin(1, 0, b"a"),
        Origin(1, 1, None),
        Origin(1, 2, b"\xff:1"),
    ]
    assert found[0].headers() == [(ORIGIN, b"1:0:a")]


@pytest.mark.slow
def test_transactions_that_come_to_nothing_are_done_again(source: Source) -> None:
    """While much more is there to be read, and has been fetched already."""
    kit, chance = source.kit, random.Random(1)
    produce(kit.bootstrap, kit.topic, tally_events(300_000))

    class Failing(Transactions):
        def commit(self, positions: Sequence[TopicPartition], group: object) -> None:
            if chance.random() < 0.4:
                self.abort()
                raise Undone("by chance")
            super().commit(positions, group)

    with repartitioning(source.job) as one:
        one._transactions.__class__ = Failing
        source.until_done()
    source.check(300_000)


def test_one_that_died_before_its_first_commit_is_begun_again(source: Source) -> None:
    """What it had written takes offsets of the topic, and is none of it."""
    kit = source.kit
    produce(kit.bootstrap, kit.topic, tally_events(1_000))
    lost = Transactions(source.job.events.kafka, "one-that-dies", source.job.into.name)
    for number in range(500):
        lost.write(f"remainder-{number % 101}".encode(), b"lost", [], 0)
    assert lost._producer is not None
    lost._producer.flush(10)
    lost.close()
    assert sum(kit.cluster.ends(source.job.into).values()) >= 500
    with repartitioning(source.job):
        source.until_done()
    source.check(1_000)


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1, 2])
def test_kill_9_at_random(source: Source, agents: int) -> None:
    """They are static members: one that is started again has its partitions at once, and is soon killed with them."""
    kit, randomly, number = source.kit, random.Random(agents), 0

    def started(slot: int) -> ProcessRunner:
        one = ProcessRunner(replace(source.job, instance=f"{kit.group}-{slot}"))
        one.start()
        return one

    running = [started(slot) for slot in range(agents)]
    try:
        for _ in range(_KILLS):
            produce(kit.bootstrap, kit.topic, tally_events(4_000, first=number))
            number += 4_000
            time.sleep(randomly.uniform(0.3, 2.0))
            slot = randomly.randrange(agents)
            pid = running[slot].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert running[slot].wait(10)
            running[slot] = started(slot)
        source.until_done(120)
    finally:
        for one in running:
            one.stop()
        for one in running:
            assert one.wait(30)
    source.check(number)


@pytest.mark.slow
def test_a_broker_that_is_killed(private_broker: EmbeddedBroker, new_kit: Callable[..., Kit]) -> None:
    kit = Kit(private_broker.bootstrap_servers, "events", "group", new_kit(1).state_dir, projection=Remainders())
    kit.cluster.create_topic("events", 2)
    source = Source(kit, 3)
    with repartitioning(source.job):
        for number in range(3):
            produce(kit.bootstrap, kit.topic, tally_events(3_000, first=3_000 * number))
            time.sleep(0.3)
            private_broker.kill()
            private_broker.restart()
        until("the broker answers", lambda: kit.ends())
        source.until_done(120)
    source.check(9_000)


@pytest.mark.slow
def test_a_broker_that_is_away_for_longer_than_the_session(
    private_broker: EmbeddedBroker, new_kit: Callable[..., Kit]
) -> None:
    """Partitions are lost then, and come again."""
    kit = Kit(private_broker.bootstrap_servers, "events", "group", new_kit(1).state_dir, projection=Remainders())
    kit.cluster.create_topic("events", 2)
    source = Source(kit, 3)
    with repartitioning(source.job):
        produce(kit.bootstrap, kit.topic, tally_events(3_000))
        source.until_done()
        private_broker.kill()
        time.sleep(9)
        private_broker.restart()
        until("the broker answers", lambda: kit.ends())
        produce(kit.bootstrap, kit.topic, tally_events(3_000, first=3_000))
        source.until_done(60)
    source.check(6_000)


@pytest.mark.slow
def test_one_that_is_away_for_too_long_writes_nothing_more(source: Source) -> None:
    """It was stopped (SIGSTOP), its partitions went to another one, and then it wakes with a transaction open."""
    kit = source.kit
    first, second = (ProcessRunner(replace(source.job, seat=seat)) for seat in ("one", "two"))
    first.start()
    try:
        produce(kit.bootstrap, kit.topic, tally_events(2_000))
        until("it has begun", lambda: first.status.partitions)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGSTOP)
        second.start()
        produce(kit.bootstrap, kit.topic, tally_events(2_000, first=2_000))
        source.until_done()
        os.kill(first.pid, signal.SIGCONT)
        produce(kit.bootstrap, kit.topic, tally_events(2_000, first=4_000))
        source.until_done()
    finally:
        if first.pid is not None:
            os.kill(first.pid, signal.SIGCONT)  # one that is stopped would not end
        for one in (first, second):
            one.stop()
        for one in (first, second):
            one.result()
    source.check(6_000)


STOPS = """
import os, pickle, signal, sys
from streams.data import repartition

class Stopping(repartition.Subscription):
    @property
    def membership(self):
        if one._transactions.is_open:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().membership

repartition.Subscription = Stopping
one = repartition.Repartitioner(pickle.load(open(sys.argv[1], "rb")))
one.run()
"""


@pytest.mark.slow
def test_one_that_wakes_in_the_middle_of_a_commit_cannot_make_it(source: Source, tmp_path: Path) -> None:
    """Others have written the same events by then, and the broker has not yet ended what it had begun."""
    kit = source.kit
    (tmp_path / "job").write_bytes(pickle.dumps(replace(source.job, seat="one")))
    produce(kit.bootstrap, kit.topic, tally_events(2_000))
    command = [sys.executable, "-c", STOPS, str(tmp_path / "job")]
    first = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    second = ProcessRunner(replace(source.job, seat="two"))
    try:
        until("it to stop", lambda: Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        second.start()
        source.until_done()
        first.send_signal(signal.SIGCONT)
        time.sleep(3)
    finally:
        first.kill()
        first.wait()
        second.stop()
        assert second.wait(30)
    source.check(2_000)


@pytest.mark.parametrize(("value", "error"), [(b"no JSON", EventError), (envelope(1, "fail"), ProjectionError)])
def test_an_event_whose_model_cannot_be_told_is_not_passed(
    source: Source, value: bytes, error: type[Exception]
) -> None:
    kit = source.kit
    produce(kit.bootstrap, kit.topic, [("a", envelope(7)), ("a", value), ("a", envelope(8))], partition=0)
    produce(kit.bootstrap, kit.topic, [("b", envelope(9))], partition=2)

    def run() -> None:
        with repartitioning(source.job) as one:
            until("it has halted", lambda: _is_halted(one, 0))
            until("the others go on", lambda: source.positions() == {0: 1, 1: 0, 2: 1})
            until("the group is told why", lambda: "[0]@1" in _told(source, 0))

    with pytest.raises(error, match=r"\[0\]@1"):
        run()
    assert len(_all(source.written())) == 2


def test_a_worker_goes_on_with_what_is_folded_where_all_that_it_reads_has_halted(source: Source) -> None:
    kit = source.kit
    for partition in range(3):
        produce(kit.bootstrap, kit.topic, [("a", envelope(7)), ("a", b"no JSON")], partition=partition)
    one = Repartitioner(replace(source.job, address="127.0.0.1:8080"))
    turns = one.turns()
    until(
        "all have halted", lambda: next(turns, "over") is None and all(_is_halted(one, number) for number in range(3))
    )
    assert [next(turns, "over") for _ in range(5)] == [None] * 5
    one.stop()
    with pytest.raises(EventError, match="no event"):
        list(turns)


def test_a_policy_that_skips_leaves_it_to_the_fold(source: Source) -> None:
    kit = source.kit
    produce(kit.bootstrap, kit.topic, [("a", b"no JSON"), ("a", envelope(1, "fail")), ("a", envelope(8))], partition=0)
    with repartitioning(replace(source.job, recovery=recovery_of(FoldSettings(on_error="skip")))):
        source.until_done()
    keys = sorted(record.key() for record in _all(source.written()))
    assert keys == [b"a", b"a", b"remainder-8"]


def test_what_may_pass_is_tried_again(source: Source) -> None:
    Remainders.tries = 0
    produce(source.kit.bootstrap, source.kit.topic, [("a", envelope(7)), ("a", envelope(8, "later"))], partition=0)
    with repartitioning(source.job):
        source.until_done()
    assert Remainders.tries == 3
    source.check(2)


def test_an_offset_that_somebody_set_is_refused(source: Source) -> None:
    kit, job = source.kit, source.job
    produce(kit.bootstrap, kit.topic, tally_events(300))
    with repartitioning(job):
        source.until_done()
    kit.cluster.commit(job.group, job.topic.name, {0: Committed(position=0)})
    with pytest.raises(ForeignOffset, match=r"\[0\]@0.*refold rebuild remainders"), repartitioning(job) as one:
        until("it has halted", lambda: _is_halted(one, 0))
    source.check(300)


def test_offsets_that_kafka_has_dropped_are_missed(source: Source) -> None:
    kit, job = source.kit, source.job
    produce(kit.bootstrap, kit.topic, tally_events(300))
    with repartitioning(job):
        source.until_done()
    kit.cluster.delete_group(job.group)
    with pytest.raises(HistoryIncomplete, match=r"retention.minutes.*refold rebuild"), repartitioning(job) as one:
        until("all have halted", lambda: all(_is_halted(one, number) for number in range(3)))
    source.check(300)


def test_it_is_held_and_goes_on(source: Source) -> None:
    kit, job = source.kit, source.job

    def held(of: str) -> dict[int, int]:
        committed = kit.cluster.committed(job.group, job.topic)
        stamps = {number: Stamp.parse(one.metadata) for number, one in committed.items()}
        return {n: committed[n].position for n, stamp in stamps.items() if stamp is not None and stamp.held == of}

    produce(kit.bootstrap, kit.topic, tally_events(1_000))
    with repartitioning(job) as one:
        source.until_done()
        one.hold(Hold(id="one"))
        where = until("all are held", lambda: held("one") if len(held("one")) == 3 else None)
        produce(kit.bootstrap, kit.topic, tally_events(1_000, first=1_000))
        time.sleep(0.5)
        assert held("one") == where == source.positions()
        barrier = {number: position + 10 for number, position in where.items()}
        one.hold(Hold(id="one", barrier=barrier))
        until("all are at the barrier", lambda: held("one") == barrier)
        one.hold(None)
        source.until_done()
        assert held("one") == {}
    source.check(2_000)


def _all(log: dict[int, list[Message]]) -> list[Message]:
    return [record for records in log.values() for record in records]


def _is_halted(one: Repartitioner, partition: int) -> bool:
    found = one.status.partitions.get(partition)
    return found is not None and found.phase is Phase.HALTED


def _told(source: Source, partition: int) -> str:
    stamp = Stamp.parse(source.kit.cluster.committed(source.job.group, source.job.topic)[partition].metadata)
    return "" if stamp is None else stamp.halted or ""
