"""`refold describe`: what a projection's state is of."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from projections.contract import CqrsProjection
from streams.cli.output import document, duration, local_time, printer, shown, size
from streams.cli.partitions import partitions_table
from streams.cli.parts import Located
from streams.cli.status import generation_lines, group_json, group_of, lag_line, rebuild_json, rebuild_line
from streams.cli.wiring import Flag, GroupOptions, ProjectionName
from streams.control.status import GroupView, StateView, view_state
from streams.errors import BrokerError

__all__ = ["describe"]


def describe(
    projection: ProjectionName,
    /,
    options: GroupOptions = GroupOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Print what a projection's state is of: code, codec, topic, build, directory, size, and the last rebuild.

    Example: refold describe aircraft-log --topic flights

    Args:
        projection: Which one.
        options: Where it is.
        json: Print one JSON object.
    """
    found = options.locate(projection, offline=True)
    state = view_state(found.store, found.code)
    group: GroupView | BrokerError
    try:
        group = group_of(found, state)
    except BrokerError as error:
        group = error  # what is on this machine can be told all the same
    if json:
        print(shown(_described(found, state, group)))  # noqa: T201
        return
    console = printer()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found, state, group):
        facts.add_row(name, Text(value))
    console.print(facts)
    if isinstance(group, GroupView):
        console.print()
        console.print(partitions_table(group), crop=False)


def _facts(found: Located, state: StateView | None, group: GroupView | BrokerError) -> list[tuple[str, str]]:
    name = found.projection.name
    facts = [("projection", f"{name}, version {found.projection.version}")]
    if found.code is not None:
        facts.append(("rebuilds", _behaviour(found.code)))
        facts.append(("events", _events(found.code)))
    if state is None:
        facts.append(("state", f"none in {found.store.directory.absolute()}"))
    else:
        manifest = state.build.manifest
        facts += [
            ("code", _code(found, state)),
            ("codec", state.build.current.codec),
            ("topic", f"{manifest.topic}, {manifest.partitions} partitions, id {manifest.topic_id}"),
            ("state", f"{state.directory.absolute()}, build {manifest.build}, begun {local_time(manifest.made)}"),
            ("size", f"{size(state.size_bytes)} on disk, {state.models:,} models"),
            ("rebuild", rebuild_line(state)),
            *(("registry", line) for line in generation_lines(found)),
        ]
        if manifest.incomplete:
            facts.append(("history", "incomplete, which was allowed: the topic had lost events when the build began"))
        if state.folding:
            facts.append(("folding", "; ".join(map(str, state.folding))))
    if isinstance(group, GroupView):
        facts.append(("group", lag_line(group)))
    else:
        facts.append(("group", f"{found.group}, unknown: {group}"))
    return facts


def _behaviour(projection: CqrsProjection[Any]) -> str:
    """Say what whoever rebuilds it is to know."""
    doc = projection.rebuild_doc
    parts = ["twice is as once" if projection.idempotent else "each event counts once"]
    if "typical_seconds_per_million_events" in doc:
        parts.append(f"typically {duration(doc['typical_seconds_per_million_events'])} for a million events")
    if "memory_bytes" in doc:
        parts.append(f"{size(doc['memory_bytes'])} of memory")
    needs = [*projection.depends_on, *([doc["dependencies"]] if "dependencies" in doc else [])]
    parts.append(f"depends on: {'; '.join(needs) or 'nothing that it names'}")
    return "; ".join([*parts, *([doc["notes"]] if "notes" in doc else [])])


def _events(projection: CqrsProjection[Any]) -> str:
    """Say which types its events have."""
    kinds = projection.event_types()
    if kinds is None:
        return "of any type, as plain JSON"
    return f"{', '.join(kinds.by_name)}; others are {'refused' if kinds.refuses_unknown else 'declined'}"


def _code(found: Located, state: StateView) -> str:
    if state.code_changed is None:
        return "not on this machine"
    if not state.code_changed:
        return "unchanged since the state was folded"
    return (
        f"changed since the state was folded: `refold rebuild {found.called}`, or `refold run {found.called} --adopt` "
        "where the change does not alter the fold"
    )


def _event_types(projection: CqrsProjection[Any] | None) -> list[str] | None:
    kinds = None if projection is None else projection.event_types()
    return None if kinds is None else list(kinds.by_name)


def _described(found: Located, state: StateView | None, group: GroupView | BrokerError) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "projection": found.projection.name,
        "version": found.projection.version,
        "directory": str(found.store.directory.absolute()),
        "rebuild_doc": None
        if found.code is None
        else {
            "idempotent": found.code.idempotent,
            "depends_on": list(found.code.depends_on),
            "typical_seconds_per_million_events": None,
            "memory_bytes": None,
            "dependencies": None,
            "notes": None,
            **found.code.rebuild_doc,
        },
        "event_types": _event_types(found.code),
        "state": None,
        "rebuild": rebuild_json(state),
    }
    if state is not None:
        manifest = state.build.manifest
        facts["state"] = {
            "build": manifest.build,
            "made": manifest.made,
            "code_changed": state.code_changed,
            "fingerprint": state.build.current.fingerprint,
            "codec": state.build.current.codec,
            "topic": manifest.topic,
            "topic_id": manifest.topic_id,
            "partitions": manifest.partitions,
            "incomplete": manifest.incomplete,
            "size_bytes": state.size_bytes,
            "models": state.models,
            "folding": [msgspec.to_builtins(holder) for holder in state.folding],
        }
    facts |= group_json(group) if isinstance(group, GroupView) else {"error": str(group)}
    return document("describe", facts)
