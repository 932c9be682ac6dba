"""What made a model what it is, and what other code would make of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from projections.contract import Event
from streams.control.explain import explain
from streams.control.preview import preview
from streams.diff import ABSENT, Change
from streams.errors import CheckpointError, HistoryIncomplete, ModelSplit, ProjectionError, StateNotFound
from tests.integration.kit import Kit, produce, tally_events
from tests.integration.test_streams import Corrected, CountingCodec, Monthly, spoil
from tests.support import envelope

NewKit = Callable[..., Kit]
BEGAN = datetime(2026, 3, 1, 10, tzinfo=UTC)


def at(minute: int, kind: str, **data: Any) -> bytes:
    time = (BEGAN + timedelta(minutes=minute)).isoformat()
    return orjson.dumps({"id": f"e{minute}", "type": kind, "time": time, "data": data})


def story(kit: Kit) -> None:
    """Three models; that of a: two events, one declined, a drop, another one."""
    produce(
        kit.bootstrap,
        kit.topic,
        [
            ("a", at(0, "add", n=1)),
            ("b", at(1, "add", n=5)),
            ("a", at(2, "add", n=2)),
            ("a", at(3, "ignore")),
            ("c", at(4, "add", n=5)),
            ("a", at(5, "drop")),
            ("a", at(6, "add", n=7)),
        ],
    )


def test_each_step_of_a_model_is_told(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, codec=CountingCodec())
    story(kit)
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, [("a", at(7, "add", n=1))])
    assert isinstance(kit.codec, CountingCodec)
    kit.codec.counts.clear()
    before = (kit.raw(), kit.positions(), kit.committed())
    history = explain(kit.projection, kit.events, kit.store, "a")
    assert kit.codec.counts["records"] == 6  # its own
    assert [(step.offset, step.type, step.is_folded) for step in history.steps] == [
        (0, "add", True),
        (2, "add", True),
        (5, "drop", True),
        (6, "add", True),
        (7, "add", False),
    ]
    assert history.steps[0].changes == [Change("", after={"count": 1, "sum": 1, "digest": 7 * 31 + 1})]
    assert [change.path for change in history.steps[1].changes] == ["/count", "/digest", "/sum"]
    assert history.steps[1].changes[0] == Change("/count", 1, 2)
    assert history.steps[2].changes[0].after is ABSENT
    assert history.model["count"] == 2
    assert (kit.raw(), kit.positions(), kit.committed()) == before


def test_model_as_it_was(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    story(kit)  # nobody has folded it yet

    def sums(when: int | datetime) -> Any:
        model = explain(kit.projection, kit.events, kit.store, "a", at=when).model
        return None if model is ABSENT else model["sum"]

    assert [sums(offset) for offset in (0, 1, 2, 4, 5, 6, 99)] == [1, 1, 3, 3, None, 7, 7]
    assert [sums(BEGAN + timedelta(minutes=minute)) for minute in (-1, 0, 1, 2, 5, 60)] == [None, 1, 1, 3, None, 7]


def test_model_that_is_none_of_a_stream_is_explained(new_kit: NewKit) -> None:
    kit = new_kit(projection=Monthly())
    produce(kit.bootstrap, kit.topic, tally_events(300, streams=5))
    kit.fold_all()
    model_id, model = next(iter(kit.models().items()))
    history = explain(kit.projection, kit.events, kit.store, model_id)
    assert history.model == model
    assert len(history.steps) == model["n"]


def test_event_that_cannot_be_folded_ends_the_story(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", envelope(2, "fail")), ("a", envelope(3))])
    history = explain(kit.projection, kit.events, kit.store, "a")
    assert [step.offset for step in history.steps] == [0]
    assert isinstance(history.error, ProjectionError)
    assert "cannot fold" in kit.refold("explain", "a", ok=1)
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", b"no JSON"), ("a", envelope(3))])
    assert "is no event" in str(explain(kit.projection, kit.events, kit.store, "a").error)


def test_model_on_two_partitions_is_found(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    for number in (0, 1):
        produce(kit.bootstrap, kit.topic, [("x", envelope(number))], partition=number)
    with pytest.raises(ModelSplit, match="'x' is on"):
        explain(kit.projection, kit.events, kit.store, "x")


def test_explain_on_the_command_line(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    story(kit)
    kit.fold_all()
    said = kit.refold("explain", "a", COLUMNS="100")
    assert "0@0 " in said
    assert 'add   = {"count":1,"digest":218,"sum":1}' in said
    assert "/sum 1 → 3" in said
    assert 'drop  the model is gone; it was {"count":2' in said
    document = orjson.loads(kit.refold("explain", "a", "--at", "2", "--json"))
    assert document["model"]["sum"] == 3
    assert document["events"][1]["changes"][0] == {"path": "/count", "before": 1, "after": 2}
    assert document["events"][1]["time"] == "2026-03-01T10:02:00+00:00"
    then = kit.refold("explain", "a", "--at", "2026-03-01T10:00:30+00:00")
    assert '"sum": 1' in then
    assert "is of a model 'nobody'" in kit.refold("explain", "nobody", ok=6)
    assert "neither an offset nor a time" in kit.refold("explain", "a", "--at", "noon", ok=2)


def test_preview_shows_what_other_code_would_change(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, tally_events(100, first=1000))  # later than the models
    before = (kit.build, kit.raw(), kit.positions(), kit.committed())
    same = preview(kit.projection, kit.events, kit.store, 10)
    assert (len(same.streams), same.models, same.differences) == (10, 10, [])
    assert same.events == 200
    found = preview(Corrected(), kit.events, kit.store, ["stream-3", "stream-4"])
    assert [one.model_id for one in found.differences] == ["stream-3", "stream-4"]
    assert found.differences[0].changes == [Change("/corrected", after=True)]
    assert preview(kit.projection, kit.events, kit.store, 10).streams == same.streams
    assert (kit.build, kit.raw(), kit.positions(), kit.committed()) == before
    spoil(kit, ["stream-3"])
    assert preview(kit.projection, kit.events, kit.store, ["stream-3"]).differences[0].changes[0].path == "/count"
    with pytest.raises(CheckpointError, match="has no event of 'nobody'"):
        preview(kit.projection, kit.events, kit.store, ["nobody"])


def test_history_that_is_gone_is_said(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    story(kit)
    kit.fold_all()
    kit.delete_before(0, 1)
    with pytest.raises(HistoryIncomplete, match="A preview would give models without these events"):
        preview(kit.projection, kit.events, kit.store, ["a"])
    assert preview(kit.projection, kit.events, kit.store, ["a"], allow_incomplete=True).models == 1
    with capture_logs() as said:
        history = explain(kit.projection, kit.events, kit.store, "a")
    assert history.steps[0].offset == 2
    assert [line["missing"] for line in said] == [[f"{kit.topic}[0] lacks its first 1 offsets"]]


def test_preview_of_models_that_come_and_go(new_kit: NewKit) -> None:
    kit = new_kit(projection=Monthly())
    with pytest.raises(StateNotFound, match="no read models yet, to compare with"):
        preview(kit.projection, kit.events, kit.store, 3)
    produce(kit.bootstrap, kit.topic, tally_events(300, streams=5))
    kit.fold_all()

    class Weekly(Monthly):
        def extract_model_id(self, event: Event) -> str:
            return f"{event.stream}/week"

    found = preview(Weekly(), kit.events, kit.store, 4)
    assert len(found.streams) == 4
    new = [one for one in found.differences if one.changes[0].before is ABSENT]
    assert {one.model_id for one in new} == {f"{stream}/week" for stream in found.streams}


def test_preview_while_somebody_folds_and_on_the_command_line(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    with kit.process():
        assert "0 of 20 models of 20 streams differ" in kit.refold("preview")
        said = kit.refold("preview", "--streams", "stream-3", projection="tests.integration.test_streams:Corrected")
        assert "stream-3 /corrected = true" in said
        assert "1 of 1 models of 1 streams differ (0 new, 0 gone)" in said
        document = orjson.loads(kit.refold("preview", "--streams", "5", "--json"))
        assert len(document["streams"]) == 5
        assert document["differences"] == []
    assert "needs a number of streams" in kit.refold("preview", "--streams", "0", ok=2)
