"""Where a worker keeps what is none of a generation's own state."""

from __future__ import annotations

from pathlib import Path

from streams.control.site import Site

__all__ = ["report_path"]


def report_path(site: Site, generation: str) -> Path:
    """Give where a worker keeps what a comparison found of a generation, of which it may have no copy."""
    return site.state_dir / f"{generation}.report.json"
