"""The command as a user runs it: a process of its own, whatever it starts, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from confluent_kafka.admin import AdminClient

from tests.screen import heed_ctrl_c

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 120.0
LOOK_TIMEOUT_S = 10.0
_MIRROR = "REFOLD_MAVEN_REPOSITORY"  # says where Kafka is from, and nothing of what it is asked


def until(what: str, look: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Ask until the answer is true, and give it; fail, saying what was waited for, at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)
    return answer


def on_broker(admin: AdminClient, prefix: str) -> set[str]:
    """The topics and groups whose names begin so."""
    topics = admin.list_topics(timeout=LOOK_TIMEOUT_S).topics
    groups = admin.list_consumer_groups(request_timeout=LOOK_TIMEOUT_S).result().valid
    names = [f"topic {name}" for name in topics if name.startswith(prefix)]
    names += [f"group {group.group_id}" for group in groups if group.group_id.startswith(prefix)]
    return set(names)


def quiet_environment() -> dict[str, str]:
    """This process's environment without what would change the command's answer."""
    return {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_") or name == _MIRROR}


@dataclass
class Command:
    """A running command. What it and its descendants put into the temporary directory is seen in `tmp`."""

    process: subprocess.Popen[bytes]
    tmp: Path
    stdout: Path
    stderr: Path

    def said(self) -> str:
        """What it has written to standard error so far, with each run of white space as one blank."""
        return " ".join(self.stderr.read_text().split())

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has written this to standard error so often."""

        def written() -> bool:
            if self.said().count(text) >= times:
                return True
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.stderr.read_text()}"
            return False

        until(f"{text!r} on standard error", written)

    def interrupt(self, number: signal.Signals) -> None:
        """Send a signal as it comes: SIGINT to the whole process group, as a terminal does; others to the process."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def processes(self) -> list[str]:
        """The command lines of the processes of this command that still run, descendants included."""
        mark = f"TMPDIR={self.tmp}".encode()
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # ended meanwhile, or not ours
        return found


@contextmanager
def command(
    arguments: Sequence[str],
    directory: Path,
    *,
    python: str | Path = sys.executable,
    cwd: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Command]:
    """Start `python -m streams …`; kill what is left of it at the end of the block."""
    tmp = directory / "tmp"
    tmp.mkdir()
    stdout, stderr = directory / "stdout", directory / "stderr"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [str(python), "-m", "streams", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**quiet_environment(), **(environment or {}), "TMPDIR": str(tmp)},
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )
    running = Command(process, tmp, stdout, stderr)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
