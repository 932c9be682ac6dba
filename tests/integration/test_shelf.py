"""Models read beside their writer, for as long as a worker lives, through writers that come and go."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState
from streams.data.store_reader import PartitionReader, read_only
from streams.serve.shelf import Shelf
from tests.integration.kit import Kit, produce, tally_events

NewKit = Callable[..., Kit]


def test_what_is_found_is_never_older_than_its_position_whoever_has_written_it(new_kit: NewKit) -> None:
    """A writer that opens a store writes its log to tables, which a reader that is behind must not hide."""
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100, streams=50))
    kit.fold_all()
    build = kit.store.current()
    assert build is not None
    with closing(Shelf()) as shelf:
        for number in range(1, 8):
            position = kit.ends()[0]
            for model_id, raw in kit.raw().items():
                found = shelf.find(build, 0, model_id, known=position)
                assert (found.state.position, found.raw) == (position, raw), (number, model_id)
            page = shelf.page(build, 0, None, 1000, known=position)
            assert {key.decode(): raw for key, raw in page.models} == kit.raw()
            produce(kit.bootstrap, kit.topic, tally_events(100, streams=50, first=number * 100))
            kit.fold_all()
            kit.fold_all()  # opened once more, with nothing to write


def test_what_is_settled_hides_nothing_from_whoever_has_read_a_part_of_the_log(tmp_path: Path) -> None:
    fresh = StoreState(directory="d", build=1, partition=0, start=0, position=0)
    with closing(RocksPartition.open(tmp_path / "0", fresh)) as writer:
        for number in range(1, 20):
            writer.commit([("a", b"%d" % number), ("b", b"x" * 1000)], replace(fresh, position=2 * number))
            with closing(read_only(tmp_path / "0", tmp_path / f"reader-{number}")) as reader:
                assert (reader.state().position, reader.get("a")) == (2 * number, b"%d" % number)
                writer.commit([("a", b"%d!" % number)], replace(fresh, position=2 * number + 1))
                writer.settle()
                reader.catch_up()
                assert (reader.state().position, reader.get("a")) == (2 * number + 1, b"%d!" % number)


@pytest.mark.parametrize("kind", ["settled", "opened anew", "opened anew twice"])
def test_a_reader_that_has_read_a_part_of_a_log_sees_what_the_rest_was_once_more_is_written(
    tmp_path: Path, kind: str
) -> None:
    fresh = StoreState(directory="d", build=1, partition=0, start=0, position=0)
    store = RocksPartition.open(tmp_path / "0", fresh)
    store.commit([("a", b"1"), ("b", b"1")], replace(fresh, position=1))
    with closing(read_only(tmp_path / "0", tmp_path / "reader")) as reader:
        assert reader.get("a") == b"1"
        store.commit([("a", b"2")], replace(fresh, position=2))
        for _ in range(["settled", "opened anew", "opened anew twice"].index(kind)):
            store.close()
            store = RocksPartition.open(tmp_path / "0", fresh)
        if kind == "settled":
            store.settle()
        for number in range(3, 6):
            store.commit([("b", b"%d" % number)], replace(fresh, position=number))
            reader.catch_up()
            assert (reader.state().position, reader.get("a"), reader.get("b")) == (number, b"2", b"%d" % number)
            assert dict(reader.items()) == {"a": b"2", "b": b"%d" % number}
    store.close()


WRITER = """
import random, sys, time
from pathlib import Path
from msgspec.structs import replace
from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState

store = RocksPartition.open(Path(sys.argv[1]), StoreState(directory="d", build=1, partition=0, start=0, position=0))
for number in range(store.state.position + 1, store.state.position + int(sys.argv[2])):
    store.commit([(f"{number % 8}", b"%d" % number)], replace(store.state, position=number))
    if number % 5 == 0:
        store.settle(within_s=0)
    time.sleep(random.random() * 0.003)
print(number, flush=True)
time.sleep(60)
"""


def test_all_that_is_read_is_of_one_commit_while_the_writer_moves_its_log_and_is_killed(tmp_path: Path) -> None:
    """Each commit writes one of eight models, so that each model tells by its position whether it is the right one."""
    path, chance = tmp_path / "0", random.Random(4)
    looks = 0
    with ExitStack() as stack:
        reader: PartitionReader | None = None
        for _ in range(8):
            command = [sys.executable, "-c", WRITER, str(path), str(chance.randrange(2, 400))]
            writer = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(writer.kill)
            assert writer.stdout is not None
            os.set_blocking(writer.stdout.fileno(), False)
            is_over = False
            while not is_over:
                is_over = bool(said := writer.stdout.readline())
                if reader is None:
                    if not path.is_dir():
                        time.sleep(0.01)
                        continue
                    reader = stack.enter_context(closing(read_only(path, tmp_path / "reader")))
                reader.catch_up()
                position = reader.state().position
                wanted = {str(one % 8): b"%d" % one for one in range(max(1, position - 7), position + 1)}
                assert dict(reader.items()) == wanted, position
                looks += 1
                if is_over:
                    assert position == int(said)
            writer.kill()  # the next one opens what is there in the log, and writes it to tables
            writer.wait()
    assert looks > 100
