"""Projections whose models several streams feed: each event is in its model once, whoever dies, also when rebuilt."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from projections.contract import CqrsProjection
from streams import Registry
from streams.control.record import Generation, Record
from streams.data.json_codec import JsonCodec
from streams.data.routed import Origin, Routed
from streams.errors import ConfigError
from tests.integration.by_model import BY_MODEL, FIXED, SLOW, FixedRemainders, Remainders
from tests.integration.fleet import Worker, fleet
from tests.integration.kit import Kit, produce, read_log, tally_events, traffic, until, wait_for_log
from tests.support import as_json, envelope, folded

pytestmark = pytest.mark.slow

NewKit = Callable[..., Kit]
QUICKLY = {"REFOLD_SESSION_TIMEOUT_S": "6"}


@pytest.fixture
def kit(new_kit: NewKit, request: pytest.FixtureRequest) -> Kit:
    """In files, unless the test says otherwise."""
    make = request.getfixturevalue("pg_kit") if getattr(request, "param", "files") == "postgres" else new_kit
    return make(partitions=3, projection=Remainders())


IN_BOTH = pytest.mark.parametrize("kit", ["files", "postgres"], indirect=True)
IN_POSTGRES = pytest.mark.parametrize("kit", ["postgres"], indirect=True)


def record_of(kit: Kit) -> Record:
    record = Registry(kit.cluster, kit.registry).get("remainders")
    assert record is not None
    return record


def is_registered(kit: Kit) -> bool:
    return Registry(kit.cluster, kit.registry).get("remainders") is not None


def own(kit: Kit, generation: Generation, projection: CqrsProjection[Any] | None = None) -> Kit:
    """A generation, as a kit over the topic of its own."""
    codec = Routed(JsonCodec(), kit.topic)
    found = Kit(
        kit.bootstrap,
        generation.topic,
        generation.group,
        kit.state_dir,
        projection or kit.projection,
        codec=codec,
        kind=kit.kind,
    )
    found.store.directory = kit.state_dir / generation.directory
    return found


def expected(kit: Kit, projection: CqrsProjection[Any] | None = None) -> dict[str, Any]:
    """The models by a plain fold of the whole event topic."""
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    return folded(_all(log), projection or kit.projection)


def check_topic(kit: Kit, generation: Generation) -> None:
    """Check that the generation's own topic holds each event once that is of a model, in its partition's order.

    Of those whose front was deleted, since snapshots have it, only what is left can be looked at.
    """
    source = _all(read_log(kit.bootstrap, kit.cluster.topic(kit.topic)))
    wanted = {(one.partition(), one.offset()) for one in source if b'"ignore"' not in one.value()}
    seen = set()
    for records in read_log(kit.bootstrap, kit.cluster.topic(generation.topic)).values():
        last: dict[int, int] = {}
        for record in records:
            origin = Origin.of(record)
            where = (origin.partition, origin.offset)
            assert where not in seen, f"{where} is there twice"
            assert last.get(origin.partition, -1) < origin.offset, "out of its partition's order"
            last[origin.partition] = origin.offset
            seen.add(where)
    is_whole = not any(marks.low for marks in kit.cluster.watermarks(kit.cluster.topic(generation.topic)).values())
    assert seen == wanted if is_whole else seen <= wanted


def is_done(kit: Kit) -> bool:
    """Say whether all that there is was folded by the active generation."""
    live = record_of(kit).live
    source = kit.cluster.topic(kit.topic)
    filled = {number: one.position for number, one in kit.cluster.committed(live.topic, source).items()}
    if filled != kit.ends():
        return False
    # A commit is told before its markers are everywhere.
    topic = kit.cluster.topic(live.topic)
    stable = {number: marks.high for number, marks in kit.cluster.watermarks(topic).items()}
    return stable == kit.cluster.ends(topic) and own(kit, live).lag() == 0


def check(kit: Kit, projection: CqrsProjection[Any] | None = None) -> None:
    """Check the active generation: its models, and its topic."""
    live = record_of(kit).live
    until("all to be folded", lambda: is_done(kit))
    found = own(kit, live, projection)
    found.check()
    assert found.models() == expected(kit, projection)
    check_topic(kit, live)


def _all(log: dict[int, list[Message]]) -> list[Message]:
    return [record for records in log.values() for record in records]


def nothing_is_left(kit: Kit, *generations: Generation) -> None:
    """Check that of these there is no group, no topic and no directory any more."""
    gone = [one.topic for one in generations]
    assert not set(gone) & set(kit.cluster.topics())
    assert not {*gone, *(one.group for one in generations)} & set(kit.cluster.groups())
    assert not {one.directory for one in generations} & {path.name for path in kit.state_dir.iterdir()}


@IN_BOTH
def test_the_whole_way_while_events_come_in(kit: Kit) -> None:
    """A fix is reported as exactly the model that it changes; it is switched to and back, and the old one retired."""
    produce(kit.bootstrap, kit.topic, tally_events(3_000, streams=100))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        first = record_of(kit).live
        with traffic(kit, 3_000):
            told = kit.refold("rebuild", "--yes", "--workers", "2", projection=FIXED, ok=10)
            assert "remainders.v2-2 waits for a person: 1 of 101 models differ" in told
            report = record_of(kit).rebuild
            assert report is not None
            assert report.report is not None
            assert (report.report.changed, report.report.fields) == (1, {"/fixed": 1})
            assert "is active" in kit.refold("switch", projection=FIXED)
            with kit.process(projection=FIXED, env=QUICKLY) as new:
                wait_for_log(new, ["run.started"])
                assert "remainders.v1 is active" in kit.refold("rollback", projection=FIXED)
                time.sleep(0.5)
                assert "remainders.v2-2 is active" in kit.refold("rollback", projection=FIXED)
                time.sleep(0.5)
        with kit.process(projection=FIXED, env=QUICKLY) as new:
            wait_for_log(new, ["run.started"])
            check(kit, FixedRemainders())
            kit.refold("retire", projection=FIXED)
            nothing_is_left(kit, first)
            assert live.terminate() == 0
            assert new.terminate() == 0
    check(kit, FixedRemainders())


def test_the_same_code_again_is_identical_while_events_come_in(kit: Kit) -> None:
    produce(kit.bootstrap, kit.topic, tally_events(3_000, streams=100))
    with kit.process("--workers", "2", projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        with traffic(kit, 3_000):
            assert "identical: 101 models" in kit.refold("rebuild", "--yes", projection=BY_MODEL)
        check(kit)
        assert live.terminate() == 0


@IN_BOTH
@pytest.mark.parametrize("seed", range(1, 1 + int(os.environ.get("REFOLD_BY_MODEL_SEEDS", "1"))))
def test_drivers_and_agents_may_die_at_any_time(kit: Kit, seed: int) -> None:
    """Another one goes on with the rebuild, and what folds for good is started again."""
    chance = random.Random(seed)
    produce(kit.bootstrap, kit.topic, tally_events(6_000, streams=100))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        until("all to be folded", lambda: is_done(kit))
        with kit.process("--yes", "--approve", "auto", command="rebuild", projection=SLOW, env=QUICKLY) as driver:
            time.sleep(chance.uniform(2.0, 4.0))
            driver.kill()
        phases = set()
        for _ in range(4):
            running = record_of(kit).running
            if running is None:
                break
            found = record_of(kit).find(running.generation)
            assert found is not None
            phases.add(found.phase)
            with kit.process(command="resume", projection=SLOW, env=QUICKLY) as driver:
                time.sleep(chance.uniform(1.0, 5.0))
                if driver.runs():
                    driver.kill()
        assert phases
        if record_of(kit).running is not None:
            kit.refold("resume", projection=SLOW, REFOLD_SESSION_TIMEOUT_S="6")
        assert live.terminate() == 0
    kit.projection = FixedRemainders()
    with kit.process(projection=SLOW, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        check(kit, FixedRemainders())


@pytest.mark.parametrize("phase", ["new", "repartitioning", "replaying", "waiting"])
def test_a_rebuild_that_is_given_up_leaves_nothing(kit: Kit, phase: str) -> None:
    produce(kit.bootstrap, kit.topic, tally_events(6_000, streams=100))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        slow = FIXED if phase == "waiting" else SLOW
        with kit.process("--yes", command="rebuild", projection=slow, env=QUICKLY) as driver:
            green = until(f"it to be {phase}", partial(_is_at, kit, phase))
            driver.kill()
            assert green is not None
        kit.refold("cancel", projection=FIXED)
        nothing_is_left(kit, green)
        assert live.terminate() == 0


@contextmanager
def hanging(kit: Kit, group: str) -> Iterator[None]:
    """Have a transaction move a group's offset and never end, as where Kafka has lost its end."""
    config = {"transactional.id": f"{group}/gone", "transaction.timeout.ms": 600_000}
    producer = Producer({"bootstrap.servers": kit.bootstrap, **config})
    producer.init_transactions(30)
    producer.begin_transaction()
    with closing(Consumer({"bootstrap.servers": kit.bootstrap, "group.id": group})) as nobody:
        membership = nobody.consumer_group_metadata()
        producer.send_offsets_to_transaction([TopicPartition(kit.topic, 0, 0)], membership, 30)
        yield


def test_a_transaction_that_never_ends_is_told_and_the_rebuild_given_up(kit: Kit) -> None:
    produce(kit.bootstrap, kit.topic, tally_events(3_000, streams=100))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        with kit.process("--yes", command="rebuild", projection=SLOW, env=QUICKLY) as driver:
            green = until("its topic to be filled", partial(_is_at, kit, "repartitioning"))
            assert green is not None
            with hanging(kit, green.topic):
                driver.process.wait(150)
                said = driver.output()
        assert re.search(rf"{re.escape(kit.topic)}\[0\]: a transaction .* rebuild again", said), said
        nothing_is_left(kit, green)
        check(kit)
        assert live.terminate() == 0


def test_workers_give_up_a_rebuild_whose_transaction_never_ends(kit: Kit) -> None:
    """The one after it makes another topic, and is active in the end."""
    produce(kit.bootstrap, kit.topic, tally_events(3_000, streams=100))
    with fleet(kit, projection=BY_MODEL, projection_object=Remainders()) as workers:
        worker = workers.start("one")
        workers.ready(worker)
        rebuild = partial(worker.ask, "POST", "/v1/projections/remainders/rebuild", {"policy": "none"})
        assert rebuild()[0] in (200, 202)
        green = until("it to be begun", partial(_is_at, kit, "new"))
        assert green is not None
        with hanging(kit, green.topic):
            until("it to be given up", lambda: record_of(kit).running is None, deadline_s=150)
            assert record_of(kit).active == "remainders.v1"
            assert "rebuild again" in worker.output()
            until("it to be gone", lambda: len(record_of(kit).generations) == 1, deadline_s=60)
            assert green.topic not in {*kit.cluster.topics(), *kit.cluster.groups()}
        assert rebuild()[0] in (200, 202)
        until("another one to be active", lambda: record_of(kit).active == "remainders.v1-3", deadline_s=60)
        workers.ready(worker)
        until("all to be served", lambda: workers.models(worker, 500) == as_json(expected(kit), Remainders()))


def test_models_are_served_while_a_transaction_holds_the_offsets_of_those_who_write_them(kit: Kit) -> None:
    """Also by a worker that comes then: it asks where the topic ends and who holds what, and that is told."""
    produce(kit.bootstrap, kit.topic, tally_events(3_000, streams=100))
    with fleet(kit, projection=BY_MODEL, projection_object=Remainders()) as workers:
        one = workers.start("one")
        workers.ready(one)
        live = record_of(kit).live
        with hanging(kit, live.topic):
            two = workers.start("two")
            until("both to hold some", lambda: len(set(workers.owners(live.id).values())) == 2)
            wanted = as_json(expected(kit), Remainders())
            until("all to be served", lambda: workers.models(one, 500) == wanted)
            assert workers.models(two, 500) == wanted


def _is_at(kit: Kit, phase: str) -> Generation | None:
    record = record_of(kit)
    found = None if record.rebuild is None else record.find(record.rebuild.generation)
    order = ["new", "repartitioning", "replaying", "verifying", "waiting"]
    return found if found is not None and order.index(found.phase) >= order.index(phase) else None


def test_a_model_that_fails_has_its_later_events_wait_and_no_others(kit: Kit) -> None:
    """They are kept as they are in the generation's own topic, and folded once a person has dropped what failed."""
    values = [("a", envelope(7, "odd")), ("a", envelope(108)), ("a", envelope(8)), ("a", envelope(7 + 202))]
    produce(kit.bootstrap, kit.topic, values)
    with kit.process("--on-error", "dead-letter", projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        until("all to be folded", lambda: is_done(kit))
        found = own(kit, record_of(kit).live)
        assert found.models() == {"remainder-8": {"count": 1, "sum": 64}}
        listed = kit.refold("dead-letters", "list", "--json", projection=BY_MODEL).splitlines()
        letters = [orjson.loads(line) for line in listed]
        assert [(one["model"], one["kind"]) for one in letters] == [
            ("remainder-7", "failed"),
            ("remainder-7", "held"),
            ("remainder-7", "held"),
        ]
        where = f"{letters[0]['partition']}@{letters[0]['offset']}"
        kit.refold("dead-letters", "drop", where, "--yes", projection=BY_MODEL)
        rest = {"remainder-7": {"count": 2, "sum": 108**2 + 209**2}, "remainder-8": {"count": 1, "sum": 64}}
        until("the others to be folded", lambda: found.models() == rest)
        assert live.terminate() == 0


def test_workers_share_it_and_one_is_killed(kit: Kit) -> None:
    """Two workers fold, rebuild and serve it; one dies in the middle, and readers see the fold in the end."""
    produce(kit.bootstrap, kit.topic, tally_events(5_000, streams=100))
    with fleet(kit, projection=BY_MODEL, projection_object=Remainders()) as workers:
        one, two = workers.start("one"), workers.start("two")
        workers.ready(one, two)
        with traffic(kit, 5_000):
            status, _, told = one.ask("POST", "/v1/projections/remainders/rebuild", {"policy": "identical"})
            assert status in (200, 202), told
            until("its topic to be filled", partial(_is_at, kit, "repartitioning"))
            two.process.send_signal(signal.SIGKILL)
            two.process.wait()
            until("it to be active", lambda: record_of(kit).active == "remainders.v1-2", deadline_s=120)
        two = workers.start("two")
        workers.ready(one, two)
        live = record_of(kit).live
        until("all to be served", lambda: workers.models(one, 500) == as_json(expected(kit), Remainders()))
        path = "/v1/projections/remainders/models/remainder-9"
        for number in range(10):  # what was written is what is read, at once, by its position in the event topic
            before = until("it to be served", partial(_served, one, path))["count"]
            produce(kit.bootstrap, kit.topic, [("a", envelope(101 * (1000 + number) + 9))], partition=1)
            query = f"?min_position=1:{kit.ends()[1]}"
            for worker in (one, two):
                assert until("it to be served", partial(_served, worker, path + query))["count"] == before + 1
        status, answer = one.get(f"{path}?min_position=1:{10**9}&wait=0.2")
        assert (status, answer["type"]) == (504, "urn:refold:position-not-reached")
        check_topic(kit, live)
        status, _, told = one.ask("POST", "/v1/projections/remainders/retire", {})
        assert status in (200, 202), told
        until("the old one to be gone", lambda: len(record_of(kit).generations) == 1)
        assert {name for name in kit.cluster.topics() if "repartition" in name and kit.group in name} == {live.topic}


def test_what_rests_on_one_streams_events_is_refused_with_what_to_do_instead(kit: Kit) -> None:
    produce(kit.bootstrap, kit.topic, tally_events(300))
    with pytest.raises(ConfigError, match=r"refold run.*Nothing was changed"):
        asyncio.run(kit.coordinator().rebuild_from_beginning())
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        until("all to be folded", lambda: is_done(kit))
        for asked in (("--in-place",), ("--from", "stream:stream-1"), ("--from", "checkpoint")):
            said = kit.refold("rebuild", *asked, "--yes", projection=BY_MODEL, ok=2)
            assert "it is rebuilt beside what there is, and from the beginning" in said
        assert "`refold rebuild remainders`" in kit.refold("preview", projection=BY_MODEL, ok=2)
        steps = orjson.loads(kit.refold("explain", "remainder-7", "--json", projection=BY_MODEL))["events"]
        assert [one["id"] for one in steps if one["id"] == "e7"] == ["e7"]
        assert len(record_of(kit).generations) == 1
        assert live.terminate() == 0


def test_partitions_that_the_event_topic_is_given_later_are_read_too(kit: Kit) -> None:
    """Models stay where they are: the generation's own topic has as many partitions as before."""
    produce(kit.bootstrap, kit.topic, tally_events(1_000, streams=100))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        until("all to be folded", lambda: is_done(kit))
        kit.cluster.add_partitions(kit.topic, 5)
        until("they are there", lambda: len(kit.ends()) == 5)
        for partition in (3, 4):
            produce(kit.bootstrap, kit.topic, tally_events(500, first=1_000 * partition), partition=partition)
        check(kit)
        assert live.terminate() == 0
    assert kit.cluster.topic(record_of(kit).live.topic).partitions == 3


@IN_POSTGRES
def test_what_a_database_has_may_be_deleted(kit: Kit) -> None:
    """By a retention of the generation's own topic, say; a rebuild has another topic."""
    produce(kit.bootstrap, kit.topic, tally_events(1_000, streams=100))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("the first generation to be there", lambda: is_registered(kit))
        until("all to be folded", lambda: is_done(kit))
        assert live.terminate() == 0
    topic = kit.cluster.topic(record_of(kit).live.topic)
    kit.cluster.delete_records(topic, kit.cluster.ends(topic))
    produce(kit.bootstrap, kit.topic, tally_events(1_000, streams=100, first=1_000))
    with kit.process(projection=BY_MODEL, env=QUICKLY) as live:
        until("all to be folded", lambda: is_done(kit))
        assert own(kit, record_of(kit).live).models() == expected(kit)
        kit.refold("rebuild", "--yes", "--approve", "auto", projection=FIXED, REFOLD_SESSION_TIMEOUT_S="6")
        assert live.terminate() == 0
    assert own(kit, record_of(kit).live, FixedRemainders()).models() == expected(kit, FixedRemainders())


def _served(worker: Worker, path: str) -> Any:
    """Give a model; None where it is being handed over just now."""
    status, answer = worker.get(path)
    assert status in (200, 503), answer
    return answer["model"] if status == 200 else None


def test_what_the_snapshots_have_is_deleted_and_a_lost_disk_comes_back(kit: Kit, tmp_path: Path) -> None:
    """The generation's own topic does not grow for ever, and whoever takes a partition over fetches the rest."""
    told = {"REFOLD_SNAPSHOT_REPOSITORY": f"file://{tmp_path / 'volume'}", "REFOLD_SNAPSHOT_SECONDS": "0.5"}
    with fleet(kit, projection=BY_MODEL, projection_object=Remainders(), variables=told) as workers:
        one = workers.start("one")
        workers.ready(one)
        number, began = 0, time.monotonic()
        topic = kit.cluster.topic(record_of(kit).live.topic)
        while any(marks.low == 0 for marks in kit.cluster.watermarks(topic).values()):
            assert time.monotonic() - began < 120, "nothing was deleted"
            produce(kit.bootstrap, kit.topic, tally_events(60_000, streams=100, first=number))
            number += 60_000
            time.sleep(1)
        one.kill()
        shutil.rmtree(one.state_dir)
        one = workers.start("one")
        two = workers.start("two")
        workers.ready(one, two)
        produce(kit.bootstrap, kit.topic, tally_events(3_000, streams=100, first=number))
        until("all to be served", lambda: workers.models(one, 500) == as_json(expected(kit), Remainders()))
        assert "snapshot.restored" in one.output() + two.output()
