"""A group's partitions as a table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from streams.cli.output import local_time
from streams.control.status import GroupView, PartitionView
from streams.types import Member

__all__ = ["partitions_table"]


def partitions_table(group: GroupView) -> Table:
    """Draw a group's partitions, and their sum."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_footer=len(group.partitions) > 1)
    positions = sum(one.position or 0 for one in group.partitions)
    for name, total in (
        ("partition", "all"),
        ("position", f"{positions:,}"),
        ("end", f"{sum(one.end for one in group.partitions):,}"),
        ("lag", f"{group.lag:,}"),
        ("models", f"{sum(one.models for one in group.partitions):,}"),
    ):
        table.add_column(name, footer=total, justify="right", no_wrap=True)
    table.add_column("last event", overflow="fold")
    table.add_column("owner", overflow="fold")
    for one in group.partitions:
        table.add_row(
            str(one.partition),
            "-" if one.position is None else f"{one.position:,}",
            f"{one.end:,}",
            f"{one.lag:,}",
            f"{one.models:,}",
            _last_event(one),
            Text(_owner(one.owner) + (f" ({one.phase})" if one.phase not in ("", "ready") else "")),
        )
    return table


def _last_event(one: PartitionView) -> Text:
    if one.last_event_id is None:
        return Text("-")
    return Text(f"{one.last_event_id}\n{local_time(one.last_event_time)}")


def _owner(member: Member | None) -> str:
    if member is None:
        return "nobody"
    host = member.host.lstrip("/")
    return f"{member.client_id} {host}" if member.pid is None else f"process {member.pid} on {host}"
