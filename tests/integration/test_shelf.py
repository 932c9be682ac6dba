"""Models read beside their writer, for as long as a worker lives, through writers that come and go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

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
