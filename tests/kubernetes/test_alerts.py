"""The alerts and the dashboard: each fires where it should, and asks for figures that workers give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.tools import CHART, REPOSITORY, render, run
from tests.tools import tool

RUNBOOKS = REPOSITORY / "docs" / "runbooks"


def rules(*values: str | Path) -> dict[str, Any]:
    """What the chart gives to Prometheus."""
    made = yaml.safe_load_all(render("-f", CHART / "ci" / "monitoring.yaml", *values))
    (spec,) = [one["spec"] for one in made if one is not None and one["kind"] == "PrometheusRule"]
    return dict(spec)


def alerts() -> list[dict[str, Any]]:
    (group,) = rules()["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads((CHART / "dashboards" / "refold.json").read_text()))


def test_each_alert_fires_where_it_should_and_not_where_it_should_not(tmp_path: Path) -> None:
    promtool = tool("promtool")
    (tmp_path / "refold.rules.yaml").write_text(yaml.safe_dump(rules()))
    cases = Path(__file__).with_name("alerts.yaml").read_text()
    (tmp_path / "alerts.yaml").write_text(cases)
    assert f"{len(alerts())} rules found" in run(promtool, "check", "rules", tmp_path / "refold.rules.yaml")
    run(promtool, "test", "rules", tmp_path / "alerts.yaml")
    fired = {
        one["alertname"]
        for test in yaml.safe_load(cases)["tests"]
        for one in test["alert_rule_test"]
        if one.get("exp_alerts")
    }
    assert fired == {one["alert"] for one in alerts()}


def test_a_case_that_is_wrong_fails(tmp_path: Path) -> None:
    (tmp_path / "refold.rules.yaml").write_text(yaml.safe_dump(rules()))
    cases = Path(__file__).with_name("alerts.yaml").read_text()
    (tmp_path / "alerts.yaml").write_text(cases.replace("Only 2 of 3", "Only 1 of 3"))
    assert "FAILED" in run(tool("promtool"), "test", "rules", tmp_path / "alerts.yaml", ok=1)


def test_thresholds_are_those_of_the_values(tmp_path: Path) -> None:
    thresholds = yaml.safe_load((CHART / "values.yaml").read_text())["prometheusRule"]["thresholds"]
    values = tmp_path / "values.yaml"
    numbers = {key: f"{7000 + n}s" if key == "stalledFor" else 7000 + n for n, key in enumerate(thresholds)}
    numbers |= {key: 0.5 + n / 1000 for n, key in enumerate(thresholds) if key.endswith("Ratio")}
    values.write_text(yaml.safe_dump({"prometheusRule": {"thresholds": numbers}}))
    text = yaml.safe_dump(rules("-f", values))
    for key, value in numbers.items():
        assert re.search(rf"\b{value}", text), key
    assert not re.search(r"\b[A-Z]{4,}_[A-Z]+\b", text), "a word that was not replaced"


@pytest.mark.parametrize("name", [path.stem for path in sorted(RUNBOOKS.glob("Refold*.md"))])
def test_each_runbook_is_of_an_alert(name: str) -> None:
    assert name in {one["alert"] for one in yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text())["alerts"]}
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    for heading in ("## What it means", "## What to look at", "## What to do"):
        assert heading in text, heading


def test_each_alert_has_a_runbook() -> None:
    for one in yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text())["alerts"]:
        assert (RUNBOOKS / f"{one['alert']}.md").is_file()
        assert one["labels"]["severity"] in ("info", "warning", "critical")


def test_every_panel_says_what_it_shows_in_which_unit_and_of_which_source() -> None:
    found = dashboard()
    assert found["uid"] == "refold"
    names = {one["name"] for one in found["templating"]["list"]}
    assert {"datasource", "namespace", "job", "projection"} == names
    rows = [one["title"] for one in found["panels"] if one["type"] == "row"]
    assert rows == ["Lag", "Rebuild", "Health"]
    places = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in places, panel["title"]
                places.add((x, y))
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["legendFormat"]
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
