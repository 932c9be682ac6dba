"""A fleet through everything that happens to it: each answer was true, and at the end the models are the log's fold."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Message

from projections.contract import CqrsProjection
from streams.control.place import place_of
from streams.control.record import Record
from streams.data.files import FILES
from streams.errors import BrokerError
from tests.integration.asking import Asking
from tests.integration.fleet import Fleet, Worker, fleet, soon
from tests.integration.kit import Kit, produce, read_log, tally_events, traffic, until
from tests.integration.versions import Fixed
from tests.support import Tally, as_json, folded

pytestmark = pytest.mark.slow
NewKit = Callable[..., Kit]
SLOW = "tests.integration.versions:SlowFixed"
FIXED = "tests.integration.versions:Fixed"
ROUNDS = int(os.environ.get("REFOLD_FLEET_ROUNDS", "6"))
IDS = [f"stream-{number}" for number in range(100)]
CODE = {"tally.v1": Tally(), "tally.v2-2": Fixed()}
OUTAGE_S = float(os.environ.get("REFOLD_OUTAGE_TEST_S", "15"))
"""Longer than a session, and than what one request waits; 60 and more by the variable."""


def check(workers: Fleet, asking: Asking, by: Worker, code: Mapping[str, CqrsProjection[Any]] = CODE) -> None:
    """See that the models are those of the whole log, and that every answer on the way was true."""
    expected = workers.expected()
    soon("the models to be the log's", lambda: _models(workers, by) == expected, deadline_s=60)
    log = read_log(workers.kit.bootstrap, workers.kit.cluster.topic(workers.kit.topic))
    check_copies(workers, log, code)
    asking.check(log, code)
    assert len(asking.answers) > 100, asking.others


def check_copies(workers: Fleet, log: Mapping[int, list[Message]], code: Mapping[str, CqrsProjection[Any]]) -> None:
    """See that what each worker has on its disk is the fold of the log up to where it says that it is."""
    record = workers.record()
    for state_dir in sorted({one.state_dir for one in workers.workers}):
        for one in record.generations:
            store = place_of(one, state_dir, workers.kit.kind or FILES).store
            if one.id not in code or store.current() is None:
                continue
            with store.reader(code[one.id]) as reader:
                for number, state in reader.states().items():
                    done = [record for record in log[number] if state.start <= record.offset() < state.position]
                    where = f"{state_dir.name}: {one.id}[{number}]@{state.position}"
                    assert state.events == len(done), f"{where} counted {state.events} events of {len(done)}"
                    wanted = as_json(folded(done, code[one.id]), code[one.id])
                    found = {key: reader.get_raw_of(number, key) for key in wanted}
                    assert {key: raw and orjson.loads(raw) for key, raw in found.items()} == wanted, where


def _models(workers: Fleet, by: Worker) -> object:
    try:
        return workers.models(by)
    except AssertionError:
        return None


def test_workers_and_agents_that_are_killed_and_stopped_lose_and_double_nothing(new_kit: NewKit) -> None:
    kit = new_kit(partitions=6)
    produce(kit.bootstrap, kit.topic, tally_events(3000, streams=100))
    chance = random.Random(int(os.environ.get("REFOLD_FLEET_SEED", "5")))
    with fleet(kit) as workers:
        names = ["a", "b", "c"]
        up = {name: workers.start(name) for name in names}
        workers.ready(*up.values())
        with Asking(workers, IDS) as asking, traffic(kit, 3000):
            for number in range(ROUNDS):
                name = chance.choice(names)
                match chance.choice(["kill", "kill agent", "stop", "terminate"]):
                    case "kill":
                        up[name].kill()
                        up[name] = workers.start(f"{name}{number}", state=name)
                    case "kill agent":
                        for pid in up[name].agents()[:1]:
                            os.kill(pid, signal.SIGKILL)
                    case "stop":
                        frozen = [up[name].process.pid, *up[name].agents()]
                        for pid in frozen:
                            os.kill(pid, signal.SIGSTOP)
                        time.sleep(8)  # longer than a session, so that others have its partitions
                        for pid in frozen:
                            os.kill(pid, signal.SIGCONT)
                    case _:
                        workers.listening(up[name])  # before that, a signal ends it as any process
                        assert up[name].terminate() == 0, up[name].output()
                        up[name] = workers.start(f"{name}{number}", state=name)
                time.sleep(chance.uniform(0, 4))
        workers.ready(*up.values())
        check(workers, asking, up["a"])


def test_a_leader_that_is_killed_at_any_state_is_gone_on_from(new_kit: NewKit) -> None:
    """Rebuild after rebuild, until the leader was killed at each state that there is; no model is ever wrong."""
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(30_000, streams=100))
    with fleet(kit) as workers:
        up = {name: workers.start(name) for name in "abc"}
        workers.ready(*up.values())
        left = {"new", "replaying", "verifying", "ready"}
        with Asking(workers, IDS) as asking, traffic(kit, 30_000), workers.registry.watch("tally") as watch:
            for number in range(12):  # `new` lasts for a moment, and is not always met
                asked = next(iter(up.values()))
                status, _, done = asked.ask("POST", "/v1/projections/tally/rebuild", {}, timeout_s=40)
                assert status == 200, done
                deadline = time.monotonic() + 120
                while workers.record().running is not None:
                    assert time.monotonic() < deadline, workers.record()
                    leader = next((one for one in up.values() if one.is_leader()), None)
                    if leader is None:
                        continue
                    while (at := phase(watch.record)) not in left and at != "active" and time.monotonic() < deadline:
                        time.sleep(0.001)
                    if at == "active":
                        break
                    leader.kill()
                    left.discard(phase(workers.record()))
                    name = next(name for name, one in up.items() if one is leader)
                    up[name] = workers.start(f"{name}{number}", state=name)
                soon("the switch", lambda: workers.record().running is None)
                rebuild = workers.record().rebuild
                assert rebuild is not None
                assert (rebuild.outcome, rebuild.generation) == ("completed", workers.record().active), rebuild
                if not left:
                    break
                workers.ready(*up.values())
            assert not left, f"no kill came at {left}"
        workers.ready(*up.values())
        generations = ["tally.v1", *(f"tally.v1-{number}" for number in range(2, 15))]
        check(workers, asking, up["a"], dict.fromkeys(generations, Tally()))


def phase(record: Record | None) -> str:
    """What the generation is at that is made, or was made last."""
    assert record is not None
    assert record.rebuild is not None
    one = record.find(record.rebuild.generation)
    return "gone" if one is None else one.phase


def test_a_rebuild_goes_on_whoever_leads_and_whoever_folds(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=100))
    with fleet(kit) as workers:
        old = [workers.start(name) for name in "ab"]
        workers.ready(*old)
        with Asking(workers, IDS) as asking, traffic(kit, 20_000):
            new = [workers.start(name, projections=FIXED) for name in "cd"]
            workers.listening(*new)
            status, _, done = new[0].ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})
            assert status == 200, done
            workers.leader().kill()
            time.sleep(2)
            victim = next(one for one in new if one.process.poll() is None)
            for pid in victim.agents():
                os.kill(pid, signal.SIGKILL)
            soon("the switch", lambda: workers.record().active == "tally.v2-2", deadline_s=60)
            left = [one for one in (*old, *new) if one.process.poll() is None]
            status, _, done = left[-1].ask("POST", "/v1/projections/tally/rollback")
            assert (status, done["active"]) == (200, "tally.v1"), done
            time.sleep(1)
            status, _, done = left[-1].ask("POST", "/v1/projections/tally/rollback")
            assert (status, done["active"]) == (200, "tally.v2-2"), done
            time.sleep(1)
        workers.projection_object = Fixed()
        check(workers, asking, left[-1])
        assert {one.generation for one in asking.answers} == set(CODE)


def test_a_broker_that_is_away_in_the_middle_of_a_rebuild_is_waited_for(private_broker: Any, tmp_path: Path) -> None:
    kit = Kit(private_broker.bootstrap_servers, "away", "away", tmp_path / "state")
    kit.cluster.create_topic("away", 4)
    until("the topic is there", lambda: "away" in kit.cluster.topics())
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=100))
    with fleet(kit) as workers:
        old = [workers.start(name) for name in "ab"]
        workers.ready(*old)
        new = [workers.start(name, projections=SLOW) for name in "cd"]
        workers.listening(*new)
        with Asking(workers, IDS) as asking:
            status, _, done = new[0].ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})
            assert status == 200, done
            soon("the replay to run", lambda: workers.record().generations[-1].phase == "replaying")
            private_broker.kill()
            began = time.monotonic()
            while time.monotonic() - began < OUTAGE_S:
                assert [one.get("/healthz")[0] for one in (*old, *new)] == [200] * 4
                time.sleep(1)
            told = len(asking.answers)
            private_broker.restart()
            soon("the switch", lambda: active(workers) == "tally.v2-2", deadline_s=120)
        assert told, asking.others  # what was there before went on being served
        assert all(one.process.poll() is None for one in (*old, *new))
        workers.projection_object = Fixed()
        workers.ready(*old, *new)
        check(workers, asking, new[0])


def test_workers_come_and_go_in_the_middle_of_a_rebuild_which_is_cancelled_and_begun_again(new_kit: NewKit) -> None:
    kit = new_kit(partitions=8)
    produce(kit.bootstrap, kit.topic, tally_events(4000, streams=100))
    with fleet(kit) as workers:
        old = workers.start("old")
        workers.ready(old)
        one = workers.start("a", projections=SLOW)
        workers.listening(one)
        with Asking(workers, IDS) as asking, traffic(kit, 4000):
            status, _, done = one.ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})
            assert status == 200, done
            soon("the replay to run", lambda: workers.record().generations[-1].phase == "replaying")
            more = [workers.start(name, projections=SLOW) for name in "bc"]
            workers.listening(*more)
            soon("all to replay", lambda: len(set(workers.owners("tally.v2-2").values())) == 3)
            status, _, done = old.ask("POST", "/v1/projections/tally/pause")
            assert status == 200, done
            soon("nobody to fold it", lambda: not workers.owners("tally.v2-2"))
            status, _, done = more[0].ask("POST", "/v1/projections/tally/resume")
            assert status == 200, done
            soon("all to replay again", lambda: len(set(workers.owners("tally.v2-2").values())) == 3)
            assert one.terminate() == 0, one.output()
            status, _, done = old.ask("POST", "/v1/projections/tally/cancel")
            assert (status, done["wanted"]) == (200, "tally.v1"), done
            soon("nothing of it to be left", lambda: len(workers.record().generations) == 1)
            status, _, done = more[1].ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"})
            assert (status, done["wanted"]) == (200, "tally.v2-3"), done
            soon("the switch", lambda: active(workers) == "tally.v2-3", deadline_s=90)
        workers.projection_object = Fixed()
        check(workers, asking, more[0], CODE | {"tally.v2-3": Fixed()})


def active(workers: Fleet) -> str:
    try:
        return workers.record().active
    except BrokerError:
        return ""
