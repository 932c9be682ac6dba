"""A generation's directory: whose it is, which build is current, who may change that, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rocksdict import Options, Rdict

from streams.data.build import CURRENT, MANIFEST, Build, Manifest
from streams.data.generation import RocksStore
from streams.data.locks import FileLock, Holder, holders
from streams.errors import (
    BuildChanged,
    CodeChanged,
    ForeignStore,
    ModelSplit,
    RebuildError,
    StorageError,
    StoreCorrupt,
    StoreLocked,
    TopicChanged,
)
from tests.support import Tally

WANTED = Manifest(
    projection="tally", version=1, fingerprint="f1", codec="JsonCodec()", topic="t", topic_id="id1", partitions=3
)


@pytest.fixture
def store(tmp_path: Path) -> RocksStore:
    return RocksStore(tmp_path / "deep" / "state")


def found(store: RocksStore, wanted: Manifest = WANTED) -> Build:
    with store.claiming("test") as claim:
        return claim.switch(claim.make(wanted))


def fill(build: Build, partition: int = 0, models: dict[str, bytes] | None = None) -> None:
    opened = build.open(partition, 0)
    models = models or {f"m{partition}": b'{"count":1}'}
    state = msgspec.structs.replace(opened.state, position=5, models=len(models), events=5)
    opened.commit(models.items(), state)
    opened.close()


def other_process(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that has said that it is ready; it ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


FOLDS = """
import sys
from streams.data.generation import RocksStore
store = RocksStore(sys.argv[1])
with store.claiming("run of tally.v1", group=sys.argv[2]) as claim:
    lock = claim.join(claim.current())
print("ready", flush=True)
sys.stdin.read()
"""


def test_build_is_current_once_it_is_switched_to(store: RocksStore) -> None:
    assert store.current() is None
    with store.claiming("test") as claim:
        build = claim.make(WANTED)
        assert store.current() is None
        claim.switch(build)
    assert store.current() == build
    assert (build.manifest.build, len(build.manifest.directory)) == (1, 12)
    fill(build)
    with store.reader(Tally()) as reader:
        assert list(reader.items()) == [("m0", {"count": 1})]
        assert reader.get("m0") == {"count": 1}
        assert reader.get("nobody") is None
        assert reader.count() == 1


def test_next_build_has_its_own_stores_and_the_old_ones_are_removed_behind_it(store: RocksStore) -> None:
    first = found(store)
    fill(first)
    with store.claiming("test") as claim:
        second = claim.make(WANTED, above=6)
        assert store.current() == first
        claim.switch(second)
    assert (second.manifest.build, second.manifest.directory) == (7, first.manifest.directory)
    assert not first.path.exists()
    with store.reader(Tally()) as reader:
        assert reader.count() == 0


def test_reader_keeps_its_build_until_it_is_closed(store: RocksStore) -> None:
    first = found(store)
    fill(first)
    reader = store.reader(Tally())
    second = found(store)
    assert first.path.exists()
    assert reader.get("m0") == {"count": 1}
    reader.close()
    found(store)
    assert not first.path.exists()
    assert not second.path.exists()


def test_readers_never_fail_because_builds_are_replaced(store: RocksStore) -> None:
    fill(found(store))
    ended = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        while not ended.is_set():
            try:
                with store.reader(Tally()) as reader:
                    assert reader.count() in (0, 1)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        fill(found(store))
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"projection": "other"}, ForeignStore, "state of projection 'tally', not of 'other'"),
        ({"topic": "u"}, ForeignStore, "state of topic 't', not of 'u'"),
        ({"topic_id": "id2"}, TopicChanged, "deleted and made again"),
        ({"partitions": 4}, TopicChanged, "4 partitions, and .* from 3"),
        ({"fingerprint": "f2"}, CodeChanged, "--adopt"),
        ({"version": 2}, CodeChanged, "version 1, fingerprint f1; now version 2"),
        ({"codec": "JsonCodec(type='kind')"}, CodeChanged, r"read with JsonCodec\(\), now JsonCodec\(type='kind'\)"),
    ],
)
def test_state_of_something_else_is_refused(
    store: RocksStore, change: dict[str, Any], error: type[Exception], why: str
) -> None:
    build = found(store)
    wanted = msgspec.structs.replace(WANTED, **change)
    with store.claiming("test") as claim, pytest.raises(error, match=why):  # noqa: PT012
        claim.check_identity(build.manifest, wanted)
        claim.check_code(build, wanted)
    assert store.current() == build


def test_adoption_is_a_new_record_over_the_same_stores_and_the_old_ones_holder_notices(store: RocksStore) -> None:
    build = found(store)
    fill(build)
    changed = msgspec.structs.replace(WANTED, fingerprint="f2", codec="other")
    with store.claiming("test") as claim:
        adopted = claim.adopt(build, changed)
        claim.check_code(adopted, changed)
    assert (adopted.path, adopted.manifest, adopted.current.revision) == (build.path, build.manifest, 2)
    adopted.check_current()
    with pytest.raises(BuildChanged, match="build 1, revision 2, and this process folds build 1, revision 1"):
        build.check_current()


def test_adoption_is_refused_while_a_process_folds_by_the_old_record(store: RocksStore) -> None:
    build = found(store)
    process = other_process(FOLDS, str(store.directory), "g")
    with store.claiming("test") as claim:
        with pytest.raises(StoreLocked, match=rf"run of tally\.v1 \(process {process.pid} on "):
            claim.adopt(build, msgspec.structs.replace(WANTED, fingerprint="f2"))
        assert store.current() == build
    process.communicate()
    with store.claiming("test") as claim:
        claim.adopt(build, msgspec.structs.replace(WANTED, fingerprint="f2"))


def test_two_groups_cannot_fold_into_one_directory(store: RocksStore) -> None:
    build = found(store)
    process = other_process(FOLDS, str(store.directory), "first")
    with store.claiming("test", group="first") as claim:
        claim.join(build).release()
    with store.claiming("test", group="second") as claim, pytest.raises(StoreLocked, match="in group 'first'"):
        claim.join(build)
    process.communicate()


def test_killed_process_holds_nothing(store: RocksStore) -> None:
    build = found(store)
    process = other_process(FOLDS, str(store.directory), "g")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with store.claiming("test") as claim:
        claim.check_nobody_folds(build, "go on")
    assert list((build.path / "folding").iterdir()) == []


def test_claims_wait_for_each_other(store: RocksStore) -> None:
    order: list[str] = []

    def second() -> None:
        with store.claiming("second"):
            order.append("second")

    with store.claiming("first") as claim:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        claim.switch(claim.make(WANTED))
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_second_rebuild_is_refused_by_the_first_ones_name(store: RocksStore) -> None:
    with (
        store.rebuilding("rebuild of tally.v1"),
        pytest.raises(RebuildError, match=rf"rebuild of tally\.v1 \(process {os.getpid()} on "),
        store.rebuilding("rebuild of tally.v1"),
    ):
        pass
    with store.rebuilding("another"):
        pass


def test_what_is_refused_leaves_nothing_behind(store: RocksStore, tmp_path: Path) -> None:
    def refused(doing: Callable[[], Any]) -> None:
        with pytest.raises(TopicChanged):
            doing()
        assert list(tmp_path.iterdir()) == []

    def claim() -> None:
        with store.claiming("test") as claim:
            claim.abandon(claim.make(WANTED))
            raise TopicChanged("why")

    def rebuild() -> None:
        with store.rebuilding("test"):
            claim()

    refused(claim)
    refused(rebuild)


def test_many_first_claims_at_once_make_one_build(store: RocksStore) -> None:
    builds: list[Build] = []
    failures: list[BaseException] = []

    def claim() -> None:
        try:
            with store.claiming("test") as claim:
                builds.append(claim.current() or claim.switch(claim.make(WANTED)))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(builds) == 8
    assert all(build == builds[0] for build in builds)


def test_build_that_was_never_switched_to_is_a_leftover(store: RocksStore) -> None:
    build = found(store)
    with store.claiming("test") as claim:
        left = claim.make(WANTED)
        fill(left)
        assert claim.has_made(left.manifest.directory)
    assert store.current() == build
    with store.claiming("test") as claim:
        again = claim.make(WANTED)
        assert again.path == left.path
        assert not list(again.partitions())
        claim.switch(again)
    assert sorted(entry.name for entry in (store.directory / "builds").iterdir()) == ["2"]


def test_record_that_a_kill_left_half_written_is_swept(store: RocksStore) -> None:
    build = found(store)
    (store.directory / ".refold-abc").write_text('{"format"')
    assert store.current() == build
    with store.claiming("test"):
        pass
    assert not list(store.directory.glob(".refold-*"))


def test_partition_is_carried_over_as_it_is(store: RocksStore) -> None:
    build = found(store)
    fill(build, 1)
    with store.claiming("test") as claim:
        second = claim.make(WANTED)
        claim.carry(build, second, 1)
        claim.switch(second)
    opened = second.open(1, 0)
    assert (opened.state.position, opened.state.build, opened.get("m1")) == (5, 2, b'{"count":1}')
    opened.close()


def test_directory_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(ForeignStore, match=r"holds thesis\.tex"),
        RocksStore(tmp_path).claiming("test") as claim,
    ):
        claim.current()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", [CURRENT, MANIFEST])
def test_unknown_format_is_refused(store: RocksStore, name: str) -> None:
    build = found(store)
    path = (store.directory if name == CURRENT else build.path) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ForeignStore, match="format 99"):
        store.current()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format":2}'])
@pytest.mark.parametrize("name", [CURRENT, MANIFEST])
def test_damaged_record_is_a_clear_error(store: RocksStore, name: str, content: str) -> None:
    build = found(store)
    path = (store.directory if name == CURRENT else build.path) / name
    path.write_text(content)
    with pytest.raises(StoreCorrupt, match=name):
        store.current()


def test_lock_tells_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    lock = FileLock.take(tmp_path / "l", Holder.me("test"))
    assert isinstance(lock, FileLock)
    other = FileLock.take(tmp_path / "l", Holder.me("other"))
    assert isinstance(other, Holder)
    assert (other.purpose, other.pid) == ("test", os.getpid())
    assert holders(tmp_path) == [other]
    lock.release()
    assert holders(tmp_path) == []
    assert not (tmp_path / "l").exists()


def test_lock_whose_file_was_removed_while_it_was_waited_for_is_no_lock(tmp_path: Path) -> None:
    first = FileLock.take(tmp_path / "l", Holder.me("first"))
    assert isinstance(first, FileLock)
    got: list[FileLock | Holder] = []
    thread = threading.Thread(target=lambda: got.append(FileLock.take(tmp_path / "l", Holder.me("second"), wait_s=20)))
    thread.start()
    first.release(remove=True)
    thread.join()
    assert isinstance(got[0], FileLock)
    assert isinstance(FileLock.take(tmp_path / "l", Holder.me("third")), Holder)


# One partition's store


def test_second_writer_is_refused(store: RocksStore) -> None:
    build = found(store)
    opened = build.open(0, 0)
    with pytest.raises(StoreLocked, match="open in another process"):
        build.open(0, 0)
    opened.close()


def test_store_killed_while_it_is_made_is_not_there(store: RocksStore, monkeypatch: pytest.MonkeyPatch) -> None:
    build = found(store)
    script = """
import os, signal, sys
from pathlib import Path
from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
RocksPartition.open(Path(sys.argv[1]), StoreState(directory="d", build=1, partition=0, start=0, position=0))
"""
    process = subprocess.run([sys.executable, "-c", script, str(build.path / "0")], check=False)
    assert process.returncode == -signal.SIGKILL
    assert list(build.path.glob("0.new-*"))
    with store.reader(Tally()) as reader:
        assert reader.count() == 0
    build.open(0, 3).close()
    assert not list(build.path.glob("0.new-*"))


def test_store_of_another_partition_or_build_is_refused(store: RocksStore) -> None:
    build = found(store)
    fill(build, 1)
    (build.path / "1").rename(build.path / "0")
    with pytest.raises(ForeignStore, match="partition 1, not of 0"):
        build.open(0, 0)
    kept = (build.path / "0").rename(store.directory.parent / "kept")
    second = found(store)
    kept.rename(second.path / "1")
    with pytest.raises(ForeignStore, match="build 1, not of 2"):
        second.open(1, 0)


def test_rocksdb_that_is_not_ours_is_refused(store: RocksStore) -> None:
    build = found(store)
    other = Rdict(str(build.path / "0"), Options(raw_mode=True))
    other[b"theirs"] = b"1"
    other.close()
    with pytest.raises(ForeignStore, match="did not write"):
        build.open(0, 0)


@pytest.mark.parametrize("damage", ["current", "manifest", "sst"])
def test_damaged_store_is_a_clear_error(store: RocksStore, damage: str) -> None:
    build = found(store)
    fill(build)
    path = build.path / "0"
    if damage == "current":
        (path / "CURRENT").write_bytes(b"garbage\n")
    elif damage == "manifest":
        next(path.glob("MANIFEST-*")).write_bytes(b"\x00" * 100)
    else:
        for table in path.glob("*.sst"):
            table.write_bytes(b"\x00" * table.stat().st_size)
    with pytest.raises(StoreCorrupt, match="rebuild from the beginning"):
        build.open(0, 0)


def test_corrupt_block_is_told_as_such_when_it_is_read(store: RocksStore) -> None:
    build = found(store)
    fill(build, 0, {f"m{number:05}": b'{"count":1}' * 50 for number in range(2000)})
    db = Rdict(str(build.path / "0"), Options(raw_mode=True))
    db.flush(True)
    db.close()
    table = max((build.path / "0").glob("*.sst"), key=lambda path: path.stat().st_size)
    data = bytearray(table.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = b"\x00" * 64
    table.write_bytes(data)
    opened = build.open(0, 0)
    with pytest.raises(StoreCorrupt, match="rebuild from the beginning"):  # noqa: PT012
        for number in range(2000):
            opened.get(f"m{number:05}")
    opened.close()


def test_reader_without_state_says_what_to_do(store: RocksStore) -> None:
    with pytest.raises(StorageError, match="refold run"):
        store.reader(Tally())


# One model on several partitions


def test_model_on_two_partitions_is_refused_with_both_named(store: RocksStore) -> None:
    build = found(store)
    fill(build, 0, {f"a{number:05}": b"{}" for number in range(0, 30_000, 2)})
    fill(build, 1, {f"a{number:05}": b"{}" for number in range(1, 30_000, 2)})
    with store.reader(Tally()) as reader:
        reader.check_not_split()
    fill(build, 2, {f"a{number:05}": b"{}" for number in range(29_000, 29_001)} | {"b": b"{}"})
    with store.reader(Tally()) as reader:
        with pytest.raises(ModelSplit, match=r"'a29000' is on t\[0\] and on t\[2\]"):
            reader.check_not_split()
        with pytest.raises(ModelSplit, match=r"'a29000' is on t\[0\] and on t\[2\]"):
            reader.get("a29000")
        assert reader.get("b") == {}


def test_partition_store_is_the_one_that_was_made(store: RocksStore) -> None:
    opened = found(store).open(2, 7)
    assert (opened.state.partition, opened.state.start, opened.state.position) == (2, 7, 7)
    opened.close()


def test_a_lock_that_was_let_go_closes_no_file_that_has_its_number_by_now(tmp_path: Path) -> None:
    lock = FileLock.take(tmp_path / "lock", Holder.me("test"))
    assert isinstance(lock, FileLock)
    lock.release(remove=True)
    with (tmp_path / "another").open("w") as another:  # the lowest number that is free
        lock.release()
        os.fstat(another.fileno())
