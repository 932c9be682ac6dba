"""The fold over a real RocksDB: for any history, batches and crashes, models == fold(history)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from projections.contract import CqrsProjection, Event
from streams.data.cache import ModelCannotBeStored
from streams.data.codec import Outcome, Record
from streams.data.fold import Fold, feed
from streams.data.json_codec import JsonCodec
from streams.data.rocks_partition import RocksPartition
from streams.data.serde import serde_for
from streams.data.store import StoreState
from streams.data.store_reader import read_only
from streams.errors import EventError, ProjectionError, StoreCorrupt
from tests.support import MadeRecord, Tally, envelope, folded

FRESH = StoreState(directory="d", build=1, partition=0, start=0, position=0)


def open_store(path: Path) -> RocksPartition:
    return RocksPartition.open(path, FRESH)


def open_fold(path: Path, projection: CqrsProjection[Any] | None = None, until: int | None = None) -> Fold:
    projection = projection or Tally()
    return Fold(projection, serde_for(projection.model_type()), open_store(path), until=until)


def take(fold: Fold, records: Sequence[Record], interrupts: Sequence[object] = ()) -> None:
    feed(JsonCodec(), records, (fold,), interrupts)


def stored(path: Path) -> tuple[dict[str, Any], StoreState]:
    """Models and state as a reader finds them on disk."""
    with tempfile.TemporaryDirectory() as scratch:
        reader = read_only(path, Path(scratch) / "s")
        models = {model_id: msgspec.json.decode(raw) for model_id, raw in reader.items()}
        state = reader.state()
        reader.close()
    return models, state


def records(kinds: list[tuple[str, str]], gaps: list[int] | None = None) -> list[MadeRecord]:
    """Records of (stream, type), with `gaps[i]` offsets left out before record i."""
    offset, made = 0, []
    for number, (stream, kind) in enumerate(kinds):
        offset += gaps[number % len(gaps)] if gaps else 0
        made.append(MadeRecord(envelope(number, kind), stream.encode(), offset))
        offset += 1
    return made


HISTORY = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["add", "add", "add", "drop", "ignore"])), max_size=60
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("fold"), st.integers(1, 20)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("discard"), st.just(0)),
        st.tuples(st.just("evict"), st.integers(0, 3000)),
        st.tuples(st.just("carefully"), st.integers(0, 1)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(HISTORY, STEPS, st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_any_history_any_batches_any_crashes_models_are_the_fold_of_the_log(
    kinds: list[tuple[str, str]], steps: list[tuple[str, int]], gaps: list[int]
) -> None:
    log = records(kinds, gaps)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "0"
        fold = open_fold(path)
        for step, number in [*steps, ("fold", 60), ("commit", 0)]:
            if step == "fold":
                # Fetched from further back than needed, as after a seek: what was folded is passed over.
                start = next((i for i, r in enumerate(log) if r.offset() >= fold.position), len(log))
                batch = log[max(0, start - 2) : start + number]
                if batch:
                    take(fold, batch)
            elif step == "commit":
                fold.commit()
            elif step == "crash":
                fold.close()
                fold = open_fold(path)
            elif step == "discard":
                fold.discard()
            elif step == "evict":
                fold.cache.evict(number)
            else:
                fold.carefully = bool(number)
            models, state = stored(path)
            done = [record for record in log if record.offset() < state.position]
            assert models == folded(done)
            assert state.models == len(models)
            assert state.events == len(done)
            assert state.declined == sum(kind == "ignore" for _, kind in kinds[: len(done)])
            assert state.deleted == sum(kind == "drop" for _, kind in kinds[: len(done)])
        fold.close()
        assert stored(path)[0] == folded(log)


def test_failure_in_user_code_names_the_event_and_leaves_state_as_before_its_batch(tmp_path: Path) -> None:
    log = records([("a", "add"), ("a", "add"), ("a", "fail"), ("a", "add")])
    fold = open_fold(tmp_path / "0")
    take(fold, log[:1])
    fold.commit()
    with pytest.raises(ProjectionError, match=r"t\[0\]@2: .*tally.* e2 .*ValueError: cannot fold e2") as raised:
        take(fold, log[1:])
    assert (raised.value.offset, raised.value.event_id) == (2, "e2")
    assert isinstance(raised.value.__cause__, ValueError)
    fold.discard()
    assert fold.position == 1
    take(fold, log[1:2])
    fold.commit()
    fold.close()
    assert stored(tmp_path / "0")[0] == folded(log[:2])


def test_model_without_json_form_is_found_at_its_own_event(tmp_path: Path) -> None:
    log = records([("a", "add"), ("b", "unstorable"), ("a", "add")])
    fold = open_fold(tmp_path / "0")
    take(fold, log)
    with pytest.raises(ModelCannotBeStored):
        fold.commit()
    assert stored(tmp_path / "0") == ({}, FRESH)
    fold.discard()
    fold.carefully = True
    with pytest.raises(ProjectionError, match=r"t\[0\]@1: its model 'b' cannot be stored"):
        take(fold, log)
    fold.close()


def test_record_that_is_no_event_stops_the_fold_with_its_coordinates(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0")
    with pytest.raises(EventError, match=r"t\[0\]@1 is no event: the value is not JSON"):
        take(fold, [MadeRecord(envelope(0), b"a", 0), MadeRecord(b"{", b"a", 1)])
    fold.close()


def test_model_id_that_is_not_the_stream_is_refused_with_the_way_out(tmp_path: Path) -> None:
    class ByCustomer(Tally):
        name = "tally"

        def extract_model_id(self, event: Event) -> str | None:
            return "customer-1"

    fold = open_fold(tmp_path / "0", ByCustomer())
    with pytest.raises(ProjectionError, match=r'partition_by = "stream"'):
        take(fold, records([("a", "add")]))
    fold.close()

    class Stated(ByCustomer):
        partition_by = "stream"

    fold = open_fold(tmp_path / "1", Stated())
    take(fold, records([("a", "add")]))
    fold.commit()
    fold.close()
    assert list(stored(tmp_path / "1")[0]) == ["customer-1"]


def test_model_id_that_is_no_string_is_refused(tmp_path: Path) -> None:
    class Numbered(Tally):
        name = "tally"
        partition_by = "stream"

        def extract_model_id(self, event: Event) -> Any:
            return 7

    fold = open_fold(tmp_path / "0", Numbered())
    with pytest.raises(ProjectionError, match="extract_model_id gave 7"):
        take(fold, records([("a", "add")]))
    fold.close()


def test_async_projection_folds_the_same(tmp_path: Path) -> None:
    class Slow(Tally):
        name = "tally"

        async def apply_to_model(  # type: ignore[override]
            self, model: dict[str, Any] | None, event: Event
        ) -> dict[str, Any] | None:
            return super().apply_to_model(model, event)

    log = records([("a", "add"), ("b", "add"), ("a", "drop"), ("a", "ignore"), ("b", "add")])
    fold = open_fold(tmp_path / "0", Slow())
    take(fold, log[:2])
    take(fold, log[2:])
    fold.commit()
    fold.close()
    models, state = stored(tmp_path / "0")
    assert models == folded(log)
    assert (state.events, state.declined, state.last_event_id) == (5, 1, "e4")


def test_event_id_that_is_a_number_does_not_spoil_the_store(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0")
    take(fold, [MadeRecord(b'{"id":12,"type":"add","time":"2026-01-01","data":{"n":1}}', b"a", 0)])
    fold.commit()
    fold.close()
    assert open_store(tmp_path / "0").state.last_event_id == "12"


def test_interrupt_ends_after_the_event_at_hand(tmp_path: Path) -> None:
    interrupts: list[str] = []

    class Interrupting(Tally):
        name = "tally"

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            if event.id == "e1":
                interrupts.append("now")
            return super().apply_to_model(model, event)

    log = records([("a", "add")] * 5)
    fold = Fold(Interrupting(), serde_for(dict), open_store(tmp_path / "0"), interrupts)
    take(fold, log, interrupts)
    assert (fold.position, fold.events) == (2, 2)
    fold.commit()
    fold.close()
    assert stored(tmp_path / "0")[0] == folded(log[:2])


def test_cache_stays_within_its_limit_and_evicted_models_come_back(tmp_path: Path) -> None:
    limit = 200_000
    fold = open_fold(tmp_path / "0")
    log = records([(f"s{i % 3000}", "add") for i in range(9000)])
    for start in range(0, len(log), 100):
        take(fold, log[start : start + 100])
        if fold.cache.is_full(limit):
            fold.commit()
        fold.cache.evict(limit)
        assert fold.cache.memory_bytes <= limit
    fold.commit()
    fold.close()
    models, state = stored(tmp_path / "0")
    assert models == folded(log)
    assert state.models == 3000


def test_gap_at_the_end_moves_the_position_and_no_model(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0")
    take(fold, records([("a", "add")]))
    fold.skip_to(9)
    assert (fold.has_moved, fold.pending) == (True, 1)
    fold.commit()
    assert (fold.committed, fold.has_moved) == (9, False)
    fold.close()


@dataclass
class Point:
    x: int
    tags: list[str]


class PointStruct(msgspec.Struct):
    x: int
    tags: list[str]


class PointModel(pydantic.BaseModel):
    x: int
    tags: list[str]


@pytest.mark.parametrize("kind", [Point, PointStruct, PointModel])
def test_typed_models_come_back_as_they_went(kind: Any) -> None:
    serde = serde_for(kind)
    model = kind(x=1, tags=["a"])
    assert serde.decode(serde.encode(model)) == model
    assert serde.encode(serde.decode(serde.encode(model))) == b'{"x":1,"tags":["a"]}'


def test_dict_model_with_a_value_that_json_would_change_is_refused() -> None:
    from datetime import UTC, datetime

    with pytest.raises(TypeError):
        serde_for(dict).encode({"at": datetime.now(UTC)})
    with pytest.raises(TypeError):
        serde_for(dict).encode({1: "a"})


def test_other_types_of_model_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cannot be a list"):
        serde_for(list)


# What a fold is fed, and where it ends


def test_records_are_decoded_once_for_several_folds(tmp_path: Path) -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
            decoded.append(len(records))
            return JsonCodec().decode(records)

    log = records([("a", "add"), ("b", "add"), ("a", "drop")])
    ahead, behind = open_fold(tmp_path / "0"), open_fold(tmp_path / "1")
    take(ahead, log[:2])
    feed(Counting(), log, (ahead, behind))
    assert decoded == [3]
    for number, fold in enumerate((ahead, behind)):
        fold.commit()
        fold.close()
        models, state = stored(tmp_path / str(number))
        assert (models, state.events) == (folded(log), 3)


@pytest.mark.parametrize("until", range(8))
def test_fold_ends_at_its_position_exactly(tmp_path: Path, until: int) -> None:
    log = records([("a", "add")] * 4, gaps=[0, 1, 0, 1])  # at 0, 2, 3 and 5
    fold = open_fold(tmp_path / "0", until=until)
    for record in log:
        take(fold, [record])
    fold.skip_to(9)
    assert fold.is_at_end
    assert (fold.position, fold.events) == (until, sum(record.offset() < until for record in log))
    fold.commit()
    fold.close()
    assert stored(tmp_path / "0")[0] == folded([record for record in log if record.offset() < until])


def test_fold_without_an_end_has_none(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0")
    take(fold, records([("a", "add")]))
    assert not fold.is_at_end
    fold.close()


# What user code does wrong


def failing(kind: BaseException) -> CqrsProjection[Any]:
    class Failing(Tally):
        name = "tally"

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            raise kind

    return Failing()


@pytest.mark.parametrize("kind", [asyncio.CancelledError(), SystemExit(3), StopIteration(), RuntimeError("x")])
def test_whatever_user_code_raises_is_a_failure_of_the_projection(tmp_path: Path, kind: BaseException) -> None:
    fold = open_fold(tmp_path / "0", failing(kind))
    with pytest.raises(ProjectionError, match=type(kind).__name__) as raised:
        take(fold, records([("a", "add")]))
    assert raised.value.offset == 0
    fold.close()


def test_interrupt_from_outside_is_none(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        take(fold, records([("a", "add")]))
    fold.close()


def test_failure_carries_the_traceback_from_the_users_own_frames(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0", failing(RuntimeError("deep")))
    with pytest.raises(ProjectionError) as raised:
        take(fold, records([("a", "add")]))
    told = raised.value.user_traceback
    assert "raise kind" in told
    assert "RuntimeError: deep" in told
    assert 'fold.py", line' not in told.replace("test_fold.py", "")
    fold.close()


def test_id_with_a_lone_surrogate_is_refused_at_its_event(tmp_path: Path) -> None:
    class Surrogate(Tally):
        name = "tally"
        partition_by = "stream"

        def extract_model_id(self, event: Event) -> str | None:
            return "\ud800" if event.id == "e1" else "fine"

    fold = open_fold(tmp_path / "0", Surrogate())
    with pytest.raises(ProjectionError, match=r"t\[0\]@1: .*UnicodeEncodeError"):
        take(fold, records([("a", "add")] * 3))
    fold.close()


def test_store_that_fails_while_folding_is_no_failure_of_the_projection(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0")
    take(fold, records([("a", "add")]))
    fold.commit()
    fold.cache._holds_all = False
    fold.cache._clean.clear()
    fold.cache._serde = serde_for(Point)  # what is stored is no Point
    with pytest.raises(StoreCorrupt, match="Model 'a' cannot be read as Point"):
        take(fold, records([("a", "add")] * 2))
    fold.close()


class Forgetful(CqrsProjection[dict[str, Any]]):
    name = "forgetful"

    def extract_model_id(self, event: Event) -> str | None:
        return None if event.type == "ignore" else event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model = model or {}
        model["n"] = 1
        return None  # as if `return model` were missing


def test_projection_that_gives_no_model_at_all_is_told_so_once(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0", Forgetful())
    log = records([("a", "add"), ("b", "add"), ("a", "ignore"), ("a", "add")])
    with structlog.testing.capture_logs() as logs:
        take(fold, log[:3])
        fold.commit()
        take(fold, log)
        fold.commit()
    told = [entry for entry in logs if entry["event"] == "fold.gives_no_models"]
    assert [(entry["method"], entry["folded"]) for entry in told] == [("Forgetful.apply_to_model", 2)]
    fold.close()
    assert stored(tmp_path / "0")[1].deleted == 3


@pytest.mark.parametrize("value", [(1, 2), float("nan"), Point(1, [])])
def test_model_that_would_not_come_back_is_found_at_its_own_event(tmp_path: Path, value: Any) -> None:
    class Spoiling(Tally):
        name = "tally"

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            model = super().apply_to_model(model, event)
            return model if model is None or event.id != "e1" else model | {"bad": value}

    log = records([("a", "add"), ("a", "add"), ("a", "add")])
    fold = open_fold(tmp_path / "0", Spoiling())
    take(fold, log)
    with pytest.raises(ModelCannotBeStored, match=r"bad|serializable"):
        fold.commit()
    fold.discard()
    fold.carefully = True
    with pytest.raises(ProjectionError, match=r"t\[0\]@1: its model 'a' cannot be stored") as raised:
        take(fold, log)
    assert not raised.value.user_traceback  # none of its frames is the user's
    fold.close()


def test_typed_projection_that_returns_a_dict_is_refused(tmp_path: Path) -> None:
    class Typed(CqrsProjection[Point]):
        name = "typed"

        def extract_model_id(self, event: Event) -> str | None:
            return event.stream

        def apply_to_model(self, model: Point | None, event: Event) -> Any:
            return Point(1, []) if event.id == "e0" else {"x": 1, "tags": []}

    fold = open_fold(tmp_path / "0", Typed())
    take(fold, records([("a", "add"), ("b", "add")]))
    with pytest.raises(ModelCannotBeStored, match="it is a dict, and the projection declares Point"):
        fold.commit()
    fold.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("shape", ["text", "numbers", "objects", "mixed"])
def test_process_grows_by_at_most_one_and_a_half_times_the_cache_whatever_the_models_are(
    tmp_path: Path, shape: str
) -> None:
    limit = 64 << 20
    command = [sys.executable, "-m", "tests.unit.memory_probe", str(tmp_path), shape, str(limit), str(5 * limit)]
    grown = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path(__file__).parents[2])
    assert int(grown.stdout) <= 1.5 * limit


@pytest.mark.parametrize(("tombstones", "left"), [("skip", {"a", "b"}), ("delete-model", {"b"})])
def test_tombstones_are_passed_over_or_delete_the_model_of_their_key(
    tmp_path: Path, tombstones: Literal["skip", "delete-model"], left: set[str]
) -> None:
    log = records([("a", "add"), ("b", "add"), ("a", "add")])
    nobodys = [MadeRecord(None, b"a", 3), MadeRecord(None, b"nobody", 4)]
    after = [MadeRecord(envelope(5), b"b", 5)]
    fold = open_fold(tmp_path / "0")
    feed(JsonCodec(tombstones=tombstones), [*log, *nobodys, *after], (fold,))
    fold.commit()
    models, state = stored(tmp_path / "0")
    assert models.keys() == left
    assert models["b"]["count"] == 2
    assert (state.position, state.events, state.models) == (6, 6, len(left))
    assert (state.declined, state.deleted) == ((2, 0) if tombstones == "skip" else (0, 2))
    fold.close()


def test_tombstone_deletes_a_model_that_was_stored_before(tmp_path: Path) -> None:
    fold = open_fold(tmp_path / "0")
    take(fold, records([("a", "add"), ("b", "add")]))
    fold.commit()
    fold.close()
    fold = open_fold(tmp_path / "0")
    feed(JsonCodec(tombstones="delete-model"), [MadeRecord(None, b"a", 2)], (fold,))
    fold.commit()
    assert stored(tmp_path / "0")[0].keys() == {"b"}
    fold.close()
