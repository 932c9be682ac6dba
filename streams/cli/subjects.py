"""Which groups a command is about: a projection's, one that is named, or all that the registry knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from streams.cli.parts import find_or_absent, find_projection
from streams.cli.wiring import PlaceOptions
from streams.cluster import Cluster
from streams.config import KafkaSettings, SourceSettings, StateSettings
from streams.configfile import ConfigFile
from streams.control.lag import Subject
from streams.control.place import filling_group
from streams.control.record import Generation, Record
from streams.control.registry import Registry
from streams.data.checkpoint import generation_id
from streams.errors import ConfigError

__all__ = ["Subjects", "registered"]


def registered(name: str, file: ConfigFile, records: Mapping[str, Record], registry: Registry) -> str:
    """Give a projection's own name: as the registry has it, which needs none of its code, or by its code.

    Args:
        name: What it is called.
        file: The configuration file, whose names count too.
        records: What the registry knows.
        registry: The registry.

    Raises:
        ResolveError: There is no such projection; near names are told, those of the registry too.
    """
    if name in records and name not in file.projections:
        return name
    return find_or_absent(name, file, registry).name


class Subjects:
    """Finds groups.

    Args:
        options: Where Kafka, registry and file are.
    """

    def __init__(self, options: PlaceOptions) -> None:
        self.file = options.file()
        self.kafka: KafkaSettings
        self.kafka, state = options.settings(self.file, KafkaSettings, StateSettings)
        self.state_dir = state.state_dir
        self.cluster = Cluster(self.kafka)
        self.registry = Registry(self.cluster, state.registry)
        self._options = options

    def find(self, projection: str | None, group: str | None, topics: Sequence[str] = ()) -> list[Subject]:
        """Give the groups that are meant.

        Args:
            projection: All generations of this one that have a group.
            group: This one, whosever it is.
            topics: With a group: only these, all of their partitions.

        Raises:
            ConfigError: Both were named, or topics without a group.
            ResolveError: There is no such projection.
            BrokerError: From Kafka.
        """
        if projection is not None and group is not None:
            raise ConfigError("A projection or --group, not both: a projection's groups are those of its generations.")
        if topics and group is None:
            raise ConfigError("--topic goes with --group: a projection's topic is known.")
        records = self.registry.all()
        if group is not None:
            found = self.of_group(group, records)
            if topics:
                found = replace(found, topics={name: self.cluster.topic(name).partitions for name in topics})
            return [found]
        if projection is None:
            return [found for record in records.values() for one in record.generations for found in of(record, one)]
        name = registered(projection, self.file, records, self.registry)
        if name in records:
            return [found for one in records[name].generations for found in of(records[name], one)]
        coded = find_projection(projection, self.file)
        (source,) = self._options.settings(self.file, SourceSettings, projection=projection)
        named = source.group or f"refold.{generation_id(coded.name, coded.version)}"
        return [Subject(group=named, projection=name)]

    def of_group(self, group: str, records: Mapping[str, Record]) -> Subject:
        """Give a group, with what the registry knows of it."""
        for record in records.values():
            for one in record.generations:
                for found in of(record, one):
                    if found.group == group:
                        return found
        return Subject(group=group)


def of(record: Record, one: Generation) -> list[Subject]:
    """Give a generation's group, and that of those who fill the topic of its own, where it has one."""
    fold = Subject(
        group=one.group,
        topics={one.topic: one.partitions},
        projection=record.projection,
        generation=one.id,
        phase=one.phase,
    )
    filling = filling_group(one)
    if filling is None:
        return [fold]
    source, group = filling
    return [replace(fold, group=group, topics={source.name: source.partitions}), fold]
