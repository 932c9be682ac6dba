"""Models read beside their writer, for as long as a worker lives, through writers that come and go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from streams.data.store import RocksPartition, StoreState
from streams.data.store_reader import read_only
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
