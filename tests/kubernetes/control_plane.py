"""A real Kubernetes without containers: etcd, API server, controllers, scheduler, and nodes that are only played.

What is applied is checked, scheduled and rolled out as anywhere. kwok plays the nodes: pods become ready, those of jobs
end, claims are bound.
"""

from __future__ import annotations

import json
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import yaml

from streams.broker._ports import free_ports
from tests.kubernetes.tools import helm, run
from tests.tools import TOOLS, tool

__all__ = ["ControlPlane", "control_plane"]

NODES = 3
PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "kubectl")
_POD_READY_MS = 1500


@dataclass(frozen=True)
class ControlPlane:
    """One that runs."""

    kubeconfig: Path

    def kubectl(self, *arguments: str | Path, ok: int | None = 0) -> str:
        return run(tool("kubectl"), "--kubeconfig", self.kubeconfig, *arguments, ok=ok)

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` finds, as JSON."""
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def helm(self, *arguments: str | Path, ok: int | None = 0) -> str:
        return helm(*arguments, ok=ok, env={"KUBECONFIG": str(self.kubeconfig)})

    def apply(self, *documents: dict[str, Any], ok: int | None = 0) -> str:
        path = self.kubeconfig.with_name(f"apply-{secrets.token_hex(4)}.yaml")
        path.write_text(yaml.safe_dump_all(documents))
        return self.kubectl("apply", "-f", path, ok=ok)


@contextmanager
def control_plane(home: Path) -> Iterator[ControlPlane]:
    """Start one, and end it; all that it writes is in `home`."""
    for name in PARTS:
        tool(name)
    etcd, peer, api, manager, scheduler = free_ports(5)
    token, kubeconfig, pki = secrets.token_hex(16), home / "kubeconfig", home / "pki"
    pki.mkdir()
    run("openssl", "genrsa", "-out", home / "accounts.key", "2048")
    _write(home / "tokens.csv", f"{token},admin,admin,system:masters\n")
    _write(home / "kwok.yaml", _stages())
    with ExitStack() as stack:

        def part(name: str, *arguments: str | Path) -> Callable[[], None]:
            return stack.enter_context(_running(home, name, *arguments))

        alive = part(
            "etcd", "--data-dir", home / "etcd", "--unsafe-no-fsync", "--log-level", "warn",
            "--listen-client-urls", f"http://127.0.0.1:{etcd}", "--advertise-client-urls", f"http://127.0.0.1:{etcd}",
            "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"default=http://127.0.0.1:{peer}",
        )  # fmt: skip
        _wait("etcd", alive, lambda: _answers(f"http://127.0.0.1:{etcd}/health"))
        alive = part(
            "kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{etcd}", "--bind-address", "127.0.0.1",
            "--secure-port", str(api), "--cert-dir", pki,
            # One of loopback is not taken; nobody asks this one.
            "--advertise-address", "198.51.100.1", "--endpoint-reconciler-type", "none",
            "--token-auth-file", home / "tokens.csv", "--authorization-mode", "Node,RBAC",
            "--service-cluster-ip-range", "10.96.0.0/16",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", home / "accounts.key",
            "--service-account-signing-key-file", home / "accounts.key",
        )  # fmt: skip
        _wait("the API server", alive, lambda: _answers(f"https://127.0.0.1:{api}/readyz"))
        _write(kubeconfig, _kubeconfig(api, pki / "apiserver.crt", token))
        managed = part(
            "kube-controller-manager", "--kubeconfig", kubeconfig, "--leader-elect=false",
            "--bind-address", "127.0.0.1", "--secure-port", str(manager), "--cert-dir", pki,
            "--service-account-private-key-file", home / "accounts.key", "--root-ca-file", pki / "apiserver.crt",
            "--flex-volume-plugin-dir", home / "flex", "--use-service-account-credentials",
        )  # fmt: skip
        scheduled = part(
            "kube-scheduler", "--kubeconfig", kubeconfig, "--leader-elect=false",
            "--bind-address", "127.0.0.1", "--secure-port", str(scheduler), "--cert-dir", pki,
        )  # fmt: skip
        played = part(
            "kwok", "--kubeconfig", kubeconfig, "--config", home / "kwok.yaml", "--manage-all-nodes=true",
            "--node-lease-duration-seconds", "40", "--cidr", "10.244.0.0/16",
        )  # fmt: skip
        _wait("the controllers", managed, lambda: _answers(f"https://127.0.0.1:{manager}/healthz"))
        _wait("the scheduler", scheduled, lambda: _answers(f"https://127.0.0.1:{scheduler}/healthz"))
        plane = ControlPlane(kubeconfig)
        storage = yaml.safe_load((TOOLS / "stages" / "storage-class.yaml").read_text())
        plane.apply({**storage, "allowVolumeExpansion": True})
        plane.apply(*(_node(number) for number in range(NODES)))
        _wait("nodes", played, lambda: _ready_nodes(plane) == NODES)
        _wait("accounts", managed, lambda: "default" in plane.kubectl("get", "serviceaccounts", "-o", "name"))
        yield plane


@contextmanager
def _running(home: Path, name: str, *arguments: str | Path) -> Iterator[Callable[[], None]]:
    """Run a part for the time of the block; gives what raises where it has died."""
    log = home / f"{name}.log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            [tool(name), *map(str, arguments)], stdout=handle, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def check() -> None:
        assert process.poll() is None, f"{name} has ended:\n{log.read_text()[-3000:]}"

    try:
        yield check
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(what: str, alive: Callable[[], None], look: Callable[[], bool], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        alive()
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.3)


def _answers(url: str) -> bool:
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urlopen(Request(url), timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _ready_nodes(plane: ControlPlane) -> int:
    nodes = plane.get("nodes")["items"]
    return sum(
        any(one["type"] == "Ready" and one["status"] == "True" for one in node.get("status", {}).get("conditions", []))
        for node in nodes
    )


def _write(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def _node(number: int) -> dict[str, Any]:
    room = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    labels = {
        "kubernetes.io/hostname": f"node-{number}",
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": f"zone-{number}",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{number}", "labels": labels},
        "status": {"allocatable": room, "capacity": room},
    }


def _kubeconfig(port: int, authority: Path, token: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "k",
                    "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)},
                }
            ],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "k", "context": {"cluster": "k", "user": "admin"}}],
            "current-context": "k",
        }
    )


def _stages() -> str:
    """How kwok plays: as its own stages say, but that pods take a while, and that those of `helm test` end."""
    found = []
    for path in sorted((TOOLS / "stages").glob("*.yaml")):
        if path.name == "storage-class.yaml":
            continue
        for stage in yaml.safe_load_all(path.read_text()):
            if stage is None:
                continue
            if stage["metadata"]["name"] == "pod-ready":
                stage["spec"]["delay"] = {"durationMilliseconds": _POD_READY_MS}
                # By this tag a test has pods that never are.
                stage["spec"]["selector"]["matchExpressions"].append(
                    {"key": ".spec.containers[0].image", "operator": "NotIn", "values": ["refold:never-ready"]}
                )
            found.append(stage)
            if stage["metadata"]["name"] == "pod-complete":
                found.append(_of_helm_tests(stage))
    return yaml.safe_dump_all(found)


def _of_helm_tests(stage: dict[str, Any]) -> dict[str, Any]:
    stage = json.loads(json.dumps(stage))
    stage["metadata"]["name"] = "helm-test-pod-complete"
    stage["spec"]["selector"]["matchExpressions"] = [
        one for one in stage["spec"]["selector"]["matchExpressions"] if "ownerReferences" not in one["key"]
    ] + [{"key": '.metadata.annotations["helm.sh/hook"]', "operator": "Exists"}]
    return dict(stage)
