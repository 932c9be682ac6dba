"""`refold list`: every projection that this machine's state, the configuration file and the cluster know."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from projections.registry import ResolveError
from streams.adapters.kinds import kind_of
from streams.cli.output import document, printer, shown
from streams.cli.parts import find_projection
from streams.cli.wiring import Flag, PlaceOptions
from streams.cluster import Cluster
from streams.config import KafkaSettings, StateSettings
from streams.configfile import ConfigFile
from streams.control.place import place_of
from streams.control.record import Generation, Record
from streams.control.registry import Registry
from streams.control.status import view_state
from streams.data.checkpoint import generation_id
from streams.data.files import FILES
from streams.data.generation import StateStore
from streams.data.stamp import Stamp
from streams.data.stores import Kind
from streams.errors import BrokerError, StorageError
from streams.types import TopicInfo

__all__ = ["list_"]

_PREFIX = "refold."


@dataclass(slots=True, kw_only=True)
class _Row:
    generation: str
    called: str | None = None
    """The name in refold.toml."""
    directory: str | None = None
    build: int | None = None
    models: int | None = None
    topic: str | None = None
    own_topic: str | None = None
    """What is folded, where that is a topic of the generation's own, filled from the other."""
    group: str | None = None
    members: int | None = None
    lag: int | None = None
    phase: str | None = None
    """What the registry says that it is at."""
    kept_in: str | None = None
    """files, which are in the directory, or postgres."""
    error: str | None = None


def list_(
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Print every generation that refold.toml, the state directory, the registry or the cluster's groups know.

    Groups are known by what refold commits with their offsets; those that are called refold.… are looked at, and those
    that refold.toml names.

    Example: refold list

    Args:
        options: Where they are.
        json: Print one JSON object a line.
    """
    file = options.file()
    kafka, state = options.settings(file, KafkaSettings, StateSettings)
    rows: dict[str, _Row] = {}
    groups = _configured(file, rows)
    kind = kind_of(state)
    _on_disk(state.state_dir, kind, rows)
    try:
        cluster = Cluster(kafka)
        groups |= _registered(Registry(cluster, state.registry).all(), state.state_dir, kind, rows)
        _in_cluster(cluster, groups, rows)
    except BrokerError as error:
        print(f"refold: groups are not shown: {error}", file=sys.stderr)  # noqa: T201
    ordered = [rows[name] for name in sorted(rows)]
    if json:
        for row in ordered:
            print(shown(document("generation", {name: getattr(row, name) for name in row.__slots__})))  # noqa: T201
    elif ordered:
        printer().print(_table(ordered), crop=False)
    else:
        print(f"No projections: none in {state.state_dir.absolute()}, none in refold.toml, no group.")  # noqa: T201


def _configured(file: ConfigFile, rows: dict[str, _Row]) -> set[str]:
    """Add the file's projections; give the groups that it names."""
    groups = set()
    for called, section in file.projections.items():
        settings = file.settings(called)
        try:
            found = find_projection(called, file)
        except (ResolveError, ValueError) as error:
            rows[called] = _Row(generation=called, called=called, topic=settings.get("topic"), error=str(error))
            continue
        generation = generation_id(found.name, found.version)
        group = str(section.get("group", f"{_PREFIX}{generation}"))
        groups.add(group)
        rows[generation] = _Row(generation=generation, called=called, topic=settings.get("topic"), group=group)
    return groups


def _on_disk(state_dir: Path, kind: Kind, rows: dict[str, _Row]) -> None:
    for directory in sorted(path for path in state_dir.glob("*") if path.is_dir()):
        try:
            is_known = kind.recall(directory, "") is not None
            state = view_state(StateStore(directory, kind if is_known else FILES))
        except StorageError as error:
            rows.setdefault(directory.name, _Row(generation=directory.name)).error = str(error)
            continue
        if state is None:
            continue
        manifest = state.build.manifest
        row = rows.setdefault(directory.name, _Row(generation=directory.name))
        row.directory, row.build, row.models = str(directory.absolute()), manifest.build, state.models
        row.topic, row.kept_in = manifest.topic, state.build.kind.name


def _registered(records: Mapping[str, Record], state_dir: Path, kind: Kind, rows: dict[str, _Row]) -> set[str]:
    """Add the registry's generations; give their groups."""
    groups = set()
    for record in records.values():
        for one in record.generations:
            row = rows.setdefault(one.id, _Row(generation=one.id))
            row.phase, row.group, row.topic, row.kept_in = one.phase, one.group, one.event_topic, one.kept_in
            if row.models is None and one.kept_in == kind.name != FILES.name:
                _in_database(one, state_dir, kind, row)
            groups.add(one.group)
            if one.source is not None:
                row.own_topic = one.topic
                groups.add(one.topic)
    return groups


def _in_database(one: Generation, state_dir: Path, kind: Kind, row: _Row) -> None:
    """Add what a database has of a generation that this machine has nothing of."""
    try:
        build = place_of(one, state_dir, kind).store.peek()
        if build is not None:
            row.build = build.manifest.build
            row.models = sum(build.stores.state(number).models for number in build.partitions())
    except StorageError as error:
        row.error = str(error)


def _in_cluster(cluster: Cluster, configured: set[str], rows: dict[str, _Row]) -> None:
    topics = {name: count for name, count in cluster.topics().items() if not name.startswith("__")}
    by_group = {row.group: row for row in rows.values() if row.group is not None}
    by_filling = {row.own_topic: row for row in rows.values() if row.own_topic is not None}
    for group in cluster.groups():
        if not group.startswith(_PREFIX) and group not in configured:
            continue
        for topic, committed in cluster.committed_of(group, topics).items():
            stamps = {number: Stamp.parse(one.metadata) for number, one in committed.items()}
            generation = next((stamp.generation for stamp in stamps.values() if stamp is not None), None)
            if generation is None:
                continue
            marks = cluster.watermarks(TopicInfo(name=topic, id="", partitions=topics[topic]))
            lag = sum(
                one.high - max(one.low, committed[number].position if number in committed else 0)
                for number, one in marks.items()
            )
            if group in by_filling:  # what has not got to its own topic is not folded either
                row = by_filling[group]
            else:
                row = by_group.get(group) or rows.setdefault(generation, _Row(generation=generation))
                row.group, row.members = group, len(cluster.members(group))
                row.topic = topic if row.own_topic is None else row.topic
            row.lag = lag + (row.lag or 0)


def _table(rows: list[_Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("generation", "phase", "topic"):
        table.add_column(name, overflow="fold")
    for name in ("models", "lag", "members"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for row in rows:
        named = f" ({row.called})" if row.called not in (None, row.generation) else ""
        state: Any = Text(row.error, style="red") if row.error else Text(_where(row))
        table.add_row(
            Text(f"{row.generation}{named}"),
            row.phase or "-",
            Text(row.topic or "-"),
            *("-" if figure is None else f"{figure:,}" for figure in (row.models, row.lag, row.members)),
            state,
        )
    return table


def _where(row: _Row) -> str:
    if row.kept_in not in (None, FILES.name):
        return row.kept_in or ""
    return "-" if row.directory is None else _short(row.directory)


def _short(directory: str) -> str:
    """Give a path as it is seen from here, where that is shorter."""
    try:
        return str(Path(directory).relative_to(Path.cwd()))
    except ValueError:
        return directory
