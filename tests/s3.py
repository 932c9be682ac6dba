"""A real S3 server for tests: versitygw, over a directory, with signatures checked."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.tools import tool

__all__ = ["S3", "s3"]

_ACCESS, _SECRET = "refold", "not-so-secret"
_DEADLINE_S = 20.0


@dataclass
class S3:
    """The server, and its one bucket."""

    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    bucket: str = "snapshots"
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"s3://{self.bucket}/team"

    @property
    def config(self) -> dict[str, str | bool]:
        """How obstore reaches it."""
        return {"endpoint": f"http://127.0.0.1:{self.port}", "allow_http": True, "region": "us-east-1"}

    @property
    def credentials(self) -> dict[str, str]:
        """What the environment must have."""
        return {"AWS_ACCESS_KEY_ID": _ACCESS, "AWS_SECRET_ACCESS_KEY": _SECRET}

    @property
    def objects(self) -> Path:
        """Where the objects are, as files."""
        return self.root / "buckets" / self.bucket / "team"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        for one in (self.root / "buckets" / self.bucket, self.root / "about"):
            one.mkdir(parents=True, exist_ok=True)
        command = [tool("versitygw"), "--access", _ACCESS, "--secret", _SECRET, "--port", f"127.0.0.1:{self.port}"]
        command += ["--quiet", "posix", "--sidecar", str(self.root / "about"), str(self.root / "buckets")]
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(self.root)})
        deadline = time.monotonic() + _DEADLINE_S
        while not self._listens():
            assert self.process.poll() is None, (self.root / "server.log").read_text()
            assert time.monotonic() < deadline, "the S3 server does not listen"
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it; what is in it stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def s3(root: Path) -> Iterator[S3]:
    """Run one over a directory."""
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = S3(root, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
