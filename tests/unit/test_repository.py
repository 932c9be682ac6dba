"""The snapshot repository on a shared volume: what is sent is what comes, and what is wrong with it does no harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.config import FoldSettings
from streams.data import restoring
from streams.data.build import Build, Manifest
from streams.data.generation import RocksStore
from streams.data.repository import Repository, StoredSnapshot
from streams.data.restoring import Restore
from streams.data.scratch import Scratch
from streams.data.store import StoreState
from streams.data.store_reader import PartitionReader
from streams.errors import ConfigError, DiskFull, RepositoryError, StoreLocked
from streams.objects import Objects
from streams.resolving import load
from streams.serve.shelf import Shelf

MANIFEST = Manifest(
    projection="tally", version=1, fingerprint="f1", codec="JsonCodec()", topic="t", topic_id="id1", partitions=3
)
STATE = "0123456789ab"


class Machine:
    """A machine's copy of one build, which all machines share."""

    def __init__(self, root: Path, volume: Path, number: int = 1, keep: int = 2) -> None:
        with RocksStore(root / "state").claiming("test") as claim:
            made = claim.make(msgspec.structs.replace(MANIFEST), above=number - 1, state=STATE)
            self.build: Build = claim.switch(made)
        self.repository = Repository(Objects(f"file://{volume}"), self.build.manifest, keep)

    def fold(self, position: int, models: dict[str, bytes | None]) -> StoreState:
        opened = self.build.open(0, 0)
        state = msgspec.structs.replace(opened.state, position=position, events=position, models=len(models))
        opened.commit(models.items(), state)
        opened.close()
        return state

    def send(self, check: Callable[[], None] = lambda: None) -> tuple[StoredSnapshot, int]:
        opened = self.build.open(0, 0)
        scratch = Scratch(self.build, "shipping-0")
        try:
            opened.snapshot(scratch.path)
            return self.repository.put(scratch.path, opened.state, "here", check)
        finally:
            scratch.close()
            opened.close()

    def restore(self, first: int = 0, last: int = 1 << 40) -> Restore:
        restore = Restore(self.repository, self.build, "t", 0, (first, last), 0.0)
        while not restore.is_over:
            time.sleep(0.01)
        return restore

    def models(self) -> dict[str, bytes]:
        scratch = self.build.root / "secondary"
        reader = PartitionReader(self.build.path / "0", scratch)
        try:
            return dict(reader.items())
        finally:
            reader.close()

    @property
    def left(self) -> list[str]:
        """What is in the build that is no store."""
        return sorted(one.name for one in self.build.path.iterdir() if one.name.startswith("."))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def machine(tmp_path: Path, volume: Path) -> Machine:
    return Machine(tmp_path / "one", volume)


@pytest.fixture
def other(tmp_path: Path, volume: Path) -> Machine:
    return Machine(tmp_path / "other", volume)


@contextmanager
def open_elsewhere(path: Path) -> Iterator[None]:
    """Have another process have a store open."""
    script = "import sys; from rocksdict import Rdict; db = Rdict(sys.argv[1]); print('open', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    try:
        yield
    finally:
        process.communicate("\n")


def models(count: int, tag: str = "a") -> dict[str, bytes | None]:
    return {f"m{number}": f'{{"of":"{tag}{number}"}}'.encode() * 20 for number in range(count)}


def files(volume: Path) -> dict[str, Path]:
    return {one.name: one for one in (volume / f"tally/{STATE}-1/0/files").iterdir()}


def test_what_was_sent_comes_as_it_was(machine: Machine, other: Machine) -> None:
    machine.fold(500, models(300))
    state = machine.fold(700, models(10, "b"))
    sent, _ = machine.send()
    assert [one.position for one in other.repository.kept(0)] == [700]
    restore = other.restore()
    assert restore.place() == state == sent.state
    assert other.models() == machine.models()
    assert restore.came_bytes == sent.size_bytes > 0
    assert other.fold(800, {"m0": None}).position == 800  # and it can be folded on
    assert "m0" not in other.models()
    assert not machine.left
    assert not other.left


def test_only_what_is_new_is_sent(machine: Machine, volume: Path) -> None:
    machine.fold(500, models(3000))
    first, all_of_it = machine.send()
    assert all_of_it == first.size_bytes
    machine.fold(510, models(5, "b"))
    second, rest = machine.send()
    assert 0 < rest < all_of_it / 2
    assert {one.digest for one in first.files} & {one.digest for one in second.files}
    assert set(files(volume)) == {one.digest for one in (*first.files, *second.files)}


def test_an_upload_that_is_cut_off_anywhere_is_nobodys_and_the_next_one_goes_on_with_it(
    machine: Machine, other: Machine, volume: Path
) -> None:
    state = machine.fold(500, models(300))
    opened = machine.build.open(0, 0)
    copy = machine.build.root / "copy"
    opened.snapshot(copy)
    opened.close()
    calls = 0

    def cut() -> None:
        nonlocal calls
        calls += 1
        if calls == cut_at:
            raise KeyboardInterrupt

    cut_at, sent = 0, []
    while True:
        calls, cut_at = 0, cut_at + 1
        try:
            _, rest = machine.repository.put(copy, state, "here", cut)
        except KeyboardInterrupt:
            assert other.repository.kept(0) == []
            assert other.restore().place() is None
            sent.append(len(files(volume)) if cut_at > 1 else 0)
        else:
            break
    assert sent == list(range(len(sent)))
    assert len(sent) > 4
    assert rest == 0  # all files were there
    assert other.restore().place() is not None
    assert other.models() == machine.models()


@pytest.mark.parametrize("how", ["changed", "cut", "gone", "empty"])
def test_a_damaged_file_is_found_and_the_next_older_snapshot_taken(
    how: str, machine: Machine, other: Machine, volume: Path
) -> None:
    machine.fold(500, models(300))
    old, _ = machine.send()
    before = machine.models()
    machine.fold(900, models(40, "b"))
    new, _ = machine.send()
    own = {one.digest for one in new.files} - {one.digest for one in old.files}
    table = next(one for one in new.files if one.digest in own and one.name.endswith(".sst"))
    damaged = files(volume)[table.digest]
    match how:
        case "changed":
            raw = bytearray(damaged.read_bytes())
            raw[len(raw) // 2] ^= 1
            damaged.write_bytes(raw)
        case "cut":
            damaged.write_bytes(damaged.read_bytes()[:-10])
        case "gone":
            damaged.unlink()
        case _:
            damaged.write_bytes(b"")
    state = other.restore().place()
    assert state is not None
    assert state.position == 500
    assert other.models() == before
    assert not other.left
    # It was taken out of the way: it is sent again, where it is needed.
    assert [one.position for one in machine.repository.kept(0)] == [500]
    assert table.digest not in files(volume)
    machine.send()
    third = Machine(volume.parent / "third", volume)
    assert third.restore().place() == new.state
    assert third.models() == machine.models()


def test_what_says_something_else_than_its_place_is_not_used(machine: Machine, other: Machine, volume: Path) -> None:
    state = machine.fold(500, models(30))
    sent, _ = machine.send()
    path = volume / f"tally/{STATE}-1/0/snapshots/{500:020}"
    wrong: list[Any] = [
        b"{",
        msgspec.json.encode({**msgspec.to_builtins(sent), "format": 99}),
        *(
            msgspec.json.encode(msgspec.structs.replace(sent, state=msgspec.structs.replace(state, **{what: value})))
            for what, value in {"directory": "ba9876543210", "build": 2, "partition": 1, "position": 400}.items()
        ),
        msgspec.json.encode(
            msgspec.structs.replace(sent, of=msgspec.structs.replace(machine.build.manifest, topic_id="id2"))
        ),
        # says something else than its store
        msgspec.json.encode(msgspec.structs.replace(sent, state=msgspec.structs.replace(state, models=7))),
        # and one that would write somewhere else
        msgspec.json.encode(
            msgspec.structs.replace(
                sent, files=[msgspec.structs.replace(sent.files[0], name="../../evil"), *sent.files[1:]]
            )
        ),
    ]
    for one in wrong:
        path.write_bytes(one)
        assert other.restore().place() is None
        assert not other.build.has(0)
        assert not other.left
    assert not list(other.build.root.rglob("evil"))


def test_only_the_newest_are_kept_and_what_only_older_ones_had_goes_once_nobody_can_be_about_to_name_it(
    machine: Machine, volume: Path
) -> None:
    needed: set[str] = set()
    for number in range(1, 5):
        machine.fold(100 * number, models(200, str(number)))
        snapshot, _ = machine.send()
        if number >= 3:
            needed |= {one.digest for one in snapshot.files}
    assert [one.position for one in machine.repository.kept(0)] == [400, 300]
    assert set(files(volume)) > needed  # somebody else may be about to name one of them
    for one in files(volume).values():
        os.utime(one, (time.time() - 4000,) * 2)
    machine.fold(500, models(1, "5"))
    snapshot, _ = machine.send()
    assert [one.position for one in machine.repository.kept(0)] == [500, 400]
    now = {one.digest for one in snapshot.files}
    assert now <= set(files(volume))
    assert set(files(volume)) - now < needed


def test_a_snapshot_that_another_one_removes_at_once_is_no_fault(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fold(500, models(30))
    put = Objects.put

    def removed(self: Objects, name: str, what: bytes | Path) -> None:
        put(self, name, what)
        if "/snapshots/" in name:
            self.delete([name])

    monkeypatch.setattr(Objects, "put", removed)
    machine.send()
    monkeypatch.undo()
    assert machine.repository.kept(0) == []
    machine.send()
    assert [one.position for one in machine.repository.kept(0)] == [500]


def test_what_there_is_of_earlier_builds_goes_with_the_first_snapshot_of_a_later_one(
    machine: Machine, tmp_path: Path, volume: Path
) -> None:
    machine.fold(500, models(30))
    machine.send()
    (volume / "tally" / "ffffffffffff-1" / "0" / "files").mkdir(parents=True)
    (volume / "tally" / "ffffffffffff-1" / "0" / "files" / "x").write_bytes(b"of another state")
    later = Machine(tmp_path / "later", volume, number=2)
    later.fold(100, models(3))
    later.send()
    found = {str(one.relative_to(volume).parent.parent.parent) for one in volume.rglob("*") if one.is_file()}
    assert found == {f"tally/{STATE}-2", "tally/ffffffffffff-1"}


def test_a_store_that_is_here_is_replaced_where_it_is_behind_and_by_nothing_that_is_behind_it(
    machine: Machine, other: Machine
) -> None:
    machine.fold(500, models(30))
    machine.send()
    other.fold(100, models(4, "old"))
    restore = other.restore()
    with open_elsewhere(other.build.path / "0"), pytest.raises(StoreLocked):
        restore.place()
    with pytest.raises(StoreLocked), closing(other.build.open(0, 0)):
        restore.place()
    state = restore.place()
    assert state is not None
    assert state.position == 500
    assert other.models() == machine.models()
    other.fold(600, models(2, "new"))
    further = other.models()
    assert other.restore().place() is None
    assert other.models() == further
    assert not other.left


def test_who_reads_a_store_that_is_replaced_reads_the_new_one(machine: Machine, other: Machine) -> None:
    machine.fold(500, models(30))
    machine.send()
    other.fold(100, models(4, "old"))
    with closing(Shelf()) as shelf:
        assert shelf.find(other.build, 0, "m1").state.position == 100
        assert other.restore().place() is not None
        found = shelf.find(other.build, 0, "m29")
        assert (found.state.position, found.raw) == (500, models(30)["m29"])
        other.fold(600, {"m29": b"new"})
        assert shelf.find(other.build, 0, "m29", known=600).raw == b"new"


def test_only_what_can_be_folded_on_is_fetched(machine: Machine, other: Machine) -> None:
    machine.fold(500, models(30))
    machine.send()
    machine.fold(700, models(30, "b"))
    machine.send()
    assert other.restore(first=701).place() is None
    assert other.restore(last=499).place() is None
    found = other.restore(last=699).place()
    assert found is not None
    assert found.position == 500


def test_one_that_is_cancelled_leaves_nothing(machine: Machine, other: Machine) -> None:
    machine.fold(500, models(3000))
    machine.send()
    restore = Restore(other.repository, other.build, "t", 0, (0, 1000), 0.0)
    restore.cancel()
    while not restore.is_over:
        time.sleep(0.001)
    assert restore.place() is None
    ready = other.restore()
    assert other.left
    ready.cancel()
    assert not other.left
    assert not other.build.has(0)


def test_one_that_waits_for_its_turn_does_not_hang_and_one_of_which_nothing_comes_does(
    machine: Machine, other: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fold(500, models(30))
    machine.send()
    monkeypatch.setattr(restoring, "_HANGS_S", 0.05)
    with restoring._AT_ONCE, restoring._AT_ONCE:
        waits = Restore(other.repository, other.build, "t", 0, (0, 1000), 0.0)
        time.sleep(0.2)
        assert not waits.is_over
    soon_over(waits)
    assert waits.place() is not None
    other.fold(501, {})
    held = threading.Event()
    monkeypatch.setattr(Repository, "kept", lambda *_: held.wait(5) and [])
    hangs = Restore(other.repository, other.build, "t", 0, (600, 1000), 0.0)
    soon_over(hangs)
    assert not held.is_set()
    assert hangs.place() is None
    held.set()
    assert other.build.open(0, 0).state.position == 501


def soon_over(restore: Restore) -> None:
    deadline = time.monotonic() + 5
    while not restore.is_over:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_disk_that_cannot_hold_it_is_told_before_anything_comes(
    machine: Machine, other: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fold(500, models(3000))
    machine.send()
    usage = shutil.disk_usage(other.build.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DiskFull, match=r"0\.0 MB free, and the snapshot of t\[0\] takes"):
        other.restore().place()
    assert not other.left


def test_what_a_process_left_that_was_killed_the_next_one_removes(machine: Machine) -> None:
    left = Scratch(machine.build, "restoring-0")
    left._lock.release()
    held = Scratch(machine.build, "restoring-1")
    for one in (Scratch(machine.build, "restoring-0"), Scratch(machine.build, "restoring-1")):
        one.close()
    assert machine.left == [held._root.name]
    held.close()


def test_settings_that_cannot_be_are_refused_with_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ftp://x: Generic URL error: Unable to recognise URL"):
        Objects("ftp://x")
    with pytest.raises(ConfigError, match="Configuration key: 'nonsense' is not valid for store 'S3'"):
        Objects("s3://bucket", {"nonsense": "1"})
    with pytest.raises(ConfigError, match="is a directory, and takes no settings: region"):
        Objects("file:///tmp/x", {"region": "eu"})
    monkeypatch.setenv("REFOLD_SNAPSHOT_REPOSITORY_CONFIG", '{"secret_access_key": ["hidden"]}')
    with pytest.raises(ConfigError) as caught:
        load(FoldSettings)
    assert "secret_access_key" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_store_is_told_to_encrypt() -> None:
    told: list[dict[str, str]] = []

    class Store(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            told.append({key.lower(): value for key, value in self.headers.items()})
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("etag", '"1"')
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "endpoint": f"http://127.0.0.1:{server.server_port}",
            "allow_http": True,
            "region": "eu-central-1",
            "access_key_id": "a",
            "secret_access_key": "b",
            "aws_server_side_encryption": "aws:kms",
            "aws_sse_kms_key_id": "key-7",
        }
        Objects("s3://bucket/x", config).put("name", b"1")
        server.shutdown()
    assert told[0]["x-amz-server-side-encryption"] == "aws:kms"
    assert told[0]["x-amz-server-side-encryption-aws-kms-key-id"] == "key-7"


def test_a_repository_that_does_not_answer_says_where_and_what() -> None:
    objects = Objects("s3://bucket/x", {"endpoint": "http://127.0.0.1:1", "allow_http": True, "skip_signature": True})
    with pytest.raises(RepositoryError, match=r"s3://bucket/x/name: cannot write it: .*127\.0\.0\.1:1/bucket/x/name"):
        objects.put("name", b"1")
