"""Projections that state the types of their events, on a real topic: the same models, and errors by the field."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import orjson

from streams.config import FoldSettings
from streams.data.shared import SharedRead
from tests.integration.kit import Kit, produce, read_log, tally_events, traffic, until
from tests.integration.test_blue_green import QUICKLY, active
from tests.integration.typed import STRICT, TYPED, WIDER, TypedTally, WiderTally
from tests.support import Tally, envelope, folded

NewKit = Callable[..., Kit]


def plainly(kit: Kit) -> dict[str, Any]:
    """The models by the untyped fold of the whole topic."""
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    return folded([record for records in log.values() for record in records], Tally())


def counts(kit: Kit) -> dict[str, int]:
    with kit.store.reader(WiderTally()) as reader:
        return {model_id: model["count"] for model_id, model in reader.items()}


def test_models_are_those_of_the_untyped_fold_live_and_rebuilt(new_kit: NewKit) -> None:
    kit = new_kit(projection=TypedTally())
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with kit.process(projection=TYPED, env=QUICKLY) as run:
        with traffic(kit, 2000):
            until("the first to be folded", lambda: kit.lag() < 500)
            kit.refold("rebuild", "--yes", "--verify", "identical", projection=TYPED)
        assert run.terminate() == 0
    kit.refold("rebuild", "--in-place", "--yes", projection=TYPED)
    expected = plainly(kit)
    assert active(kit, TypedTally()).models() == expected
    described = orjson.loads(kit.refold("describe", "--json", projection=TYPED))
    assert described["event_types"] == ["add", "drop"]
    assert "add, drop; others are declined" in kit.refold("describe", projection=TYPED)
    assert "others are refused" in kit.refold("describe", projection=STRICT)


def test_event_that_does_not_fit_halts_its_partition_and_other_types_fold_it(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=TypedTally())
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", envelope(2, n="7")), ("a", envelope(3))])
    error = kit.refold("rebuild", "--in-place", "--yes", projection=TYPED, ok=1)
    assert (
        f"{kit.topic}[0]@1 is no event: as 'add' it does not fit Added: Expected `int`, got `str` - at `$.n`" in error
    )
    kit.refold("rebuild", "--in-place", "--yes", projection=WIDER)
    assert counts(kit) == {"a": 3}


def test_event_that_does_not_fit_waits_as_a_dead_letter_until_it_does(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=TypedTally())
    events = [("a", envelope(1)), ("a", envelope(2, n="7")), ("a", envelope(3)), ("b", envelope(4)), ("b", b"{")]
    produce(kit.bootstrap, kit.topic, events)
    keeping = {**QUICKLY, "REFOLD_ON_ERROR": "dead-letter"}
    with kit.process(projection=TYPED, env=keeping):
        until("all to be passed", lambda: kit.lag() == 0)
    letters = [
        orjson.loads(line) for line in kit.refold("dead-letters", "list", "--json", projection=TYPED).splitlines()
    ]
    assert [(one["offset"], one["kind"], one["stream"]) for one in letters] == [
        (1, "undecodable", "a"),
        (2, "held", "a"),
        (4, "undecodable", "b"),
    ]
    with kit.process("--adopt", projection=WIDER, env=keeping):
        until("it to be there", lambda: kit.cluster.members(kit.group))
        kit.refold("dead-letters", "retry", "--all", projection=WIDER, ok=9)
    assert counts(kit) == {"a": 3, "b": 1}


def test_events_of_other_types_are_an_error_where_all_are_to_be_known(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", envelope(2, "ignore"))])
    error = kit.refold("rebuild", "--in-place", "--yes", projection=STRICT, ok=1)
    assert f"{kit.topic}[0]@1 is no event: its type 'ignore' is none that the projection states (add, drop)" in error


def test_one_read_is_shared_by_projections_of_different_types(new_kit: NewKit) -> None:
    kit = new_kit(projection=TypedTally(), settings=FoldSettings(session_timeout_s=6))
    others = [
        dataclasses.replace(kit, projection=one, group=f"{kit.group}-{name}", state_dir=kit.state_dir.parent / name)
        for name, one in (("wider", WiderTally()), ("plain", Tally()))
    ]
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    shared = SharedRead(3)

    async def rebuild() -> None:
        coordinators = [one.coordinator(runner=shared.join) for one in (kit, *others)]
        await asyncio.gather(*(one.rebuild_from_beginning() for one in coordinators))

    asyncio.run(rebuild())
    expected = plainly(kit)
    assert kit.models() == others[0].models() == others[1].models() == expected


def test_history_of_a_model_is_told_by_its_types(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=TypedTally())
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", envelope(2, "ignore")), ("a", envelope(3))])
    kit.refold_in_place(projection=TYPED)
    told = kit.refold("explain", "a", projection=TYPED)
    assert (told.count(" add "), told.count("ignore")) == (2, 0)
    kit.refold("rebuild", "--yes", "--from", "stream:a", projection=TYPED)
    assert kit.models() == plainly(kit)
