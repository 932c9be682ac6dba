"""Several workers are one service: they fold, share, hand over and end, whoever dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.integration.fleet import fleet, soon
from tests.integration.kit import Kit, produce, tally_events

NewKit = Callable[..., Kit]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_workers_share_the_partitions_and_the_one_that_ends_hands_its_own_over(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        one, other = workers.start("a"), workers.start("b")
        workers.ready(one, other)
        soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
        assert one.terminate() == 0, one.output()
        soon("the other to fold all", lambda: set(workers.owners("tally.v1").values()) == {f"127.0.0.1:{other.port}"})
        workers.ready(other)
        assert other.terminate() == 0, other.output()
        assert '"level": "error"' not in one.output() + other.output()


def test_a_worker_that_is_killed_leaves_no_agent_and_another_one_leads(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with fleet(kit) as workers:
        started = [workers.start(name, "--agents-per-generation", "2") for name in "ab"]
        workers.ready(*started)
        leader = workers.leader()
        agents = leader.agents()
        assert len(agents) == 2
        leader.kill()
        soon("its agents to be gone", lambda: not any(map(lives, agents)), deadline_s=5)
        (left,) = [one for one in started if one is not leader]
        assert soon("another leader", left.is_leader) < 15
        soon("the other to fold all", lambda: set(workers.owners("tally.v1").values()) == {f"127.0.0.1:{left.port}"})
        workers.ready(left)


def test_a_leader_that_is_stopped_is_replaced_and_leads_no_more_when_it_wakes(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    with fleet(kit) as workers:
        started = [workers.start(name) for name in "ab"]
        workers.ready(*started)
        leader = workers.leader()
        (other,) = [one for one in started if one is not leader]
        leader.signal(signal.SIGSTOP)
        try:
            assert soon("another leader", other.is_leader) < 15
        finally:
            leader.signal(signal.SIGCONT)
        soon("the old one to notice", lambda: not leader.is_leader())
        assert other.is_leader()
