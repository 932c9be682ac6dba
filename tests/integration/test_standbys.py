"""Workers that keep copies of what others own: whoever is given a partition has it, and readers are answered."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from confluent_kafka import Message

from tests.integration.fleet import Fleet, Worker, fleet, soon
from tests.integration.kit import Kit, produce, read_log, tally_events, traffic
from tests.integration.test_worker import metrics
from tests.support import envelope

NewKit = Callable[..., Kit]
ONE = {"REFOLD_STANDBYS": "1"}


def address(worker: Worker) -> str:
    return f"127.0.0.1:{worker.port}"


def owns_all(workers: Fleet, worker: Worker) -> bool:
    return set(workers.owners("tally.v1").values()) == {address(worker)}


def phases(worker: Worker) -> dict[int, str]:
    """By partition, what this worker's copies are at."""
    generation = worker.status()["projections"]["tally"]["generations"]["tally.v1"]
    return {int(one): at["phase"] for one, at in generation["standing_by"].items()}


def copies(worker: Worker) -> dict[int, int]:
    """By partition, how far this worker's copies are that it stands by with, and are at the topic's end."""
    generation = worker.status()["projections"]["tally"]["generations"]["tally.v1"]
    own = {one["partition"] for one in generation["partitions"] if one["here"]}  # it is just letting go of these copies
    found = {int(one): at for one, at in generation["standing_by"].items() if int(one) not in own}
    return {number: at["position"] for number, at in found.items() if at["phase"] == "ready"}


def stand_by(kit: Kit, *workers: Worker, standbys: int = 1) -> None:
    """Wait until every partition has so many workers standing by, at its end."""

    def look() -> bool:
        ends, found = kit.ends(), [copies(one) for one in workers]
        return all(sum(one.get(number, -1) >= end for one in found) == standbys for number, end in ends.items())

    soon("copies to be at the end", look)


def two(workers: Fleet) -> tuple[Worker, Worker]:
    one, other = workers.start("a"), workers.start("b")
    workers.ready(one, other)
    soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
    workers.ready(one, other)
    return one, other


def opened(worker: Worker) -> dict[int, int]:
    """By partition, where its agents were when they began with it."""
    found: dict[int, int] = {}
    for line in worker.output().splitlines():
        if '"partitions.assigned"' in line:
            found |= {int(number): at for number, at in orjson.loads(line)["positions"].items()}
    return found


@contextmanager
def readers(worker: Worker, path: str) -> Iterator[list[tuple[int, Any]]]:
    """Ask a worker all the time; give its answers."""
    answers: list[tuple[int, Any]] = []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.wait(0.02):
            answers.append(worker.get(path, timeout_s=30))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stopped.set()
        thread.join()


def test_whoever_is_given_a_partition_of_one_that_died_has_it_and_readers_are_answered_meanwhile(
    new_kit: NewKit,
) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(40_000, streams=500))
    with fleet(kit, variables=ONE) as workers:
        one, other = two(workers)
        stand_by(kit, one, other)
        ends, expected = kit.ends(), workers.expected()
        theirs = {number for number, at in workers.owners("tally.v1").items() if at == address(other)}
        assert theirs
        assert set(copies(one)) == theirs
        with readers(one, "/v1/projections/tally/models?limit=1000") as answers:
            other.kill()
            soon("it to own all", lambda: owns_all(workers, one))
            workers.ready(one)
            soon("all to be fresh", lambda: "stale" not in answers[-1][1])
        assert {status for status, _ in answers} == {200}
        for _, body in answers:  # a page ends where looking for it has taken long
            models = {each["id"]: each["model"] for each in body["models"]}
            assert models == expected if body["next"] is None else models.items() <= expected.items()
        assert any(set(body.get("stale", ())) == theirs for _, body in answers)
        assert {number: opened(one)[number] for number in theirs} == {number: ends[number] for number in theirs}
        assert "partition.stalled" not in one.output()


def test_one_model_is_answered_from_a_copy_that_says_how_stale_it_is(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=100))
    with fleet(kit, variables=ONE) as workers:
        one, other = two(workers)
        stand_by(kit, one, other)
        expected = workers.expected()
        theirs = {number for number, at in workers.owners("tally.v1").items() if at == address(other)}
        places = {
            each["id"]: number
            for number in range(4)
            for each in one.get(f"/v1/projections/tally/models?partition={number}&limit=1000")[1]["models"]
        }
        model_id = next(each for each, number in places.items() if number in theirs)
        other.kill()
        status, body = one.get(f"/v1/projections/tally/models/{model_id}", timeout_s=30)
        assert (status, body["model"], body["stale"]) == (200, expected[model_id], True)
        assert 0 <= body["staleness_seconds"] < 30


def test_a_snapshot_of_all_that_is_here_has_the_copies_too(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=100))
    with fleet(kit, variables=ONE) as workers:
        one, other = two(workers)
        stand_by(kit, one, other)
        here = dataclasses.replace(kit, state_dir=one.state_dir)
        (taken,) = map(orjson.loads, here.refold("snapshots", "take", "--json").splitlines())
        assert {int(number): at for number, at in taken["positions"].items()} == kit.ends()
        assert taken["models"] == len(workers.expected())


def test_copies_follow_partitions_that_move(new_kit: NewKit) -> None:
    """Workers come and go with traffic: what each is given, it folds on; what it gives away, it stands by for."""
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=100))
    with fleet(kit, variables=ONE) as workers:
        one, other = two(workers)
        with traffic(kit, 2000):
            third = workers.start("c")
            soon("three to fold", lambda: len(set(workers.owners("tally.v1").values())) == 3)
            workers.ready(one, other, third)
            soon(
                "each partition to have one standing by",
                lambda: sorted(number for worker in (one, other, third) for number in copies(worker)) == [0, 1, 2, 3],
            )
            assert third.terminate() == 0, third.output()
            soon("two to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
            workers.ready(one, other)
        stand_by(kit, one, other)
        expected = workers.expected()
        soon("the fold to be served", lambda: workers.models(one, 500) == expected)
        found = metrics(one)["refold_standby_lag_records"]
        assert set(found.values()) == {0.0}


def test_workers_that_die_at_any_time_and_stand_by_for_each_other_serve_the_fold(new_kit: NewKit) -> None:
    chance = random.Random(7)
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(5000, streams=100))
    with fleet(kit, variables={"REFOLD_STANDBYS": "2"}) as workers:
        running = {name: workers.start(name) for name in "abc"}
        workers.ready(*running.values())
        with traffic(kit, 5000):
            for _ in range(6):
                time.sleep(chance.uniform(0.5, 6.0))
                name = chance.choice("abc")
                match chance.choice(("kill", "stop", "agents")):
                    case "kill":
                        running[name].kill()
                        running[name] = workers.start(name)
                    case "stop":
                        running[name].signal(signal.SIGSTOP)
                        time.sleep(chance.uniform(0.5, 8.0))
                        running[name].signal(signal.SIGCONT)
                    case _:
                        for pid in running[name].agents():
                            os.kill(pid, signal.SIGKILL)
        workers.ready(*running.values())
        expected = workers.expected()
        soon("the fold to be served", lambda: workers.models(running["a"], 500) == expected, deadline_s=60)
        stand_by(kit, *running.values(), standbys=2)
        # What they stand by with is the fold, too: whoever is left has all of it, at once.
        ends = kit.ends()
        left = running["a"]
        theirs = {number for number, at in workers.owners("tally.v1").items() if at != address(left)}
        for name in "bc":
            running[name].kill()
        soon("it to own all", lambda: owns_all(workers, left))
        workers.ready(left)
        assert workers.models(left, 500) == expected
        assert {number: opened(left)[number] for number in theirs} == {number: ends[number] for number in theirs}


def test_a_copy_stays_in_front_of_an_event_that_fails_and_says_nothing_of_it(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500, streams=20))
    with fleet(kit, variables={**ONE, "REFOLD_ON_ERROR": "dead-letter"}) as workers:
        one, other = two(workers)
        stand_by(kit, one, other)
        produce(kit.bootstrap, kit.topic, [("stream-3", envelope(1000, "fail"))])
        produce(kit.bootstrap, kit.topic, tally_events(300, streams=20, first=1001))

        def letters() -> dict[int, Any]:
            said = kit.refold("dead-letters", "list", "--json")
            return {each["offset"]: each for each in map(orjson.loads, said.splitlines())}

        soon("it to be kept, and what comes behind it of its model", lambda: len(letters()) > 1)
        (number,) = {each["partition"] for each in letters().values()}
        mine, waits = (one, other) if workers.owners("tally.v1")[number] == address(one) else (other, one)
        soon("the copy to stay", lambda: phases(waits).get(number) == "halted")
        soon("all to be folded", lambda: kit.lag() == 0)
        kept, topic = letters(), f"refold.{kit.projection.name}.dead-letters"
        written = written_to(kit, topic)
        assert len(written) == len(kept), told(kit, topic)  # by the owner alone
        mine.kill()
        soon("the other to own all", lambda: owns_all(workers, waits))
        soon("it to be at the end", lambda: waits.is_ready() and kit.lag() == 0)
        assert letters() == kept
        assert written_to(kit, topic) == written


def told(kit: Kit, topic: str) -> str:
    """What this group has in the topic of dead letters, record by record."""
    return "\n".join(
        f"{record.partition()}@{record.offset()} {record.timestamp()[1]} {record.key()!r} {record.headers()!r}"
        for record in letters_of(kit, topic)
    )


def written_to(kit: Kit, topic: str) -> list[bytes]:
    """The keys of what this group has in the topic of dead letters."""
    return [record.key() or b"" for record in letters_of(kit, topic)]


def letters_of(kit: Kit, topic: str) -> list[Message]:
    """What this group has in the topic of dead letters, which is that of all projections of this name."""
    group = ("refold-group", kit.group.encode())
    log = read_log(kit.bootstrap, kit.cluster.topic(topic))
    return [record for records in log.values() for record in records if group in (record.headers() or [])]


def test_who_stands_by_for_nothing_any_more_ends(new_kit: NewKit) -> None:
    """Where the only other worker has gone, and where another generation is active."""
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500, streams=20))
    with fleet(kit, variables=ONE) as workers:
        one, other = two(workers)
        stand_by(kit, one, other)
        assert len(one.agents()) == 2
        status, _, told = one.ask("POST", "/v1/projections/tally/rebuild", {"approve": "auto"})
        assert status == 200, told
        soon("the new generation to be active", lambda: workers.record().active != "tally.v1")
        soon("nobody to stand by for the old one", lambda: "tally.v1" not in standing(one), deadline_s=60)
        soon("it to be stood by for", lambda: bool(standing(one).get("tally.v1-2")))
        assert other.terminate() == 0
        soon("nothing to stand by for", lambda: not standing(one), deadline_s=60)
        soon("only those to be left that fold the two generations", lambda: len(one.agents()) == 2)
        assert workers.models(one) == workers.expected()


def standing(worker: Worker) -> dict[str, Any]:
    """By generation, what a worker stands by with."""
    generations = worker.status()["projections"]["tally"]["generations"]
    return {name: one["standing_by"] for name, one in generations.items() if one["standing_by"]}
