"""The chart: what it makes of each set of values is what Kubernetes takes, and what cannot be is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from streams.resolving import ALL, known_variables
from tests.kubernetes.tools import CHART, KUBE_VERSION, REPOSITORY, helm, render, run
from tests.tools import tool

VALUES = sorted((CHART / "ci").glob("*.yaml"))


def strict(schema: Any) -> Any:
    """A structural schema that lets nothing through that it does not name, as `kubectl --validate=strict` has it."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {key: strict(value) for key, value in schema.items()} | closed


CRDS = {
    crd["spec"]["names"]["kind"]: strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    for path in (Path(__file__).parent / "crds").glob("*.yaml")
    for crd in [yaml.safe_load(path.read_text())]
}
MINIMAL = ("-f", CHART / "ci" / "minimal.yaml")


def documents(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one is not None]


def of_kind(text: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in documents(text) if one["kind"] == kind]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_all_that_is_made_of_each_set_of_values_is_valid(values: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", CHART, "--strict", "-f", values, "--kube-version", KUBE_VERSION)
    made = documents(render("-f", values))
    assert made
    for one in made:
        if one["kind"] in CRDS:
            jsonschema.validate(one, CRDS[one["kind"]])
        else:
            kubernetes_validate.validate(one, "1.33", strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in made]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--set", "replicas=3"], "replicas"),
        (["--set", "replicaCount=many"], "replicaCount"),
        (["--set", "projections.a.topic=t"], "class"),
        (["--set", "projections.a.class=m:C,projections.a.tpoic=t"], "tpoic"),
        (["--set", "settings.state_dir=/x"], "state_dir"),
        (["--set", "kafka.bootstrapServers=kafka"], "bootstrapServers"),
        (["--set", "kafka.bootstrapServers="], "kafka.bootstrapServers is needed"),
        (["--set", "projections=null"], "projections is needed"),
        (["--set", "persistence.size=much"], "size"),
        (["--set", "image.digest=latest"], "digest"),
        (["--set", "code.files.a=b", "--set", "code.existingConfigMap=c"], "give one of them"),
        (["--set", "code.existingConfigMap=c"], "existingConfigMapKeys is needed"),
        (["--set", "code.initContainer.image=i", "--set", "code.files.a=b"], "give one of them"),
        (["--set", "autoscaling.enabled=true"], "autoscaling needs"),
        (["--set", "http.readCertificates=true"], "needs http.tlsSecret"),
        (["--set", "http.adminNames={a}"], "needs http.tlsSecret"),
        (["--set", "http.adminPort=8080"], "http.adminPort is http.port"),
        (["--set", "podDisruptionBudget.minAvailable=1"], "minAvailable"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_values_that_cannot_be_are_refused_with_their_names(wrong: list[str], why: str) -> None:
    assert why in render(*MINIMAL, *wrong, ok=1)


def test_the_branches_make_what_they_should() -> None:
    """By helm-unittest, which reads helm/refold/tests."""
    said = run(tool("helm-unittest"), "--strict", "--file", "tests/*_test.yaml", CHART)
    assert re.search(r"Tests: +[1-9][0-9]* passed", said), said


def test_every_value_is_described_in_the_charts_readme_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "refold")
    run(tool("helm-docs"), "--chart-search-root", tmp_path, "--log-level", "error", timeout_s=60)
    made = (tmp_path / "refold" / "README.md").read_text()
    assert made == (CHART / "README.md").read_text(), "run helm-docs --chart-search-root helm"
    undescribed = [line for line in made.splitlines() if line.startswith("| ") and line.rstrip().endswith("|  |")]
    assert undescribed == []


def test_the_schema_names_every_value_and_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def differ(where: str, given: dict[str, Any], described: dict[str, Any]) -> list[str]:
        properties = described.get("properties")
        if properties is None:
            return []
        assert described["additionalProperties"] is False, where
        found = [f"{where}{key}" for key in given.keys() ^ properties.keys()]
        for key in given.keys() & properties.keys():
            if isinstance(given[key], dict) and given[key]:
                found += differ(f"{where}{key}.", given[key], properties[key])
        return found

    assert set(differ("", values, schema)) <= {
        "global",
        "resources.claims",
        "updateStrategy.rollingUpdate",
        "persistence.whenDeleted",
    }
    settings = {key for kind in ALL for key in kind.model_fields}
    assert set(schema["properties"]["settings"]["properties"]) < settings
    assert set(schema["properties"]["projections"]["additionalProperties"]["properties"]) < settings | {"class"}


def test_workers_are_given_only_variables_that_they_read() -> None:
    for values in VALUES:
        for one in documents(render("-f", values)):
            spec = one.get("spec", {})
            pod = spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec")
            if pod is None:
                continue
            (ours,) = [container for container in pod["containers"] if container["name"] in ("worker", "command")]
            named = {item["name"] for item in ours["env"] if item["name"].startswith("REFOLD_")}
            assert named <= known_variables(), values
            assert {"REFOLD_CONFIG", "REFOLD_BOOTSTRAP_SERVERS"} <= named


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert chart["appVersion"] == chart["version"] == version


def test_pods_are_given_longer_to_end_than_they_take() -> None:
    for values in VALUES:
        for one in of_kind(render("-f", values), "StatefulSet"):
            pod = one["spec"]["template"]["spec"]
            (worker,) = [container for container in pod["containers"] if container["name"] == "worker"]
            (drain,) = [item["value"] for item in worker["env"] if item["name"] == "REFOLD_DRAIN_SECONDS"]
            stop = worker.get("lifecycle", {}).get("preStop", {"exec": {"command": ["sleep", "0"]}})
            before = int(stop["exec"]["command"][-1])
            assert pod["terminationGracePeriodSeconds"] > before + int(drain) + 5
