"""`refold doctor`: one pass over everything, each line with the way out."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from rich.text import Text

from projections.registry import ResolveError
from streams.adapters.kinds import kind_of
from streams.cli.output import document, printer, shown
from streams.cli.parts import find_projection
from streams.cli.wiring import Flag, PlaceOptions
from streams.cluster import Cluster
from streams.config import FoldSettings, KafkaSettings, SourceSettings, StateSettings
from streams.configfile import ConfigFile
from streams.control.doctor import check_cluster, check_disk, check_registry
from streams.control.examined import Known, check_projection
from streams.control.findings import Finding
from streams.control.record import Record
from streams.control.registry import Registry
from streams.resolving import unknown_variables

__all__ = ["doctor"]

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failure": ("FAILURE", "bold red")}


def doctor(
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Look over everything: brokers, rights, topics, groups, registry, state, snapshots, clocks and disk.

    Each line is ok, a warning or a failure, and says what to do. Nothing is changed, and no worker is needed. The exit
    code is that of the first failure: 7 where no broker answers, 5 where something is not allowed, otherwise 1; and 0
    where there is none, warnings or not.

    Example: refold doctor

    Args:
        options: Where Kafka, the registry and the state are.
        json: Print one JSON object.
    """
    from streams.cli.main import exit_code

    file = options.file()
    kafka, state = options.settings(file, KafkaSettings, StateSettings)
    found: list[Finding] = []
    for finding in _all(options, file, kafka, state):
        found.append(finding)
        if not json:
            _print(finding)
    failures = [one for one in found if one.state == "failure"]
    if json:
        print(shown(document("doctor", _json(found))))  # noqa: T201
    else:
        counts = {name: sum(one.state == name for one in found) for name in ("ok", "warning", "failure")}
        print(", ".join(f"{count} {name}" for name, count in counts.items()))  # noqa: T201
    if failures:
        raise SystemExit(1 if failures[0].error is None else exit_code(failures[0].error))


def _all(options: PlaceOptions, file: ConfigFile, kafka: KafkaSettings, state: StateSettings) -> Iterator[Finding]:
    yield Finding(
        what="refold",
        state="ok",
        told=f"version {version('refold')}, confluent-kafka {version('confluent-kafka')}, rocksdict "
        f"{version('rocksdict')}, Python {platform.python_version()}, {os.cpu_count()} processors",
    )
    unknown = unknown_variables()
    where = "no refold.toml" if file.path is None else f"{file.path}, with {len(file.projections)} projections"
    yield (
        Finding(what="settings", state="ok", told=where)
        if not unknown
        else Finding(
            what="settings",
            state="warning",
            told=f"{where}; nobody reads {', '.join(unknown)}",
            advice="Correct the names of these variables.",
        )
    )
    cluster, records = Cluster(kafka), dict[str, Record]()
    for finding in check_cluster(cluster):
        yield finding
        if finding.state == "failure":
            yield from check_disk(state.state_dir, records)
            return
    yield from check_registry(cluster, Registry(cluster, state.registry), state.registry, records)
    for known in _known(options, file, records):
        yield from check_projection(cluster, known, state.state_dir, kind_of(state))
    yield from check_disk(state.state_dir, records)


def _known(options: PlaceOptions, file: ConfigFile, records: dict[str, Record]) -> Iterator[Known]:
    """Give the file's projections, and those that only the registry knows."""
    told = set()
    for called in file.projections:
        source, folding = options.settings(file, SourceSettings, FoldSettings, projection=called)
        how: dict[str, Any] = {"called": called, "settings": folding, "topic": source.topic}
        try:
            projection = find_projection(called, file)
        except (ResolveError, ValueError) as error:
            told.add(called)
            yield Known(**how, why_not=str(error), record=records.get(called))
            continue
        told.add(projection.name)
        yield Known(**how, projection=projection, record=records.get(projection.name))
    (folding,) = options.settings(file, FoldSettings)
    for name in sorted(set(records) - told):
        try:
            projection = find_projection(name, file)
        except (ResolveError, ValueError):
            yield Known(called=name, settings=folding, record=records[name])
        else:
            yield Known(called=name, settings=folding, projection=projection, record=records[name])


def _print(one: Finding) -> None:
    mark, style = _MARKS[one.state]
    line = Text.assemble((f"{mark:8}", style), f"{one.what}: {one.told}")
    if one.advice:
        line.append(f"\n        {one.advice}", style="dim" if one.state == "warning" else "")
    printer().print(line, soft_wrap=True)


def _json(found: list[Finding]) -> dict[str, Any]:
    states = [one.state for one in found]
    return {
        "state": "failure" if "failure" in states else "warning" if "warning" in states else "ok",
        "findings": [
            {"what": one.what, "state": one.state, "told": one.told, "advice": one.advice or None} for one in found
        ],
    }
