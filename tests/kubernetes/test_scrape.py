"""Every expression of the alerts and the dashboard, asked of a real Prometheus that scrapes running workers."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from streams.broker._ports import free_ports
from tests.integration.fleet import Fleet, fleet, soon
from tests.integration.kit import Kit, produce, tally_events, traffic, until
from tests.kubernetes.test_alerts import alerts, dashboard
from tests.tools import tool

NewKit = Callable[..., Kit]
FIXED = "tests.integration.versions:Fixed"
JOB = "r-refold-workers"
OURS = re.compile(r"\b(?:refold|process)_[a-z_]+\b")
ABSENT = {
    "refold_rebuild_estimated_seconds_left": "nothing is left of a replay that has caught up",
}


class Prometheus:
    """One that scrapes workers."""

    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        with urlopen(f"{self._at}{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            return bool(self.get("/api/v1/status/config")["status"] == "success")
        except URLError:
            return False

    def ask(self, expression: str) -> list[Any]:
        """Give what an expression finds now."""
        found = self.get("/api/v1/query", query=expression)
        assert found["status"] == "success", found
        return list(found["data"]["result"])

    def names(self) -> set[str]:
        """Every metric that was ever scraped."""
        return set(self.get("/api/v1/label/__name__/values")["data"])


@contextmanager
def scraping(workers: Fleet, home: Path) -> Iterator[Prometheus]:
    """Have a Prometheus for the time of the block, with the chart's alerts."""
    home.mkdir()
    targets = [f"127.0.0.1:{one.port}" for one in workers.workers]
    job = {"job_name": JOB, "static_configs": [{"targets": targets, "labels": {"namespace": "shop"}}]}
    (home / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "refold", "rules": alerts()}]}))
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [job],
        "rule_files": [str(home / "rules.yaml")],
    }
    (home / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={home / 'prometheus.yaml'}",
                f"--storage.tsdb.path={home / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        found = Prometheus(port)
        until("it to be up", lambda: found.is_up() or process.poll() is not None)
        assert process.poll() is None, (home / "log").read_text()
        yield found
    finally:
        process.terminate()
        process.wait(20)


def expressions() -> dict[str, str]:
    """Those of the dashboard, by where they are, as Grafana asks them of everything."""
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for one in dashboard()["annotations"]["list"]:
        found[one["name"]] = one["expr"]
    plain = {"$namespace": ".*", "$job": ".*", "$projection": ".*", "$__rate_interval": "10s"}
    return {where: re.sub(r"\$\w+", lambda name: plain[name[0]], expression) for where, expression in found.items()}


@pytest.mark.slow
def test_every_figure_that_is_asked_for_is_one_that_workers_give(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=100))
    with fleet(kit, variables={"REFOLD_MEMORY_LIMIT_BYTES": str(2 << 30)}) as workers:
        old = [workers.start(name) for name in "ab"]
        workers.ready(*old)
        workers.leader()
        status, _, done = old[0].ask("POST", "/v1/projections/tally/rebuild", {})
        assert status == 200, done
        soon("the switch", lambda: workers.record().active == "tally.v1-2")
        new = workers.start("c", projections=FIXED)
        workers.listening(new)
        status, _, done = new.ask("POST", "/v1/projections/tally/rebuild", {"policy": "report"})
        assert status == 200, done
        soon("it to wait for a person", lambda: workers.record().generations[-1].phase == "waiting")
        with scraping(workers, tmp_path / "prometheus") as prometheus, traffic(kit, 2000):
            for _ in range(20):
                for one in old:
                    one.get("/v1/projections/tally/models/stream-1")
                time.sleep(0.4)
            names = prometheus.names()
            empty = {where for where, expression in expressions().items() if not prometheus.ask(expression)}
            firing = {one["labels"]["alertname"] for one in prometheus.ask('ALERTS{alertstate="firing"}')}
            for rule in prometheus.get("/api/v1/rules")["data"]["groups"][0]["rules"]:
                assert rule["health"] == "ok", rule
    asked = set().union(*(OURS.findall(one) for one in [*expressions().values(), *(rule["expr"] for rule in alerts())]))
    assert asked - names <= set(ABSENT)
    # What has nothing to show is what asks for what is not there, or has not happened: no rebuild began in this minute.
    assert {where for where in empty if not set(OURS.findall(expressions()[where])) & set(ABSENT)} <= {
        "Rebuilds begin",
        "How long they took A",
        "How long they took B",
    }
    assert firing <= {"RefoldWorkerAbsent"}, "of three workers that are wanted two have this job's code"
