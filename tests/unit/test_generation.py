"""A generation's directory: whose it is, clearing it in one step, and what is refused."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.data.generation import MANIFEST, Manifest, RocksStore
from streams.data.store import RocksPartition
from streams.errors import (
    CodeChanged,
    ForeignStore,
    RebuildError,
    StorageError,
    StoreCorrupt,
    StoreLocked,
    TopicChanged,
)
from tests.support import Tally

WANTED = Manifest(projection="tally", version=1, fingerprint="f1", topic="t", topic_id="id1", partitions=2)


def fill(store: RocksStore, manifest: Manifest, partition: int = 0, position: int = 5) -> None:
    opened = store.open(manifest, partition, 0)
    state = msgspec.structs.replace(opened.state, position=position, models=1, events=position)
    opened.commit([(f"m{partition}", b'{"count":1}')], state)
    opened.close()


@pytest.fixture
def store(tmp_path: Path) -> RocksStore:
    return RocksStore(tmp_path / "state", wait_s=0)


def test_empty_directory_is_claimed_and_found_again(store: RocksStore) -> None:
    assert store.manifest() is None
    assert store.claim(WANTED) == WANTED
    fill(store, WANTED)
    assert RocksStore(store.directory).claim(WANTED) == WANTED
    with store.reader(Tally()) as reader:
        assert list(reader.items()) == [("m0", {"count": 1})]
        assert reader.get("m0") == {"count": 1}
        assert reader.get("nobody") is None
        assert reader.count() == 1


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"projection": "other"}, ForeignStore, "state of projection 'tally', not of 'other'"),
        ({"topic": "u"}, ForeignStore, "state of topic 't', not of 'u'"),
        ({"topic_id": "id2"}, TopicChanged, "deleted and made again"),
        ({"partitions": 3}, TopicChanged, "3 partitions, and .* from 2"),
        ({"fingerprint": "f2"}, CodeChanged, "--adopt"),
        ({"version": 2}, CodeChanged, "version 1, fingerprint f1; now version 2"),
    ],
)
def test_state_of_something_else_is_refused_and_kept(
    store: RocksStore, change: dict[str, Any], error: type[Exception], why: str
) -> None:
    store.claim(WANTED)
    fill(store, WANTED)
    with pytest.raises(error, match=why):
        store.claim(msgspec.structs.replace(WANTED, **change))
    assert store.manifest() == WANTED
    with store.reader(Tally()) as reader:
        assert reader.count() == 1


def test_changed_code_is_adopted_where_the_user_says_so(store: RocksStore) -> None:
    store.claim(WANTED)
    changed = msgspec.structs.replace(WANTED, fingerprint="f2")
    assert store.claim(changed, adopt=True) == changed
    assert store.claim(changed) == changed


def test_directory_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    store = RocksStore(tmp_path)
    for attempt in (store.claim, store.clear):
        with pytest.raises(ForeignStore, match=r"holds thesis\.tex"):
            attempt(WANTED)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_unknown_format_is_refused(store: RocksStore) -> None:
    store.claim(WANTED)
    path = store.directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ForeignStore, match="format 99"):
        store.claim(WANTED)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format":1}'])
def test_damaged_manifest_is_refused_and_a_rebuild_replaces_it(store: RocksStore, content: str) -> None:
    store.claim(WANTED)
    fill(store, WANTED)
    (store.directory / MANIFEST).write_text(content)
    with pytest.raises(StorageError, match=r"refold\.json"):
        store.claim(WANTED)
    store.clear(WANTED)
    with store.reader(Tally()) as reader:
        assert reader.count() == 0


def test_clear_begins_an_epoch_in_which_nothing_old_is_read(store: RocksStore) -> None:
    store.claim(WANTED)
    fill(store, WANTED, 0)
    fill(store, WANTED, 1)
    cleared = store.clear(WANTED, at_least=4)
    assert cleared.epoch == 5
    with store.reader(Tally()) as reader:
        assert reader.count() == 0
    opened = store.open(cleared, 0, 3)
    assert (opened.state.position, opened.state.epoch, opened.get("m0")) == (3, 5, None)
    opened.close()


def test_crash_after_the_manifest_leaves_old_stores_that_are_never_read(
    store: RocksStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim(WANTED)
    fill(store, WANTED)

    def crash(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RocksPartition, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            store.clear(WANTED)
    found = store.manifest()
    assert found is not None
    assert found.epoch == 2
    with store.reader(Tally()) as reader:
        assert reader.get("m0") is None
    opened = store.open(found, 0, 0)
    assert opened.get("m0") is None
    opened.close()


def test_leftovers_of_an_interrupted_removal_are_swept(store: RocksStore) -> None:
    store.claim(WANTED)
    fill(store, WANTED)
    (store.directory / "0").rename(store.directory / "0.removed-1")
    store.open(WANTED, 0, 0).close()
    assert not list(store.directory.glob("*.removed-*"))


def test_clear_changes_nothing_while_another_process_folds(store: RocksStore) -> None:
    store.claim(WANTED)
    fill(store, WANTED)
    holder = store.open(WANTED, 0, 0)
    with pytest.raises(StoreLocked, match="open in another process"):
        store.clear(WANTED)
    assert store.manifest() == WANTED
    assert holder.get("m0") == b'{"count":1}'
    holder.close()


def test_second_writer_is_refused_after_a_bounded_wait(store: RocksStore) -> None:
    store.claim(WANTED)
    fill(store, WANTED)
    script = (
        "import sys; from pathlib import Path; from rocksdict import Rdict, Options\n"
        "db = Rdict(sys.argv[1], Options(raw_mode=True)); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store.directory / "0")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked):
            RocksStore(store.directory, wait_s=0.2).open(WANTED, 0, 0)
        other.stdin.close()
        RocksStore(store.directory, wait_s=20).open(WANTED, 0, 0).close()


def test_second_rebuild_is_refused(store: RocksStore) -> None:
    with store.rebuilding(), pytest.raises(RebuildError, match="running"), store.rebuilding():
        pass
    with store.rebuilding():
        pass


def test_rebuild_lock_is_a_file_lock(store: RocksStore) -> None:
    with (
        store.rebuilding(),
        (store.directory / "rebuild.lock").open() as handle,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_store_of_another_partition_is_refused(store: RocksStore) -> None:
    store.claim(WANTED)
    fill(store, WANTED, 1)
    (store.directory / "1").rename(store.directory / "0")
    with pytest.raises(ForeignStore, match="partition 1, not of 0"):
        store.open(WANTED, 0, 0)


def test_rocksdb_that_is_not_ours_is_refused(store: RocksStore) -> None:
    from rocksdict import Options, Rdict

    store.claim(WANTED)
    other = Rdict(str(store.directory / "0"), Options(raw_mode=True))
    other[b"theirs"] = b"1"
    other.close()
    with pytest.raises(ForeignStore, match="did not write"):
        store.open(WANTED, 0, 0)


def test_store_older_than_the_manifest_of_a_restored_backup_is_refused(store: RocksStore) -> None:
    newer = msgspec.structs.replace(WANTED, epoch=3)
    store.claim(newer)
    fill(store, newer)
    with pytest.raises(ForeignStore, match="epoch 3, and its generation of epoch 1"):
        store.open(WANTED, 0, 0)


@pytest.mark.parametrize("damage", ["current", "manifest", "sst"])
def test_damaged_store_is_a_clear_error(store: RocksStore, damage: str) -> None:
    store.claim(WANTED)
    fill(store, WANTED)
    path = store.directory / "0"
    if damage == "current":
        (path / "CURRENT").write_bytes(b"garbage\n")
    elif damage == "manifest":
        next(path.glob("MANIFEST-*")).write_bytes(b"\x00" * 100)
    else:
        from rocksdict import Options, Rdict

        db = Rdict(str(path), Options(raw_mode=True))
        db.flush()
        db.close()
        for table in path.glob("*.sst"):
            table.write_bytes(b"\x00" * table.stat().st_size)
    with pytest.raises(StoreCorrupt, match="rebuild from the beginning"):
        store.open(WANTED, 0, 0)


def test_reader_without_state_says_what_to_do(store: RocksStore) -> None:
    with pytest.raises(StorageError, match="refold run"):
        store.reader(Tally())
