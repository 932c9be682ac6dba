"""What every kind of partition store does, whatever it is kept in."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from projections.table import Table
from streams.adapters.postgres.stores import Postgres, PostgresStores
from streams.broker.postgres import EmbeddedPostgres
from streams.control.runs import StoredModels, runs_of
from streams.data.files import FILES
from streams.data.store import DROPPED, LETTER, StoreState
from streams.data.stores import Kind, OpenStore, Stores
from streams.errors import ForeignStore, StoreAway, StoreCorrupt, StoreLocked

FRESH = StoreState(directory="d", build=1, partition=3, start=5, position=5)
IDS = ["plain", "Plain", "é", "e\u0301", "a/b?c=d&e", "with space", " leading", "100%", "'quoted\"", "🧺", "x" * 500]


@pytest.fixture(params=["files", "postgres"])
def kind(request: pytest.FixtureRequest, database: EmbeddedPostgres) -> Kind:
    if request.param == "files":
        return FILES
    return Postgres(database.dsn, f"s{uuid.uuid4().hex[:12]}")


@pytest.fixture
def stores(kind: Kind, tmp_path: Path) -> Stores:
    return of(kind, tmp_path, 1)


def of(kind: Kind, tmp_path: Path, build: int) -> Stores:
    path = tmp_path / "orders.v1" / "builds" / str(build)
    path.mkdir(parents=True)
    return kind.stores(path, Table())


def moved(state: StoreState, position: int, models: int = 0) -> StoreState:
    return msgspec.structs.replace(state, position=position, models=models, events=position - state.start)


def fill(stores: Stores, models: Mapping[str, bytes | None], position: int, fresh: StoreState = FRESH) -> StoreState:
    store = stores.open(fresh.partition, fresh)
    state = moved(store.state, position)
    store.commit(models.items(), state)
    store.close()
    return state


def seen(stores: Stores, tmp_path: Path) -> dict[str, bytes]:
    reader = stores.read(3, tmp_path / "scratch")
    try:
        return dict(reader.items())
    finally:
        reader.close()


def test_a_new_one_begins_with_what_it_is_told(stores: Stores) -> None:
    assert not stores.has(3)
    store = stores.open(3, FRESH)
    assert store.state == FRESH
    assert list(store.ids()) == []
    assert store.get("a") is None
    assert list(store.beside(b"d")) == []
    store.close()
    assert stores.has(3)
    assert not stores.has(4)
    assert stores.state(3) == FRESH


@pytest.mark.parametrize("many", [3, 1500])
def test_models_and_state_are_there_together_again(stores: Stores, tmp_path: Path, many: int) -> None:
    models = {f"m{number:05}": b'{"n":%d}' % number for number in range(many)}
    state = fill(stores, models, 9)
    store = stores.open(3, FRESH)
    assert store.state == state
    assert [one.decode() for one in store.ids()] == sorted(models)
    assert {one: store.get(one) for one in models} == models
    changed = {"m00000": None, "m00001": b'{"n":"one"}', "new": b"{}"} | {
        f"m{number:05}": b'{"n":-%d}' % number for number in range(2, many)
    }
    store.commit(changed.items(), moved(state, 12))
    assert store.get("m00000") is None
    assert store.get("m00001") == b'{"n":"one"}'
    store.close()
    assert seen(stores, tmp_path) == {one: raw for one, raw in (models | changed).items() if raw is not None}
    assert stores.state(3).position == 12


def test_ids_are_any_texts_and_come_in_the_order_of_their_bytes(stores: Stores, tmp_path: Path) -> None:
    fill(stores, {one: b'"%d"' % number for number, one in enumerate(IDS)}, 20)
    assert list(seen(stores, tmp_path).items()) == sorted(
        ((one, b'"%d"' % number) for number, one in enumerate(IDS)), key=lambda pair: pair[0].encode()
    )
    reader = stores.read(3, tmp_path / "again")
    ordered = sorted(one.encode() for one in IDS)
    for number, one in enumerate(ordered):
        assert [found for found, _ in reader.raw_items(one)] == ordered[number:]
        assert [found for found, _ in reader.raw_items(one + b"\0")] == ordered[number + 1 :]
        for odd in (one + b"\0z", one[:-1] + b"\xff", one + b"\xc3"):  # a reader may ask from anything on
            assert [found for found, _ in reader.raw_items(odd)] == [later for later in ordered if later >= odd]
    reader.close()


def test_models_come_back_as_the_bytes_they_were(stores: Stores, tmp_path: Path) -> None:
    raw = '{"b":1.0,"a":1e300,"c":12345678901234567890,"é":"\\u00e9 \\\\u0000 \\"","z":-0.0,"a":[ 1,2]}'.encode()
    fill(stores, {"a": raw}, 6)
    assert seen(stores, tmp_path) == {"a": raw}


def test_a_commit_that_fails_has_written_nothing(stores: Stores, tmp_path: Path) -> None:
    fill(stores, {"a": b"1"}, 6)
    store = stores.open(3, FRESH)

    def breaking() -> Iterator[tuple[str, bytes | None]]:
        yield "a", None
        yield "b", b"2"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.commit(breaking(), moved(store.state, 9))
    assert store.state.position == 6
    store.commit([("c", b"3")], moved(store.state, 7))
    store.close()
    assert seen(stores, tmp_path) == {"a": b"1", "c": b"3"}


def test_what_is_kept_beside_models_comes_and_goes_with_the_commit(stores: Stores, tmp_path: Path) -> None:
    store = stores.open(3, FRESH)
    dropped = DROPPED + (77).to_bytes(8, "big")
    store.commit([], moved(store.state, 6), {LETTER + b"b": b"2", LETTER + b"a": b"1", dropped: b""})
    assert list(store.beside(LETTER)) == [(LETTER + b"a", b"1"), (LETTER + b"b", b"2")]
    store.commit([("m", b"1")], moved(store.state, 7), {LETTER + b"b": None, LETTER + b"a": b"3"})
    store.close()
    store = stores.open(3, FRESH)
    assert list(store.beside(LETTER)) == [(LETTER + b"a", b"3")]
    store.close()
    reader = stores.read(3, tmp_path / "scratch")
    assert list(reader.dropped()) == [77]
    assert list(reader.items()) == [("m", b"1")]
    reader.close()


def test_partitions_know_nothing_of_each_other(stores: Stores, tmp_path: Path) -> None:
    fill(stores, {"a": b"1"}, 6)
    other = msgspec.structs.replace(FRESH, partition=4)
    fill(stores, {"b": b"2"}, 8, other)
    store = stores.open(4, other)
    assert store.get("a") is None
    assert [one.decode() for one in store.ids()] == ["b"]
    store.close()
    assert seen(stores, tmp_path) == {"a": b"1"}


def test_another_process_cannot_open_what_is_open(stores: Stores) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store = stores.open(3, FRESH)
    with ThreadPoolExecutor(1) as another:  # for a database, another session; RocksDB's lock is the process's own
        with pytest.raises(StoreLocked):
            another.submit(stores.open, 3, FRESH).result()
        store.close()
        another.submit(lambda: stores.open(3, FRESH).close()).result()


def test_a_reader_sees_one_instant_until_it_catches_up(stores: Stores, tmp_path: Path) -> None:
    store = stores.open(3, FRESH)
    store.commit([("a", b"1"), ("b", b"1")], moved(store.state, 6))
    reader = stores.read(3, tmp_path / "scratch")
    store.commit([("a", b"2"), ("b", None), ("c", b"2")], moved(store.state, 8))
    assert (reader.state().position, dict(reader.items())) == (6, {"a": b"1", "b": b"1"})
    assert reader.get("c") is None
    reader.catch_up()
    assert (reader.state().position, dict(reader.items())) == (8, {"a": b"2", "c": b"2"})
    reader.close()
    store.close()


def test_what_is_of_another_state_is_refused_and_left(stores: Stores, tmp_path: Path) -> None:
    fill(stores, {"a": b"1"}, 6)
    with pytest.raises(ForeignStore):
        stores.open(3, msgspec.structs.replace(FRESH, directory="another"))
    assert seen(stores, tmp_path) == {"a": b"1"}


def test_models_are_carried_into_another_build(kind: Kind, stores: Stores, tmp_path: Path) -> None:
    fill(stores, {"a": b"1", "b": b"2"}, 9)
    store = stores.open(3, FRESH)
    store.commit([], store.state, {LETTER + b"a": b"1"})
    store.close()
    new = of(kind, tmp_path, 2)
    stores.carry(FRESH, new, lambda state: msgspec.structs.replace(state, build=2, position=8))
    fill(stores, {"a": b"0"}, 10)
    carried = new.open(3, msgspec.structs.replace(FRESH, build=2))
    assert (carried.state.position, carried.get("a"), carried.get("b")) == (8, b"1", b"2")
    assert list(carried.beside(LETTER)) == [(LETTER + b"a", b"1")]
    carried.close()


def test_the_state_of_nothing_is_said_to_be_none(stores: Stores) -> None:
    with pytest.raises(StoreCorrupt):
        stores.state(3)


def test_a_cut_stays_as_it_was_while_the_store_is_written_to(stores: Stores, tmp_path: Path) -> None:
    store = stores.open(3, FRESH)
    store.commit([("a", b"1"), ("b", b"1")], moved(store.state, 6))
    kept = store.cut(tmp_path / "cut")
    store.commit([("a", b"2"), ("b", None), ("c", b"2")], moved(store.state, 8))
    assert (tmp_path / "cut").is_dir()
    for number in range(2):
        reader = stores.read_cut(3, tmp_path / "cut", tmp_path / f"scratch-{number}")
        assert (reader.state().position, dict(reader.items())) == (6, {"a": b"1", "b": b"1"})
        reader.close()
    store.close()
    kept.close()
    if isinstance(stores, PostgresStores):
        wait_until(lambda: is_gone(stores, tmp_path))  # whose session PostgreSQL ends by itself, once it is told


def is_gone(stores: Stores, tmp_path: Path) -> bool:
    try:
        stores.read_cut(3, tmp_path / "cut", tmp_path / "scratch").close()
    except StoreAway as error:
        return "is there no more" in str(error)
    return False


def wait_until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_partitions_are_read_together(stores: Stores, tmp_path: Path) -> None:
    one, other = stores.open(3, FRESH), stores.open(4, msgspec.structs.replace(FRESH, partition=4))
    one.commit([("a", b"1"), ("b", b"1")], moved(one.state, 6))
    (tmp_path / "scratch").mkdir()
    reader = stores.reader(tmp_path / "scratch")
    opened = {number: reader.open(number) for number in (3, 4)}
    other.commit([("c", b"2")], moved(other.state, 8))
    assert (opened[3].state().position, dict(opened[4].items())) == (6, {})
    assert (reader.find("a"), reader.find("c"), reader.find("n\0")) == ([(3, b"1")], [], [])
    reader.rest()
    reader.catch_up()
    assert (opened[4].state().position, dict(opened[4].items())) == (8, {"c": b"2"})
    assert (reader.find("a"), reader.find("c")) == ([(3, b"1")], [(4, b"2")])
    reader.close()
    one.close()
    other.close()


@pytest.mark.parametrize("number", [0, 1, 1024, 3000])
def test_runs_of_models_have_one_digest_whatever_they_are_kept_in(stores: Stores, tmp_path: Path, number: int) -> None:
    models = {f"é-{one * 7919 % number:05}": b'{"n":"\xc3\xa9%d"}' % one for one in range(number)}
    fill(stores, models, 9)
    by_id = sorted((model_id.encode(), raw) for model_id, raw in models.items())

    def nothing() -> None:
        pass

    reader = stores.read(3, tmp_path / "scratch")
    found = list(StoredModels(reader).runs(None, nothing))
    assert found == list(runs_of(by_id, None, nothing))
    firsts = sorted([b"", *(f"é-{one:05}".encode() for one in (0, 7, 8, 500, 9000)), b"z", "ü".encode()])
    assert list(StoredModels(reader).runs(firsts, nothing)) == list(runs_of(by_id, firsts, nothing))
    within = [pair for pair in by_id if "é-00100".encode() <= pair[0] < "é-00200".encode()]
    part = list(StoredModels(reader).runs(None, nothing, "é-00100".encode(), "é-00200".encode()))
    assert part == list(runs_of(within, None, nothing, "é-00100".encode()))
    reader.close()


def test_another_thread_goes_on_when_the_one_that_opened_it_has_ended(stores: Stores, tmp_path: Path) -> None:
    """As agents do, when their priority changes."""
    opened: list[OpenStore] = []
    thread = threading.Thread(target=lambda: opened.append(stores.open(3, FRESH)))
    thread.start()
    thread.join()
    opened[0].commit([("a", b"1")], moved(FRESH, 7))
    opened[0].close()
    assert seen(stores, tmp_path) == {"a": b"1"}
