"""How all projections stand, in a line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streams.cli.output import document, duration
from streams.cli.progress import said
from streams.cli.view import percent
from streams.cli.wiring import PlaceOptions
from streams.cluster import Cluster
from streams.config import KafkaSettings, StateSettings
from streams.control.observed import progress_of
from streams.control.place import filling_group
from streams.control.record import Record
from streams.control.registry import Registry
from streams.control.repartitioning import Stages
from streams.control.status import GroupView, view_group
from streams.data.source import KafkaEventStore
from streams.types import RebuildProgress, TopicInfo

__all__ = ["All"]

_BAR_WIDTH = 16


@dataclass(frozen=True, slots=True)
class _Line:
    record: Record
    group: GroupView
    progress: RebuildProgress | None


class All:
    """Every projection that the registry knows.

    Args:
        options: Where Kafka and the registry are.
    """

    def __init__(self, options: PlaceOptions) -> None:
        self._kafka: KafkaSettings
        self._kafka, state = options.settings(options.file(), KafkaSettings, StateSettings)
        self._cluster = Cluster(self._kafka)
        self._registry = Registry(self._cluster, state.registry)

    def look(self) -> list[_Line]:
        """Look at each."""
        return [self._line(record) for _, record in sorted(self._registry.all().items())]

    def _line(self, record: Record) -> _Line:
        live, running = record.live, record.running
        topic = TopicInfo(name=live.topic, id=live.topic_id, partitions=live.partitions)
        group = view_group(self._cluster, topic, live.group, filling=filling_group(live))
        green = None if running is None else record.find(running.generation)
        progress = None
        if green is not None and green.source is not None:
            stages = Stages(self._cluster)
            stages.look(green)
            progress = stages.progress
        elif green is not None:
            progress = progress_of(green.group, KafkaEventStore(green.topic, kafka=self._kafka))
        return _Line(record, group, progress)

    def json(self, seen: list[_Line]) -> dict[str, Any]:
        """Give what `--json` prints."""
        return document("statuses", {"projections": [_json(one) for one in seen]})

    def drawn(self, seen: list[_Line]) -> RenderableType:
        """Draw a table."""
        if not seen:
            return Text("The registry knows no projection: `refold run` or a worker makes the first generation of one.")
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("projection", "active"):
            table.add_column(name, overflow="fold")
        for name in ("lag", "behind", "models", "members"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("rebuild", no_wrap=True)
        table.add_column("", overflow="fold")
        for one in seen:
            seconds = one.group.lag_seconds()
            table.add_row(
                one.record.projection,
                one.record.active,
                f"{one.group.lag:,}",
                duration(seconds) if one.group.lag else "0 s",
                f"{sum(part.models for part in one.group.partitions):,}",
                str(len(one.group.members)),
                _bar(one.progress),
                Text(_matter(one)),
            )
        return table


def _bar(progress: RebuildProgress | None) -> RenderableType:
    if progress is None or not progress.partitions:
        return ""
    done, total = progress.share
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(
        ProgressBar(total=max(1, total), completed=done if total else 1, width=_BAR_WIDTH), percent(done, total)
    )
    return bar


def _matter(one: _Line) -> str:
    """Say what is the matter with a projection, or under way."""
    record, running = one.record, one.record.running
    parts = [f"halted: {record.live.halted}"] if record.live.halted else []
    parts += [f"partition {part.partition} is {part.phase}: {part.why}" for part in one.group.partitions if part.why]
    if running is not None:
        green = record.find(running.generation)
        phase = "paused" if running.is_paused else "gone" if green is None else green.phase
        is_read = phase in ("repartitioning", "replaying")
        share = f" {said(one.progress)}" if one.progress is not None and is_read else ""
        parts.append(f"{running.generation} is {phase}{share}{f': {running.why}' if running.why else ''}")
    elif record.waiting is not None and record.waiting.fingerprint != record.live.fingerprint:
        parts.append(f"code of version {record.waiting.version} waits")
    return "; ".join(parts)


def _json(one: _Line) -> dict[str, Any]:
    record, running = one.record, one.record.running
    return {
        "projection": record.projection,
        "active": record.active,
        "topic": record.live.event_topic,
        "group": record.live.group,
        "lag_records": one.group.lag,
        "lag_seconds": one.group.lag_seconds(),
        "models": sum(part.models for part in one.group.partitions),
        "members": len(one.group.members),
        "halted": record.live.halted or None,
        "generations": {generation.id: generation.phase for generation in record.generations},
        "rebuild": None
        if running is None
        else {
            "generation": running.generation,
            "is_paused": running.is_paused,
            "why": running.why or None,
            "percent": None if one.progress is None else one.progress.completion_percentage(),
        },
        "matter": _matter(one) or None,
    }
