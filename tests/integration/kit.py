"""A projection wired to the real broker, processes that fold it, and the truth to compare with."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from projections.contract import CqrsProjection
from streams.adapters.postgres.stores import Postgres
from streams.calls import QUIET
from streams.cluster import Cluster
from streams.config import FoldSettings, KafkaSettings
from streams.control.claim import claim_live
from streams.control.ground import Ground
from streams.control.live import live_agent
from streams.control.rebuild import RebuildCoordinator
from streams.data.agent import Agent, AgentStatus, Job
from streams.data.checkpoint import KafkaCheckpointStore, generation_id
from streams.data.codec import EventCodec
from streams.data.files import FILES
from streams.data.generation import StateStore
from streams.data.source import KafkaEventStore
from streams.data.stores import Kind
from streams.types import Committed, TopicInfo
from tests.schemas import check_printed
from tests.support import Tally, envelope, folded

T = TypeVar("T")
TALLY = "tests.support:Tally"
DEADLINE_S = 60.0
DSN = os.environ.get("REFOLD_TEST_DSN", "")
"""A PostgreSQL in which everything is kept that a kit folds, so that tests can be run over it that were not written so.
"""
_LOADING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
"""What a broker says that has just been started, or a topic that has just been made."""


def until(what: str, look: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Ask until the answer is true, and give it; fail, saying what was waited for, at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)
    return answer


def produce(
    bootstrap: str,
    topic: str,
    values: Iterable[tuple[str | bytes | None, bytes | None]],
    *,
    partition: int | None = None,
    **settings: Any,
) -> None:
    """Write (key, value) records, in order, and wait until they are there."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 5, "enable.idempotence": True, "log_level": QUIET}
        | {"queue.buffering.max.messages": 1_000_000}
        | settings
    )
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    where = {} if partition is None else {"partition": partition}
    for number, (key, value) in enumerate(values):
        producer.produce(topic, value=value, key=key, on_delivery=delivered, **where)
        if number % 1000 == 0:
            producer.poll(0)
    assert producer.flush(DEADLINE_S) == 0
    assert not failures


def tally_events(count: int, streams: int = 50, first: int = 0) -> list[tuple[str, bytes]]:
    """Events over several streams; some decline, some delete."""
    return [
        (
            f"stream-{number * 7 % streams}",
            envelope(number, "ignore" if number % 11 == 0 else "drop" if number % 97 == 0 else "add"),
        )
        for number in range(first, first + count)
    ]


@contextmanager
def traffic(kit: Kit, first: int) -> Iterator[None]:
    """Events over a hundred streams that come in all the time, from number `first` on."""
    stopped = threading.Event()

    def write() -> None:
        number = first
        while not stopped.is_set():
            produce(kit.bootstrap, kit.topic, tally_events(50, streams=100, first=number))
            number += 50
            stopped.wait(0.1)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def read_log(bootstrap: str, topic: TopicInfo) -> dict[int, list[Message]]:
    """Read the whole topic, as read_committed, by plain means."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "read-log",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "log_level": QUIET,
        }
    )
    consumer.assign([TopicPartition(topic.name, partition, 0) for partition in range(topic.partitions)])
    log: dict[int, list[Message]] = {partition: [] for partition in range(topic.partitions)}
    ended: set[int] = set()
    deadline = time.monotonic() + DEADLINE_S
    while len(ended) < topic.partitions:
        assert time.monotonic() < deadline, "the log could not be read"
        for message in consumer.consume(1000, 0.1):
            if message.error() is None:
                log[message.partition()].append(message)
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended.add(message.partition())
    consumer.close()
    return log


class _Watched(Agent):
    """An agent whose every status is looked at."""

    def __init__(self, job: Job, look: Callable[[AgentStatus], None] | None) -> None:
        super().__init__(job)
        published = self._seat._publish

        def publish() -> None:
            published()
            if look is not None:
                look(self.status)

        vars(self._seat)["_publish"] = publish


@dataclass
class Kit:
    """One projection over one topic, with its group and state directory."""

    bootstrap: str
    topic: str
    group: str
    state_dir: Path
    projection: CqrsProjection[Any] = field(default_factory=Tally)
    codec: EventCodec | None = None
    settings: FoldSettings = field(default_factory=FoldSettings)
    kafka_settings: dict[str, Any] = field(default_factory=dict)
    registry_topic: str | None = None
    kind: Kind | None = None
    """What models are kept in; by default what the session's tests are to be run over."""

    def __post_init__(self) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=self.bootstrap, **self.kafka_settings)
        self.events = KafkaEventStore(self.topic, codec=self.codec, kafka=self.kafka)
        self.cluster: Cluster = self.events.cluster
        name = generation_id(self.projection.name, self.projection.version)
        if self.kind is None:
            self.kind = Postgres(DSN, "t" + blake2b(self.topic.encode(), digest_size=6).hexdigest()) if DSN else FILES
        self.store = StateStore(self.state_dir / name, self.kind)
        self.checkpoints = KafkaCheckpointStore(self.group, self.events)

    @property
    def registry(self) -> str:
        """A registry of its own: all tests fold the same projections."""
        return self.registry_topic or f"{self.topic}.registry"

    def coordinator(self, **options: Any) -> RebuildCoordinator:
        return RebuildCoordinator(
            self.projection, self.events, self.store, self.checkpoints, settings=self.settings, **options
        )

    def live(self, **options: Any) -> AbstractContextManager[Agent]:
        """Claim the state, and give an agent to run in it."""
        return live_agent(self.projection, self.events, self.store, self.checkpoints, self.settings, **options)

    def claim(self, **options: Any) -> None:
        """Claim the state and let go of it."""
        with self.live(**options):
            pass

    def ends(self) -> dict[int, int]:
        """The topic's present end."""
        topic = self.cluster.topic(self.topic)
        return {partition: marks.high for partition, marks in self.cluster.watermarks(topic).items()}

    def fold_all(self, **options: Any) -> Agent:
        """Fold in this process until the topic's present end is committed; `look` is shown each status."""
        ground = Ground(
            projection=self.projection,
            events=self.events,
            store=self.store,
            checkpoints=self.checkpoints,
            settings=self.settings,
            allow_incomplete=options.pop("allow_incomplete", False),
        )
        look = options.pop("look", None)
        claimed = claim_live(ground, **options)
        with claimed.lock:
            agent = _Watched(dataclasses.replace(claimed.job, until=self.ends()), look)
            agent.run()
        return agent

    @property
    def build(self) -> int:
        """The number of the build that is current."""
        current = self.store.current()
        assert current is not None, "no build"
        return current.manifest.build

    def models(self) -> dict[str, Any]:
        with self.store.reader(self.projection) as reader:
            return dict(reader.items())

    def positions(self) -> dict[int, int]:
        with self.store.reader(self.projection) as reader:
            return {partition: state.position for partition, state in reader.states().items()}

    def raw(self) -> dict[str, bytes]:
        with self.store.reader(self.projection) as reader:
            return dict(reader.raw_items())

    def check(self, log: dict[int, list[Message]] | None = None) -> int:
        """Check that models == fold(log[start:position]) in every partition; give how many events that is."""
        expected: dict[str, Any] = {}
        events = 0
        with self.store.reader(self.projection) as reader:
            states = reader.states()
            models = dict(reader.items())
        if log is None:  # after the stores: while events come in, they are never ahead of it
            log = read_log(self.bootstrap, self.cluster.topic(self.topic))
        for partition, state in states.items():
            done = [record for record in log[partition] if state.start <= record.offset() < state.position]
            assert state.events == len(done), f"partition {partition} counted {state.events}, is {len(done)}"
            expected |= folded(done, self.projection, self.codec)
            events += len(done)
        assert models == expected
        assert sum(state.models for state in states.values()) == len(expected)
        return events

    def committed(self) -> dict[int, Committed]:
        """The group's committed offsets."""
        return self.cluster.committed(self.group, self.cluster.topic(self.topic))

    def delete_before(self, partition: int, offset: int) -> None:
        """Delete the records of a partition up to `offset`, as retention would."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap})  # must outlive its future
        where = TopicPartition(self.topic, partition, offset)
        assert admin.delete_records([where])[where].result(DEADLINE_S).low_watermark == offset

    def lag(self) -> int:
        """Records between the group's committed offsets and the end."""
        topic = self.cluster.topic(self.topic)
        committed = self.cluster.committed(self.group, topic)
        return sum(
            marks.high - (committed[partition].position if partition in committed else marks.low)
            for partition, marks in self.cluster.watermarks(topic).items()
        )

    def command(self, *arguments: str, command: str = "run", projection: str = TALLY) -> list[str]:
        """The words of `refold COMMAND` for this projection, topic, group and state."""
        options = ["--topic", self.topic, "--group", self.group, "--state-dir", str(self.state_dir)]
        options += ["--registry", self.registry]
        return [sys.executable, "-m", "streams", command, projection, *options, *arguments]

    def refold(self, command: str, *arguments: str, projection: str = TALLY, ok: int = 0, **variables: str) -> str:
        """Run `refold COMMAND`; give standard output where it is to succeed, and standard error otherwise."""
        done = subprocess.run(
            self.command(*arguments, command=command, projection=projection),
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        check_printed(done.stdout)
        assert done.returncode == ok, done.stderr
        return done.stdout if ok == 0 else done.stderr

    def refold_in_place(self, projection: str = TALLY) -> None:
        """Fold all that there is, by the command, so that it is registered."""
        self.refold("rebuild", "--in-place", "--yes", projection=projection)

    @property
    def kept_in(self) -> dict[str, str]:
        """What says to a process what models are kept in."""
        if not isinstance(self.kind, Postgres):
            return {}
        return {"REFOLD_STORE": "postgres", "REFOLD_DSN": self.kind.conninfo, "REFOLD_PG_SCHEMA": self.kind.schema}

    def environment(self, **variables: str) -> dict[str, str]:
        """What such a command runs with."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_")}
        return {
            **ours,
            "REFOLD_BOOTSTRAP_SERVERS": self.bootstrap,
            "REFOLD_REGISTRY": self.registry,
            **self.kept_in,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **variables,
        }

    @contextmanager
    def process(
        self,
        *arguments: str,
        command: str = "run",
        projection: str = TALLY,
        env: dict[str, str] | None = None,
        level: str = "info",
    ) -> Iterator[Process]:
        """Run `refold COMMAND` in a process of its own; it is killed at the end if it still runs."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        log = self.state_dir.parent / f"{command}-{time.time_ns()}.log"
        with log.open("w") as handle:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "streams",
                    "--log-level",
                    level,
                    "--log-format",
                    "json",
                    command,
                    projection,
                    "--topic",
                    self.topic,
                    "--group",
                    self.group,
                    "--state-dir",
                    str(self.state_dir),
                    "--registry",
                    self.registry,
                    *arguments,
                ],
                env={**os.environ, "REFOLD_BOOTSTRAP_SERVERS": self.bootstrap, **self.kept_in, **(env or {})},
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )
            try:
                yield Process(process, log)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()


@dataclass
class Process:
    """A `refold` process that a test started."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; give the exit code, which must come within ten seconds."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        return self.process.wait(deadline_s)


def reset(kit: Kit, offsets: dict[int, int]) -> None:
    """Set the group's offsets as Kafka's own tool does."""
    admin = AdminClient({"bootstrap.servers": kit.bootstrap})
    wanted = [TopicPartition(kit.topic, partition, offset) for partition, offset in offsets.items()]

    def is_set() -> bool:
        request = [ConsumerGroupTopicPartitions(kit.group, wanted)]
        result = admin.alter_consumer_group_offsets(request)[kit.group].result()
        errors = [where.error for where in result.topic_partitions if where.error is not None]
        assert all(error.retriable() or error.code() in _LOADING for error in errors), errors
        return not errors

    until("the group's coordinator to take them", is_set)


def wait_for_log(process: Process, texts: Sequence[str]) -> None:
    """Wait until the process has logged all of these."""
    until(
        f"{texts} in the process's log",
        lambda: all(text in process.output() for text in texts) or (not process.runs() and _died(process)),
    )


def _died(process: Process) -> bool:
    raise AssertionError(f"the process ended with {process.process.returncode}:\n{process.output()}")
