"""What is built and locked can be installed, and then works away from the checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.acceptance.kit import DEADLINE_S, REPOSITORY, command, on_broker, quiet_environment

LOCK = REPOSITORY / "requirements.lock"
INSTALL_S = 600.0


def checked(*arguments: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; give its standard output."""
    done = subprocess.run(
        list(map(str, arguments)),
        cwd=cwd,
        env=quiet_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_lock_names_versions_only_and_every_dependency_of_every_extra() -> None:
    pins = [line for line in LOCK.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    odd = [pin for pin in pins if not re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.]+( ; .+)?", pin) or "/" in pin]
    assert odd == []
    locked = {pin.split("==")[0] for pin in pins}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted} - {"refold"}
    assert names - locked == set()


@pytest.mark.slow
@pytest.mark.timeout(2 * INSTALL_S)
def test_installed_wheel_runs_the_demo_away_from_the_checkout(
    bootstrap_servers: str, admin: AdminClient, tmp_path: Path
) -> None:
    checked(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, REPOSITORY, cwd=tmp_path)
    (wheel,) = tmp_path.glob("refold-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    checked(python, "-m", "pip", "install", "-q", "-c", LOCK, f"{wheel}[embedded,demo]", cwd=tmp_path)
    checked(python, "-m", "pip", "check", cwd=tmp_path)
    assert "rebuild" in checked(python.with_name("refold"), "--help", cwd=tmp_path)
    where = checked(python, "-c", "import streams; print(streams.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)
    before = on_broker(admin, "refold-demo-")
    arguments = ["demo", "--json", "--bootstrap-servers", bootstrap_servers]
    with command(arguments, tmp_path, python=python, cwd=tmp_path) as demo:
        assert demo.process.wait(2 * DEADLINE_S) == 0, demo.stderr.read_text()
    assert json.loads(demo.stdout.read_text())["identical"] is True
    assert on_broker(admin, "refold-demo-") == before
