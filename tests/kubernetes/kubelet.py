"""What a node does with a pod, where there are no containers: the process that the manifest describes, with its
environment, files, probes and end.

A pod's paths are below a directory of its own, and its address is one of loopback; nothing else is other than in the
manifest.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.acceptance.kit import quiet_environment

__all__ = ["Node", "Pod", "Release"]

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def amount(quantity: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)(Ki|Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


@dataclass
class Release:
    """What `helm template` renders, by kind and name."""

    text: str
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Those that are there already: by name and key."""

    def find(self, kind: str, name: str | None = None) -> dict[str, Any]:
        found = [
            one
            for one in yaml.safe_load_all(self.text)
            if one is not None and one["kind"] == kind and name in (None, one["metadata"]["name"])
        ]
        assert len(found) == 1, (kind, name, [one["metadata"]["name"] for one in found])
        return dict(found[0])

    def command_pod(self, cronjob: str) -> dict[str, Any]:
        """The pod of a job made from a CronJob."""
        return dict(self.find("CronJob", cronjob)["spec"]["jobTemplate"]["spec"]["template"]["spec"])


@dataclass
class Node:
    """Where pods run."""

    home: Path
    release: Release
    pods: list[Pod] = field(default_factory=list)

    def address(self, ordinal: int) -> str:
        return f"127.0.1.{10 + ordinal}"

    def mapped(self, text: str, root: Path, ordinal: int) -> str:
        """A value of the manifest's, with its places as they are here."""
        name = self.release.find("StatefulSet")["metadata"]["name"]
        text = re.sub(
            rf"\b{name}-([0-9]+)\.{name}-workers\.[a-z0-9-]+\.svc\b", lambda found: self.address(int(found[1])), text
        )
        text = text.replace("0.0.0.0", self.address(ordinal))
        return re.sub(r"^/(?=(?:var/lib/refold|etc/refold|tmp|app)\b)", f"{root}/", text)

    def run(self, spec: dict[str, Any], name: str, ordinal: int = 99, timeout_s: float = 120.0) -> tuple[int, str]:
        """Run a pod that ends, as of a job; give its exit code and what it said."""
        pod = Pod(self, spec, name, ordinal)
        pod.prepare()
        log = pod.root / "log"
        with log.open("w") as handle:
            done = subprocess.run(
                pod.command(),
                cwd=pod.root / "app",
                env=pod.environment(),
                stdout=handle,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        return done.returncode, log.read_text()

    @contextmanager
    def workers(self, count: int) -> Iterator[list[Pod]]:
        """Have the StatefulSet's pods, all at once, for the time of the block."""
        try:
            for ordinal in range(count):
                self.pods.append(self.worker(ordinal))
            for one in self.pods:
                one.start()
            yield self.pods
        finally:
            for one in self.pods:
                one.kill()

    def worker(self, ordinal: int) -> Pod:
        """A pod of the StatefulSet, as it is now."""
        found = self.release.find("StatefulSet")
        return Pod(self, found["spec"]["template"]["spec"], f"{found['metadata']['name']}-{ordinal}", ordinal)

    def replace(self, ordinal: int) -> Pod:
        """Have one pod end, and one of the StatefulSet as it is now come in its place, on the same volume."""
        self.pods[ordinal].stop()
        new = self.pods[ordinal] = self.worker(ordinal)
        new.start()
        return new

    def roll(self, within_s: float = 180.0) -> None:
        """Replace all pods as a StatefulSet does: from the last one on, and the next one once the last is ready."""
        for ordinal in reversed(range(len(self.pods))):
            new = self.replace(ordinal)
            deadline = time.monotonic() + within_s
            while not new.is_ready:
                assert time.monotonic() < deadline, f"{new.name} is not ready:\n{new.output()[-3000:]}"
                time.sleep(0.1)
            time.sleep(self.release.find("StatefulSet")["spec"]["minReadySeconds"])

    def ready(self) -> list[Pod]:
        """Those that the Service sends clients to."""
        return [one for one in self.pods if one.is_ready]


class Pod:
    """One pod: its process is started again where it ends by itself, or its probes say so.

    Args:
        node: Where it runs.
        spec: The pod's.
        name: Its name.
        ordinal: Its number.
    """

    def __init__(self, node: Node, spec: dict[str, Any], name: str, ordinal: int) -> None:
        self.name, self.ordinal = name, ordinal
        self.address = node.address(ordinal)
        self._node, self._spec = node, spec
        self.root = node.home / name
        (self._container,) = [one for one in spec["containers"] if one["name"] in ("worker", "command")]
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._probe_and_restart, name=f"kubelet-{name}", daemon=True)
        self.is_ready = False
        self.restarts: list[str] = []
        """Why its process was started again, each time."""
        self.was_ready_s: list[tuple[float, bool]] = []
        """When it became ready, or ceased to be."""
        self.took_s = 0.0
        """How long its end took, from being asked."""
        self.exit_code: int | None = None

    # What the manifest says

    def prepare(self) -> None:
        """Make its files: volumes first, and in them what is mounted."""
        shutil.rmtree(self.root / "app", ignore_errors=True)
        shutil.rmtree(self.root / "etc", ignore_errors=True)
        shutil.rmtree(self.root / "tmp", ignore_errors=True)
        (self.root / "app").mkdir(parents=True)
        volumes = {one["name"]: one for one in self._spec["volumes"]}
        for mount in self._container["volumeMounts"]:
            path = self.root / mount["mountPath"].lstrip("/")
            volume = volumes.get(mount["name"], {"persistentVolumeClaim": {}})
            if "configMap" in volume:
                data = self._node.release.find("ConfigMap", volume["configMap"]["name"])["data"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(data[mount["subPath"]])
            elif "secret" in volume:
                path.mkdir(parents=True, exist_ok=True)
                for key, value in self._node.release.secrets[volume["secret"]["secretName"]].items():
                    (path / key).write_text(value)
            else:
                assert "emptyDir" in volume or "persistentVolumeClaim" in volume, volume
                path.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Its variables, and of this machine's only where programs are."""
        found: dict[str, str] = {}
        for item in self._container["env"]:
            if "value" in item:
                value = re.sub(r"\$\(([A-Z_]+)\)", lambda name: found[name[1]], item["value"])
            else:
                source = item["valueFrom"]
                if "fieldRef" in source:
                    assert source["fieldRef"]["fieldPath"] == "metadata.name"
                    value = self.name
                elif "resourceFieldRef" in source:
                    assert source["resourceFieldRef"]["resource"] == "limits.memory"
                    value = str(amount(self._container["resources"]["limits"]["memory"]))
                else:
                    reference = source["secretKeyRef"]
                    value = self._node.release.secrets[reference["name"]][reference["key"]]
            found[item["name"]] = self._node.mapped(value, self.root, self.ordinal)
        # The image's own.
        return {**quiet_environment(), "REFOLD_LOG_FORMAT": "json", "HOME": "/nonexistent", **found}

    def command(self) -> list[str]:
        """The image's entrypoint, and the container's arguments."""
        assert "command" not in self._container
        return [str(Path(sys.executable).with_name("refold")), *self._container["args"]]

    @property
    def port(self) -> int:
        """Where it says that it listens."""
        (port,) = [one["containerPort"] for one in self._container["ports"] if one["name"] == "http"]
        return int(port)

    # Its life

    def start(self) -> None:
        """Begin it."""
        self.prepare()
        self._begin()
        self._thread.start()

    def stop(self) -> None:
        """End it as Kubernetes does: preStop, SIGTERM, and SIGKILL once the grace period is over."""
        self._ending.set()
        self._thread.join()
        assert self._process is not None
        began, grace_s = time.monotonic(), self._spec["terminationGracePeriodSeconds"]
        stop = self._container.get("lifecycle", {}).get("preStop")
        if stop is not None:
            subprocess.run(stop["exec"]["command"], check=True, timeout=grace_s)
        self._note(is_ready=False)  # by now clients have heard that it is going
        self._process.send_signal(signal.SIGTERM)
        try:
            self.exit_code = self._process.wait(grace_s - (time.monotonic() - began))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.exit_code = self._process.wait()
        self.took_s = time.monotonic() - began

    def crash(self) -> None:
        """Kill its process; it is started again."""
        assert self._process is not None
        self._process.kill()

    def kill(self) -> None:
        """End it at once, at the end of a test."""
        self._ending.set()
        with contextlib.suppress(RuntimeError):  # it was never started
            self._thread.join()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
        """Ask it, as a probe does."""
        with contextlib.closing(http.client.HTTPConnection(self.address, self.port, timeout=timeout_s)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def output(self) -> str:
        return "".join(path.read_text() for path in sorted(self.root.glob("log-*")))

    def _begin(self) -> None:
        with (self.root / f"log-{time.time_ns()}").open("w") as handle:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.root / "app",
                env=self.environment(),
                stdout=handle,
                stderr=subprocess.STDOUT,
            )

    # Its probes

    def _probe_and_restart(self) -> None:
        while not self._ending.is_set():
            why = self._probe()
            if self._ending.is_set():
                return
            self._note(is_ready=False)
            assert self._process is not None
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self.restarts.append(why)
            self._begin()

    def _probe(self) -> str:
        """Probe until the process is to be started again; says why."""
        why = self._until("startupProbe", lambda ok: ok)
        if why or self._ending.is_set():
            return why
        probes = {name: self._container[name] for name in ("livenessProbe", "readinessProbe")}
        due = dict.fromkeys(probes, 0.0)
        failures = dict.fromkeys(probes, 0)
        while not self._ending.wait(0.1):
            assert self._process is not None
            if self._process.poll() is not None:
                return f"it ended with {self._process.returncode}"
            for name, probe in probes.items():
                if time.monotonic() < due[name]:
                    continue
                due[name] = time.monotonic() + probe["periodSeconds"]
                failures[name] = 0 if self._succeeds(probe) else failures[name] + 1
                if name == "livenessProbe" and failures[name] >= probe["failureThreshold"]:
                    return "its liveness probe failed"
                if name == "readinessProbe" and failures[name] in (0, probe["failureThreshold"]):
                    self._note(is_ready=failures[name] == 0)
        return ""

    def _until(self, name: str, enough: Callable[[bool], bool]) -> str:
        probe = self._container[name]
        for _ in range(probe["failureThreshold"]):
            assert self._process is not None
            if self._process.poll() is not None:
                return f"it ended with {self._process.returncode}"
            if enough(self._succeeds(probe)):
                return ""
            if self._ending.wait(probe["periodSeconds"]):
                return ""
        return f"its {name} failed"

    def _succeeds(self, probe: dict[str, Any]) -> bool:
        assert probe["httpGet"]["scheme"] == "HTTP"
        assert probe["httpGet"]["port"] == "http"
        try:
            status, _ = self.ask(probe["httpGet"]["path"], probe["timeoutSeconds"])
        except (OSError, http.client.HTTPException):
            return False
        return 200 <= status < 400

    def _note(self, *, is_ready: bool) -> None:
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            self.was_ready_s.append((time.monotonic(), is_ready))
