"""Run one contender once: `python -m tests.benchmarks.contenders <name> <job file>`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import msgspec

from tests.benchmarks.contenders.job import Job


def main(name: str, job_file: str) -> None:
    """Run the contender and leave its outcome beside the job file."""
    job = msgspec.json.decode(Path(job_file).read_bytes(), type=Job)
    outcome = importlib.import_module(f"tests.benchmarks.contenders.{name}").run(job)
    job.path("outcome.json").write_bytes(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
