"""Workers whose agents the groups know again: they come back to their partitions, and nobody else is disturbed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.broker import EmbeddedBroker
from streams.config import WorkerSettings
from streams.errors import ConfigError
from streams.resolving import load
from streams.serve.worker import Worker as Service
from tests.integration.fleet import Fleet, Worker, fleet, soon
from tests.integration.kit import Kit, produce, tally_events, traffic, until
from tests.integration.test_worker import metrics

NewKit = Callable[..., Kit]
SESSION_S = 60
STATIC = {"REFOLD_STATIC_MEMBERSHIP": "true", "REFOLD_SESSION_TIMEOUT_S": str(SESSION_S)}


def two_that_fold(workers: Fleet) -> tuple[Worker, Worker]:
    """Two workers, each with a share."""
    one, other = workers.start("a"), workers.start("b")
    workers.ready(one, other)
    soon("both to fold", lambda: len(set(workers.owners("tally.v1").values())) == 2)
    workers.ready(one, other)
    return one, other


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_comes_back_in_time_folds_its_partitions_on_and_nobody_is_disturbed(
    new_kit: NewKit, how: signal.Signals
) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with fleet(kit, variables=STATIC) as workers:
        stays, goes = two_that_fold(workers)
        owners, moved = workers.owners("tally.v1"), metrics(stays)["refold_rebalances_total"]
        with traffic(kit, 1000):
            goes.signal(how)
            goes.process.wait(30)
            back = workers.start("b", port=goes.port)
            soon("it to serve again", back.is_ready)
            assert workers.owners("tally.v1") == owners
        workers.ready(stays, back)
        expected = workers.expected()
        soon("the last events to be folded", lambda: workers.models(stays) == expected)
        assert metrics(stays)["refold_rebalances_total"] == moved
        assert workers.owners("tally.v1") == owners


def test_a_broker_that_is_started_again_meanwhile_knows_who_is_away(
    private_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    kit = Kit(private_broker.bootstrap_servers, "events", "tally", tmp_path / "state")
    kit.cluster.create_topic("events", 4)
    until("the topic is there", lambda: "events" in kit.cluster.topics())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with fleet(kit, variables=STATIC) as workers:
        stays, goes = two_that_fold(workers)
        owners = workers.owners("tally.v1")
        assert goes.terminate() == 0, goes.output()
        private_broker.kill()
        private_broker.restart()
        produce(kit.bootstrap, kit.topic, tally_events(500, first=1000))
        back = workers.start("b", port=goes.port)
        soon("it to serve again", back.is_ready)
        workers.ready(stays, back)
        expected = workers.expected()
        soon("the last events to be folded", lambda: workers.models(stays) == expected)
        assert workers.owners("tally.v1") == owners


def test_who_goes_for_good_leaves_so_that_nobody_waits_for_its_session(new_kit: NewKit) -> None:
    """In place, the group's offsets are set back, which Kafka refuses while it has members."""
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    with fleet(kit, variables=STATIC) as workers:
        one = workers.start("a")
        workers.ready(one)
        status, _, done = one.ask("POST", "/v1/projections/tally/rebuild", {"in_place": True})
        assert status == 200, done
        soon(
            "the rebuild",
            lambda: (found := workers.record().rebuild) is not None and found.outcome == "completed",
            deadline_s=SESSION_S / 2,
        )
        workers.ready(one)
        assert workers.models(one) == workers.expected()


def test_who_comes_back_with_other_code_leaves_to_the_others_what_it_had(new_kit: NewKit) -> None:
    """As in a rolling update: nobody waits for the session of one that folds the old generation no more."""
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with fleet(kit, variables=STATIC) as workers:
        stays, goes = two_that_fold(workers)
        assert goes.terminate() == 0, goes.output()
        assert len(set(workers.owners("tally.v1").values())) == 2  # it has not left
        new = workers.start("b", port=goes.port, projections="tests.integration.versions:Fixed")
        address = f"127.0.0.1:{stays.port}"
        soon("the other one to have all", lambda: workers.owners("tally.v1") == dict.fromkeys(range(4), address))
        soon("it to be told", lambda: '"group.left_for_good"' in new.output())
        workers.ready(stays)
        assert workers.models(new) == workers.expected()  # as the other one has them


def test_two_workers_of_one_name_are_told_so(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    with fleet(kit, variables=STATIC) as workers:
        one = workers.start("a")
        workers.ready(one)
        workers.start("a", port=one.port, state="b", REFOLD_HTTP_HOST="127.0.0.2")
        soon("it to be told", lambda: "Each worker needs a name of its own" in one.output())


def test_a_worker_without_a_name_or_an_address_that_lasts_is_refused_it(new_kit: NewKit) -> None:
    with pytest.raises(ConfigError, match=r"static_membership: .* has none that lasts"):
        Service([], new_kit(partitions=1).kafka, load(WorkerSettings, static_membership=True))
    settings = load(WorkerSettings, static_membership=True, worker_name="a", http_port=0)
    with pytest.raises(ConfigError, match=r"static_membership: .* so it must be found there again"):
        Service([], new_kit(partitions=1).kafka, settings)
