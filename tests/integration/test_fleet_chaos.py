"""Workers, their disks, the snapshot repository or the database, the broker, and what may happen to them, as drawn.

`REFOLD_CHAOS_FLEET_STEPS` makes it longer, `REFOLD_CHAOS_FLEET_SEED` draws another one.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from projections.contract import CqrsProjection
from streams.adapters.postgres.stores import Postgres
from streams.broker import EmbeddedBroker
from streams.broker.postgres import EmbeddedPostgres
from streams.control.place import filling_group
from streams.control.record import Generation
from streams.data.files import FILES
from tests.integration.by_model import BY_MODEL, Remainders
from tests.integration.fleet import Fleet, Worker, fleet
from tests.integration.kit import TALLY, Kit, produce, tally_events, until
from tests.integration.test_by_model import check_topic
from tests.integration.test_repository import left
from tests.s3 import S3, s3
from tests.support import Tally

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

STEPS = int(os.environ.get("REFOLD_CHAOS_FLEET_STEPS", "20"))
SEED = int(os.environ.get("REFOLD_CHAOS_FLEET_SEED", "21"))
PARTITIONS = 3
BEGIN = 60_000
"""Events that there are at first: much more in each partition than is folded again rather than fetched."""
MOST = 4
EVERY = 100
"""After so many steps all is looked at."""


class Chaos:
    """What runs, and what may happen to it."""

    def __init__(
        self,
        kit: Kit,
        broker: EmbeddedBroker,
        workers: Fleet,
        store: S3,
        chance: random.Random,
        database: EmbeddedPostgres | None = None,
    ) -> None:
        self.kit = kit
        self.broker = broker
        self.workers = workers
        self.store = store
        self.database = database
        self.chance = chance
        self.running: dict[str, Worker] = {}
        self.named = self.written = 0
        self.done: dict[str, int] = {}
        self.write(BEGIN)
        for _ in range(3):
            self.scale_out()

    def step(self) -> None:
        """Do one thing."""
        storing = (self.cut_upload, self.damage, self.silence_store)
        what: Callable[[], None] = self.chance.choice(
            (
                self.kill,
                self.kill_agents,
                self.stop,
                self.scale_out,
                self.scale_in,
                self.lose_volume,
                *(storing if self.database is None else (self.restart_database,)),
                self.restart_broker,
                self.rebuild,
                lambda: self.write(self.chance.choice((1, 300, 3000, 40_000))),
            )
        )
        name = getattr(what, "__name__", "")
        self.done[name] = self.done.get(name, 0) + 1
        what()
        self.write(self.chance.randrange(200))
        time.sleep(self.chance.uniform(0.0, 2.5))

    def write(self, count: int) -> None:
        produce(self.kit.bootstrap, self.kit.topic, tally_events(count, streams=2000, first=self.written))
        self.written += count

    def one(self) -> tuple[str, Worker]:
        name = self.chance.choice(sorted(self.running))
        return name, self.running[name]

    def kill(self) -> None:
        """A worker dies, and comes back to its disk."""
        name, worker = self.one()
        worker.kill()
        self.running[name] = self.workers.start(name)

    def kill_agents(self) -> None:
        """Processes that fold die."""
        for pid in self.one()[1].agents():
            if self.chance.random() < 0.7:
                kill(pid)

    def stop(self) -> None:
        """A worker stands still with all that it has started, for less or more than its session."""
        _, worker = self.one()
        pids = [worker.process.pid, *worker.agents()]
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.2, 9.0))
        for pid in reversed(pids):
            kill(pid, signal.SIGCONT)

    def scale_out(self) -> None:
        if len(self.running) < MOST:
            self.named += 1
            self.running[f"w{self.named}"] = self.workers.start(f"w{self.named}")

    def scale_in(self) -> None:
        """A worker ends as it should, and its disk goes with it or stays for nobody."""
        if len(self.running) > 1:
            name, worker = self.one()
            del self.running[name]
            worker.terminate()

    def lose_volume(self) -> None:
        """A worker dies with its disk, and comes back to another one."""
        name, worker = self.one()
        worker.kill()
        shutil.rmtree(worker.state_dir, ignore_errors=True)
        self.running[name] = self.workers.start(name)

    def cut_upload(self) -> None:
        """Whoever sends a snapshot, or fetches one, dies with it under way, where anybody does."""
        self.write(40_000)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for name, worker in self.running.items():
                if left(worker.state_dir):
                    worker.kill()
                    self.running[name] = self.workers.start(name)
                    return
            time.sleep(0.001)

    def damage(self) -> None:
        """An object is not what was sent."""
        found = sorted(path for path in self.store.objects.rglob("*/files/*") if path.is_file())
        if found:
            path = self.chance.choice(found)
            raw = bytearray(path.read_bytes())
            match self.chance.randrange(3):
                case 0 if raw:
                    raw[self.chance.randrange(len(raw))] ^= 1 << self.chance.randrange(8)
                    path.write_bytes(raw)
                case 1:
                    path.write_bytes(raw[: len(raw) // 2])
                case _:
                    path.unlink()

    def silence_store(self) -> None:
        """Object storage does not answer for a while."""
        self.store.stop()
        self.write(20_000)
        time.sleep(self.chance.uniform(0.5, 4.0))
        self.store.start()

    def restart_database(self) -> None:
        """The server dies, or is shut down, and comes back."""
        assert self.database is not None
        if self.chance.random() < 0.5:
            self.database.kill()
        else:
            self.database.stop(keep_data=True)
        self.write(5000)
        time.sleep(self.chance.uniform(0.0, 3.0))
        self.database.start()

    def restart_broker(self) -> None:
        self.broker.kill()
        time.sleep(self.chance.uniform(0.0, 3.0))
        self.broker.restart()

    def rebuild(self) -> None:
        """Somebody asks for one, beside the live generation or in place; one that runs already is told of."""
        beside = {"keep_seconds": 1, "policy": self.chance.choice(("identical", "none"))}
        in_place = {"in_place": True} if self.workers.projection_object.partition_by is None else beside
        options = self.chance.choice((beside, beside, in_place))
        with contextlib.suppress(OSError, http.client.HTTPException):  # it is just starting, or standing still
            name = self.workers.projection_object.name
            status, _, told = self.one()[1].ask("POST", f"/v1/projections/{name}/rebuild", options, timeout_s=5)
            assert status in (200, 202, 409, 503, 504), (status, told)

    def check(self) -> None:
        """What is served is the fold of all that was written, and nothing is left lying about."""
        print(f"{sum(self.done.values())} steps, {self.written} events: {self.done}", flush=True)
        expected = self.workers.expected()
        for worker in self.running.values():
            assert worker.process.poll() is None, worker.output()[-4000:]
        first = next(iter(self.running.values()))
        try:
            until("no rebuild to run any more", self.rests, deadline_s=120)
            self.workers.ready(*self.running.values())
            until("the fold to be served", lambda: self.workers.models(first, 500) == expected, deadline_s=60)
        except AssertionError:
            self.tell()
            raise
        live = self.workers.record().live
        if live.source is not None:
            check_topic(self.kit, live)
        if self.database is not None:
            self.check_view(expected, live)

    def check_view(self, expected: dict[str, Any], live: Generation) -> None:
        """What SQL sees is the fold too, and of what else there was nothing is left."""
        assert isinstance(self.kit.kind, Postgres)
        schema = self.kit.kind.schema
        with psycopg.connect(self.kit.kind.conninfo, autocommit=True) as connection:
            shown = f"SELECT DISTINCT generation FROM {schema}.tally_positions".encode()
            until("the view to follow", lambda: connection.execute(shown).fetchall() == [(live.id,)])
            found: dict[str, Any] = dict(
                connection.execute(f"SELECT id, model FROM {schema}.tally".encode()).fetchall()
            )
            assert found == expected
            kept = {one.id for one in self.workers.record().generations}
            rows = f"SELECT DISTINCT generation FROM {schema}.refold_builds".encode()
            until("others to be dropped", lambda: {one for (one,) in connection.execute(rows).fetchall()} <= kept)

    def tell(self) -> None:
        """Print where everything is."""
        live, cluster = self.workers.record().live, self.kit.cluster
        topic = cluster.topic(live.topic)
        print("stable", {number: marks.high for number, marks in cluster.watermarks(topic).items()})
        print("ends", cluster.ends(topic), "written", self.kit.ends())
        for name, worker in self.running.items():
            print("status", name, orjson.dumps(worker.status(), option=orjson.OPT_INDENT_2).decode())
        for one in self.workers.record().generations:
            filling = filling_group(one)
            asked = (
                [(one.group, one.topic)] if filling is None else [(one.group, one.topic), (filling[1], filling[0].name)]
            )
            for group, name in asked:
                for level in ("read_committed", "read_uncommitted"):
                    print(group, level, self.offsets(group, name, level))
        print(self.broker.log_tail(200))

    def offsets(self, group: str, topic: str, level: str) -> str:
        """Ask, by a client that nobody has used, for what a group has committed."""
        settings = {"bootstrap.servers": self.kit.bootstrap, "group.id": group, "isolation.level": level}
        with contextlib.closing(Consumer(settings)) as consumer:
            try:
                found = consumer.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=5)
            except KafkaException as error:
                return str(error)
        return str([(one.partition, one.offset, one.metadata) for one in found])

    def rests(self) -> bool:
        """Say whether nothing is under way, and all is given to somebody."""
        record = self.workers.record()
        return record.running is None and len(self.workers.owners(record.active)) == PARTITIONS


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3]:
    with s3(tmp_path / "s3") as server:
        yield server


def test_whatever_happens_to_them_and_the_database_the_view_has_the_fold(
    private_broker: EmbeddedBroker, store: S3, tmp_path: Path
) -> None:
    name = f"chaos-{uuid.uuid4().hex[:8]}"
    with EmbeddedPostgres() as database:
        kind = Postgres(database.dsn, name.replace("-", "_"))
        kit = Kit(private_broker.bootstrap_servers, name, uuid.uuid4().hex, tmp_path / "state", kind=kind)
        kit.cluster.create_topic(kit.topic, PARTITIONS)
        until("the topic is there", lambda: kit.topic in kit.cluster.topics())
        with fleet(kit) as workers:
            chaos = Chaos(kit, private_broker, workers, store, random.Random(SEED), database)
            for number in range(1, STEPS + 1):
                chaos.step()
                if number % EVERY == 0 or number == STEPS:
                    chaos.check()
            said = "".join(worker.output() for worker in workers.workers)
        assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:4000]


@pytest.mark.parametrize(
    ("projection", "code"), [(TALLY, Tally()), (BY_MODEL, Remainders())], ids=["by-stream", "by-model"]
)
def test_whatever_happens_to_them_workers_serve_the_fold(
    private_broker: EmbeddedBroker, store: S3, tmp_path: Path, projection: str, code: CqrsProjection[Any]
) -> None:
    name = f"chaos-{uuid.uuid4().hex[:8]}"
    kit = Kit(private_broker.bootstrap_servers, name, uuid.uuid4().hex, tmp_path / "state", projection=code, kind=FILES)
    kit.cluster.create_topic(kit.topic, PARTITIONS)
    until("the topic is there", lambda: kit.topic in kit.cluster.topics())
    told = {
        "REFOLD_SNAPSHOT_REPOSITORY": store.url,
        "REFOLD_SNAPSHOT_REPOSITORY_CONFIG": orjson.dumps(store.config).decode(),
        "REFOLD_SNAPSHOT_SECONDS": "0.5",
        "REFOLD_STANDBYS": "1",
        **store.credentials,
    }
    with fleet(kit, projection=projection, projection_object=code, variables=told) as workers:
        chaos = Chaos(kit, private_broker, workers, store, random.Random(SEED))
        for number in range(1, STEPS + 1):
            chaos.step()
            if number % EVERY == 0 or number == STEPS:
                chaos.check()
        said = "".join(worker.output() for worker in workers.workers)
    assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:4000]
    assert "snapshot.restored" in said
