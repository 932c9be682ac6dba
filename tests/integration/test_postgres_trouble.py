"""Whatever a PostgreSQL may do to those who write to it: each is waited for or said, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streams import Registry
from streams.adapters.postgres.stores import Postgres
from streams.broker.postgres import EmbeddedPostgres
from streams.data.agent import AgentStatus
from streams.data.partition import Phase
from streams.errors import StoreAway
from tests.integration.kit import Kit, produce, tally_events, until, wait_for_log
from tests.integration.test_blue_green import QUICKLY, begun, record_of
from tests.integration.test_postgres import WIDE, Wide, kept, sql
from tests.integration.test_trouble import Keeps, fill, small_disk
from tests.support import envelope

NewKit = Callable[..., Kit]


@pytest.fixture
def private_database() -> Iterator[EmbeddedPostgres]:
    """One of this test's own, to be killed."""
    with EmbeddedPostgres() as started:
        yield started


@pytest.mark.slow
def test_server_that_dies_is_waited_for_and_costs_nothing(new_kit: NewKit, private_database: EmbeddedPostgres) -> None:
    kit = new_kit(kind=kept(private_database))
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=300))
    with kit.process(env={"REFOLD_CHECKPOINT_EVENTS": "300"}) as run:
        for number in range(4):
            wait_for_log(run, ["partitions.assigned"])
            time.sleep(0.3)
            private_database.kill()
            time.sleep(0.5)
            private_database.start()
            produce(kit.bootstrap, kit.topic, tally_events(500, first=20_000 + 500 * number))
        until("all to be folded", lambda: kit.lag() == 0)
        assert run.runs()
        assert run.terminate() == 0
    assert kit.check() == 22_000


def _set(kit: Kit, setting: str, value: str) -> None:
    """Have the server behave otherwise, also to those who are connected."""
    assert isinstance(kit.kind, Postgres)
    with psycopg.connect(kit.kind.conninfo, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("SET statement_timeout = 0")
        connection.execute(f"ALTER SYSTEM SET {setting} = {value}".encode())
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def read_only(kit: Kit) -> Iterator[None]:
    """As during a failover."""
    _set(kit, "default_transaction_read_only", "on")
    yield
    _set(kit, "default_transaction_read_only", "off")


@contextmanager
def slow(kit: Kit) -> Iterator[None]:
    """Somebody holds what is to be written for longer than a statement may take."""
    assert isinstance(kit.kind, Postgres)
    _set(kit, "statement_timeout", "'200ms'")
    with psycopg.connect(kit.kind.conninfo) as connection:
        connection.execute(f"LOCK TABLE {kit.kind.schema}.tally_v1 IN EXCLUSIVE MODE".encode())
        yield
        connection.rollback()
    _set(kit, "statement_timeout", "0")


@contextmanager
def disconnected(kit: Kit) -> Iterator[None]:
    """An operator ends all sessions."""
    yield
    sql(kit, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'refold'")


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [read_only, slow, disconnected])
def test_what_passes_is_waited_for_and_nothing_is_doubled(
    new_kit: NewKit, private_database: EmbeddedPostgres, trouble: Callable[[Kit], Any]
) -> None:
    kit = new_kit(kind=kept(private_database))
    produce(kit.bootstrap, kit.topic, tally_events(1000, streams=100))
    with kit.process(env=QUICKLY) as run:
        until("the first to be folded", lambda: kit.lag() == 0)
        for number in range(3):
            with trouble(kit):
                produce(kit.bootstrap, kit.topic, tally_events(300, streams=100, first=1000 + 300 * number))
                time.sleep(1.5)
            until("all to be folded", lambda: kit.lag() == 0)
        assert run.runs()
        assert trouble is disconnected or "store.away" in run.output()
        assert run.terminate() == 0
    assert kit.check() == 1900


@contextmanager
def frozen(database: EmbeddedPostgres) -> Iterator[None]:
    """The server neither answers nor goes: its kernel acknowledges what is sent."""
    pids = [database.pid, *map(int, Path(f"/proc/{database.pid}/task/{database.pid}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_server_that_is_frozen_is_given_up_and_gone_on_with_when_it_wakes(
    new_kit: NewKit, private_database: EmbeddedPostgres
) -> None:
    kit = new_kit(kind=kept(private_database))
    produce(kit.bootstrap, kit.topic, tally_events(1000, streams=100))
    with kit.process(env=QUICKLY) as run, kit.process(env=QUICKLY) as other:
        until("the first to be folded", lambda: kit.lag() == 0)
        wait_for_log(run, ["partitions.assigned"])
        wait_for_log(other, ["partitions.assigned"])
        with kit.store.reader(kit.projection) as reader, frozen(private_database):
            produce(kit.bootstrap, kit.topic, tally_events(300, streams=100, first=1000))
            with pytest.raises(StoreAway, match="has not answered for"):
                reader.get("stream-1")
            wait_for_log(run, ["store.away"])
            assert other.terminate() == 0
        until("all to be folded", lambda: kit.lag() == 0)
        assert run.terminate() == 0
    assert kit.check() == 1300


@pytest.mark.slow
def test_server_that_is_only_busy_is_waited_for(pg_kit: NewKit) -> None:
    kit = pg_kit()
    assert isinstance(kit.kind, Postgres)
    produce(kit.bootstrap, kit.topic, tally_events(1000, streams=100))
    with kit.process(env=QUICKLY) as run:
        until("the first to be folded", lambda: kit.lag() == 0)
        with psycopg.connect(kit.kind.conninfo) as connection:
            connection.execute(f"LOCK TABLE {kit.kind.schema}.tally_v1 IN EXCLUSIVE MODE".encode())
            produce(kit.bootstrap, kit.topic, tally_events(300, streams=100, first=1000))
            wait_for_log(run, ["database.busy"])
            connection.rollback()
        until("all to be folded", lambda: kit.lag() == 0)
        assert "store.away" not in run.output()
        assert run.terminate() == 0
    assert kit.check() == 1300


def test_full_disk_is_waited_for(new_kit: NewKit, private_database: EmbeddedPostgres) -> None:
    """The models' disk, as a tablespace; the server's log has another one."""
    kit = new_kit(partitions=2, projection=Keeps(), kind=kept(private_database))
    produce(kit.bootstrap, kit.topic, [(f"s{n}", envelope(n, text=os.urandom(200).hex())) for n in range(6000)])
    home = Path(str(psycopg.conninfo.conninfo_to_dict(private_database.dsn)["host"]))
    disk = home / "small"
    with small_disk(disk, 16):
        owner = (home / "pgdata").stat()
        os.chown(disk, owner.st_uid, owner.st_gid)
        sql(kit, f"CREATE TABLESPACE small LOCATION '{disk}'")
        sql(kit, "ALTER DATABASE postgres SET default_tablespace = small")
        fill(disk, 1024)
        said: list[str] = []

        def look(status: AgentStatus) -> None:
            stalled = [one.why for one in status.partitions.values() if one.phase is Phase.STALLED]
            if stalled and not said:
                kit.check()
                (disk / "ballast").unlink()
                said.extend(stalled)

        kit.fold_all(look=look)
        assert said
        assert all("No space left on device" in one and "Its disk is full: make space." in one for one in said), said
        assert kit.check() == 6000
        private_database.stop(keep_data=True)


@pytest.mark.slow
def test_deadlock_is_gone_on_from(new_kit: NewKit, private_database: EmbeddedPostgres) -> None:
    """Another session has one of the models that a commit writes, and asks for another; refold has to yield."""
    kit = new_kit(partitions=1, kind=kept(private_database))
    produce(kit.bootstrap, kit.topic, tally_events(100, streams=10))
    _set(kit, "deadlock_timeout", "'2s'")
    with kit.process(env=QUICKLY) as run:
        until("the first to be folded", lambda: kit.lag() == 0)
        ids = [model_id for (model_id,) in sql(kit, "SELECT id FROM tally_v1 ORDER BY id")]
        for number in range(4):  # which of two rows is written first is theirs to say, and whether by one commit
            mine, theirs = ids[:2] if number % 2 else ids[1::-1]
            _cross(kit, mine, theirs, 1000 + 2 * number)
            until("all to be folded", lambda: kit.lag() == 0)
        assert "deadlock detected" in run.output()
        assert "store.away" in run.output()
        assert run.terminate() == 0
    assert kit.check() == 108


def _cross(kit: Kit, mine: str, theirs: str, number: int) -> None:
    """Hold one model until refold waits for it, and then ask for another one, which that commit has written."""
    assert isinstance(kit.kind, Postgres)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refold' AND wait_event_type = 'Lock'"
    select = "SELECT id FROM tally_v1 WHERE id = %s FOR UPDATE"
    with psycopg.connect(kit.kind.conninfo) as session:
        session.execute("SET deadlock_timeout = '60s'")
        session.execute(f"SET search_path TO {kit.kind.schema}".encode())
        session.execute(select, [mine])
        produce(kit.bootstrap, kit.topic, [(theirs, envelope(number)), (mine, envelope(number + 1))])
        until("refold to wait", lambda: sql(kit, waits) != [(0,)])
        session.execute(select, [theirs])


@pytest.mark.slow
def test_comparison_in_the_middle_of_which_sessions_end_is_made_again(pg_kit: NewKit) -> None:
    kit = pg_kit()
    with begun(kit):
        with kit.process("--yes", "--approve", "auto", "--verify", "identical", command="rebuild") as driver:
            registry = Registry(kit.cluster, kit.registry)
            until("both to be compared", lambda: "verifying" in str(registry.get("tally")))
            ended = time.monotonic() + 3
            while time.monotonic() < ended:
                sql(kit, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'refold'")
                time.sleep(0.05)
            assert driver.wait() == 0
        assert "verify.again" in driver.output()
        assert record_of(kit).active == "tally.v1-2"
        assert kit.check() == 2000


@contextmanager
def an_old_snapshot(kit: Kit) -> Iterator[None]:
    """Whoever builds an index concurrently waits for its end, with an index that is there and not valid."""
    assert isinstance(kit.kind, Postgres)
    with psycopg.connect(kit.kind.conninfo) as session:
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT 1")
        yield
        session.rollback()


def indexes(kit: Kit) -> dict[str, bool]:
    """The indexes of the first build, and whether each is valid."""
    found = sql(
        kit,
        "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid "
        "WHERE indrelid = to_regclass('tally_v1')",
    )
    return {name: is_valid for name, is_valid in found if "index" in name}


BUILT = {"tally_v1_index_1": True, "tally_v1_index_2": True}


@pytest.mark.parametrize("dies", ["stopped", "killed", "killed with its session"])
def test_index_whose_builder_dies_is_built(pg_kit: NewKit, dies: str) -> None:
    kit = pg_kit(projection=Wide())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with kit.process(projection=WIDE, env=QUICKLY) as first:
        with an_old_snapshot(kit):
            until("an index to be half built", lambda: indexes(kit) == {"tally_v1_index_1": False})
            until("the models to be there", lambda: kit.lag() == 0)
            if dies == "stopped":
                assert first.terminate() == 0
            else:
                first.process.kill()
                first.process.wait()
            if dies == "killed with its session":
                sql(kit, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE%INDEX%'")
        with kit.process(projection=WIDE, env=QUICKLY) as second:
            until("all to be built", lambda: indexes(kit) == BUILT)
            assert second.terminate() == 0
    assert kit.check() == 1000


def test_indexes_are_built_by_one_of_two(pg_kit: NewKit) -> None:
    kit = pg_kit(projection=Wide())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with kit.process(projection=WIDE, env=QUICKLY) as first:
        with an_old_snapshot(kit):
            until("an index to be half built", lambda: indexes(kit) == {"tally_v1_index_1": False})
            with kit.process(projection=WIDE, env=QUICKLY) as second:
                wait_for_log(second, ["index.built_elsewhere"])
                assert second.terminate() == 0
        until("all to be built", lambda: indexes(kit) == BUILT)
        assert first.output().count("index.built") == 2
        assert first.terminate() == 0


def test_id_that_no_index_holds_is_found_by_its_event(pg_kit: NewKit) -> None:
    """PostgreSQL's limit for what is indexed is a third of a page; what compresses well is longer."""
    kit = pg_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), (os.urandom(4000).hex(), envelope(2)), ("b", envelope(3))])
    error = kit.refold("rebuild", "--yes", ok=1)
    assert f"{kit.topic}[0]@1" in error
    assert "PostgreSQL does not take it: index row size" in error
    assert list(kit.models()) == ["a"]
