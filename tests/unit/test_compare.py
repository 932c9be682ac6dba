"""The comparison of two stores: whatever is in them, it finds exactly what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.control import runs as module
from streams.control.compare import Comparison, compare
from streams.data.rocks_partition import RocksPartition
from streams.data.store import StoreState
from streams.data.store_reader import PartitionReader, read_only

MODELS = st.dictionaries(st.text("abcde/\0é", min_size=1, max_size=4), st.integers(0, 3), max_size=40)
STATE = StoreState(directory="d", build=1, partition=0, start=0, position=0)


def stored(path: Path, models: dict[str, Any]) -> PartitionReader:
    store = RocksPartition.open(path, STATE)
    store.commit([(model_id, orjson.dumps(model)) for model_id, model in models.items()], STATE)
    store.close()
    return read_only(path, path.with_name(f"{path.name}-scratch"))


def parts(comparison: Comparison) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {"changed": set(), "added": set(), "removed": set()}
    for one in comparison.differences:
        kinds[one.kind].add(one.id)
    return kinds


@given(MODELS, MODELS, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_exactly_what_differs_is_found(before: dict[str, int], after: dict[str, int], run: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        was, now = stored(Path(directory) / "a", before), stored(Path(directory) / "b", after)
        usual, module._RUN = module._RUN, run
        try:
            found = compare(was, now, shown=1000)
        finally:
            module._RUN = usual
            was.close()
            now.close()
    assert (found.models_before, found.models_after) == (len(before), len(after))
    assert parts(found) == {
        "changed": {key for key in before.keys() & after.keys() if before[key] != after[key]},
        "added": after.keys() - before.keys(),
        "removed": before.keys() - after.keys(),
    }


def test_fields_are_counted_by_place_and_only_some_models_are_shown(tmp_path: Path) -> None:
    before = {f"m{number:04}": {"lines": [{"price": 1}, {"price": 2}], "by": {"x": 1}} for number in range(3000)}
    after = {key: {"lines": [{"price": 1}, {"price": 3}], "by": {"x": 1, key: 1}} for key in before}
    was, now = stored(tmp_path / "a", before), stored(tmp_path / "b", after)
    found = compare(was, now, shown=5)
    summary = found.summary({})
    assert summary.changed == 3000
    assert len(found.differences) == 5
    # Keys that are data are many, and are counted as one beyond a thousand.
    assert summary.fields["/lines/*/price"] == 3000
    assert summary.fields["…"] > 1000
    assert len(found.fields) <= 1001
    assert not summary.is_identical
    was.close()
    now.close()


def test_a_store_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    now = stored(tmp_path / "b", {"x": 1, "y": 2})
    assert parts(compare(None, now))["added"] == {"x", "y"}
    assert parts(compare(now, None))["removed"] == {"x", "y"}
    assert compare(None, None).summary({}).is_identical
    now.close()
