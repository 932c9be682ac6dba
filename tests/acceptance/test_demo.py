"""`refold demo` from its start to its end, and interrupted on the way: what it says, and what it leaves."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from streams.broker.postgres import EmbeddedPostgres
from tests.acceptance.kit import DEADLINE_S, Command, command, on_broker, until

pytestmark = pytest.mark.slow

PROMPTLY_S = 20.0
"""For an interrupted demo on a busy machine; most of it is the consumer's and the JVM's goodbye."""
KEYS = [
    "events",
    "models",
    "partitions",
    "live_events_per_second",
    "rebuild_events_per_second",
    "identical",
    "rebuild_seconds",
]
MOMENTS = {
    "broker start": ("Starting Apache Kafka", 1),
    "load": ("Kafka at", 1),
    "live": ("partitions.assigned", 1),
    "rebuild": ("partitions.assigned", 2),
}
"""What the demo has written to standard error when it is there, and how often."""


def check_figures(output: str, partitions: int) -> None:
    """Check the one JSON object that `--json` prints."""
    lines = output.splitlines()
    assert len(lines) == 1
    figures: dict[str, Any] = json.loads(lines[0])
    assert figures.pop("schema") == "refold.demo/1"
    assert list(figures) == KEYS
    assert (figures["events"], figures["models"]) == (1_001_615, 4_043)
    assert figures["partitions"] == partitions
    assert figures["identical"] is True
    for rate in ("live_events_per_second", "rebuild_events_per_second", "rebuild_seconds"):
        assert figures[rate] > 0


def check_nothing_is_left(demo: Command) -> None:
    """No process of the demo's, and no file; the JVM's watcher may take a moment to go."""
    until("the end of the demo's processes", lambda: not demo.processes(), PROMPTLY_S)
    assert [path.name for path in demo.tmp.iterdir()] == []


def test_demo_on_a_given_kafka_compares_live_and_rebuilt_and_leaves_nothing(
    bootstrap_servers: str, admin: AdminClient, tmp_path: Path
) -> None:
    before = on_broker(admin, "refold-demo-")
    arguments = ["demo", "--json", "--bootstrap-servers", bootstrap_servers, "--partitions", "3"]
    with command(arguments, tmp_path) as demo:
        assert demo.process.wait(DEADLINE_S * 2) == 0, demo.stderr.read_text()
        check_nothing_is_left(demo)
    check_figures(demo.stdout.read_text(), partitions=3)
    assert "Traceback" not in demo.said()
    assert on_broker(admin, "refold-demo-") == before


def test_demo_in_a_given_postgresql_leaves_no_schema(
    bootstrap_servers: str, database: EmbeddedPostgres, tmp_path: Path
) -> None:
    arguments = ["demo", "--json", "--bootstrap-servers", bootstrap_servers, "--store", "postgres"]
    with command([*arguments, "--dsn", database.dsn], tmp_path) as demo:
        assert demo.process.wait(DEADLINE_S * 2) == 0, demo.stderr.read_text()
        check_nothing_is_left(demo)
    check_figures(demo.stdout.read_text(), partitions=4)
    assert "Models in PostgreSQL" in demo.said()
    with psycopg.connect(database.dsn) as connection:
        assert connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'refold_demo%'").fetchall() == []


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that others may enter: PostgreSQL does not run as root."""
    with tempfile.TemporaryDirectory(prefix="refold-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_demo_brings_its_own_postgresql_and_takes_it_away(bootstrap_servers: str, open_path: Path) -> None:
    arguments = ["demo", "--json", "--bootstrap-servers", bootstrap_servers, "--store", "postgres"]
    with command(arguments, open_path) as demo:
        until("its server", lambda: any("postgres -D" in line for line in demo.processes()), DEADLINE_S)
        assert demo.process.wait(DEADLINE_S * 2) == 0, demo.stderr.read_text()
        check_nothing_is_left(demo)
    check_figures(demo.stdout.read_text(), partitions=4)
    assert "Models in PostgreSQL" in demo.said()


def test_demo_brings_its_own_kafka_and_takes_it_away(tmp_path: Path) -> None:
    with command(["--log-level", "info", "demo", "--json"], tmp_path) as demo:
        demo.wait_for("Kafka at 127.0.0.1:")
        assert any("kafka.Kafka" in line for line in demo.processes())
        assert demo.process.wait(DEADLINE_S * 2) == 0, demo.stderr.read_text()
        check_nothing_is_left(demo)
    check_figures(demo.stdout.read_text(), partitions=4)
    assert "Traceback" not in demo.said()


@pytest.mark.parametrize(
    ("moment", "number"),
    [("load", signal.SIGINT), ("live", signal.SIGTERM), ("rebuild", signal.SIGINT)],
)
def test_interrupted_demo_leaves_no_topic_and_no_group_on_a_given_kafka(
    moment: str, number: signal.Signals, bootstrap_servers: str, admin: AdminClient, tmp_path: Path
) -> None:
    before = on_broker(admin, "refold-demo-")
    with command(["--log-level", "info", "demo", "--json", "--bootstrap-servers", bootstrap_servers], tmp_path) as demo:
        demo.wait_for(*MOMENTS[moment])
        until("the demo's topic", lambda: on_broker(admin, "refold-demo-") > before)
        demo.interrupt(number)
        check_interrupted(demo)
    assert on_broker(admin, "refold-demo-") == before


def test_second_ctrl_c_ends_the_demo_at_once_and_its_kafka_with_it(tmp_path: Path) -> None:
    with command(["--log-level", "info", "demo", "--json"], tmp_path) as demo:
        demo.wait_for(*MOMENTS["live"])
        demo.interrupt(signal.SIGINT)
        demo.interrupt(signal.SIGINT)
        # The first one may have been answered before the second came.
        assert demo.process.wait(PROMPTLY_S) in (130, 128 + signal.SIGINT), demo.stderr.read_text()
        assert "Traceback" not in demo.said()
        until("its Kafka is gone", lambda: not any("kafka.Kafka" in line for line in demo.processes()))


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("broker start", signal.SIGINT),
        ("broker start", signal.SIGTERM),
        ("load", signal.SIGTERM),
        ("live", signal.SIGINT),
        ("rebuild", signal.SIGTERM),
    ],
)
def test_interrupted_demo_leaves_no_kafka_and_no_file(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    with command(["--log-level", "info", "demo", "--json"], tmp_path) as demo:
        demo.wait_for(*MOMENTS[moment])
        until("the JVM", lambda: any("kafka.Kafka" in line for line in demo.processes()))
        demo.interrupt(number)
        check_interrupted(demo)


def check_interrupted(demo: Command) -> None:
    """It ended by itself, soon, told by its exit code alone, and cleaned up."""
    assert demo.process.wait(PROMPTLY_S) == 130, demo.stderr.read_text()
    assert demo.stdout.read_text() == ""
    assert "Traceback" not in demo.said()
    assert "Exception ignored" not in demo.said()
    check_nothing_is_left(demo)
