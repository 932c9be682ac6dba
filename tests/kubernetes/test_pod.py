"""Pods as the chart renders them, on a real broker: started, probed, restarted, rolled to other code, and ended.

There are no containers: `kubelet` runs what the manifests say.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.broker import EmbeddedBroker
from streams.broker._ports import free_ports
from tests.integration.kit import Kit, produce, tally_events, until
from tests.kubernetes.kubelet import Node, Pod, Release
from tests.kubernetes.tools import render

OUTAGE_S = float(os.environ.get("REFOLD_OUTAGE_TEST_S", "15"))
CODE = """
from typing import Any
from projections.contract import CqrsProjection, Event


class Counts(CqrsProjection[dict[str, Any]]):
    name = "counts"
    version = {version}

    def extract_model_id(self, event: Event) -> str | None:
        return event.stream

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model = model or {{"count": 0}}
        return {{"count": model["count"] + 1{more}}}
"""
STREAMS = [f"stream-{number}" for number in range(50)]
EVENTS = 3000


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@contextmanager
def installed(broker: EmbeddedBroker, home: Path) -> Iterator[Installed]:
    kit = Kit(broker.bootstrap_servers, "counts", "counts", home / "unused")
    kit.cluster.create_topic("counts", 6)
    until("the topic is there", lambda: "counts" in kit.cluster.topics())
    produce(kit.bootstrap, "counts", tally_events(EVENTS, streams=len(STREAMS)))
    (port,) = free_ports(1)
    yield Installed(kit, home, port)


class Installed:
    """A release of the chart, with its values."""

    def __init__(self, kit: Kit, home: Path, port: int) -> None:
        self.kit = kit
        self._home = home
        self._port = port
        self.node = Node(home / "node", self.render(1))

    def render(self, version: int, **settings: Any) -> Release:
        """What the chart makes of the code of a version."""
        values = {
            "kafka": {
                "bootstrapServers": self.kit.bootstrap,
                "settings": {"client.rack": "a"},
                "existingSecret": "user",
            },
            "projections": {"counts": {"class": "counts:Counts", "topic": "counts"}},
            "settings": {"session_timeout_s": 6, **settings},
            "code": {"files": {"counts.py": CODE.format(version=version, more=', "fixed": True' * (version > 1))}},
            "http": {"port": self._port},
            "rebuildArgs": ["--yes", "--verify", "none"],
        }
        path = self._home / f"values-{version}.yaml"
        path.write_text(yaml.safe_dump(values))
        secrets = {"user": {"kafka.json": json.dumps({"client.dns.lookup": "use_all_dns_ips"})}}
        return Release(render("-f", path), secrets)


class Clients:
    """Ask those pods for models that the Service names, all the time, from a thread; use it in `with`.

    A client that is told to come again (503 with Retry-After, while a partition is being handed over) does so.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: Counter[str] = Counter()
        self.others: list[Any] = []
        self.wrong: list[Any] = []
        self.slowest_s = 0.0

    def _run(self) -> None:
        chance = random.Random(5)
        while not self._stopped.wait(0.05):
            model_id, began = chance.choice(STREAMS), time.monotonic()
            while not self._ask(chance, model_id) and time.monotonic() - began < 30:
                time.sleep(0.2)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, chance: random.Random, model_id: str) -> bool:
        ready = self._node.ready()
        if not ready:
            self.others.append("no pod is ready")
            return True
        pod = chance.choice(ready)
        try:
            status, body = pod.ask(f"/v1/projections/counts/models/{model_id}")
        except OSError as error:
            self.others.append((pod.name, repr(error)))
            return True
        found = json.loads(body)
        if status == 503 and found["type"] == "urn:refold:not-ready":
            return False
        if status != 200:
            self.others.append((pod.name, found))
            return True
        self.answers[found["generation"]] += 1
        if found["model"]["count"] != EVENTS // len(STREAMS):
            self.wrong.append(found)
        return True

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def active(node: Node) -> str:
    for pod in node.ready():
        status, body = pod.ask("/v1/projections")
        if status == 200:
            return str(json.loads(body)["counts"]["active"])
    return ""


def all_ready(node: Node) -> None:
    until("all pods to be ready", lambda: len(node.ready()) == len(node.pods), deadline_s=90)


def models(node: Node) -> dict[str, Any]:
    """All of them, page by page; where a partition is being handed over, a page once more."""
    found: dict[str, Any] = {}
    cursor = ""

    def look() -> bool:
        nonlocal cursor
        for pod in node.ready()[:1]:
            status, body = pod.ask(f"/v1/projections/counts/models?limit=1000{cursor}")
            if status == 200:
                page = json.loads(body)
                found.update({one["id"]: one["model"] for one in page["models"]})
                cursor = "" if page["next"] is None else f"&cursor={page['next']}"
                return not cursor
        return False

    until("all models to be served", look, deadline_s=60)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pods_start_restart_rebuild_wait_for_a_broker_and_end_in_time(broker: EmbeddedBroker, tmp_path: Path) -> None:
    with installed(broker, tmp_path) as release, release.node.workers(3) as pods:
        node = release.node
        all_ready(node)
        assert {one["count"] for one in models(node).values()} == {EVENTS // len(STREAMS)}
        memory = [line for line in pods[0].environment().items() if line[0] == "REFOLD_MEMORY_LIMIT_BYTES"]
        assert memory == [("REFOLD_MEMORY_LIMIT_BYTES", str(2 << 30))]

        # A process that dies is started again on its volume; its agents are gone with it.
        pods[1].crash()
        until("it to be started again", lambda: pods[1].restarts)
        all_ready(node)

        # What the job does that `kubectl create job` makes.
        before = active(node)
        code, said = node.run(node.release.command_pod("r-refold-rebuild-counts"), "job")
        assert code == 0, said
        assert "is active" in said, said
        until("all to read the new one", lambda: active(node) != before)
        assert {one["count"] for one in models(node).values()} == {EVENTS // len(STREAMS)}

        # A broker that is away is no reason to restart anything, and what was folded is served.
        broker.kill()
        with Clients(node) as clients:
            time.sleep(OUTAGE_S)
            assert [one.ask("/readyz")[1] for one in pods if not one.is_ready] == []
        assert (clients.wrong, clients.others) == ([], [])
        assert clients.slowest_s < 10, "nobody waits for a broker, but who finds that it is away"
        assert sum(clients.answers.values()) > 2 * OUTAGE_S
        broker.restart()
        produce(release.kit.bootstrap, "counts", [(STREAMS[0], event) for _, event in tally_events(1, first=EVENTS)])
        wanted = EVENTS // len(STREAMS) + 1
        until("what came later to be folded", lambda: models(node)[STREAMS[0]]["count"] == wanted, deadline_s=60)
        assert [one.restarts for one in pods] == [[], ["it ended with -9"], []]

        # The end: within the grace period, and clean.
        threads = [threading.Thread(target=one.stop) for one in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grace_s = node.release.find("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        for one in pods:
            assert one.exit_code == 0, one.output()[-3000:]
            assert one.took_s < grace_s - 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_changed_code_is_rolled_out_while_clients_see_nothing_but_models(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    """The next pod is replaced once the new generation is active; until then the others serve the old one."""
    with installed(broker, tmp_path) as release, release.node.workers(3) as pods:
        node = release.node
        all_ready(node)
        first = active(node)
        node.release = release.render(2, on_change="rebuild")
        with Clients(node) as clients:
            new = node.replace(2)
            until("the new code to wait to be approved", lambda: waits(pods[0]), deadline_s=90)
            time.sleep(4)  # more than a probe's period
            assert not new.is_ready
            assert "not active yet" in new.ask("/readyz")[1].decode()
            assert [one.is_ready for one in pods[:2]] == [True, True]
            code, said = node.run(command(node, "switch"), "switch")
            assert code == 0, said
            until("the new one to be ready", lambda: new.is_ready, deadline_s=60)
            assert active(node) != first
            node.replace(1)
            until("the second one to be ready", lambda: pods[1].is_ready, deadline_s=90)
            node.replace(0)
            all_ready(node)
        assert clients.wrong == []
        assert clients.others == []
        assert clients.slowest_s < 15
        assert set(clients.answers) == {first, active(node)}
        assert all(one["fixed"] for one in models(node).values())
        assert [one.restarts for one in node.pods] == [[], [], []]
        go_back(release, first)


def go_back(release: Installed, first: str) -> None:
    """Not as wanted, found once all pods have the new code: back to the old one, as docs/kubernetes.md says."""
    node = release.node
    node.release = release.render(1)
    with Clients(node) as clients:
        old = node.replace(2)
        until("the old code to be ready", lambda: old.is_ready, deadline_s=90)
        until("the kept generation to be folded again", lambda: is_folded(old, first), deadline_s=90)
        code, said = node.run(command(node, "rollback"), "rollback")
        assert code == 0, said
        until("readers to go by it", lambda: active(node) == first)
        for ordinal in (1, 0):
            node.replace(ordinal)
            all_ready(node)
    assert clients.wrong == []
    assert clients.others == []
    assert clients.slowest_s < 15
    assert first in clients.answers
    assert all("fixed" not in one for one in models(node).values())


def is_folded(pod: Pod, generation: str) -> bool:
    """Whether all partitions of a generation have an owner, and are at their end."""
    found = json.loads(pod.ask("/status")[1])["projections"]["counts"]["generations"][generation]
    return found["lag"] == 0 and all(one["owner"] for one in found["partitions"])


def waits(pod: Pod) -> bool:
    document = json.loads(pod.ask("/status")[1])
    return any(one["phase"] == "waiting" for one in document["projections"]["counts"]["generations"].values())


def command(node: Node, verb: str) -> dict[str, Any]:
    """A job's pod that gives a command."""
    spec = node.release.command_pod("r-refold-rebuild-counts")
    (container,) = spec["containers"]
    return {**spec, "containers": [{**container, "args": [verb, "counts"]}]}
