"""The system's tools that only some tests need: `.ci/tools` installs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ["TOOLS", "tool"]

TOOLS = Path(
    os.environ.get("REFOLD_TEST_TOOLS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refold-test-tools"
)


def tool(name: str) -> str:
    """Give the path of one; where it is missing the test is skipped, and in CI it fails."""
    found = shutil.which(name, path=f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        why = f"{name} is not installed: .ci/tools installs it"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found
