"""The chart on a real control plane: installed, scaled, rolled out, evicted, refused, and removed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.control_plane import ControlPlane, control_plane
from tests.kubernetes.tools import CHART, render

MINIMAL = CHART / "ci" / "minimal.yaml"
MONITORING = CHART / "ci" / "monitoring.yaml"
SELECTOR = "app.kubernetes.io/instance=r,app.kubernetes.io/component=worker"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as plane:
        for path in sorted((Path(__file__).parent / "crds").glob("*.yaml")):
            plane.kubectl("apply", "-f", path)
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield plane


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """One in which only what the restricted standard takes may run."""
    name = f"n{abs(hash(request.node.nodeid)) % 10**8}"
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false")


def install(plane: ControlPlane, namespace: str, *arguments: str | Path, verb: str = "install") -> str:
    return plane.helm(verb, "r", CHART, "-n", namespace, "-f", MONITORING, "--wait", "--timeout", "120s", *arguments)


def pods(plane: ControlPlane, namespace: str) -> dict[str, dict[str, Any]]:
    found = plane.get("pods", "-n", namespace, "-l", SELECTOR)["items"]
    return {one["metadata"]["name"]: one for one in found}


def endpoints(plane: ControlPlane, namespace: str) -> int:
    found = plane.get("endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=r-refold")["items"]
    return sum(len(one["endpoints"] or ()) for one in found)


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions) and (
        "deletionTimestamp" not in pod["metadata"]
    )


def test_it_is_installed_scaled_rolled_out_and_removed_and_its_volumes_stay(
    plane: ControlPlane, namespace: str
) -> None:
    said = install(plane, namespace)
    assert "refold status order-summary" in said
    found = pods(plane, namespace)
    assert sorted(found) == ["r-refold-0", "r-refold-1", "r-refold-2"]
    assert all(map(is_ready, found.values()))
    nodes = {one["spec"]["nodeName"] for one in found.values()}
    assert len(nodes) == 3, "they are kept apart"
    for kind in (
        "servicemonitor",
        "prometheusrule",
        "poddisruptionbudget",
        "networkpolicy",
        "configmap",
        "serviceaccount",
    ):
        assert "r-refold" in plane.kubectl("get", kind, "-n", namespace, "-o", "name")
    plane.helm("test", "r", "-n", namespace, "--timeout", "60s")
    deadline = time.monotonic() + 60
    while endpoints(plane, namespace) != 3:  # they come a moment after the pods are ready
        assert time.monotonic() < deadline, endpoints(plane, namespace)
        time.sleep(0.2)

    # A command of the admin's, from what the chart keeps ready.
    plane.kubectl("create", "job", "-n", namespace, "--from=cronjob/r-refold-rebuild-order-summary", "once")
    plane.kubectl("wait", "-n", namespace, "--for=condition=Complete", "job/once", "--timeout=60s")

    install(plane, namespace, "--set", "replicaCount=5", verb="upgrade")
    assert sorted(pods(plane, namespace)) == [f"r-refold-{number}" for number in range(5)]

    # Another image: from the last pod on, and never more than one away.
    plane.helm(
        "upgrade", "r", CHART, "-n", namespace, "-f", MONITORING,
        "--set", "replicaCount=5,image.tag=next,minReadySeconds=0",
    )  # fmt: skip
    replaced: list[str] = []
    deadline = time.monotonic() + 120
    while len(replaced) < 5:
        assert time.monotonic() < deadline, replaced
        found = pods(plane, namespace)
        assert sum(map(is_ready, found.values())) >= 4, {name: is_ready(one) for name, one in found.items()}
        for name, one in sorted(found.items(), reverse=True):
            if one["spec"]["containers"][0]["image"].endswith(":next") and name not in replaced:
                replaced.append(name)
        time.sleep(0.2)
    assert replaced == [f"r-refold-{number}" for number in reversed(range(5))]

    volumes = plane.kubectl("get", "pvc", "-n", namespace, "-o", "name").split()
    assert len(volumes) == 5
    plane.helm("uninstall", "r", "-n", namespace, "--wait", "--timeout", "60s")
    assert plane.kubectl("get", "pvc", "-n", namespace, "-o", "name").split() == volumes
    left = plane.kubectl("get", "statefulset,service,configmap,cronjob", "-n", namespace, "-o", "name")
    assert "refold" not in left


def test_a_rolling_update_goes_no_further_than_a_pod_that_is_not_ready(plane: ControlPlane, namespace: str) -> None:
    """As one is not whose code has yet to become active."""
    install(plane, namespace)
    plane.helm(
        "upgrade", "r", CHART, "-n", namespace, "-f", MONITORING, "--set", "image.tag=never-ready",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while (
        not pods(plane, namespace)
        .get("r-refold-2", {})
        .get("spec", {})
        .get("containers", [{}])[0]
        .get("image", "")
        .endswith("never-ready")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(6)
    found = pods(plane, namespace)
    assert {name: (is_ready(one), one["spec"]["containers"][0]["image"]) for name, one in found.items()} == {
        "r-refold-0": (True, "refold:0.1.0"),
        "r-refold-1": (True, "refold:0.1.0"),
        "r-refold-2": (False, "refold:never-ready"),
    }
    plane.helm("rollback", "r", "-n", namespace)
    plane.kubectl("delete", "pod", "r-refold-2", "-n", namespace)  # Kubernetes waits for a pod that never becomes ready
    plane.kubectl("rollout", "status", "statefulset/r-refold", "-n", namespace, "--timeout=60s")


def test_one_worker_at_a_time_is_evicted(plane: ControlPlane, namespace: str) -> None:
    install(plane, namespace)

    def evict(name: str, ok: int | None = 0) -> str:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        path = plane.kubeconfig.with_name("eviction.json")
        path.write_text(json.dumps(body))
        return plane.kubectl(
            "create", "--raw", f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", "-f", path, ok=ok
        )

    budget_is(plane, namespace, 1)
    evict("r-refold-0")
    assert "disruption budget" in evict("r-refold-1", ok=1)
    budget_is(plane, namespace, 1)
    evict("r-refold-1")


def test_volumes_are_made_larger_while_pods_run_on(plane: ControlPlane, namespace: str) -> None:
    """As docs/kubernetes.md says: a StatefulSet's claims cannot be changed, so it is made anew around its pods."""
    install(plane, namespace)
    before = {name: one["metadata"]["uid"] for name, one in pods(plane, namespace).items()}
    larger = ("--set", "persistence.size=50Gi")
    said = plane.helm("upgrade", "r", CHART, "-n", namespace, "-f", MONITORING, *larger, ok=1)
    assert "updates to statefulset spec" in said
    for number in range(3):
        size = '{"spec": {"resources": {"requests": {"storage": "50Gi"}}}}'
        plane.kubectl("patch", "pvc", f"state-r-refold-{number}", "-n", namespace, "-p", size)
    plane.kubectl("delete", "statefulset", "r-refold", "-n", namespace, "--cascade=orphan")
    install(plane, namespace, *larger, verb="upgrade")
    assert {name: one["metadata"]["uid"] for name, one in pods(plane, namespace).items()} == before
    (claim,) = plane.get("statefulset", "r-refold", "-n", namespace)["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"


def test_a_volume_that_is_lost_is_replaced(plane: ControlPlane, namespace: str) -> None:
    """As docs/kubernetes.md says."""
    install(plane, namespace)

    def claim() -> str:
        found = plane.get("pvc", "-n", namespace)["items"]
        (one,) = [one["metadata"]["uid"] for one in found if one["metadata"]["name"] == "state-r-refold-1"] or [""]
        return str(one)

    before = claim()
    plane.kubectl("delete", "pvc", "state-r-refold-1", "-n", namespace, "--wait=false")
    plane.kubectl("delete", "pod", "r-refold-1", "-n", namespace)
    plane.kubectl("rollout", "status", "statefulset/r-refold", "-n", namespace, "--timeout=60s")
    assert claim() not in (before, "")


def budget_is(plane: ControlPlane, namespace: str, allowed: int) -> None:
    deadline = time.monotonic() + 60
    while plane.get("pdb", "r-refold", "-n", namespace).get("status", {}).get("disruptionsAllowed") != allowed:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_restricted_namespace_takes_our_pods_and_no_others(plane: ControlPlane, namespace: str) -> None:
    said = plane.helm(
        "install", "r", CHART, "-n", namespace, "-f", MINIMAL, "--set", "securityContext.allowPrivilegeEscalation=true",
        "--wait", "--timeout", "10s", ok=1,
    )  # fmt: skip
    assert "allowPrivilegeEscalation" in said, said
    assert pods(plane, namespace) == {}
    plane.helm("uninstall", "r", "-n", namespace)
    said = install(plane, namespace)
    assert "PodSecurity" not in said
    assert len(pods(plane, namespace)) == 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("resources.limits.memory=lots", "quantities must match"),
        ("podDisruptionBudget.maxUnavailable=some", "maxUnavailable"),
        ("minReadySeconds=-1", "minReadySeconds"),
        ("replicaCount=-1", "replicaCount"),
        ("networkPolicy.from[0].podSelecter.a=b", "podSelecter"),
    ],
)
def test_wrong_values_are_refused_and_leave_nothing(plane: ControlPlane, namespace: str, wrong: str, why: str) -> None:
    said = plane.helm("install", "r", CHART, "-n", namespace, "-f", MINIMAL, "--set", wrong, ok=1)
    assert why in said
    plane.helm("uninstall", "r", "-n", namespace, ok=None)
    assert "refold" not in plane.kubectl("get", "statefulset", "-n", namespace, "-o", "name")


@pytest.mark.parametrize("values", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_api_takes_all_that_is_made_of_each_set_of_values(
    plane: ControlPlane, namespace: str, values: Path, tmp_path: Path
) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(render("-f", values, "--no-hooks", "--set", "dashboard.namespace=", namespace=namespace))
    said = plane.kubectl("apply", "-n", namespace, "--dry-run=server", "--validate=strict", "-f", path)
    assert "statefulset.apps/" in said
