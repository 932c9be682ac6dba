"""`python -m tests`: format, lint, types, import rules and tests, in that order; the same that CI runs."""

from __future__ import annotations

import subprocess
import sys
import time

CHECKS: dict[str, list[str]] = {
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "imports": [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ],
    "tests": [sys.executable, "-m", "pytest", "--durations=25", "--durations-min=10"],
}


def main(arguments: list[str]) -> int:
    """Run all checks; `--quick` leaves the slow tests out, and anything else goes on to pytest.

    Tests run two at a time, each with a broker of its own: they wait for brokers more than they compute.
    """
    quick = "--quick" in arguments
    pytest_arguments = [argument for argument in arguments if argument != "--quick"]
    if not {"-n", "--bootstrap-servers"} & set(pytest_arguments):  # on a given broker the README's names would clash
        pytest_arguments += ["-n", "2", "--dist", "worksteal"]
    if quick:
        pytest_arguments += ["-m", "not slow"]
    failed, took = [], []
    for name, command in CHECKS.items():
        started = time.monotonic()
        print(f"== {name}", flush=True)
        if subprocess.run(command + (pytest_arguments if name == "tests" else []), check=False).returncode:
            failed.append(name)
        took.append(f"{name} {time.monotonic() - started:.1f} s")
    # On standard error: the last line on standard output is pytest's own.
    verdict = f"failed: {', '.join(failed)}" if failed else "all checks passed"
    print(f"{verdict} ({', '.join(took)})", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
