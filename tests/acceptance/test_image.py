"""The image: built by its Dockerfile's steps, it runs as nobody on files that it cannot change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from projections.datasets import order_events
from tests.acceptance.dockerfile import INSTALL_S, Image, build
from tests.acceptance.kit import quiet_environment
from tests.conftest import TopicFactory
from tests.integration.kit import produce, until


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Below a directory that every user may enter."""
    home = Path(tempfile.mkdtemp(prefix="refold-image-"))
    home.chmod(0o755)
    try:
        yield build(home / "root")
    finally:
        shutil.rmtree(home)


def files(directory: Path) -> dict[str, int]:
    """Every file there, with the time of its last change."""
    return {str(path): path.lstat().st_mtime_ns for path in directory.rglob("*")}


def asked(port: int, path: str) -> tuple[int, object]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, None


@pytest.mark.slow
@pytest.mark.timeout(2 * INSTALL_S)
def test_the_image_has_the_locked_versions_and_nothing_to_install_with(image: Image) -> None:
    libraries = next(image.path("/opt/refold/lib").glob("python3*")) / "site-packages"
    found = {path.name.split("-")[0].lower().replace("_", "-") for path in libraries.glob("*.dist-info")}
    assert {"refold", "confluent-kafka", "faust-streaming", "rocksdict", "opentelemetry-sdk"} <= found
    assert not found & {"pip", "setuptools", "pytest", "mypy", "hatchling"}
    assert not image.path("/opt/refold/bin/pip").exists()
    assert not image.path("/src").exists()
    assert image.command == ["worker"]
    assert image.user[0] > 0


@pytest.mark.slow
@pytest.mark.timeout(2 * INSTALL_S)
def test_it_serves_as_nobody_on_files_that_it_cannot_change_and_ends_in_time(
    image: Image, bootstrap_servers: str, topic: TopicFactory, tmp_path: Path
) -> None:
    name = topic(2)
    produce(bootstrap_servers, name, [(one.key, json.dumps(one.envelope).encode()) for one in order_events(100, 1)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch = image.root.with_name("tmp")
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    environment = {
        **{key: value for key, value in quiet_environment().items() if not key.startswith("PYTHON")},
        **image.environment,
        "TMPDIR": str(scratch),
        "HOME": "/nonexistent",
        "REFOLD_BOOTSTRAP_SERVERS": bootstrap_servers,
        "REFOLD_REGISTRY": f"{name}.registry",
        "REFOLD_NAMESPACE": name,
        "REFOLD_HTTP_PORT": str(port),
    }
    may_change = os.geteuid() == 0 and image.is_for_all
    user, group = image.user if may_change else (os.geteuid(), os.getegid())
    if os.geteuid() == 0 and not may_change:
        os.chown(image.path("/var/lib/refold"), 0, 0)
    state = image.path("/var/lib/refold")
    writable = [path for path in (image.root, *image.root.rglob("*")) if path != state and not path.is_symlink()]
    for path in writable:
        path.chmod(path.stat().st_mode & ~0o222)
    before = files(image.path("/opt")) | files(image.path("/app"))
    log = tmp_path / "log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            image.words("worker", "--projections", "order-summary", "--topic", name),
            cwd=image.path(image.directory),
            env=environment,
            user=user,
            group=group,
            extra_groups=[],
            stdout=handle,
            stderr=subprocess.STDOUT,
        )
    try:
        until("it to be ready", lambda: asked(port, "/readyz")[0] == 200 or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        status, page = asked(port, "/v1/projections/order-summary/models?limit=1000")
        assert status == 200
        assert isinstance(page, dict)
        assert len(page["models"]) > 90
        owners = {path.stat().st_uid for path in state.rglob("*")}
        assert owners == {user}
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert time.monotonic() - began < 20
        for line in log.read_text().splitlines():
            assert json.loads(line)["level"] in ("info", "debug"), line
        assert files(image.path("/opt")) | files(image.path("/app")) == before
        assert [path.name for path in scratch.iterdir()] == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for path in writable:
            path.chmod(path.stat().st_mode | 0o200)
