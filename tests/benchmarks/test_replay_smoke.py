"""The benchmarks work: they say what they are to say, and all contenders agree. Nothing is timed here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.benchmarks import generations, growth, live, repair, replay, stages

KEYS = {
    "events",
    "bound_eps",
    "refold_eps",
    "quix_eps",
    "kafka_streams_eps",
    "faust_table_eps",
    "models_equal",
    "rss_mb",
}
SLOW_PEERS = [] if os.environ.get("REFOLD_BENCH_ALL_PEERS") else ["--skip", "faust,kafka_streams,pathway"]

pytestmark = pytest.mark.slow


def test_replay_reports_every_contender_that_is_installed_and_their_models_are_equal(
    bootstrap_servers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--events", "20000", "--keys", "3000", "--repeat", "1", "--json", *SLOW_PEERS]
    status = replay.main([*arguments, "--faust-events", "2000", "--bootstrap-servers", bootstrap_servers])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert set(report) >= KEYS
    assert report["models_equal"] is True
    assert report["events"] == 20_000
    for name in ("bound", "refold", "quix", "bytewax", "pathway", "kafka_streams", "faust_table"):
        assert (report[f"{name}_eps"] is None) == (name in report["skipped"])
    assert report["refold_eps"] > 0
    assert report["rss_mb"] > 0


def test_growth_measures_along_each_axis_and_draws_it(
    bootstrap_servers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--events", "3000", "--keys", "500", "--points", "3,400", "--repeat", "1", "--plot", str(tmp_path)]
    status = growth.main([*sizes, "--json", "--bootstrap-servers", bootstrap_servers, "--along", "models,size"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["models_equal"] is True
    assert [point["models"] for point in report["axes"]["models"]] == [3, 400]
    assert report["models_growth"]["of_seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"growth-models.svg", "growth-size.svg"}
    assert "peak memory" in (tmp_path / "growth-size.svg").read_text()


def test_repair_reports_what_it_costs_to_mend_a_part(
    bootstrap_servers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--events", "20000", "--keys", "1000", "--streams", "5", "--repeat", "1"]
    status = repair.main([*sizes, "--json", "--bootstrap-servers", bootstrap_servers])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["models_equal"] is True
    assert report["streams"] == 5
    assert report["streams_ratio"] > 0
    assert report["pauses_ms"]


def test_generations_reports_what_a_rebuild_beside_costs(
    bootstrap_servers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--events", "20000", "--keys", "1000", "--repeat", "1", "--rate", "200"]
    status = generations.main([*sizes, "--json", "--bootstrap-servers", bootstrap_servers])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["models_equal"] is True
    assert report["verified_models"] == 1000
    for figure in ("shared_ratio", "live_lag_s", "switch_s", "verify_s"):
        assert report[figure] > 0


def test_replay_refuses_a_contender_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replay.main(["--skip", "spark"])
    assert "no such contender: spark" in capsys.readouterr().err


def test_stages_tell_where_processor_time_goes(bootstrap_servers: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--events", "20000", "--keys", "1000", "--repeat", "1"]
    status = stages.main([*sizes, "--json", "--bootstrap-servers", bootstrap_servers])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["models_equal"] is True
    took = report["stages_us"]
    assert all(took[stage] > 0 for stage in ("consume", "decode", "fold", "remember", "encode", "write", "rest"))
    assert took["decode"] + took["fold"] < report["cpu_us"]["refold"] * 3  # of another run


def test_live_tells_of_lag_and_pauses(bootstrap_servers: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--events", "5000", "--keys", "1000", "--rates", "500", "--seconds", "2"]
    status = live.main([*sizes, "--json", "--bootstrap-servers", bootstrap_servers])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert report["models_equal"] is True
    (found,) = report["rates"]
    assert found["pauses"] > 0
    assert found["pause_p50_ms"] <= found["pause_max_ms"]
