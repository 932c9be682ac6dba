"""A fleet through everything that happens to it: each answer was true, and at the end the models are the log's fold."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.integration.asking import Asking
from tests.integration.fleet import Fleet, Worker, fleet, soon
from tests.integration.kit import Kit, produce, read_log, tally_events, traffic
from tests.integration.versions import Fixed
from tests.support import Tally

pytestmark = pytest.mark.slow
NewKit = Callable[..., Kit]
FIXED = "tests.integration.versions:Fixed"
ROUNDS = int(os.environ.get("REFOLD_FLEET_ROUNDS", "6"))
IDS = [f"stream-{number}" for number in range(100)]
CODE = {"tally.v1": Tally(), "tally.v2-2": Fixed()}


def check(workers: Fleet, asking: Asking, by: Worker) -> None:
    """See that the models are those of the whole log, and that every answer on the way was true."""
    expected = workers.expected()
    soon("the models to be the log's", lambda: _models(workers, by) == expected, deadline_s=60)
    log = read_log(workers.kit.bootstrap, workers.kit.cluster.topic(workers.kit.topic))
    asking.check(log, CODE)
    assert len(asking.answers) > 100, asking.others


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
                        assert up[name].terminate() == 0, up[name].output()
                        up[name] = workers.start(f"{name}{number}", state=name)
                time.sleep(chance.uniform(0, 4))
        workers.ready(*up.values())
        check(workers, asking, up["a"])


def test_a_rebuild_goes_on_whoever_leads_and_whoever_folds(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=100))
    with fleet(kit) as workers:
        old = [workers.start(name) for name in "ab"]
        workers.ready(*old)
        with Asking(workers, IDS) as asking, traffic(kit, 20_000):
            new = [workers.start(name, projections=FIXED) for name in "cd"]
            workers.ready(*new)
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
