"""Models in a real PostgreSQL: nothing is lost or doubled, whoever dies, and readers of the view see one generation."""

from __future__ import annotations

import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from projections.contract import CqrsProjection, Event
from projections.table import Column, Index, Table
from streams.adapters.postgres.stores import Postgres
from streams.broker.postgres import EmbeddedPostgres
from streams.config import FoldSettings
from streams.errors import ConfigError, EventError, ForeignStore, ProjectionError, StoreAway
from tests.integration.kit import TALLY, Kit, produce, tally_events, traffic, until, wait_for_log
from tests.integration.test_blue_green import FIXED, QUICKLY, active, begun, record_of
from tests.integration.test_commands import refold as command
from tests.integration.versions import Fixed
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]


class Wide(Tally):
    """The same with columns, of which one is another in the next version."""

    name = "tally"
    table = Table(
        key="stream",
        columns=(Column("count", "bigint"), Column("total", "smallint", path=("sum",))),
        indexes=(Index("total desc", where="count > 1"), Index("((model -> 'digest')::text)", method="hash")),
    )


class WideFixed(Fixed):
    table = Table(key="stream", columns=(Column("fixed", "boolean"), Column("count", "numeric(9, 1)")))


WIDE = "tests.integration.test_postgres:Wide"
WIDE_FIXED = "tests.integration.test_postgres:WideFixed"


def kept(database: EmbeddedPostgres) -> Postgres:
    """A schema of a test's own."""
    return Postgres(database.dsn, f"t{uuid.uuid4().hex[:12]}")


def sql(kit: Kit, query: str, user: str = "") -> list[tuple[Any, ...]]:
    assert isinstance(kit.kind, Postgres)
    conninfo = f"{kit.kind.conninfo} user={user}" if user else kit.kind.conninfo
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"SET search_path TO {kit.kind.schema}".encode())
        cursor = connection.execute(query.encode())
        return [] if cursor.description is None else list(cursor.fetchall())


def tables(kit: Kit) -> set[str]:
    assert isinstance(kit.kind, Postgres)
    found = sql(kit, f"SELECT tablename FROM pg_tables WHERE schemaname = '{kit.kind.schema}'")
    return {name for (name,) in found if not name.startswith("refold_")}


class SqlReader:
    """Asks the view all the time, and notes which version answered, and whatever is wrong."""

    def __init__(self, kit: Kit) -> None:
        assert isinstance(kit.kind, Postgres)
        self.versions: list[str] = []
        self.wrong: list[str] = []
        self.asked = 0
        self._kind = kit.kind
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        with psycopg.connect(self._kind.conninfo, autocommit=True) as connection:
            connection.execute(f"SET search_path TO {self._kind.schema}".encode())
            while not self._stopped.is_set():
                try:
                    rows = connection.execute(
                        "SELECT model ? 'fixed', p.generation FROM tally JOIN tally_positions p USING (partition) "
                        "WHERE id LIKE '%7'"
                    ).fetchall()
                except psycopg.Error as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")
                    return
                self.asked += 1
                if len(set(rows)) > 1:
                    self.wrong.append(f"a mixture: {set(rows)}")
                for is_fixed, generation in set(rows):
                    if is_fixed != (generation != "tally.v1"):
                        self.wrong.append(f"models and positions are of two: {is_fixed}, {generation}")
                    if not self.versions or self.versions[-1] != generation:
                        self.versions.append(generation)

    def __enter__(self) -> SqlReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def check_view(kit: Kit, projection: CqrsProjection[Any]) -> None:
    """What SQL sees is what refold reads."""
    found = dict(sql(kit, "SELECT id, model FROM tally"))
    assert found == active(kit, projection).models()
    assert found


@pytest.mark.slow
def test_the_whole_way_while_events_come_in_and_somebody_asks_the_view(pg_kit: NewKit) -> None:
    kit = pg_kit()
    with begun(kit) as live:
        until("the view is there", lambda: "view.replaced" in live.output())
        with traffic(kit, 2000), SqlReader(kit) as reader:
            told = kit.refold("rebuild", "--yes", "--workers", "2", projection=FIXED, ok=10)
            assert "tally.v2-2 waits for a person: " in told
            record = record_of(kit)
            assert record.rebuild is not None
            assert record.rebuild.report is not None
            found = record.rebuild.report
            assert found.fields == {"/fixed": found.changed}
            assert (found.added, found.removed, found.not_compared) == (0, 0, {})
            assert 5 < found.changed <= 10
            assert tables(kit) == {"tally_v1", "tally_v2_2"}
            assert "is active" in kit.refold("switch", projection=FIXED)
            with kit.process(projection=FIXED, env=QUICKLY) as new:
                wait_for_log(new, ["run.started"])
                until("the reader to see the new one", lambda: reader.versions[-1] == "tally.v2-2")
                assert "tally.v1 is active" in kit.refold("rollback", projection=FIXED)
                until("the reader to see the old one", lambda: reader.versions[-1] == "tally.v1")
                assert "tally.v2-2 is active" in kit.refold("rollback", projection=FIXED)
                until("the reader to see the new one", lambda: reader.versions[-1] == "tally.v2-2")
                kit.refold("retire", projection=FIXED)
                assert tables(kit) == {"tally_v2_2"}
                assert [one.id for one in record_of(kit).generations] == ["tally.v2-2"]
        assert live.terminate() == 0
        assert active(kit, Fixed()).check() > 2000
        check_view(kit, Fixed())
    assert reader.wrong == []
    assert reader.versions == ["tally.v1", "tally.v2-2", "tally.v1", "tally.v2-2"]
    assert reader.asked > 100


@pytest.mark.slow
def test_killed_at_any_time_a_rebuild_is_gone_on_with_and_nothing_is_doubled(pg_kit: NewKit) -> None:
    """In place: a replay, its end, and the view that follows."""
    kit = pg_kit()
    seed = random.Random(22)
    produce(kit.bootstrap, kit.topic, tally_events(30_000, streams=300))
    env = {"REFOLD_CHECKPOINT_EVENTS": "500", **QUICKLY}
    for _ in range(6):
        with kit.process("--in-place", "--yes", command="rebuild", env=env) as rebuild:
            time.sleep(seed.uniform(0.5, 2.5))
            rebuild.kill()
        if kit.store.current() is not None:
            kit.check()
    until("the killed one to be dropped", lambda: not kit.cluster.members(kit.group))
    kit.refold_in_place()
    assert kit.check() == 30_000
    assert len(tables(kit)) == 1
    check_view(kit, Tally())


@pytest.mark.slow
def test_killed_while_generations_are_switched_back_and_forth_the_view_is_of_one_that_is_active(pg_kit: NewKit) -> None:
    """Whoever switches dies on the way, and so does whoever folds, of either code."""
    kit, seed = pg_kit(), random.Random(24)
    codes = (TALLY, FIXED)
    with begun(kit) as live:
        until("the view is there", lambda: "view.replaced" in live.output())
        kit.refold("rebuild", "--yes", "--approve", "auto", "--keep-minutes", "60", projection=FIXED)
        live.kill()
    with ExitStack() as stack, traffic(kit, 2000), SqlReader(kit) as reader:
        folding = {code: stack.enter_context(kit.process(projection=code, env=QUICKLY)) for code in codes}
        for number in count():
            if number >= 8 and len(reader.versions) > 2:
                break
            assert number < 40, "it is never switched"
            with kit.process(command="rollback", projection=FIXED) as switching:
                time.sleep(seed.uniform(0.5, 2.0 + number / 4))  # where all is slow, later ones live longer
                switching.kill()
            code = seed.choice(codes)
            folding[code].kill()
            folding[code] = stack.enter_context(kit.process(projection=code, env=QUICKLY))
        shown = "SELECT DISTINCT generation FROM tally_positions"
        until("the view to follow", lambda: sql(kit, shown) == [(record_of(kit).active,)])
        until("the reader to see it", lambda: reader.versions[-1] == record_of(kit).active)
        projection = Tally() if record_of(kit).active == "tally.v1" else Fixed()
        live_now = active(kit, projection)
        until("it to be folded on", lambda: sum(live_now.positions().values()) > 2000)
    assert live_now.check() > 2000
    check_view(kit, projection)
    assert reader.wrong == []


@pytest.mark.slow
def test_killed_while_live_events_come_each_is_folded_once(pg_kit: NewKit) -> None:
    kit = pg_kit()
    seed = random.Random(23)
    with traffic(kit, 0):
        for _ in range(5):
            with kit.process(env=QUICKLY) as run:
                wait_for_log(run, ["partitions.assigned"])
                time.sleep(seed.uniform(0.1, 1.5))
                run.kill()
    with kit.process(env=QUICKLY):
        until("all to be folded", lambda: kit.lag() == 0)
    assert kit.check() == sum(kit.ends().values())


@pytest.mark.slow
def test_of_two_owners_the_one_that_was_stopped_writes_nothing_any_more(pg_kit: NewKit) -> None:
    kit = pg_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    env = {**QUICKLY, "REFOLD_CHECKPOINT_EVENTS": "10"}
    with kit.process(env=env) as first:
        until("all to be folded", lambda: kit.lag() == 0)
        first.process.send_signal(signal.SIGSTOP)
        with kit.process(env=env) as second:
            produce(kit.bootstrap, kit.topic, tally_events(500, first=500))
            until("the second to fold on", lambda: kit.lag() == 0)
            assert "partition.taken_over" in second.output()
            first.process.send_signal(signal.SIGCONT)
            produce(kit.bootstrap, kit.topic, tally_events(500, first=1000))
            until("all to be folded", lambda: kit.lag() == 0)
            assert first.runs()
            assert kit.check() == 1500


def test_columns_are_filled_and_indexes_are_there_behind_a_rebuild(pg_kit: NewKit) -> None:
    kit = pg_kit(projection=Wide())
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.refold_in_place(projection=WIDE)
    models = kit.models()
    found = sql(kit, "SELECT stream, count, total, model FROM tally")
    assert {stream: model for stream, _, _, model in found} == models
    assert {stream: (count, total) for stream, count, total, _ in found} == {
        stream: (model["count"], model["sum"]) for stream, model in models.items()
    }
    indexes = {name for (name,) in sql(kit, "SELECT indexname FROM pg_indexes WHERE tablename = 'tally_v1'")}
    assert indexes == {"tally_v1_pkey", "tally_v1_index_1", "tally_v1_index_2"}


def test_another_shape_is_another_generation_and_the_same_roles_see_it(pg_kit: NewKit) -> None:
    kit = pg_kit(projection=Wide())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.refold_in_place(projection=WIDE)
    role = f"reader_{uuid.uuid4().hex[:8]}"
    assert isinstance(kit.kind, Postgres)
    sql(kit, f"CREATE ROLE {role} LOGIN")
    sql(kit, f"GRANT USAGE ON SCHEMA {kit.kind.schema} TO {role}")
    sql(kit, f"GRANT SELECT ON tally TO {role}")
    assert sql(kit, "SELECT sum(total) FROM tally", user=role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        sql(kit, "SELECT * FROM tally_v1", user=role)
    kit.refold("rebuild", "--yes", "--verify", "none", "--keep-minutes", "0", projection=WIDE_FIXED)
    assert sql(kit, "SELECT count(*) FROM tally WHERE fixed", user=role) > [(0,)]
    with pytest.raises(psycopg.errors.UndefinedColumn):
        sql(kit, "SELECT total FROM tally", user=role)


def test_view_that_something_depends_on_is_left_as_it_is_and_that_is_said(pg_kit: NewKit) -> None:
    kit = pg_kit(projection=Wide())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.refold_in_place(projection=WIDE)
    sql(kit, "CREATE VIEW mine AS SELECT total FROM tally")
    kit.refold("rebuild", "--yes", "--verify", "none", projection=WIDE_FIXED)
    assert sql(kit, "SELECT count(total) FROM mine") > [(0,)]
    sql(kit, "DROP VIEW mine")
    with kit.process(projection=WIDE_FIXED) as run:
        until("the view to follow", lambda: "view.replaced" in run.output())
    assert sql(kit, "SELECT count(*) FROM tally WHERE fixed") > [(0,)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"note": "a\0b"}, "has a text with a NUL in it"),
        ({"n": 40_000}, "smallint out of range|out of range for type smallint"),
    ],
)
def test_model_that_the_table_does_not_take_is_found_by_its_event(
    pg_kit: NewKit, value: dict[str, Any], said: str
) -> None:
    class Noting(Wide):
        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            model = super().apply_to_model(model, event)
            if model is not None and "note" in event.data:
                model["note"] = event.data["note"]
            return model

    kit = pg_kit(partitions=1, projection=Noting())
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("b", envelope(2, **value)), ("a", envelope(3))])
    with pytest.raises((EventError, ProjectionError), match=said) as raised:
        kit.fold_all()
    assert (raised.value.partition, raised.value.offset) == (0, 1)
    assert list(kit.models()) == ["a"]
    assert kit.positions() == {0: 1}


def test_events_that_fail_are_kept_and_skipped_as_in_files(pg_kit: NewKit) -> None:
    kit = pg_kit(settings=FoldSettings(on_error="dead-letter"))
    events = [("a", envelope(1)), ("a", envelope(2, "fail")), ("a", envelope(3)), ("b", envelope(4))]
    produce(kit.bootstrap, kit.topic, events)
    kit.fold_all()
    with kit.store.reader(kit.projection) as reader:
        assert sum(state.dead_letters for state in reader.states().values()) == 2
        assert (reader.get("a")["count"], reader.get("b")["count"]) == (1, 1)  # type: ignore[index]


def test_state_directory_that_is_lost_costs_nothing(pg_kit: NewKit, tmp_path: Path) -> None:
    kit = pg_kit()
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.refold_in_place()
    kit.state_dir.rename(tmp_path / "lost")
    assert kit.check() == 1000
    produce(kit.bootstrap, kit.topic, tally_events(100, first=1000))
    with kit.process() as run:
        wait_for_log(run, ["run.started"])
        until("the rest to be folded", lambda: kit.lag() == 0)
        assert '"events": 100' in run.output() or "1100" not in run.output()
    assert kit.check() == 1100


def test_another_machine_lists_what_the_database_has(pg_kit: NewKit, tmp_path: Path) -> None:
    kit = pg_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.refold_in_place()
    nothing = str(tmp_path / "nothing")
    said = command(kit, "list", "--json", REFOLD_STATE_DIR=nothing)[0]
    (row,) = [row for row in map(orjson.loads, said.splitlines()) if row["generation"] == "tally.v1"]
    assert (row["models"], row["build"], row["kept_in"], row["directory"]) == (len(kit.models()), 1, "postgres", None)
    assert "postgres" in command(kit, "list", REFOLD_STATE_DIR=nothing)[0]
    assert not Path(nothing).exists()


def test_role_that_is_to_read_is_granted_the_views(pg_kit: NewKit) -> None:
    kit = pg_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300))
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with kit.process(env={**QUICKLY, "REFOLD_PG_READER": role}) as run:
        wait_for_log(run, ["view.replaced", "view.not_granted"])
    sql(kit, f"CREATE ROLE {role} LOGIN")
    assert isinstance(kit.kind, Postgres)
    with kit.process(env={**QUICKLY, "REFOLD_PG_READER": role}):
        granted = f"SELECT has_table_privilege('{role}', '{kit.kind.schema}.tally', 'SELECT')"
        until("it to be granted", lambda: sql(kit, granted) == [(True,)])
        until("all to be folded", lambda: kit.lag() == 0)
    assert sql(kit, "SELECT count(*) FROM tally", user=role) == [(len(kit.models()),)]
    assert len(sql(kit, "SELECT position FROM tally_positions", user=role)) == 4
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        sql(kit, "SELECT * FROM tally_v1", user=role)


def test_another_deployment_s_tables_are_refused_and_left(pg_kit: NewKit, new_kit: NewKit, tmp_path: Path) -> None:
    kit = pg_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    other = new_kit(kind=kit.kind)
    other.state_dir = tmp_path / "other"
    produce(other.bootstrap, other.topic, tally_events(100))
    with pytest.raises(ForeignStore):
        Kit(other.bootstrap, other.topic, other.group, other.state_dir, kind=kit.kind).fold_all()
    assert kit.check() == 100


def test_what_cannot_be_connected_to_is_said_without_the_password(database: EmbeddedPostgres) -> None:
    host = database.dsn.split()[0]
    with pytest.raises(StoreAway) as away:
        Postgres("host=/nowhere password=secret dbname=x").recall(Path("a.v1"), "")
    with pytest.raises(ConfigError) as missing:
        Postgres(f"{host} user=postgres password=secret dbname=nowhere").recall(Path("a.v1"), "")
    with pytest.raises(ConfigError) as wrong:
        Postgres("nonsense=1 password=secret").recall(Path("a.v1"), "")
    for error in (away, missing, wrong):
        assert "secret" not in str(error.value)
        assert "secret" not in repr(error.value)
    assert "secret" not in repr(Postgres("password=secret"))


def test_snapshots_are_refused_and_why_is_said(pg_kit: NewKit) -> None:
    kit = pg_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.refold_in_place()
    assert "in the database's backups" in kit.refold("snapshots", "take", ok=2)


def test_view_that_is_not_refold_s_is_left_as_it_is(pg_kit: NewKit) -> None:
    kit = pg_kit()
    assert isinstance(kit.kind, Postgres)
    sql(kit, f"CREATE SCHEMA {kit.kind.schema}")
    sql(kit, f"CREATE VIEW {kit.kind.schema}.tally AS SELECT 'mine' AS id")
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.refold_in_place()
    assert sql(kit, "SELECT * FROM tally") == [("mine",)]
    assert kit.check() == 100
