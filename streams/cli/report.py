"""What a comparison of two generations found, as people and programs read it."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.cli.explain import as_json, said
from streams.control.compare import Report
from streams.control.record import Summary
from streams.errors import at

__all__ = ["print_report", "report_json", "summed"]

_LINES = 6
"""Changes of one model that are shown."""


def summed(found: Summary) -> str:
    """Write it in one line."""
    if found.is_identical:
        return f"identical: {found.models_after:,} models, compared in {found.seconds:.1f} s"
    differ = found.changed + found.added + found.removed
    parts = [
        f"{differ:,} of {max(found.models_before, found.models_after):,} models differ: {found.changed:,} changed, "
        f"{found.added:,} added, {found.removed:,} removed"
    ]
    if found.unexpected:
        parts.append(f"{found.unexpected:,} not as the projection expects")
    return f"{'; '.join(parts)}; compared in {found.seconds:.1f} s"


def print_report(console: Console, report: Report, topic: str) -> None:
    """Print what was found: in numbers, by field, and the first models old beside new."""
    found = report.summary
    where = ", ".join(f"{number}@{position:,}" for number, position in sorted(report.positions.items()))
    console.print(f"{report.before} → {report.after}, as of positions {where or 'none'}", soft_wrap=True)
    console.print(summed(found), soft_wrap=True)
    for number, why in sorted(found.not_compared.items()):
        console.print(f"not compared: {at(topic, number)}: {why}", soft_wrap=True)
    if found.fields:
        fields = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        fields.add_column("field", overflow="fold")
        fields.add_column("models", justify="right", no_wrap=True)
        for path, count in found.fields.items():
            fields.add_row(Text(path or "the whole model"), f"{count:,}")
        console.print(fields)
    if report.differences:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("model", overflow="fold")
        table.add_column("old → new", overflow="fold")
        for one in report.differences:
            lines = said(one.changes)
            more = [f"… and {len(lines) - _LINES} more"] if len(lines) > _LINES else []
            mark = " (not expected)" if one.expected is False else ""
            table.add_row(Text(f"{one.id}{mark}"), Text("\n".join([*lines[:_LINES], *more])))
        console.print(table)
        differ = found.changed + found.added + found.removed
        if differ > len(report.differences):
            console.print(f"… and {differ - len(report.differences):,} more")


def report_json(report: Report) -> dict[str, Any]:
    """Give it as one object."""
    return {
        "before": report.before,
        "after": report.after,
        "positions": report.positions,
        **msgspec.to_builtins(report.summary),
        "identical": report.summary.is_identical,
        "differences": [
            {
                "id": one.id,
                "partition": one.partition,
                "kind": one.kind,
                "expected": one.expected,
                "changes": as_json(one.changes),
            }
            for one in report.differences
        ],
    }
