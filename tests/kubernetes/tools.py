"""helm and its kin, and the chart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.tools import TOOLS, tool

__all__ = ["CHART", "REPOSITORY", "TOOLS", "helm", "render", "run", "tool"]

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "refold"
KUBE_VERSION = "1.36.3"


def run(
    *command: str | Path, ok: int | None = 0, env: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> str:
    """Run a command, and give all that it says; `ok` is the exit code that it is to have, None any."""
    done = subprocess.run(
        [str(one) for one in command],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=timeout_s,
        check=False,
    )
    said = done.stdout + done.stderr
    assert ok is None or done.returncode == ok, f"{' '.join(map(str, command))}: exit code {done.returncode}\n{said}"
    return done.stdout if ok == 0 else said


def helm(*arguments: str | Path, ok: int | None = 0, env: Mapping[str, str] | None = None) -> str:
    """Run helm; it keeps what it keeps below the tools' directory."""
    home = TOOLS / "helm"
    ours = {"HELM_CACHE_HOME": str(home), "HELM_CONFIG_HOME": str(home), "HELM_DATA_HOME": str(home)}
    return run(tool("helm"), *arguments, ok=ok, env={**ours, **(env or {})})


def render(*arguments: str | Path, release: str = "r", namespace: str = "shop", ok: int | None = 0) -> str:
    """Give what the chart makes of some values."""
    return helm("template", release, CHART, "-n", namespace, "--kube-version", KUBE_VERSION, *arguments, ok=ok)
