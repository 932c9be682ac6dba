"""The README does what it says: its files and commands, as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import orjson
import pytest
from confluent_kafka.admin import AdminClient

import projections.contract
import streams.broker
import streams.errors
import streams.testing
from streams.cli.wiring import FoldOptions
from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.resolving import known_variables
from tests.acceptance.kit import REPOSITORY, command, quiet_environment, until

README = (REPOSITORY / "README.md").read_text()
SETTINGS = (REPOSITORY / "docs" / "settings.md").read_text()
TOPIC = "baskets"
GROUP = "refold.baskets.v1"
REGISTRY = {"REFOLD_REGISTRY": "baskets.registry"}
"""One of this test's own, which it removes."""
COMMAND_S = 60.0


def fenced(mark: str) -> str:
    """The block behind an HTML comment."""
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, f"the README has {len(found)} blocks marked {mark!r}"
    return str(found[0])


def session(mark: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that the README shows."""
    parts = re.split(r"^\$ (.*)\n", fenced(f"session: {mark}"), flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def timeless(output: str) -> str:
    """An output without what differs from run to run, and without the blanks that fill up a table's lines."""
    output = re.sub(r" +$", "", output, flags=re.MULTILINE)
    # How far it is, where that took longer than a second.
    output = re.sub(r"^(None|\d+\.\d+) (None|\d+\.\d+) (None|\d{4}-.*)\n", "", output, flags=re.MULTILINE)
    output = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?=, `refold rollback)", "THEN", output)
    return re.sub(r"[\d,]+ events/s", "N events/s", re.sub(r"\d+\.\d s", "N s", output))


def shown(line: str, directory: Path, bootstrap: str) -> str:
    """Run one command of the README and give what a terminal would show, but no logs."""
    program, *arguments = shlex.split(line)
    started = {"refold": [sys.executable, "-m", "streams"], "python": [sys.executable]}[program]
    path = os.pathsep.join([str(directory), str(REPOSITORY)])
    done = subprocess.run(
        [*started, *arguments],
        cwd=directory,
        env=quiet_environment() | REGISTRY | {"REFOLD_BOOTSTRAP_SERVERS": bootstrap, "PYTHONPATH": path, "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    said = [text for text in done.stderr.splitlines(keepends=True) if text.startswith("refold: ")]
    output = done.stdout + "".join(said)
    assert output, f"{line} gave {done.returncode} and\n{done.stderr}"
    return output


@pytest.fixture
def shop(bootstrap_servers: str, admin: AdminClient, tmp_path: Path) -> Iterator[Path]:
    """A directory with the README's files; the README's topic and group are removed at the end."""
    cluster = Cluster(KafkaSettings(bootstrap_servers=bootstrap_servers))
    assert TOPIC not in admin.list_topics(timeout=10).topics, f"topic {TOPIC} is in the way"
    for name in ("shop.py", "events.ndjson", "rebuild.py", "service.py"):
        (tmp_path / name).write_text(fenced(f"file: {name}"))
    yield tmp_path
    cluster.delete_topic(TOPIC)
    cluster.delete_topic(REGISTRY["REFOLD_REGISTRY"])
    for group in (GROUP, f"{GROUP}-2"):
        cluster.delete_group(group)


def check_session(mark: str, directory: Path, bootstrap: str) -> None:
    for line, output in session(mark):
        assert timeless(shown(line, directory, bootstrap)) == timeless(output)


def test_own_projection_is_loaded_folded_read_and_rebuilt_as_written(shop: Path, bootstrap_servers: str) -> None:
    check_session("load", shop, bootstrap_servers)
    ((run, nothing),) = session("run")
    assert nothing == ""
    program, *arguments = shlex.split(run)
    assert program == "refold"
    environment = REGISTRY | {"REFOLD_BOOTSTRAP_SERVERS": bootstrap_servers, "PYTHONPATH": str(REPOSITORY)}
    with command([*arguments, "--report-seconds", "0.1"], shop, cwd=shop, environment=environment) as running:
        running.wait_for('"lag_records": 0')
        until("four events in the log", lambda: '"events": 4' in running.said())
        check_session("get", shop, bootstrap_servers)
        check_session("look", shop, bootstrap_servers)
        check_session("service", shop, bootstrap_servers)
        check_session("beside", shop, bootstrap_servers)
        running.process.terminate()
        assert running.process.wait(COMMAND_S) == 0
    check_session("rebuild", shop, bootstrap_servers)
    check_session("library", shop, bootstrap_servers)
    check_session("explain", shop, bootstrap_servers)
    check_session("get", shop, bootstrap_servers)


def test_the_readmes_test_passes_and_finds_a_fold_that_is_wrong(tmp_path: Path) -> None:
    for name in ("shop.py", "test_shop.py"):
        (tmp_path / name).write_text(fenced(f"file: {name}"))

    def run() -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False).stdout

    assert "2 passed" in run()
    wrong = fenced("file: shop.py").replace("basket.items +", "basket.items -")
    (tmp_path / "shop.py").write_text(wrong)
    assert "model 'basket-1' is not as expected" in run()
    wrong = fenced("file: shop.py").replace("+ quantity * cents", "+ quantity * cents + id(event) % 7")
    (tmp_path / "shop.py").write_text(wrong)
    assert "The fold is not pure" in run()


def test_two_workers_are_a_service_as_written(shop: Path, bootstrap_servers: str) -> None:
    check_session("load", shop, bootstrap_servers)
    environment = REGISTRY | {"REFOLD_BOOTSTRAP_SERVERS": bootstrap_servers, "PYTHONPATH": str(REPOSITORY)}
    started = []
    with ExitStack() as stack:
        for mark in ("worker one", "worker two"):
            ((line, nothing),) = session(mark)
            assert nothing == ""
            program, *arguments = shlex.split(line)
            assert program == "refold"
            port = arguments[-1]
            home = shop / mark.replace(" ", "-")
            home.mkdir()
            started.append(stack.enter_context(command(arguments, home, cwd=shop, environment=environment)))
            until(f"the worker at {port} to be ready", lambda port=port: answered(f"localhost:{port}/readyz") != "")  # type: ignore[misc]
        for line, output in session("curl"):
            program, *arguments = shlex.split(line)
            assert (program, arguments[0]) == ("curl", "-s")
            given = answered(arguments[-1], "POST" if "POST" in arguments else "GET")
            told, shows = orjson.loads(given), output.replace('"5f2c…"', '"5f2c"').replace("{…}", "{}")
            assert list(told) == list(orjson.loads(shows)), given
            for key in ("model", "verb", "state", "active"):
                assert told.get(key) == orjson.loads(shows).get(key)
        until("the switch", lambda: '"active":"baskets.v1-2"' in answered("localhost:8081/v1/projections"))
        for one in started:
            one.process.terminate()
        assert [one.process.wait(COMMAND_S) for one in started] == [0, 0]


def answered(address: str, method: str = "GET") -> str:
    """What a worker answers; nothing where it does not, or with a problem."""
    try:
        with urlopen(Request(f"http://{address}", method=method), timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_settings_table_names_every_setting_that_works() -> None:
    named = set(re.findall(r"^\| `REFOLD_(\w+)`", SETTINGS, re.MULTILINE))
    assert {f"REFOLD_{name}" for name in named} == known_variables()


@pytest.mark.parametrize("name", ["demo", "test"])
def test_each_of_the_two_commands_is_one_line(name: str) -> None:
    assert len(fenced(f"command: {name}").splitlines()) == 1


def test_layout_names_only_what_exists() -> None:
    layout = (REPOSITORY / "docs" / "design.md").read_text().split("## Layout")[1].split("```")[1]
    parents: list[tuple[int, str]] = []
    for line in layout.strip().splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        assert REPOSITORY.joinpath(*(parent for _, parent in parents), name).exists(), name
        parents.append((indent, name))


def test_configuration_file_of_the_readme_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shop.py", "refold.toml"):
        (tmp_path / name).write_text(fenced(f"file: {name}"))
    monkeypatch.chdir(tmp_path)
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        wired = FoldOptions().wire("baskets")
    finally:
        sys.modules.pop("shop", None)  # other tests have others
    assert (wired.projection.name, wired.events.topic) == (TOPIC, TOPIC)
    assert wired.state_dir == tmp_path / ".refold"
    assert wired.settings.cache_bytes == 64_000_000
    assert wired.events.kafka.kafka == {"client.rack": "home"}


def test_reference_names_only_what_there_is() -> None:
    table = (REPOSITORY / "docs" / "reference.md").read_text()
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 40
    for heading, here, shown_by in rows:
        for name in re.findall(r"`([A-Z][a-z]\w*(?:\.\w+)*)`", here):
            place: object = streams
            for part in name.split("."):
                ours = (streams, projections.contract, streams.broker, streams.errors, streams.testing)
                homes = ours if place is streams else (place,)
                place = next(getattr(home, part) for home in homes if hasattr(home, part))
        for where in re.findall(r"`([\w/.:]+)`", shown_by):
            file, _, test = where.partition("::")
            text = (REPOSITORY / "tests" / file).read_text()
            assert not test or re.search(rf"def {test}\b", text), where
        assert shown_by.strip() or "not yet" in here, heading
