"""Partitions that come to a machine from the snapshot repository, with the tail folded: what is served is the fold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.integration.fleet import Fleet, Worker, fleet, soon
from tests.integration.kit import Kit, produce, tally_events, traffic

NewKit = Callable[..., Kit]
EVENTS = 60_000
"""Of two partitions: much more in each than is folded again rather than fetched."""


def repository(path: Path, seconds: str = "0.5") -> dict[str, str]:
    """What workers are told of one on a shared volume."""
    return {"REFOLD_SNAPSHOT_REPOSITORY": f"file://{path}", "REFOLD_SNAPSHOT_SECONDS": seconds}


def sent(worker: Worker) -> set[int]:
    """The partitions of which there is a snapshot, as a worker says."""
    generation = worker.status()["projections"]["tally"]["generations"]["tally.v1"]
    return {one["partition"] for one in generation["partitions"] if one.get("snapshot") is not None}


def wait_for_snapshots(worker: Worker, partitions: int) -> None:
    soon("snapshots to be there", lambda: sent(worker) == set(range(partitions)))


def address(worker: Worker) -> str:
    return f"127.0.0.1:{worker.port}"


def lose(workers: Fleet, worker: Worker) -> None:
    """Kill a worker, and take its disk away."""
    worker.kill()
    shutil.rmtree(worker.state_dir)


def test_a_partition_that_comes_to_another_machine_is_fetched_and_its_tail_folded(
    new_kit: NewKit, tmp_path: Path
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with fleet(kit, variables=repository(tmp_path / "snapshots")) as workers:
        one = workers.start("a")
        workers.ready(one)
        wait_for_snapshots(one, 2)
        with traffic(kit, EVENTS):
            lose(workers, one)
            other = workers.start("b")
            soon("it to have everything", lambda: set(workers.owners("tally.v1").values()) == {address(other)})
            workers.ready(other)
        assert other.output().count('"snapshot.restored"') == 2, other.output()
        expected = workers.expected()
        soon("the tail to be folded", lambda: workers.models(other, 500) == expected)
