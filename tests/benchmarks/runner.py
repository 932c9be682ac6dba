"""Runs contenders, each in a fresh process, and cleans up after them whatever happens."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.kafka import ends, load, remove_all, say
from tests.benchmarks.workload import Workload

__all__ = ["ContenderError", "Runner", "run_in_process", "unavailable"]

_ROOT = Path(__file__).parents[2]
_TAIL_LINES = 30
_TERMINATE_S = 5.0


class ContenderError(RuntimeError):
    """A contender's process failed, hung or gave no outcome. What it wrote was shown on stderr."""


def unavailable(name: str) -> str | None:
    """Say why a contender cannot run here; None where it can."""
    reason: str | None = importlib.import_module(f"tests.benchmarks.contenders.{name}").unavailable()
    return reason


def _python(name: str) -> str:
    """Give the interpreter that a contender runs in: this one, unless it has one of its own."""
    own = getattr(importlib.import_module(f"tests.benchmarks.contenders.{name}"), "python", None)
    return sys.executable if own is None else str(own())


class Runner:
    """One benchmark's topics, temporary directory and child processes, under one name.

    Args:
        bootstrap_servers: The broker.
        mark: In the name of all that is made in Kafka, so that all of it can be found and deleted.
        directory: Where contenders keep their state.
        timeout_s: The longest that one run of one contender may take, in seconds.
    """

    def __init__(self, bootstrap_servers: str, mark: str, directory: Path, timeout_s: float) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.mark = mark
        self._directory = directory
        self._timeout_s = timeout_s
        self._runs = 0

    @classmethod
    @contextmanager
    def opened(cls, bootstrap_servers: str | None, *, timeout_s: float = 900.0) -> Iterator[Runner]:
        """Give a runner, and afterwards remove all that it made, also on failure, Ctrl-C and SIGTERM.

        Args:
            bootstrap_servers: The broker; None starts the embedded one and stops it afterwards.
            timeout_s: See Runner.
        """
        with ExitStack() as stack:
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _terminated))
            if bootstrap_servers is None:
                from streams.broker import EmbeddedBroker

                say("starting the embedded broker")
                bootstrap_servers = stack.enter_context(EmbeddedBroker()).bootstrap_servers
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="refold-bench-"))
            mark = f"refold-bench-{uuid.uuid4().hex[:10]}"
            stack.callback(remove_all, bootstrap_servers, mark)
            yield cls(bootstrap_servers, mark, Path(directory), timeout_s)

    def topic(self, workload: Workload, name: str | None = None) -> str:
        """Give a topic that holds the workload, produced now unless one of that name is there."""
        topic = name or f"{self.mark}-{workload.events}"
        load(self.bootstrap_servers, topic, workload)
        return topic

    def run(self, contender: str, topic: str) -> Outcome:
        """Run a contender once on a topic, in a process and a state directory of its own.

        Raises:
            ContenderError: It ended in any way but well, or did not fold every event.
        """
        self._runs += 1
        group = f"{self.mark}-{contender.replace('_', '-')}-{self._runs}"
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            job = Job(
                bootstrap_servers=self.bootstrap_servers,
                topic=topic,
                ends=ends(self.bootstrap_servers, topic),
                group=group,
                directory=directory,
            )
            job.path("job.json").write_bytes(msgspec.json.encode(job))
            before_s = _children_cpu_s()
            self._execute(contender, job)
            cpu_s = round(_children_cpu_s() - before_s, 2)
            outcome = msgspec.json.decode(job.path("outcome.json").read_bytes(), type=Outcome)
        remove_all(self.bootstrap_servers, group)
        if outcome.events != job.events:
            raise ContenderError(f"{contender} folded {outcome.events} of {topic}'s {job.events} events.")
        return msgspec.structs.replace(outcome, cpu_seconds=cpu_s)

    def _execute(self, contender: str, job: Job) -> None:
        command = [_python(contender), "-m", "tests.benchmarks.contenders", contender, str(job.path("job.json"))]
        log = job.path("contender.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops that one
            )
            try:
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                _show_tail(log)
                raise ContenderError(f"{contender} did not end within {self._timeout_s:g} s.") from None
            finally:
                _end(process)
        if status:
            _show_tail(log)
            raise ContenderError(f"{contender} failed with exit status {status}.")


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a contender and whatever it started."""
    for number, grace_s in ((signal.SIGTERM, _TERMINATE_S), (signal.SIGKILL, _TERMINATE_S)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            continue


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _show_tail(log: Path) -> None:
    """Show what a contender wrote last, without this machine's paths."""
    text = log.read_text(errors="replace")
    for path, short in (
        (str(_ROOT), "."),
        (str(log.parent), "<run>"),
        (sys.prefix, "<venv>"),
        (sys.base_prefix, "<py>"),
    ):
        text = text.replace(path, short)
    for line in text.splitlines()[-_TAIL_LINES:]:
        say(f"  | {line}")


def show_figures(report: dict[str, Any]) -> None:
    """Print a report, a figure a line."""
    for name, figure in report.items():
        print(f"{name:>24}  {figure}")


def run_in_process(
    measure: Callable[[Runner, argparse.Namespace, Path], dict[str, Any]],
    options: argparse.Namespace,
    show: Callable[[dict[str, Any]], None] = show_figures,
) -> int:
    """Measure in this process, and print the report.

    Args:
        measure: Given a runner, the options and an empty directory, gives the report; `models_equal` is in it.
        options: Those of `add_common_options`, and its own.
        show: Prints the report for people.

    Returns:
        The exit status: 1 where models are wrong or a contender failed, 130 where it was interrupted.
    """
    try:
        with (
            Runner.opened(options.bootstrap_servers, timeout_s=options.timeout) as runner,
            tempfile.TemporaryDirectory(prefix="refold-bench-") as directory,
        ):
            report = measure(runner, options, Path(directory))
    except ContenderError as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; what was made is removed")
        return 130
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0 if report["models_equal"] else 1
